//! `twinlog resync`: online, whoever runs it, and whatever happens meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{balanced, command, on_both, quick, start_sync, until_equal};
use crate::harness::{ConfigFile, Databases, Process, SOON, databases, eventually_equal};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

async fn filled(rows: u32) -> Databases {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute(&format!(
            "INSERT INTO notes SELECT i, repeat('body ', 20) || i, i FROM generate_series(1, {rows}) i"
        ))
        .await
        .unwrap();
    db
}

/// What a person, a bug or another program may do to the master copy.
async fn damage(db: &Databases) {
    db.agent
        .batch_execute(
            "DELETE FROM notes WHERE id % 10 = 1;
             UPDATE notes SET body = 'wrong' WHERE id % 10 = 2;
             UPDATE notes SET n = NULL WHERE id % 10 = 3;
             INSERT INTO notes SELECT i, 'nobody knows', 0 FROM generate_series(-50, 0) i;
             INSERT INTO notes SELECT i, 'nobody knows', 0 FROM generate_series(900000, 900500) i",
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_mends_every_damage_and_readers_never_see_the_table_empty() {
    let db = filled(20_000).await;
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    damage(&db).await;
    let (reader, stop) = (db.agent.connect().await, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let reading = tokio::spawn(async move {
        let mut least = i64::MAX;
        while !stopped.load(Ordering::Relaxed) {
            let rows: i64 = reader
                .query_one("SELECT count(*) FROM notes", &[])
                .await
                .unwrap()
                .get(0);
            least = least.min(rows);
        }
        least
    });
    let (status, output) = command(&config, &["resync", "notes", "--wait", "--json"]).await;
    stop.store(true, Ordering::Relaxed);
    assert!(status.success(), "{output}");
    assert!(output.contains(r#""state":"done""#), "{output}");
    let least = reading.await.unwrap();
    assert!(least >= 18_000, "a reader saw only {least} rows");
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(
        db.agent
            .text("SELECT t.copied_at_lsn <= c.end_lsn FROM twinlog.tables t JOIN twinlog.checkpoint c USING (slot)")
            .await
            .as_deref(),
        Some("true"),
        "where in the log the table was read is remembered"
    );
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_with_a_condition_mends_what_it_names_and_leaves_the_rest() {
    let db = filled(3000).await;
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    damage(&db).await;
    let (status, output) = command(
        &config,
        &["resync", "notes", "--where", "id > 1500 AND id < 910000", "--wait"],
    )
    .await;
    assert!(status.success(), "{output}");
    for (what, expected, query) in [
        ("rows that were gone are back", "150", "id > 1500 AND id % 10 = 1"),
        ("wrong values above are right", "0", "id > 1500 AND body = 'wrong'"),
        ("wrong values below stay", "150", "id <= 1500 AND body = 'wrong'"),
        ("rows that only the Agent DB had are gone", "0", "id >= 900000"),
        ("those outside of the condition stay", "51", "id <= 0"),
    ] {
        let found = db
            .agent
            .text(&format!("SELECT count(*) FROM notes WHERE {query}"))
            .await;
        assert_eq!(found.as_deref(), Some(expected), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_is_no_sql_fails_the_command_with_the_servers_word_and_nothing_else() {
    let db = filled(10).await;
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    let (status, output) = command(&config, &["resync", "notes", "--where", "nosuchcolumn = 1", "--wait"]).await;
    assert!(!status.success(), "{output}");
    assert!(output.contains("nosuchcolumn"), "{output}");
    let (status, output) = command(&config, &["resync", "nosuchtable", "--wait"]).await;
    assert!(!status.success() && output.contains("nosuchtable"), "{output}");
    damage(&db).await;
    let (status, output) = command(&config, &["resync", "--all", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_runs_alone_where_no_daemon_runs_and_a_daemon_goes_on_after_it() {
    let db = filled(3000).await;
    let config = quick(&db);
    let daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    daemon.terminate();
    let mut daemon = daemon;
    daemon.wait(SOON).await;
    damage(&db).await;
    db.site
        .batch_execute("UPDATE notes SET n = -n WHERE id % 3 = 0")
        .await
        .unwrap();
    let (status, output) = command(&config, &["resync", "--all"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
    let _daemon = start_sync(&config).await;
    db.site
        .batch_execute("DELETE FROM notes WHERE id % 2 = 0")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_waits_goes_on_by_itself_when_the_daemon_dies() {
    let db = filled(3000).await;
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    damage(&db).await;
    eventually_equal("the daemon has reported", SOON, Some("1".to_owned()), || {
        db.agent
            .text("SELECT count(*) FROM twinlog.daemon WHERE state = 'streaming'")
    })
    .await;
    daemon.kill9();
    // Its last word is young: the command believes that it runs.
    let (status, output) = command(&config, &["resync", "notes", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resyncs_that_are_asked_for_at_the_same_time_all_end() {
    let db = filled(4000).await;
    on_both(&db, "CREATE TABLE more (id int PRIMARY KEY, n int)").await;
    db.site
        .batch_execute("INSERT INTO more SELECT i, i FROM generate_series(1, 200) i")
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ncopy_chunk_rows = 100\n");
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes", "more"], SOON).await;
    damage(&db).await;
    let requests: Vec<_> = [
        &["resync", "--all", "--wait"][..],
        &["resync", "--all", "--wait"],
        &["resync", "more", "--wait"],
    ]
    .iter()
    .map(|arguments| Process::start(&config, arguments, ""))
    .collect();
    for mut request in requests {
        let status = request.wait(2 * SOON).await;
        assert!(status.success(), "{}", request.output());
    }
    until_equal(&db, &["notes", "more"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_deleted_while_resyncs_run_never_come_back() {
    let db = filled(12_000).await;
    let config = ConfigFile::new(&db, "[sync]\ncopy_chunk_rows = 150\n");
    let mut daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    let (writer, stop) = (db.site.connect().await, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let deleting = tokio::spawn(async move {
        let mut at = 0;
        while !stopped.load(Ordering::Relaxed) && at < 12_000 {
            at += 1;
            let (there, back) = (at * 7919 % 12_000, at * 104_729 % 12_000);
            writer
                .batch_execute(&format!(
                    "DELETE FROM notes WHERE id IN ({there}, {there} + 1);
                     INSERT INTO notes VALUES ({back}, 'back', 0) ON CONFLICT DO NOTHING;
                     DELETE FROM notes WHERE id = {back} + 2"
                ))
                .await
                .unwrap();
        }
    });
    for _ in 0..2 {
        let (status, output) = command(&config, &["resync", "notes", "--wait"]).await;
        assert!(status.success(), "{output}");
    }
    // And once more, killed in the middle.
    let mut request = Process::start(&config, &["resync", "notes", "--wait"], "");
    eventually_equal("the resync runs", SOON, true, || async {
        db.agent
            .text("SELECT state = 'resyncing' AND rows_copied > 0 FROM twinlog.tables")
            .await
            == Some("true".to_owned())
    })
    .await;
    daemon.kill9();
    let _daemon = start_sync(&config).await;
    let status = request.wait(2 * SOON).await;
    assert!(status.success(), "{}", request.output());
    stop.store(true, Ordering::Relaxed);
    deleting.await.unwrap();
    until_equal(&db, &["notes"], Duration::from_secs(40)).await;
    balanced(&db).await;
}
