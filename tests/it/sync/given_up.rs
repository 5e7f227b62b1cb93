//! `twinlog failed show`, `discard` and `retry --dry-run`: people look at parked rows, give them up, and see what a retry would come to.

use serde_json::{Value, json};

use crate::harness::{NOTES, Twins};

const SOUND: &str = "ALTER TABLE notes ADD CONSTRAINT sound CHECK (n < 100)";
const KEY: &str = r#"["1"]"#;

/// What a command prints as JSON.
fn answer(output: &str) -> Value {
    let line = output.lines().find(|line| line.starts_with(['{', '[']));
    serde_json::from_str(line.unwrap_or_else(|| panic!("no answer: {output}"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_given_up_is_counted_on_and_its_next_change_is_written() {
    // GIVEN two parked rows
    let twins = Twins::new(NOTES).await;
    twins.on_agent(SOUND).await;
    let mut daemon = twins.start().await;
    twins
        .on_site("INSERT INTO notes VALUES (1, 'secret one', 100), (2, 'secret two', 200)")
        .await;
    twins.until_parked(2).await;

    // WHEN one of them is given up: with a reason, and only one that is there
    let (status, _) = twins.run(&["failed", "discard", KEY]).await;
    assert_eq!(status.code(), Some(2));
    let unknown = twins.fails(&["failed", "discard", r#"["77"]"#, "--reason", "x"]).await;
    assert!(unknown.contains("no row with this key is parked"), "{unknown}");
    let why = "made by a load test";
    let discard = ["failed", "discard", KEY, "--table", "notes", "--reason", why, "--json"];
    let discarded = answer(&twins.succeeds(&discard).await);
    assert_eq!(discarded["discarded"][0]["reason"], "23514", "{discarded}");
    let again = twins.fails(&discard).await;
    assert_eq!(answer(&again)["discarded"], json!([]), "{again}");

    // THEN nothing is green: it still differs
    let status = twins.fails(&["status"]).await;
    assert!(status.contains("(1 discarded"), "{status}");
    let verified = answer(&twins.fails(&["verify", "notes", "--json"]).await);
    assert_eq!(verified["tables"][0]["parked"], 2, "{verified}");
    assert_eq!(
        daemon.metric(r#"twinlog_failed_rows{table="public.notes"}"#).await,
        Some(2.0)
    );
    let shown = twins.succeeds(&["failed", "show", KEY]).await;
    assert!(
        shown.contains(why) && shown.contains("sound") && shown.contains("body"),
        "{shown}"
    );
    assert!(!shown.contains("secret"), "{shown}");
    let shown = twins.succeeds(&["failed", "show", KEY, "--show-values"]).await;
    assert!(shown.contains("secret one"), "{shown}");

    // and it is not tried again, also not by another daemon, or with all others
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT sound").await;
    twins.succeeds(&["failed", "retry"]).await;
    daemon.restart().await;
    twins.on_site("INSERT INTO notes VALUES (3, '', 3)").await;
    twins
        .until_agent(
            "the others are there",
            "SELECT string_agg(id::text, ' ' ORDER BY id) FROM notes",
            "2 3",
        )
        .await;
    assert_eq!(twins.parked().await, 1);

    // but its next change is written, and the decision is kept
    twins.on_site("UPDATE notes SET body = 'changed' WHERE id = 1").await;
    twins.until_parked(0).await;
    twins.until_equal(&["notes"]).await;
    let shown = answer(&twins.succeeds(&["failed", "show", KEY, "--json"]).await);
    assert_eq!(shown["rows"], json!([]), "{shown}");
    assert_eq!(shown["discards"][0]["why"], why, "{shown}");
    assert!(shown["discards"][0]["who"].as_str().unwrap().contains('@'), "{shown}");
    twins.succeeds(&["verify", "notes"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_given_up_is_tried_when_it_is_named() {
    let twins = Twins::new(NOTES).await;
    twins.on_agent(SOUND).await;
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (1, '', 100)").await;
    twins.until_parked(1).await;
    twins
        .succeeds(&["failed", "discard", KEY, "--reason", "not needed"])
        .await;

    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT sound").await;
    let all = twins.succeeds(&["failed", "retry"]).await;
    assert!(all.contains("no row is parked that would be tried"), "{all}");
    let named = twins.succeeds(&["failed", "retry", "notes", "--key", KEY]).await;
    assert!(named.contains("1 healed"), "{named}");
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_says_what_a_retry_would_come_to_and_changes_nothing() {
    // GIVEN parked rows: an insert, a delete that a trigger refuses, a row without a key
    let twins = Twins::new(
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int);
         CREATE TABLE plain (n int); ALTER TABLE plain REPLICA IDENTITY FULL",
    )
    .await
    .with("sync.retry_initial_ms = 60000\nsync.retry_max_ms = 60000");
    twins
        .on_agent(&format!(
            "{SOUND}; ALTER TABLE plain ADD CONSTRAINT sound CHECK (n < 100);
             CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept'; END $$;
             CREATE TRIGGER keep BEFORE DELETE ON notes FOR EACH ROW EXECUTE FUNCTION keep();
             ALTER TABLE notes ENABLE ALWAYS TRIGGER keep"
        ))
        .await;
    let daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (1, '', 100), (2, '', 2)").await;
    twins
        .on_site("INSERT INTO plain VALUES (100), (100); DELETE FROM notes WHERE id = 2")
        .await;
    twins.until_parked(3).await;

    // WHEN a retry is rehearsed, THEN each has the SQLSTATE that would come
    let dry = ["failed", "retry", "--dry-run", "--json"];
    let refused = answer(&twins.fails(&dry).await);
    let mut states: Vec<&str> = refused["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["sqlstate"].as_str().unwrap())
        .collect();
    states.sort_unstable();
    assert_eq!(states, ["23514", "23514", "P0001"], "{refused}");

    // and after the mend, also without a daemon, all would heal; but none has
    daemon.stop().await;
    twins
        .on_agent(
            "ALTER TABLE notes DROP CONSTRAINT sound; ALTER TABLE plain DROP CONSTRAINT sound; DROP TRIGGER keep ON notes",
        )
        .await;
    let healed = answer(&twins.succeeds(&dry).await);
    assert_eq!(healed["would_heal"], 3, "{healed}");
    assert_eq!(twins.parked().await, 3);
    let rows = twins
        .agent
        .value("SELECT (SELECT string_agg(id::text, ' ') FROM notes) || ', ' || (SELECT count(*) FROM plain)")
        .await;
    assert_eq!(rows, "2, 0");
    let unknown = twins
        .fails(&["failed", "retry", "notes", "--key", "77", "--dry-run"])
        .await;
    assert!(unknown.contains("no row with this key is parked"), "{unknown}");

    // WHEN the table refuses all, THEN that is said of its row
    twins.on_agent("ALTER TABLE plain RENAME TO elsewhere").await;
    let named = twins.fails(&["failed", "retry", "plain", "--dry-run"]).await;
    assert!(named.contains("not be tried"), "{named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_tries_rows_together_that_wait_for_each_other() {
    // GIVEN a role for which foreign keys are checked, and a child that waits for its parent
    let mut twins = Twins::new("")
        .await
        .with("sync.retry_initial_ms = 60000\nsync.retry_max_ms = 60000");
    twins.agent_is_owner().await;
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, n int);
                  CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent)";
    twins.on_both(schema).await;
    twins
        .on_agent("ALTER TABLE parent ADD CONSTRAINT sound CHECK (n < 100)")
        .await;
    let daemon = twins.start().await;
    twins
        .on_site("INSERT INTO parent VALUES (1, 100); INSERT INTO child VALUES (1, 1)")
        .await;
    twins.until_parked(2).await;
    daemon.stop().await;

    // WHEN only the child is asked for, THEN it is refused as long as the parent is
    let child = ["failed", "retry", "child", "--dry-run", "--json"];
    let refused = answer(&twins.fails(&child).await);
    assert_eq!(refused["rows"][0]["sqlstate"], "23503", "{refused}");
    twins.on_agent("ALTER TABLE parent DROP CONSTRAINT sound").await;
    let healed = answer(&twins.succeeds(&child).await);
    assert_eq!(healed["rows"].as_array().unwrap().len(), 1, "{healed}");
}
