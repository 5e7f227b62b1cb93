//! Numbers that can't send: expired tokens, restrictions, rate limits.

use super::*;

async fn account(world: &World, column: &str) -> Option<String> {
    world
        .db
        .site
        .text(&format!("SELECT {column} FROM whatsapp_accounts"))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_holds_the_number_and_a_new_one_releases_it() {
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_secs(3600);
    let server = world.serve().await;
    world.meta.expire_token(NUMBER).unwrap();
    let mut ids = Vec::new();
    for index in 0..5 {
        let taken = server
            .plain(&json!({"to": format!("+1650555100{index}"), "text": "x"}))
            .await;
        assert_eq!(taken.status, 202);
        ids.push(taken.body["id"].as_str().unwrap().to_owned());
    }
    eventually("the number is held", SOON, || async {
        let status = account(&world, "status").await;
        if status.as_deref() == Some("held") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    assert_eq!(account(&world, "hold_code").await.as_deref(), Some("190"));
    eventually("all messages wait", SOON, || async {
        let pending = world.count("status = 'pending' AND attempt = 0").await;
        if pending == 5 { Ok(()) } else { Err(pending) }
    })
    .await;
    let told = "SELECT count(*) FROM notifications WHERE kind = 'account_held'";
    assert_eq!(world.db.site.text(told).await.as_deref(), Some("1"));
    // A client that waits is told that it waits in vain, and why.
    let refused = server.graph(&text("now")).await;
    assert_eq!((refused.status, refused.code()), (503, 131_016), "{refused:?}");
    server.stop().await;

    world.meta.set_token(NUMBER, "new-token").unwrap();
    let mut config = configuration(&world.db.site.url, &world.meta.url(), "new-token");
    config.whatsapp.hold_probe = Duration::from_secs(3600);
    world.config = config;
    let server = world.serve().await;
    for id in &ids {
        world.reaches(id, &["accepted", "sent", "delivered"]).await;
        assert_eq!(world.column(id, "attempt").await.as_deref(), Some("1"));
    }
    assert_eq!(account(&world, "status").await.as_deref(), Some("active"));
    assert_eq!(world.meta.ledger().messages.len(), 5);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_out_that_the_cause_is_gone() {
    let world = World::new().await;
    let server = world.serve().await;
    world.fault(Fault::Error {
        code: 131_031,
        subcode: None,
    });
    let taken = server.plain(&json!({"to": USER, "text": "x"})).await;
    let id = taken.body["id"].as_str().unwrap();
    eventually("the number is held", SOON, || async {
        let status = account(&world, "status").await;
        if status.as_deref() == Some("held") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    world.meta.clear_faults(NUMBER).unwrap();
    world.reaches(id, &["accepted", "sent", "delivered"]).await;
    eventually("the number is released", SOON, || async {
        let status = account(&world, "status").await;
        if status.as_deref() == Some("active") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_refused_for_the_account_alone_stops_itself_and_not_the_number() {
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_millis(300);
    let server = world.serve().await;
    // The account may not do what this message asks for; all else it may.
    let outcast = "+16505550000";
    let fault = Fault::Error { code: 3, subcode: None };
    world.meta.set_fault_for(NUMBER, outcast, fault).unwrap();
    let taken = server.plain(&json!({"to": outcast, "text": "x"})).await;
    let id = taken.body["id"].as_str().unwrap();
    let others = async {
        for index in 0.. {
            let to = format!("+16505551{index:03}");
            assert!(server.plain(&json!({"to": to, "text": "x"})).await.status < 300);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        status = world.reaches(id, &["failed"]) => assert_eq!(status, "failed"),
        () = others => {}
    }
    assert_eq!(world.column(id, "error_code").await.as_deref(), Some("3"));
    let last = server.plain(&json!({"to": USER, "text": "x", "wait": 10_000})).await;
    assert_eq!(last.status, 200, "{last:?}");
    eventually("all others are sent", SOON, || async {
        let waiting = world.count("status IN ('pending', 'sending')").await;
        if waiting == 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
    assert_eq!(account(&world, "status").await.as_deref(), Some("active"));
    assert_eq!(world.count("status = 'failed'").await, 1);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_good_token_takes_over_from_one_with_a_bad_one() {
    let world = World::new().await;
    world.meta.set_token(NUMBER, "good").unwrap();
    let mut bad = world.config.clone();
    bad.whatsapp.hold_probe = Duration::from_secs(3600);
    let bad = Server::start(bad).await;
    bad.ready().await;
    let first = bad.plain(&json!({"to": USER, "text": "x"})).await;
    let id = first.body["id"].as_str().unwrap();
    eventually("the number is held", SOON, || async {
        let status = account(&world, "status").await;
        if status.as_deref() == Some("held") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    let good = Server::start(configuration(&world.db.site.url, &world.meta.url(), "good")).await;
    world.meta.set_callback(Some(good.callback()));
    world.reaches(id, &["accepted", "sent", "delivered"]).await;
    assert_eq!(world.meta.ledger().messages.len(), 1);
    bad.stop().await;
    good.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_and_nothing_is_lost_by_it() {
    let mut world = World::new().await;
    world.config.whatsapp.accounts[0].messages_per_second = 20;
    let server = world.serve().await;
    let started = std::time::Instant::now();
    for index in 0..60 {
        let to = format!("+16505552{index:03}");
        assert!(server.plain(&json!({"to": to, "text": "x"})).await.status < 300);
    }
    eventually("all are sent", SOON, || async {
        let sent = world.meta.ledger().messages.len();
        if sent == 60 { Ok(()) } else { Err(sent) }
    })
    .await;
    // 60 at 20 a second, less the burst of 2 and the one that is kept.
    assert!(
        started.elapsed() >= Duration::from_millis(2750),
        "{:?}",
        started.elapsed()
    );
    let ledger = world.meta.ledger();
    for window in ledger.messages.windows(26) {
        let span = window[25].accepted_at - window[0].accepted_at;
        assert!(span >= Duration::from_secs(1), "26 messages within {span}");
    }
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}
