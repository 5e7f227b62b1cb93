//! `twinlog resync`: online, by the daemon or by itself, and with faults while it runs.

use std::time::Duration;

use crate::harness::{Background, Daemon, NOTES, SOON, Twins};

/// Equal databases with this number of notes, and their daemon.
async fn equal(rows: u32) -> (Twins, Daemon) {
    start(filled(rows).await).await
}

async fn filled(rows: u32) -> Twins {
    let twins = Twins::new(NOTES).await;
    twins
        .on_site(&format!(
            "INSERT INTO notes SELECT i, repeat('body ', 20) || i, i FROM generate_series(1, {rows}) i"
        ))
        .await;
    twins
}

async fn start(twins: Twins) -> (Twins, Daemon) {
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    (twins, daemon)
}

/// Damage that a user, a bug or another program may do to the Agent DB.
async fn damage(twins: &Twins) {
    twins
        .on_agent(
            "DELETE FROM notes WHERE id % 10 = 1;
             UPDATE notes SET body = 'wrong' WHERE id % 10 = 2;
             UPDATE notes SET n = NULL WHERE id % 10 = 3;
             INSERT INTO notes SELECT i, 'only here', 0 FROM generate_series(-50, 0) i;
             INSERT INTO notes SELECT i, 'only here', 0 FROM generate_series(900000, 900500) i",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_mends_every_damage_and_readers_never_see_the_table_empty() {
    // GIVEN a damaged table and a client that reads it all the time
    let (twins, _daemon) = equal(20_000).await;
    damage(&twins).await;
    let reader = twins.agent.connect().await;
    let reading = Background::start(|rounds| async move {
        let mut least = i64::MAX;
        while rounds.go_on() {
            let row = reader.query_one("SELECT count(*) AS rows FROM notes", &[]).await;
            least = least.min(row.unwrap().get("rows"));
        }
        least
    });

    // WHEN it is read again
    let output = twins.succeeds(&["resync", "notes", "--wait", "--json"]).await;

    // THEN no reader has seen it empty, and both sides are equal
    assert!(output.contains(r#""state":"done""#), "{output}");
    let least = reading.end().await;
    assert!(least >= 18_000, "a reader saw only {least} rows");
    twins.until_equal(&["notes"]).await;
    let remembered = "SELECT t.copied_at_lsn <= c.end_lsn FROM twinlog.tables t JOIN twinlog.checkpoint c USING (slot)";
    assert_eq!(
        twins.agent.value(remembered).await,
        "true",
        "where in the log the table was read is remembered"
    );
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_with_a_condition_mends_what_it_names_and_leaves_the_rest() {
    let (twins, _daemon) = equal(3000).await;
    damage(&twins).await;

    twins
        .succeeds(&["resync", "notes", "--where", "id > 1500 AND id < 910000", "--wait"])
        .await;

    for (what, expected, query) in [
        ("rows that were gone are back", "150", "id > 1500 AND id % 10 = 1"),
        ("wrong values above are right", "0", "id > 1500 AND body = 'wrong'"),
        ("wrong values below stay", "150", "id <= 1500 AND body = 'wrong'"),
        ("rows that only the Agent DB had are gone", "0", "id >= 900000"),
        ("those outside of the condition stay", "51", "id <= 0"),
    ] {
        let count = format!("SELECT count(*) FROM notes WHERE {query}");
        assert_eq!(twins.agent.value(&count).await, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_is_invalid_sql_fails_only_the_command_with_the_servers_error() {
    let (twins, _daemon) = equal(10).await;

    let output = twins
        .fails(&["resync", "notes", "--where", "nosuchcolumn = 1", "--wait"])
        .await;
    assert!(output.contains("nosuchcolumn"), "{output}");
    let output = twins.fails(&["resync", "nosuchtable", "--wait"]).await;
    assert!(output.contains("nosuchtable"), "{output}");

    damage(&twins).await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_can_do_no_more_than_choose_rows_whoever_wrote_it() {
    // GIVEN a daemon with every right, and a slot that somebody wants to be dropped
    let (twins, _daemon) = equal(10).await;
    let victim = format!("{}_victim", twins.site.name);
    twins
        .on_site(&format!("SELECT pg_create_physical_replication_slot('{victim}')"))
        .await;

    // WHEN conditions are written into the table of the commands, past the command line
    for condition in [
        format!("pg_drop_replication_slot('{victim}') IS NULL"),
        format!("id = 1 OR (SELECT pg_drop_replication_slot('{victim}')) IS NULL"),
        "body::int = 1".to_owned(),
        "id = 1); DELETE FROM notes; --".to_owned(),
    ] {
        let arguments = serde_json::json!({ "tables": ["public.notes"], "where": condition }).to_string();
        twins
            .on_agent(&format!(
                "INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ('{}', 'resync', $j${arguments}$j$); NOTIFY twinlog",
                twins.site.name
            ))
            .await;
        // THEN each fails with its place, and nothing is done
        twins
            .until_agent(
                "the command fails",
                "SELECT count(*) FROM twinlog.commands WHERE state NOT IN ('failed')",
                "0",
            )
            .await;
        let error = twins
            .agent
            .value("SELECT error FROM twinlog.commands ORDER BY id DESC LIMIT 1")
            .await;
        assert!(error.contains("not understood at character"), "{error}");
        let output = twins.fails(&["resync", "notes", "--where", &condition]).await;
        assert!(output.contains("not understood at character"), "{output}");
    }
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{victim}'");
    assert_eq!(twins.site.value(&slots).await, "1");
    twins
        .on_site(&format!("SELECT pg_drop_replication_slot('{victim}')"))
        .await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_too_long_fails_and_the_next_one_is_served() {
    let (twins, _daemon) = equal(10).await;
    twins
        .on_agent(&format!(
            "INSERT INTO twinlog.commands (slot, kind, arguments)
             SELECT '{}', 'resync', jsonb_build_object('all', true, 'where', repeat('x', 100000))",
            twins.site.name
        ))
        .await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    let first = "SELECT state FROM twinlog.commands ORDER BY id LIMIT 1";
    assert_eq!(twins.agent.value(first).await, "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_without_tables_names_the_flag_for_all() {
    let (twins, _daemon) = equal(1).await;
    let output = twins.fails(&["resync"]).await;
    assert!(output.contains("--all"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_runs_by_itself_if_no_daemon_runs_and_a_daemon_continues_after_it() {
    let (twins, daemon) = equal(3000).await;
    daemon.stop().await;
    damage(&twins).await;
    twins.on_site("UPDATE notes SET n = -n WHERE id % 3 = 0").await;

    twins.succeeds(&["resync", "--all"]).await;
    twins.until_equal(&["notes"]).await;

    let _daemon = twins.start().await;
    twins.on_site("DELETE FROM notes WHERE id % 2 = 0").await;
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_resync_continues_by_itself_when_the_daemon_dies() {
    let (twins, mut daemon) = equal(3000).await;
    damage(&twins).await;
    twins
        .until_agent(
            "the daemon has reported",
            "SELECT count(*) FROM twinlog.daemon WHERE state = 'streaming'",
            "1",
        )
        .await;
    daemon.kill9();
    // The daemon's last report is recent, so the command assumes that it runs.
    twins.succeeds(&["resync", "notes", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resyncs_that_are_asked_for_at_the_same_time_all_end() {
    let twins = filled(4000).await.with("sync.copy_chunk_rows = 100");
    twins.on_both("CREATE TABLE more (id int PRIMARY KEY, n int)").await;
    twins
        .on_site("INSERT INTO more SELECT i, i FROM generate_series(1, 200) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes", "more"]).await;
    damage(&twins).await;

    tokio::join!(
        twins.succeeds(&["resync", "--all", "--wait"]),
        twins.succeeds(&["resync", "--all", "--wait"]),
        twins.succeeds(&["resync", "more", "--wait"]),
    );
    twins.until_equal(&["notes", "more"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_deleted_while_resyncs_run_never_come_back() {
    // GIVEN a client that deletes rows all the time
    let twins = filled(12_000).await.with("sync.copy_chunk_rows = 150");
    let (twins, mut daemon) = start(twins).await;
    let writer = twins.site.connect().await;
    let deleting = Background::start(|rounds| async move {
        let mut at = 0;
        while rounds.go_on() && at < 12_000 {
            at += 1;
            // Prime steps reach every part of the key space.
            let (there, back) = (at * 7919 % 12_000, at * 104_729 % 12_000);
            let sql = format!(
                "DELETE FROM notes WHERE id IN ({there}, {there} + 1);
                 INSERT INTO notes VALUES ({back}, 'back', 0) ON CONFLICT DO NOTHING;
                 DELETE FROM notes WHERE id = {back} + 2"
            );
            writer.batch_execute(&sql).await.unwrap();
        }
    });

    // WHEN the table is read again, and once more by a daemon that is killed in the middle
    for _ in 0..2 {
        twins.succeeds(&["resync", "notes", "--wait"]).await;
    }
    let mut request = twins.spawn(&["resync", "notes", "--wait"]);
    twins
        .until_agent(
            "the resync runs",
            "SELECT state = 'resyncing' AND rows_copied > 0 FROM twinlog.tables",
            "true",
        )
        .await;
    daemon.restart().await;
    let status = request.wait(2 * SOON).await;
    assert!(status.success(), "{}", request.output());

    // THEN no deleted row is back
    deleting.end().await;
    twins.until_equal_within(Duration::from_secs(40), &["notes"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_daemon_does_not_know_fails_with_what_to_do_and_stops_nothing() {
    let (twins, _daemon) = equal(100).await;
    damage(&twins).await;

    twins
        .on_agent(
            "INSERT INTO twinlog.commands (slot, kind) SELECT slot, 'rewind' FROM twinlog.checkpoint; NOTIFY twinlog",
        )
        .await;

    twins
        .until_agent(
            "the command is refused",
            "SELECT state || ': ' || error FROM twinlog.commands WHERE kind = 'rewind'",
            "failed: this daemon does not know the command \"rewind\"; upgrade it",
        )
        .await;
    twins.succeeds(&["resync", "notes", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tables_state_that_cant_be_written_holds_the_stream_and_is_named() {
    let (twins, daemon) = equal(10).await;
    // GIVEN an Agent DB that refuses the state, while nothing else is to be written
    twins
        .on_agent(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'no space for the state' USING ERRCODE = '53100'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON twinlog.tables FOR EACH ROW
                 WHEN (NEW.state = 'resyncing') EXECUTE FUNCTION refuse();
             ALTER TABLE twinlog.tables ENABLE ALWAYS TRIGGER refuse",
        )
        .await;
    // WHEN a resync is asked for
    twins.succeeds(&["resync", "notes"]).await;
    // THEN the reason is shown, and the resync goes on once it is gone
    daemon.until_state("held").await;
    // (Not the function's own words, which may quote values.)
    daemon.says("SQLSTATE 53100").await;
    twins.on_agent("DROP TRIGGER refuse ON twinlog.tables").await;
    daemon.until_state("streaming").await;
}
