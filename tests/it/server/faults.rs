//! Answers of Meta that are lost or late: the row never claims more than is known, and nothing is sent twice.

use super::*;
use twinlog::dev::graph_simulator::Settings as SimulatorSettings;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_unknown_until_the_status_settles_it() {
    for fault in [
        Fault::AcceptThenHang,
        Fault::AcceptThenReset,
        Fault::AcceptThenBadGateway,
        Fault::AcceptThenServerError,
    ] {
        let (world, server) = World::served().await;
        world.meta.pause_webhooks(true);
        world.fault_once(fault);
        let lost = server.graph_with(&text("perhaps"), Some("k")).await;
        assert_eq!((lost.status, lost.code()), (409, 100), "{fault:?} {lost:?}");
        let id = lost.id();
        assert_eq!(world.status(&id).await, "unknown", "{fault:?}");
        // A repeated request with the same key sends nothing.
        assert_eq!(server.graph_with(&text("perhaps"), Some("k")).await.status, 409);
        // An unknown message does not block the conversation.
        assert_eq!(server.graph(&text("next")).await.status, 200, "{fault:?}");

        world.meta.pause_webhooks(false);
        world.reaches(&id, &["sent", "delivered"]).await;
        let found = server.graph_with(&text("perhaps"), Some("k")).await;
        assert_eq!(found.status, 200, "{found:?}");
        assert_eq!(Some(found.wamid()), world.column(&id, "wamid").await);
        assert_eq!(world.accepted(), 2, "{fault:?}");
        world.nothing_lost_or_doubled().await;
        server.stop().await;
    }
}

