//! Verifications that are cancelled, and those that go on after a restart.

use super::verify;
use crate::harness::{SOON, Twins};

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_a_lock_is_given_up_once_it_is_cancelled() {
    let twins = Twins::with_notes(10).await;
    twins.on_both("CREATE TABLE other (id int PRIMARY KEY)").await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes", "other"]).await;
    // GIVEN a table of the Site DB that is locked, without end
    let locker = twins.site.connect().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let mut waiting = twins.spawn(&["verify", "notes"]);
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'twinlog verify' AND wait_event_type = 'Lock'
        AND datname = current_database()";
    twins.until_site("it waits", waits, "true").await;

    // WHEN it is cancelled, THEN another one is served
    waiting.terminate();
    assert!(!waiting.wait(SOON).await.success());
    let (good, answer) = verify(&twins, &["other"]).await;
    assert!(good, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_table_was_replaced_while_no_daemon_ran_begins_anew() {
    let twins = Twins::with_notes(1000).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let mut slow = twins.spawn(&["verify", "notes", "--rate", "300", "--json"]);
    let half = "SELECT (progress->'tables'->0->>'rows')::int >= 300 FROM twinlog.commands ORDER BY id DESC LIMIT 1";
    twins.until_agent("some rows are compared", half, "true").await;
    daemon.kill9();
    let before = twins.agent.value("SELECT extract(epoch FROM now())::bigint").await;

    // WHEN another table has its name, of which the first rows are wrong
    twins
        .on_agent(
            "ALTER TABLE notes RENAME TO old; CREATE TABLE notes (LIKE old INCLUDING ALL);
             INSERT INTO notes SELECT id, CASE WHEN id < 100 THEN 'wrong' ELSE body END, n FROM old; SELECT pg_sleep(1.1)",
        )
        .await;
    let _daemon = twins.start().await;

    // THEN its first rows are compared as well
    slow.wait(3 * SOON).await;
    let answer = super::answer(&slow.output());
    let began = answer["tables"][0]["began"].as_i64().unwrap();
    assert!(began > before.parse().unwrap(), "{before} {answer}");
    assert_eq!(answer["tables"][0]["rows"], 1000, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_verifications_of_the_schedule_are_removed_and_those_of_people_stay() {
    let twins = Twins::with_notes(10).await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    assert!(verify(&twins, &["notes"]).await.0);
    daemon.stop().await;
    twins
        .on_agent(
            "INSERT INTO twinlog.commands (slot, kind, arguments, state, requested_at) SELECT slot, 'verify',
                 '{\"all\": true, \"by\": \"sync.verify_every\"}', 'done', now() - interval '1 day' FROM twinlog.daemon, generate_series(1, 100)",
        )
        .await;
    let twins = twins.with("sync.verify_every = \"1h\"");
    let _daemon = twins.start().await;
    let of_schedule = "SELECT count(*) FROM twinlog.commands WHERE arguments->>'by' = 'sync.verify_every'";
    // Thirty, the one that has just ended among them; and the one that has the keys of the proof, which is the same.
    twins.until_agent("old ones are gone", of_schedule, "30").await;
    let of_people = "SELECT count(*) FROM twinlog.commands WHERE arguments->>'by' <> 'sync.verify_every'";
    assert_eq!(twins.agent.value(of_people).await, "1");
}
