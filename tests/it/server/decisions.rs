//! `twinlog outbox`: people decide about messages, whatever happens at the same time.

use super::*;
use crate::harness::{ConfigFile, Process};

/// Runs `twinlog outbox`; returns whether it exits with 0, and what it says.
async fn outbox(world: &World, arguments: &[&str]) -> (bool, Value) {
    let config = ConfigFile::new(&world.db, "");
    answer_of(start(&config, arguments)).await
}

fn start(config: &ConfigFile, arguments: &[&str]) -> Process {
    Process::start(config, &[&["outbox"], arguments, &["--json"]].concat(), "")
}

async fn answer_of(mut process: Process) -> (bool, Value) {
    let status = process.wait(2 * SOON).await;
    let output = process.output();
    let line = output.lines().find(|line| line.starts_with(['{', '[']));
    let answer = line.unwrap_or_else(|| panic!("no answer: {output}"));
    (status.success(), serde_json::from_str(answer).unwrap())
}

/// The decisions that are kept, in their order.
async fn decisions(world: &World) -> String {
    let all = "SELECT coalesce(string_agg(decision || ' ' || from_status || ' ' || to_status || ' ' || why, '; ' ORDER BY id), '')
               FROM twinlog.outbox_decisions";
    world.db.site.value(all).await
}