/// A client that repeats whatever is not a success, five times at most. Returns the last answer.
async fn stubborn(server: &Server, body: &Value) -> in_process::Answer {
    let mut answer = server.graph(body).await;
    for _ in 0..4 {
        if answer.status == 200 {
            break;
        }
        answer = server.graph(body).await;
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_repeats_its_request_reaches_the_person_once() {
    let (world, server) = World::served().await;
    for (number, fault) in (1..).zip([
        Fault::AcceptThenHang,
        Fault::AcceptThenReset,
        Fault::AcceptThenBadGateway,
        Fault::AcceptThenServerError,
    ]) {
        world.meta.pause_webhooks(true);
        world.fault_once(fault);
        let body = text(&format!("only once {number}"));
        let lost = stubborn(&server, &body).await;
        assert_eq!(lost.status, 409, "{fault:?} {lost:?}");
        // Another text is another message.
        assert_eq!(server.graph(&text(&format!("other {number}"))).await.status, 200);
        world.meta.pause_webhooks(false);
        world.is_sent(&lost.id()).await;
        // The repeat gets the answer that was lost.
        let found = stubborn(&server, &body).await;
        assert_eq!((found.status, found.id()), (200, lost.id()), "{fault:?}");
        assert_eq!(world.accepted(), number * 2, "{fault:?}");
    }
    // An equal text is another message again when the loss is long past, and whenever none was lost.
    world
        .db
        .on_site("UPDATE whatsapp_messages SET unknown_at = unknown_at - interval '1 hour'")
        .await;
    let before = world.accepted();
    for body in ["only once 1", "other 1", "other 1"] {
        assert_eq!(server.graph(&text(body)).await.status, 200);
    }
    assert_eq!(world.accepted(), before + 3);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_repeats_before_the_loss_is_known_reaches_the_person_once() {
    // GIVEN a message whose answer never comes, and whose client asks again before the server has given it up
    let mut world = World::new().await;
    world.config.http.send_wait = Duration::from_millis(800);
    let server = world.serve().await;
    world.meta.pause_webhooks(true);
    world.fault_once(Fault::AcceptThenHang);
    let body = text("only once");
    let again = async {
        world.until_count(1, "status = 'sending'").await;
        server.graph(&body).await
    };
    let (first, again) = tokio::join!(server.graph(&body), again);
    // THEN the repeat is not sent, and gets what is known of the first one, now and when it is asked again
    assert_eq!((first.status, again.status), (409, 409), "{again:?}");
    assert_eq!(again.id(), first.id());
    let third = server.graph(&body).await;
    assert_eq!((third.status, third.id()), (409, first.id()));
    // AND a message with a key of its own, and another text, are sent.
    assert_eq!(server.graph_with(&body, Some("meant")).await.status, 200);
    assert_eq!(server.graph(&text("other")).await.status, 200);
    world.meta.pause_webhooks(false);
    world.is_sent(&first.id()).await;
    assert_eq!(server.graph(&body).await.id(), first.id());
    assert_eq!(world.accepted(), 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_before_acceptance_is_unknown_as_well_and_is_not_sent_again() {
    for fault in [Fault::ServerError, Fault::ResetUnaccepted] {
        let (world, server) = World::served().await;
        world.fault_once(fault);
        let lost = server.graph(&text("perhaps")).await;
        assert_eq!(lost.status, 409, "{fault:?}");
        assert_eq!(server.graph(&text("next")).await.status, 200);
        assert_eq!(world.status(&lost.id()).await, "unknown");
        assert_eq!(world.accepted(), 1);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_errors_are_retried_a_limited_number_of_times() {
    let (world, server) = World::served().await;
    let error = Fault::Error {
        code: 131_016,
        subcode: None,
    };
    world.meta.set_fault_times(NUMBER, error, 2).unwrap();
    let sent = server.graph(&text("third time")).await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert_eq!(world.value(&sent.id(), "attempt").await, "3");

    world.fault(error);
    let id = server.takes(&json!({"to": USER, "text": "never"})).await;
    world.reaches(&id, &["failed"]).await;
    assert_eq!(world.value(&id, "attempt").await, "6");
    assert_eq!(world.value(&id, "error_code").await, "131016");
    assert_eq!(world.accepted(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_graph_api_costs_no_attempt_and_no_message() {
    let mut world = World::new().await;
    // A port on which nothing listens yet.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    world.config.whatsapp.graph_url = format!("http://127.0.0.1:{port}").parse().unwrap();
    let server = world.serve().await;
    let id = server.takes(&json!({"to": USER, "text": "wait for it"})).await;
    eventually("it is tried often", SOON, || async {
        let throttles: i32 = world.column(&id, "throttles").await.unwrap().parse().unwrap();
        if throttles >= 4 { Ok(()) } else { Err(throttles) }
    })
    .await;
    assert_eq!(world.value(&id, "error_class").await, "not_sent");
    let meta = Simulator::start(SimulatorSettings {
        listen: ([127, 0, 0, 1], port).into(),
        ..prompt()
    })
    .await
    .unwrap();
    meta.set_callback(Some(server.callback()));
    world.is_sent(&id).await;
    assert_eq!(world.value(&id, "attempt").await, "1");
    assert_eq!(meta.ledger().messages.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_arrives_before_the_answer_is_kept() {
    let world = World::new().await;
    let server = Arc::new(world.serve().await);
    world.fault(Fault::StatusBeforeAnswer);
    // Answer and status arrive within a millisecond, in either order.
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..20 {
        let server = Arc::clone(&server);
        requests.spawn(async move { server.graph(&text_to(&format!("+16505555{index:03}"), "quick")).await });
    }
    for answer in requests.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
        let id = answer.id();
        world.reaches(&id, &["delivered"]).await;
        eventually_equal("the answer is stored", SOON, Some("200".to_owned()), || {
            world.column(&id, "response_status")
        })
        .await;
        assert_eq!(world.status(&id).await, "delivered");
        assert_eq!(world.column(&id, "wamid").await, Some(answer.wamid()));
        assert_eq!(world.column(&id, "lease_owner").await, None);
    }
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_arrives_before_the_send_times_out_is_kept() {
    let mut world = World::new().await;
    world.config.whatsapp.send_timeout = Duration::from_secs(5);
    world.config.http.send_wait = Duration::from_secs(60);
    let server = world.serve().await;
    world.fault_once(Fault::AcceptThenHang);
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    world.reaches(&id, &["delivered"]).await;
    // The next message of the conversation is sent at once, although this attempt has not ended yet.
    let next = server.graph(&text("next")).await;
    assert_eq!(next.status, 200, "{next:?}");
    let ended = "SELECT coalesce(bool_and(now() > sending_at + interval '6 seconds'), false) FROM whatsapp_messages";
    eventually_equal("the time-out is over", SOON, Some("true".to_owned()), || {
        world.db.site.text(ended)
    })
    .await;
    assert_eq!(world.status(&id).await, "delivered");
    assert_eq!(world.column(&id, "unknown_at").await, None);
    assert_eq!(world.accepted(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_template_is_not_sent_again_and_follows_its_status() {
    let (world, server) = World::served().await;
    let template = json!({"messaging_product": "whatsapp", "to": USER, "type": "template",
        "template": {"name": "order", "language": {"code": "en_US"}}});
    world.meta.pause_webhooks(true);
    world.fault_once(Fault::HeldThenReleased { after_ms: 10 });
    let held = server.graph(&template).await;
    assert_eq!(
        (held.status, &held.body["messages"][0]["message_status"]),
        (200, &json!("held_for_quality_assessment"))
    );
    assert_eq!(world.status(&held.id()).await, "held");
    world.meta.pause_webhooks(false);
    world.reaches(&held.id(), &["sent", "delivered"]).await;

    world.fault_once(Fault::HeldThenDropped { after_ms: 10 });
    let dropped = server.graph(&template).await;
    world.reaches(&dropped.id(), &["failed"]).await;
    assert_eq!(world.value(&dropped.id(), "error_code").await, "132015");
    assert_eq!(world.accepted(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_meta_reports_after_acceptance_is_shown() {
    let (world, server) = World::served().await;
    world.fault_once(Fault::FailLater { code: 131_047 });
    let answer = server.graph(&text("window")).await;
    assert_eq!(answer.status, 200);
    world.reaches(&answer.id(), &["failed"]).await;
    assert_eq!(world.value(&answer.id(), "error_code").await, "131047");
    assert_eq!(world.value(&answer.id(), "error_class").await, "window");
    server.stop().await;
}
