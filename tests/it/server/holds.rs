//! Numbers that can't send: expired tokens, restrictions, rate limits.

use super::*;
use crate::harness::pace;

async fn account(world: &World, column: &str) -> Option<String> {
    let query = format!("SELECT {column} FROM whatsapp_accounts");
    world.db.site.text(&query).await
}

/// Waits until the number has this status.
async fn until_account(world: &World, status: &str) {
    let query = "SELECT status FROM whatsapp_accounts";
    world.db.until_site("the number's status", query, status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_holds_the_number_and_a_new_one_releases_it() {
    // GIVEN a server that does not probe by itself
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_secs(3600);
    let server = world.serve().await;

    // WHEN the token expires, all messages wait, and the operator sees why
    world.meta.expire_token(NUMBER).unwrap();
    let mut ids = Vec::new();
    for index in 0..5 {
        let to = format!("+1650555100{index}");
        let taken = server.plain(&json!({"to": to, "text": "x"})).await;
        assert_eq!(taken.status, 202);
        ids.push(taken.id());
    }
    until_account(&world, "held").await;
    assert_eq!(account(&world, "hold_code").await.as_deref(), Some("190"));
    world.until_count(5, "status = 'pending' AND attempt = 0").await;
    let told = "SELECT count(*) FROM notifications WHERE kind = 'account_held'";
    assert_eq!(world.db.site.value(told).await, "1");
    // Clients that wait get Meta's answer at once, each of them, so that they ask for a new token.
    let started = std::time::Instant::now();
    for _ in 0..3 {
        let refused = server.graph(&text("now")).await;
        assert_eq!((refused.status, refused.code()), (401, 190), "{refused:?}");
        assert_eq!(world.status(&refused.id()).await, "cancelled");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    server.stop().await;

    // THEN a server with a new one sends them
    world.meta.set_token(NUMBER, "new-token").unwrap();
    let mut config = configuration(&world.db.site.url, &world.meta.url(), "new-token");
    config.whatsapp.hold_probe = Duration::from_secs(3600);
    world.config = config;
    let server = world.serve().await;
    for id in &ids {
        world.is_sent(id).await;
        assert_eq!(world.value(id, "attempt").await, "1");
    }
    assert_eq!(account(&world, "status").await.as_deref(), Some("active"));
    assert_eq!(world.accepted(), 5);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_number_answers_at_once_with_its_reason_on_both_routes_whatever_the_reason() {
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_secs(3600);
    let server = world.serve().await;
    for (code, subcode, status) in [
        (190, Some(463), 401),
        (0, None, 401),
        (10, None, 403),
        (200, None, 403),
        (100, Some(33), 400),
        (368, None, 403),
        (131_005, None, 403),
        (131_031, None, 403),
        (131_042, None, 400),
        (131_048, None, 400),
        (133_010, None, 400),
    ] {
        world.fault(Fault::Error { code, subcode });
        // The first one tells that the number can't send.
        server.takes(&json!({"to": USER, "text": "x"})).await;
        until_account(&world, "held").await;
        let reason = server.is_in_trouble(&format!("number {NUMBER}"), "held").await;
        assert!(reason.contains(&format!("code {code}")), "{reason}");
        let started = std::time::Instant::now();
        let refused = server.graph(&text("now")).await;
        assert_eq!(
            (i64::from(refused.status), refused.code()),
            (status, code),
            "{refused:?}"
        );
        assert_eq!(world.status(&refused.id()).await, "cancelled");
        let waits = server.plain(&json!({"to": USER, "text": "x", "wait": 10_000})).await;
        assert_eq!(
            (waits.status, &waits.body["held"]["code"]),
            (202, &json!(code)),
            "{waits:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{code}: {:?}",
            started.elapsed()
        );
        world.meta.clear_faults(NUMBER).unwrap();
        world
            .db
            .on_site(
                "UPDATE whatsapp_messages SET status = 'cancelled' WHERE status = 'pending';
                 UPDATE whatsapp_accounts SET status = 'active', hold_code = NULL, hold_reason = NULL",
            )
            .await;
        server.all_is_well().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_out_that_the_cause_is_gone() {
    let (world, server) = World::served().await;
    world.fault(Fault::Error {
        code: 131_031,
        subcode: None,
    });
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    until_account(&world, "held").await;
    world.meta.clear_faults(NUMBER).unwrap();
    world.is_sent(&id).await;
    until_account(&world, "active").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_refused_for_the_account_alone_stops_itself_and_not_the_number() {
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_millis(300);
    let server = world.serve().await;
    // Meta refuses this kind of message for the account, and accepts all others.
    let outcast = "+16505550000";
    let fault = Fault::Error { code: 3, subcode: None };
    world.meta.set_fault_for(NUMBER, outcast, fault).unwrap();
    let id = server.takes(&json!({"to": outcast, "text": "x"})).await;
    let others = async {
        for index in 0.. {
            server
                .takes(&json!({"to": format!("+16505551{index:03}"), "text": "x"}))
                .await;
            pace(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = world.reaches(&id, &["failed"]) => {}
        () = others => {}
    }
    assert_eq!(world.value(&id, "error_code").await, "3");
    let last = server.plain(&json!({"to": USER, "text": "x", "wait": 10_000})).await;
    assert_eq!(last.status, 200, "{last:?}");
    world.until_count(0, "status IN ('pending', 'sending')").await;
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
    let id = bad.takes(&json!({"to": USER, "text": "x"})).await;
    until_account(&world, "held").await;
    let good = Server::start(configuration(&world.db.site.url, &world.meta.url(), "good")).await;
    world.meta.set_callback(Some(good.callback()));
    world.is_sent(&id).await;
    assert_eq!(world.accepted(), 1);
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
        server.takes(&json!({"to": to, "text": "x"})).await;
    }
    world.until_accepted(60).await;
    // 60 messages at 20 a second, minus the burst of 2 and the one that is kept back.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_message_that_alone_is_refused_stops_nobody_else() {
    // GIVEN a number that sends
    let (world, server) = World::served().await;
    let outcast = "+16505550000";
    let fault = Fault::Error {
        code: 10,
        subcode: None,
    };
    world.meta.set_fault_for(NUMBER, outcast, fault).unwrap();
    // WHEN Meta refuses messages of one kind, again and again
    for round in 0..4 {
        assert_eq!(server.graph(&text(&format!("normal {round}"))).await.status, 200);
        for _ in 0..2 {
            let refused = server.graph(&text_to(outcast, "x")).await;
            // THEN they are answered at once with Meta's own error, and are not sent later
            assert_eq!((refused.status, refused.code()), (403, 10), "{refused:?}");
            assert_eq!(world.status(&refused.id()).await, "cancelled");
        }
    }
    // AND the number is not held.
    assert_eq!(account(&world, "status").await.as_deref(), Some("active"));
    assert_eq!(world.accepted(), 4);
    server.stop().await;
}
