//! Several servers on one Site DB, and servers that die.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_never_send_a_message_twice() {
    let world = World::new().await;
    let one = Arc::new(world.serve().await);
    let two = Arc::new(Server::start(world.config.clone()).await);
    two.ready().await;
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..120 {
        let server = Arc::clone(if index % 2 == 0 { &one } else { &two });
        // Every key goes to both servers.
        requests.spawn(async move {
            let key = index / 2;
            let body = text_to(&format!("+16505553{:03}", key % 20), &format!("message {key}"));
            server.graph_with(&body, Some(&format!("key-{key}"))).await
        });
    }
    for answer in requests.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(world.accepted(), 60);
    assert_eq!(world.count("direction = 'outbound'").await, 60);
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(one).unwrap().stop().await;
    Arc::into_inner(two).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_sent_for_by_one_server_and_taken_over_when_it_stops() {
    let world = World::new().await;
    let one = world.serve().await;
    let owner = || world.db.site.text("SELECT owner FROM twinlog.number_leases");
    let first = eventually("one server leases the number", SOON, || async {
        let rows = world.db.site.text("SELECT count(*) FROM twinlog.number_leases").await;
        if rows.as_deref() == Some("1") {
            Ok(owner().await)
        } else {
            Err(rows)
        }
    })
    .await;
    let two = Server::start(world.config.clone()).await;
    two.ready().await;
    // The second server accepts the message, and the first one sends it.
    let answer = two.graph(&text("x")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(owner().await, first);
    one.stop().await;
    world.meta.set_callback(Some(two.callback()));
    let answer = two.graph(&text("y")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(owner().await, first);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_servers_attempt_becomes_unknown_and_its_pending_messages_are_sent() {
    let (world, server) = World::served().await;
    assert_eq!(server.graph(&text("makes the account")).await.status, 200);
    server.stop().await;
    // What a killed process leaves: a message that is being sent, a pending one, and one whose client waits.
    world.db.on_site(
            "INSERT INTO whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, request, \
             attempt, lease_owner, lease_until, sending_at, next_attempt_at, send_by) \
             SELECT v.id::uuid, account_id, conversation_id, lead_id, 'outbound', v.status, 'text', request, v.attempt, \
                    CASE WHEN v.status = 'sending' THEN gen_random_uuid() END, \
                    CASE WHEN v.status = 'sending' THEN now() - interval '1 second' END, now(), now(), \
                    now() + v.send_by::interval \
             FROM whatsapp_messages m, (VALUES ('00000000-0000-0000-0000-000000000001', 'sending', 1, NULL), \
               ('00000000-0000-0000-0000-000000000002', 'pending', 0, NULL), \
               ('00000000-0000-0000-0000-000000000003', 'pending', 0, '-10 seconds')) v (id, status, attempt, send_by)",
        ).await;
    let server = world.serve().await;
    world
        .reaches("00000000-0000-0000-0000-000000000001", &["unknown"])
        .await;
    world.is_sent("00000000-0000-0000-0000-000000000002").await;
    world
        .reaches("00000000-0000-0000-0000-000000000003", &["cancelled"])
        .await;
    assert_eq!(world.accepted(), 2);
    // Then the status of the first one arrives.
    let status = json!([{"id": "wamid.LATE", "status": "sent", "timestamp": "1750030073", "recipient_id": "16505551234",
        "biz_opaque_callback_data": "tl:00000000-0000-0000-0000-000000000001"}]);
    world
        .meta
        .update(
            NUMBER,
            "messages",
            json!({"messaging_product": "whatsapp", "statuses": status}),
        )
        .await;
    world.reaches("00000000-0000-0000-0000-000000000001", &["sent"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_the_attempt_under_way_end_and_begins_no_other() {
    let (world, server) = World::served().await;
    // No status may arrive for the first message before its answer.
    world.meta.pause_webhooks(true);
    world.fault(Fault::SlowAnswer { delay_ms: 500 });
    let taken = server.plain(&json!({"to": USER, "text": "1"})).await;
    let (first, second) = (
        taken.body["id"].as_str().unwrap().to_owned(),
        server.plain(&json!({"to": USER, "text": "2"})).await,
    );
    let second = second.body["id"].as_str().unwrap().to_owned();
    world.until_accepted(1).await;
    server.stop().await;
    assert!(["accepted", "sent", "delivered"].contains(&world.status(&first).await.as_str()));
    assert_eq!(world.status(&second).await, "pending");
    world.meta.clear_faults(NUMBER).unwrap();
    world.meta.pause_webhooks(false);
    let server = world.serve().await;
    world.is_sent(&second).await;
    assert_eq!(world.accepted(), 2);
    server.stop().await;
}
