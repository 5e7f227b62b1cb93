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
    assert!(refused.status >= 500, "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    proxy.release(Direction::ToClient);
    eventually("it works again", SOON, || async {
        let answer = server.graph(&text("z")).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    server.stop().await;
}
