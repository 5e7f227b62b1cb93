//! Commits that are in the log and that no snapshot sees yet: they wait for a synchronous standby. Their rows have been
//! streamed; nothing that is read from the Site DB meanwhile may undo them.

use super::{balanced, command, on_both, quick, start_sync, until_equal, until_table};
use crate::harness::{ConfigFile, Databases, SOON, eventually, eventually_equal, private_databases};
use twinlog::dev::postgres::Settings;

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// Notes that stream, and a standby that never answers.
async fn without_the_standby(db: &Databases, config: &ConfigFile) {
    on_both(db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 10) i")
        .await
        .unwrap();
    let mut daemon = start_sync(config).await;
    until_equal(db, &["notes"], SOON).await;
    db.site
        .cluster
        .set("synchronous_standby_names", "nobody")
        .await
        .unwrap();
    daemon.kill9();
}

/// Whether the Agent DB still has what the waiting transactions wrote.
async fn the_new_rows_stay(db: &Databases) {
    let rows = "SELECT string_agg(id || ' ' || body, ', ' ORDER BY id) FROM notes WHERE id IN (1, 2, 11)";
    assert_eq!(db.agent.text(rows).await.as_deref(), Some("1 new, 11 new"));
}

async fn nothing_is_undone(db: &Databases, config: &ConfigFile) {
    // GIVEN transactions that a run has applied, and that nobody on the Site DB sees
    let mut first = start_sync(config).await;
    let mut waiting = Vec::new();
    for change in [
        "UPDATE notes SET body = 'new' WHERE id = 1",
        "DELETE FROM notes WHERE id = 2",
        "INSERT INTO notes VALUES (11, 'new', 11)",
    ] {
        let writer = db.site.connect().await;
        waiting.push(tokio::spawn(async move { writer.batch_execute(change).await }));
    }
    eventually_equal("they are applied", SOON, Some("8 old, 2 new".to_owned()), || {
        db.agent.text(
            "SELECT count(*) FILTER (WHERE body = 'old') || ' old, ' || count(*) FILTER (WHERE body = 'new') || ' new' \
             FROM notes",
        )
    })
    .await;
    assert_eq!(
        db.site
            .text("SELECT count(*) FROM notes WHERE body = 'new'")
            .await
            .as_deref(),
        Some("0"),
        "they are still waiting"
    );

    // WHEN the next run reads the table again
    first.kill9();
    let mut second = start_sync(config).await;
    let (status, output) = command(config, &["resync", "notes"]).await;
    assert!(status.success(), "{output}");
    second.wait_for_output("a synchronous standby", SOON).await;

    // THEN it waits for them
    the_new_rows_stay(db).await;
    until_table(db, "notes", "resyncing", 0).await;
    db.site.cluster.set("synchronous_standby_names", "").await.unwrap();
    for writer in waiting {
        writer.await.unwrap().unwrap();
    }
    eventually("the resync has ended", 2 * SOON, || async {
        match db.agent.text("SELECT min(state) FROM twinlog.commands").await {
            Some(state) if state == "done" => Ok(()),
            other => Err(other),
        }
    })
    .await;
    the_new_rows_stay(db).await;
    until_equal(db, &["notes"], SOON).await;
    balanced(db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_run_reads_no_rows_before_commits_that_wait_for_a_standby_are_visible() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    let config = quick(&db);
    without_the_standby(&db, &config).await;
    nothing_is_undone(&db, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_see_who_waits_for_a_standby_waits_for_every_transaction() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    without_the_standby(&db, &quick(&db)).await;
    let site = db.site.connect().await;
    site.batch_execute(
        "SET synchronous_commit = local; CREATE ROLE plain LOGIN REPLICATION PASSWORD 'plain';
         GRANT SELECT ON notes TO plain",
    )
    .await
    .unwrap();
    let (_, rest) = db.site.url.split_once('@').unwrap();
    let url = format!("postgresql://plain:plain@{rest}");
    let config = ConfigFile::with_urls(
        &url,
        &db.agent.url,
        &db.site.name,
        "[sync]\nretry_initial_ms = 50\nretry_max_ms = 500\nreconnect_max_ms = 500\n",
    );
    nothing_is_undone(&db, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_only_long_holds_no_resync_up() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    let config = quick(&db);
    without_the_standby(&db, &config).await;
    let long = db.site.connect().await;
    long.batch_execute("BEGIN; UPDATE notes SET body = 'later' WHERE id = 3")
        .await
        .unwrap();
    let _daemon = start_sync(&config).await;
    db.agent
        .batch_execute("DELETE FROM notes WHERE id > 5; UPDATE notes SET n = -1")
        .await
        .unwrap();
    let (status, output) = command(&config, &["resync", "notes", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
    long.batch_execute("SET LOCAL synchronous_commit = local; COMMIT")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
}