/// A message of which it is not known whether it was sent: Meta has it, the answer was lost, and no report ever comes.
async fn unknown(world: &World, server: &Server) -> String {
    world.meta.set_callback(None);
    world.fault_once(Fault::AcceptThenHang);
    let id = server.takes(&json!({"to": USER, "text": "secret text"})).await;
    world.reaches(&id, &["unknown"]).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_message_is_settled_by_a_person_who_says_why() {
    let (world, server) = World::served().await;
    let id = unknown(&world, &server).await;

    // It is listed, without what it says and to whom, and nothing else can be done with it than what is listed.
    let (none, listed) = outbox(&world, &["list"]).await;
    assert!(!none && listed[0]["id"] == json!(id), "{listed}");
    assert_eq!(listed[0]["possible"][0], "resolve --as sent", "{listed}");
    let text = listed.to_string();
    assert!(
        !text.contains("secret") && !text.contains(USER.trim_start_matches('+')),
        "{text}"
    );
    for refused in [
        &["retry", &id, "--reason", "x"][..],
        &["cancel", &id, "--reason", "x"],
        &["resolve", &id, "--as", "seen", "--reason", "x"],
    ] {
        let (done, answer) = outbox(&world, refused).await;
        assert!(!done && answer["decided"].is_null(), "{refused:?}: {answer}");
    }
    assert_eq!(
        (world.status(&id).await, decisions(&world).await),
        ("unknown".to_owned(), String::new())
    );

    // WHEN the recipient has said that it came
    let resolve = ["resolve", &id, "--as", "sent", "--reason", "she has it"];
    let (done, answer) = outbox(&world, &resolve).await;
    assert!(done && answer["to"] == "accepted", "{answer}");

    // THEN it is, for good, and the decision is kept
    let (done, answer) = outbox(&world, &resolve).await;
    assert!(!done && answer["reason"] == "it is accepted", "{answer}");
    let (none, listed) = outbox(&world, &["list"]).await;
    assert!(none && listed == json!([]), "{listed}");
    assert_eq!(decisions(&world).await, "resolve_sent unknown accepted she has it");
    assert_eq!(world.accepted(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_says_so_sends_a_message_again_that_may_have_been_sent() {
    let (world, server) = World::served().await;
    let id = unknown(&world, &server).await;
    let again = ["retry", &id, "--may-send-twice", "--reason", "he has nothing"];
    let (done, answer) = outbox(&world, &again).await;
    assert!(done && answer["from"] == "unknown", "{answer}");
    world.is_sent(&id).await;
    assert_eq!(world.accepted(), 2);
    assert_eq!(decisions(&world).await, "retry_unknown unknown pending he has nothing");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_meta_has_had_is_not_retried_and_what_it_refused_is_sent_once() {
    // GIVEN a message that Meta refused, and one that it took and that failed later
    let (world, server) = World::served().await;
    world.fault_once(Fault::Error {
        code: 131_009,
        subcode: None,
    });
    let refused = server.takes(&json!({"to": USER, "text": "one"})).await;
    world.reaches(&refused, &["failed"]).await;
    world.fault_once(Fault::FailLater { code: 131_047 });
    let late = server.takes(&json!({"to": USER, "text": "two"})).await;
    world.reaches(&late, &["failed"]).await;
    let (_, listed) = outbox(&world, &["list", "--status", "failed"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");

    // WHEN both are retried
    let (done, answer) = outbox(&world, &["retry", &late, "--reason", "x"]).await;
    assert!(
        !done && answer["reason"].as_str().unwrap().contains("Meta has had it"),
        "{answer}"
    );
    let (done, _) = outbox(&world, &["resolve", &late, "--as", "seen", "--reason", "called him"]).await;
    assert!(done);
    let (done, answer) = outbox(&world, &["retry", &refused, "--reason", "corrected in the console"]).await;
    assert!(done && answer["to"] == "pending", "{answer}");

    // THEN the refused one is sent, once, and nobody is needed any more
    world.is_sent(&refused).await;
    assert_eq!(world.accepted(), 2);
    world.nothing_lost_or_doubled().await;
    assert_eq!(world.value(&refused, "attempt").await, "1");
    let (none, listed) = outbox(&world, &["list"]).await;
    assert!(none, "{listed}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_called_off_is_never_sent() {
    // GIVEN a number that can't send
    let mut world = World::new().await;
    world.config.whatsapp.hold_probe = Duration::from_secs(3600);
    let server = world.serve().await;
    world.meta.expire_token(NUMBER).unwrap();
    let one = server
        .takes(&json!({"to": "+16505551001", "text": "x", "client_id": "one"}))
        .await;
    world
        .until_count(1, "status = 'pending' AND error_class = 'account'")
        .await;
    let ids = [one, server.takes(&json!({"to": "+16505551002", "text": "x"})).await];

    // WHEN one of its messages is called off, and the number can send again
    let (done, _) = outbox(&world, &["cancel", &ids[0], "--reason", "sent from the phone"]).await;
    assert!(done);
    let repeated = server
        .plain(&json!({"to": "+16505551001", "text": "x", "client_id": "one"}))
        .await;
    assert_eq!(repeated.body["status"], "cancelled", "{repeated:?}");
    server.stop().await;
    world.meta.set_token(NUMBER, "new-token").unwrap();
    world.config = configuration(&world.db.site.url, &world.meta.url(), "new-token");
    let server = world.serve().await;

    // THEN only the other one is sent
    world.is_sent(&ids[1]).await;
    assert_eq!(
        (world.accepted(), world.status(&ids[0]).await),
        (1, "cancelled".to_owned())
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_waits_for_who_has_the_message_and_counts_only_for_what_it_is_then() {
    // GIVEN a message that waits, and a server that is about to claim it
    let world = World::new().await;
    let server = world.serve().await;
    world.meta.expire_token(NUMBER).unwrap();
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    world
        .until_count(1, "status = 'pending' AND error_class = 'account'")
        .await;
    server.stop().await;
    let claims = world.db.site.connect().await;
    claims
        .batch_execute(&format!(
            "BEGIN; UPDATE whatsapp_messages SET status = 'sending', lease_owner = gen_random_uuid(),
                 lease_until = now() + interval '1 hour' WHERE id = '{id}'"
        ))
        .await
        .unwrap();

    // WHEN somebody cancels it in between
    let config = ConfigFile::new(&world.db, "");
    let cancel = start(&config, &["cancel", &id, "--reason", "too late"]);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    world.db.until_site("the decision waits", waits, "1").await;
    claims.batch_execute("COMMIT").await.unwrap();

    // THEN it is being sent, and nothing is decided
    let (done, answer) = answer_of(cancel).await;
    assert!(
        !done && answer["reason"].as_str().unwrap().contains("being sent"),
        "{answer}"
    );
    assert_eq!(
        (world.status(&id).await, decisions(&world).await),
        ("sending".to_owned(), String::new())
    );
}
