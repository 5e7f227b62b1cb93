//! Outages of the Site DB: nothing is sent before it is stored, and no outcome of a send is lost.

use super::*;
use crate::harness::{Direction, Proxy, pace, private_databases};
use twinlog::dev::postgres::{Settings as ClusterSettings, Shutdown};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_site_db_nothing_is_sent_and_requests_get_a_503() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    proxy.refuse(true);
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    // The server starts although the Site DB is unreachable.
    let server = Server::start(world.config.clone()).await;
    world.meta.set_callback(Some(server.callback()));
    let refused = server.graph(&text("x")).await;
    assert_eq!((refused.status, refused.code()), (503, 2), "{refused:?}");
    let refused = server.plain(&json!({"to": USER, "text": "x"})).await;
    assert_eq!(
        (refused.status, &refused.body["error"]["code"]),
        (503, &json!("storage_unavailable"))
    );
    assert!(server.health.report().values().any(|status| !status.ready));
    assert!(world.meta.ledger().messages.is_empty());
    // A webhook gets a 503 too, so Meta sends it again later.
    let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    assert_eq!(world.meta.post_webhook(body).await, Some(503));

    proxy.refuse(false);
    server.ready().await;
    assert_eq!(server.graph(&text("x")).await.status, 200);
    assert_eq!(world.meta.post_webhook(body).await, Some(200));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_db_that_is_not_migrated_is_waited_for() {
    let db = harness::databases().await;
    let meta = Simulator::start(prompt()).await.unwrap();
    let server = Server::start(configuration(&db.site.url, &meta.url(), "simulator-token")).await;
    let reason = eventually("the readiness says why", SOON, || async {
        let report = server.health.report();
        match report.get("site_db").and_then(|status| status.reason.clone()) {
            Some(reason) if reason.contains("migrate") => Ok(reason),
            other => Err(other),
        }
    })
    .await;
    assert!(reason.contains("twinlog migrate site"), "{reason}");
    assert_eq!(server.graph(&text("x")).await.status, 503);
    migrations::apply_site(&db.site.database_url()).await.unwrap();
    server.ready().await;
    assert_eq!(server.graph(&text("x")).await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_can_not_be_stored_is_stored_when_the_site_db_is_back() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    let server = world.serve().await;
    world.meta.pause_webhooks(true);
    world.fault(Fault::SlowAnswer { delay_ms: 500 });
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    world.until_accepted(1).await;
    proxy.refuse(true);
    proxy.cut();
    eventually("the gap shows", SOON, || async {
        let report = server.health.report();
        let detail = report["outbox"].detail["sent_unrecorded"].clone();
        if detail == json!(1) { Ok(()) } else { Err(detail) }
    })
    .await;
    assert_eq!(world.status(&id).await, "sending");
    proxy.refuse(false);
    world.reaches(&id, &["accepted"]).await;
    assert_eq!(world.accepted(), 1);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_site_db_in_the_middle_loses_and_doubles_nothing() {
    let db = private_databases(ClusterSettings::default().durable(), ClusterSettings::default()).await;
    let mut world = World::with(db, prompt()).await;
    let server = Arc::new(world.serve().await);
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..60 {
        let server = Arc::clone(&server);
        requests.spawn(async move {
            let body = json!({"to": format!("+16505554{:03}", index % 15), "text": format!("{index}"), "client_id": format!("c{index}")});
            // A correct client: it repeats its request with the same id until it gets an answer.
            loop {
                let answer = server.plain(&body).await;
                if answer.status < 300 {
                    return answer.id();
                }
                pace(Duration::from_millis(100)).await;
            }
        });
    }
    eventually("some are sent", SOON, || async {
        let sent = world.accepted();
        if sent >= 10 { Ok(()) } else { Err(sent) }
    })
    .await;
    world.db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
    world.db.site.reconnect().await;
    let ids = requests.join_all().await;
    for id in &ids {
        // Messages whose answer was lost in the crash are settled by their statuses.
        world.is_sent(id).await;
    }
    assert_eq!(world.accepted(), 60);
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_db_that_hangs_does_not_hang_the_clients() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    let server = world.serve().await;
    assert_eq!(server.graph(&text("x")).await.status, 200);
    proxy.hold(Direction::ToClient);
    let started = std::time::Instant::now();
    let refused = server.graph(&text("y")).await;
    // It may be stored.
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    proxy.release(Direction::ToClient);
    eventually("it works again", SOON, || async {
        let answer = server.graph(&text("z")).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    server.stop().await;
}

/// The next message is stored slowly, and the connection breaks meanwhile: Postgres commits it all the same.
async fn breaks_after_the_commit(world: &World, proxy: &Proxy) {
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    world.db.until_site("the message is being stored", sleeping, "1").await;
    proxy.cut();
    world.db.on_site("DROP TRIGGER slow ON whatsapp_messages").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_storing_lost_its_answer_is_found_and_sent_once_on_each_route() {
    // GIVEN a connection that breaks while the message is being stored
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    let server = world.serve().await;
    assert_eq!(server.graph(&text("before")).await.status, 200);
    world
        .db
        .on_site(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$",
        )
        .await;
    let slow = "CREATE TRIGGER slow AFTER INSERT ON whatsapp_messages FOR EACH STATEMENT EXECUTE FUNCTION slow()";
    world.db.on_site(slow).await;
    // WHEN a Graph client sends, and another client
    let (body, plain) = (text("only once"), json!({"to": USER, "text": "only once, too"}));
    let (sent, ()) = tokio::join!(server.graph(&body), breaks_after_the_commit(&world, &proxy));
    world.db.on_site(slow).await;
    let (taken, ()) = tokio::join!(server.plain(&plain), breaks_after_the_commit(&world, &proxy));
    // THEN both have the answer of the one message that is stored and sent.
    assert_eq!((sent.status, taken.status), (200, 202), "{sent:?} {taken:?}");
    world.is_sent(&sent.id()).await;
    world.is_sent(&taken.id()).await;
    assert_eq!((world.accepted(), world.count("direction = 'outbound'").await), (3, 3));
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_can_not_be_looked_for_after_its_storing_lost_its_answer_is_told_as_unknown_and_its_repeat_sends_nothing()
 {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    // Longer than the message is looked for, so that it is still to be sent by then.
    world.config.http.send_wait = Duration::from_secs(30);
    let server = world.serve().await;
    assert_eq!(server.graph(&text("before")).await.status, 200);
    // GIVEN a connection that breaks after the commit and before its answer
    proxy.hold(Direction::ToClient);
    let body = text("only once");
    let (told, ()) = tokio::join!(server.graph(&body), async {
        world.until_count(2, "direction = 'outbound'").await;
        proxy.refuse(true);
        proxy.cut();
        proxy.release(Direction::ToClient);
    });
    assert_eq!(told.status, 409, "{told:?}");
    proxy.refuse(false);
    // The repeat is recognised, and gets the message's own answer.
    let again = eventually("the Site DB is back", SOON, || async {
        let answer = server.graph(&body).await;
        if answer.status == 503 { Err(answer) } else { Ok(answer) }
    })
    .await;
    assert_eq!((again.status, again.id()), (200, told.id()), "{again:?}");
    assert_eq!((world.accepted(), world.count("direction = 'outbound'").await), (2, 2));
    server.stop().await;
}
