//! The webhook's route. The tests of `inbox` check what its events do.

use super::*;
use secrecy::SecretString;

#[tokio::test(flavor = "multi_thread")]
async fn the_handshake_succeeds_with_the_verify_token_alone() {
    let (world, server) = World::served().await;
    world.meta.handshake().await.unwrap();
    let good = server
        .get("/webhook?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=simulator-verify-token")
        .await;
    assert_eq!((good.status, &good.body), (200, &json!(1_158_201_444)));
    for query in [
        "",
        "?hub.mode=subscribe&hub.challenge=1",
        "?hub.mode=subscribe&hub.challenge=1&hub.verify_token=",
        "?hub.mode=subscribe&hub.challenge=1&hub.verify_token=wrong",
        "?hub.mode=unsubscribe&hub.challenge=1&hub.verify_token=simulator-verify-token",
    ] {
        assert_eq!(server.get(&format!("/webhook{query}")).await.status, 403, "{query}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_stored_before_its_200_and_a_forged_one_never() {
    let (world, server) = World::served().await;
    let events = || world.db.site.text("SELECT count(*) FROM webhook_events");
    let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    assert_eq!(world.meta.post_webhook(body).await, Some(200));
    assert_eq!(events().await.as_deref(), Some("1"));
    let kept = world
        .db
        .site
        .text("SELECT convert_from(body, 'UTF8') FROM webhook_events")
        .await;
    assert_eq!(kept.unwrap().as_bytes(), body);

    let forger = SecretString::from("not-the-secret");
    assert_eq!(world.meta.post_forged(body, &forger).await, Some(401));
    // The signature is checked before the body is parsed.
    assert_eq!(world.meta.post_forged(b"{", &forger).await, Some(401));
    assert_eq!(server.post("/webhook", &[], String::new()).await.status, 401);
    let malformed = server
        .post("/webhook", &[("x-hub-signature-256", "sha256=xyz")], "{}".to_owned())
        .await;
    assert_eq!(malformed.status, 401);
    assert_eq!(world.meta.post_webhook(&vec![b' '; 5_000_000]).await, Some(413));
    assert_eq!(events().await.as_deref(), Some("1"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_finds_the_conversation_of_what_it_answers() {
    let (world, server) = World::served().await;
    let sent = server.graph(&text("how are you?")).await;
    let wamid = world.meta.inbound(Inbound::text(NUMBER, "16505551234", "fine")).await;
    let conversation = Some(world.value(&sent.id(), "conversation_id").await);
    // NULL until the answer has arrived.
    let found = format!("SELECT min(conversation_id::text) FROM whatsapp_messages WHERE wamid = '{wamid}'");
    eventually_equal("the answer is in the same conversation", SOON, conversation, || {
        world.db.site.text(&found)
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_events_and_senders_with_the_same_people_do_not_wait_in_a_circle() {
    // GIVEN people who write while we write to them, and statuses that report their ids
    let (world, server) = World::served().await;
    let (world, server) = (Arc::new(world), Arc::new(server));
    let mut talks = tokio::task::JoinSet::new();
    for number in 0..120 {
        let (world, server) = (Arc::clone(&world), Arc::clone(&server));
        talks.spawn(async move {
            let user = format!("165055500{:02}", number % 6);
            let body = json!({"to": user, "text": format!("{number}")});
            let sent = server.plain(&body).await;
            world.meta.inbound(Inbound::text(NUMBER, &user, "and you?")).await;
            sent.status
        });
    }
    let statuses = talks.join_all().await;
    assert!(statuses.iter().all(|status| *status < 300), "{statuses:?}");
    world.until_count(120, "status = 'delivered'").await;
    world.until_count(120, "status = 'received'").await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.db.site.value(deadlocks).await, "0");
    assert_eq!(world.db.site.value("SELECT count(*) FROM leads").await, "6");
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}
