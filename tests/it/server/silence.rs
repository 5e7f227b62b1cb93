//! The Site DB's host goes silent in the middle of a statement, without a reset: nothing hangs, the health says so, and the
//! work goes on through new connections.

use super::*;
use crate::harness::{Direction, Proxy};

/// A server whose way to the Site DB leads through a proxy.
struct Behind {
    world: World,
    proxy: Proxy,
    server: Server,
}

impl Behind {
    async fn new() -> Self {
        let mut world = World::new().await;
        let proxy = Proxy::start(world.db.site.cluster.port()).await;
        world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
        let server = world.serve().await;
        // The number has its lease, and everything is prepared.
        let first = json!({"to": USER, "text": "first", "client_id": "first"});
        eventually("the first message is taken", SOON, || async {
            let taken = server.plain(&first).await;
            if taken.status < 300 { Ok(()) } else { Err(taken) }
        })
        .await;
        world.until_accepted(1).await;
        Self { world, proxy, server }
    }

    /// Waits until a statement of the server that contains this text waits for a lock.
    async fn stands_still(&self, statement: &str) {
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'twinlog serve' AND wait_event_type = 'Lock'
                AND datname = current_database() AND query LIKE '%{statement}%'"
        );
        eventually(&format!("a statement on {statement} waits"), SOON, || async {
            let count = self.world.db.site.value(&waits).await;
            if count == "0" { Err(count) } else { Ok(()) }
        })
        .await;
    }
}

/// The server stands still in a statement on `table` when all its connections go silent; then everything is sent and
/// received all the same.
async fn goes_silent(lock: &str, statement: &str) {
    let behind = Behind::new().await;
    let Behind { world, proxy, server } = &behind;
    let locker = world.db.site.connect().await;
    locker.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
    let message = json!({"to": USER, "text": "second", "client_id": "c"});
    let sending = server.plain(&message);
    let writing = world.meta.inbound(Inbound::text(NUMBER, "16505551234", "hello?"));
    let acting = async { tokio::join!(sending, writing) };
    let silencing = async {
        behind.stands_still(statement).await;
        proxy.silence();
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let ((_, _), ()) = tokio::join!(acting, silencing);
    // A correct client repeats its request until it gets an answer.
    eventually("the message is taken", SOON, || async {
        let taken = server.plain(&message).await;
        if taken.status < 300 { Ok(()) } else { Err(taken) }
    })
    .await;
    world.until_accepted(2).await;
    world
        .until_count(2, "direction = 'outbound' AND wamid IS NOT NULL")
        .await;
    world.until_count(1, "direction = 'inbound'").await;
    server.ready().await;
    eventually("every connection that went silent is given up", SOON, || async {
        let pool = server.health.report()["pool"].detail.clone();
        let used = pool["in_use"].as_u64().unwrap();
        if used <= 3 && pool["dropped"].as_u64() > Some(0) {
            Ok(())
        } else {
            Err(pool)
        }
    })
    .await;
    world.nothing_lost_or_doubled().await;
    behind.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_goes_silent_in_any_statement_stops_nothing() {
    tokio::join!(
        goes_silent("LOCK TABLE twinlog.number_leases", "number_leases"),
        goes_silent("LOCK TABLE whatsapp_messages", "whatsapp_messages"),
        goes_silent("LOCK TABLE webhook_events", "webhook_events"),
        goes_silent("LOCK TABLE message_status_events", "message_status_events"),
        goes_silent("LOCK TABLE conversations", "conversations"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_whole_host_is_silent_the_health_says_so_and_afterwards_all_goes_on() {
    let Behind { world, proxy, server } = Behind::new().await;
    proxy.half_open();
    // Whether it is stored is not known, so the client is not told to try again.
    let refused = server.graph(&text("lost")).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    eventually("every part that needs the Site DB says so", SOON, || async {
        let report = server.health.report();
        let number = format!("number {NUMBER}");
        let well: Vec<&str> = ["site_db", "outbox", "inbox", number.as_str()]
            .into_iter()
            .filter(|name| report[*name].is_well())
            .collect();
        if well.is_empty() {
            Ok(())
        } else {
            Err(format!("{well:?} of {report:?}"))
        }
    })
    .await;
    // The old connections stay silent for ever.
    proxy.silence();
    proxy.release(Direction::ToServer);
    proxy.release(Direction::ToClient);
    server.ready().await;
    let id = server.takes(&json!({"to": USER, "text": "x", "wait": 3000})).await;
    world.is_sent(&id).await;
    server.stop().await;
}
