//! Clients that leave before they have their answer, and ask again: the person gets the message once.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;

/// A connection that has sent a request, whose answer is not read.
async fn unread(server: &Server, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let body = body.to_string();
    let request = format!(
        "POST /v26.0/{NUMBER}/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

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
    // The first server has it in memory for a minute.
    assert_eq!(other.graph(&body).await.status, 200);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_is_faster_than_the_note_that_its_client_left_gets_the_first_ones_answer() {
    // GIVEN two requests under way, and an equal one of each at another server
    let (world, server) = World::served().await;
    let other = world.serve().await;
    world.meta.set_fault(NUMBER, Fault::Silent).unwrap();
    let slow = Fault::SlowAnswer { delay_ms: 900 };
    world.meta.set_fault_times(NUMBER, slow, 2).unwrap();
    let noted = async |to: &str, when: &str| {
        let body = text_to(to, "only once");
        let first = async {
            let answer = server.graph(&body).await;
            (answer.wamid(), answer.id())
        };
        let again = async {
            world
                .until_count(1, &format!("status = 'sending' AND recipient = '{to}'"))
                .await;
            let again = other.graph(&body);
            // WHEN the note is committed after the repeat, with an earlier or a later time
            let note = async {
                world
                    .until_count(1, &format!("status = 'pending' AND recipient = '{to}'"))
                    .await;
                world.db.on_site(&format!(
                    "UPDATE whatsapp_messages SET unknown_at = {when} WHERE recipient = '{to}' AND status = 'sending'"
                )).await;
            };
            let (answer, ()) = tokio::join!(again, note);
            (answer.wamid(), answer.id())
        };
        // THEN it is not sent, and gets the first one's answer.
        let (first, again) = tokio::join!(first, again);
        assert_eq!(first, again, "{when}");
    };
    tokio::join!(noted("+16505550001", "created_at"), noted("+16505550002", "now()"));
    assert_eq!(world.accepted(), 2);
    assert_eq!(world.count("status = 'cancelled' AND error_class = 'repeat'").await, 2);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_close_and_repeat_at_once_reach_the_person_once_whether_the_answer_is_under_way_or_there() {
    let (world, server) = World::served().await;
    world.meta.set_fault(NUMBER, Fault::Silent).unwrap();
    for (round, under_way) in [true, false, true, false].into_iter().enumerate() {
        let body = text(&format!("round {round}"));
        if under_way {
            world.fault_once(Fault::SlowAnswer { delay_ms: 100 });
        }
        let first = unread(&server, &body).await;
        if under_way {
            world.until_accepted(round + 1).await;
        } else {
            first.readable().await.unwrap();
        }
        // What was not read is lost with the connection.
        drop(first);
        let again = server.graph(&body).await;
        assert_eq!(again.status, 200, "{again:?}");
        assert_eq!(world.accepted(), round + 1);
    }
    // Two that are meant, each answered and read, are both sent.
    assert_eq!(server.graph(&text("meant")).await.status, 200);
    assert_eq!(server.graph(&text("meant")).await.status, 200);
    assert_eq!(world.accepted(), 6);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_joins_anothers_message_and_stops_waiting_does_not_cancel_it() {
    // GIVEN a message that is to be sent whoever waits, of which nobody knows what became
    let mut world = World::new().await;
    world.config.http.send_wait = Duration::from_secs(1);
    let leased =
        "INSERT INTO twinlog.number_leases VALUES ('106540352242922', gen_random_uuid(), now() + interval '1 hour')";
    world.db.on_site(leased).await;
    let server = world.serve().await;
    let body = text("only once");
    assert_eq!(server.graph(&body).await.status, 503);
    let kept = "UPDATE whatsapp_messages SET status = 'pending', cancelled_at = NULL, error_class = NULL, send_by = NULL, \
                unknown_at = now()";
    world.db.on_site(kept).await;
    // WHEN an equal request joins it, and its wait ends
    let joined = server.graph(&body).await;
    // THEN it is told that this is not known, and the message is sent later.
    assert_eq!(joined.status, 409, "{joined:?}");
    assert_eq!(world.status(&joined.id()).await, "pending");
    world.db.on_site("DELETE FROM twinlog.number_leases").await;
    world.is_sent(&joined.id()).await;
    assert_eq!((world.accepted(), world.count("direction = 'outbound'").await), (1, 1));
    server.stop().await;
}
