//! Clients that leave before they have their answer, and ask again: the person gets the message once.

use super::*;

/// A request whose client leaves as soon as a message satisfies the SQL condition.
async fn abandoned(world: &World, server: &Server, body: &Value, condition: &str) {
    tokio::select! {
        answer = server.graph(body) => panic!("it has its answer already: {answer:?}"),
        () = world.until_count(1, condition) => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_and_asks_again_reaches_the_person_once() {
    // GIVEN a message that Meta takes, but answers late, and whose client has left by then
    let (world, server) = World::served().await;
    let other = world.serve().await;
    world.meta.set_fault(NUMBER, Fault::Silent).unwrap();
    world.fault_once(Fault::SlowAnswer { delay_ms: 800 });
    let body = text("only once");
    abandoned(&world, &server, &body, "status = 'sending'").await;
    world.until_count(1, "unknown_at IS NOT NULL").await;
    // WHEN it asks again, at another server, twice
    let again = other.graph(&body).await;
    let third = server.graph(&body).await;
    // THEN it gets the answer of the first one, and nothing more is sent
    assert_eq!((again.status, third.status), (200, 200), "{again:?} {third:?}");
    assert_eq!((again.wamid(), again.id()), (third.wamid(), third.id()));
    assert_eq!(world.accepted(), 1);
    // AND another text is sent, one with a key of its own, and an equal one later.
    assert_eq!(server.graph(&text("other")).await.status, 200);
    assert_eq!(server.graph_with(&body, Some("meant")).await.status, 200);
    let later = "UPDATE whatsapp_messages SET unknown_at = unknown_at - interval '2 minutes'";
    world.db.on_site(later).await;
    assert_eq!(server.graph(&body).await.status, 200);
    assert_eq!(world.accepted(), 4);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_between_two_attempts_joins_the_second_one() {
    let mut world = World::new().await;
    world.config.whatsapp.retry_initial = Duration::from_millis(600);
    let server = world.serve().await;
    let transient = Fault::Error {
        code: 131_016,
        subcode: None,
    };
    world.fault_once(transient);
    let body = text("only once");
    abandoned(&world, &server, &body, "status = 'pending' AND attempt = 1").await;
    world.until_count(1, "unknown_at IS NOT NULL").await;
    assert_eq!(server.graph(&body).await.status, 200);
    assert_eq!((world.accepted(), world.count("direction = 'outbound'").await), (1, 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_message_is_being_stored_reaches_the_person_once() {
    // GIVEN a client that left while its row waited for the table
    let (world, server) = World::served().await;
    // The server has prepared its statements, and knows the person.
    assert_eq!(server.graph(&text("before")).await.status, 200);
    let locked = world.db.site.connect().await;
    locked
        .batch_execute("BEGIN; LOCK TABLE whatsapp_messages IN EXCLUSIVE MODE")
        .await
        .unwrap();
    let body = text("only once");
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%whatsapp_messages%'";
    tokio::select! {
        answer = server.graph(&body) => panic!("it has its answer already: {answer:?}"),
        () = eventually_is_waiting(&world, waits) => {}
    }
    locked.batch_execute("COMMIT").await.unwrap();
    // WHEN it is stored all the same
    world.until_count(1, "unknown_at IS NOT NULL").await;
    // THEN the repeat is no other message.
    assert_eq!(server.graph(&body).await.status, 200);
    assert_eq!(world.accepted(), 2);
    server.stop().await;
}

async fn eventually_is_waiting(world: &World, question: &str) {
    eventually("a statement waits for the table", SOON, || async {
        match world.db.site.value(question).await.as_str() {
            "0" => Err("none waits"),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_a_status_gave_earlier_than_meta_names_the_recipient_as_metas_does() {
    let (world, server) = World::served().await;
    // The status is there long before the answer.
    world
        .meta
        .set_fault(NUMBER, Fault::SlowAnswer { delay_ms: 900 })
        .unwrap();
    let to_a_number = server.graph(&text("early")).await;
    let contact = json!({"input": USER, "wa_id": "16505551234"});
    assert_eq!(to_a_number.body["contacts"], json!([contact]), "{to_a_number:?}");
    let user_id = "US.13491208655302741918";
    let to_a_user =
        json!({"messaging_product": "whatsapp", "recipient": user_id, "type": "text", "text": {"body": "x"}});
    let to_a_user = server.graph(&to_a_user).await;
    let contact = json!({"input": user_id, "user_id": user_id});
    assert_eq!(to_a_user.body["contacts"], json!([contact]), "{to_a_user:?}");
    server.stop().await;
}
