//! Tables that join (and leave) while the daemon runs, with transactions under way that wrote them before (pitfall P10).

use super::{balanced, on_both, quick, start_sync, until_equal, until_table};
use crate::harness::{ConfigFile, Databases, SOON, eventually_equal, private_databases};
use twinlog::dev::postgres::Settings;

const NOTES: &str =
    "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int); INSERT INTO notes VALUES (1, 'a', 1)";
const LATE: &str = "CREATE TABLE late (id int PRIMARY KEY, body text)";

async fn running_transactions_are_waited_for(db: &Databases, join: &str) {
    let slow = db.site.connect().await;
    slow.batch_execute("BEGIN; INSERT INTO late SELECT i, 'slow' FROM generate_series(1, 100) i")
        .await
        .unwrap();
    db.site.batch_execute(join).await.unwrap();
    // The stream's first word of the table.
    db.site
        .batch_execute("INSERT INTO late VALUES (1000, 'quick')")
        .await
        .unwrap();
    until_table(db, "late", "new", 0).await;
    eventually_equal(
        "the rows of after the join stream already",
        SOON,
        Some("1".to_owned()),
        || db.agent.text("SELECT count(*) FROM late"),
    )
    .await;
    slow.batch_execute("INSERT INTO late VALUES (2000, 'slow, too'); COMMIT")
        .await
        .unwrap();
    until_table(db, "late", "streaming", 100).await;
    until_equal(db, &["late", "notes"], SOON).await;
    balanced(db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_to_the_publication_brings_rows_of_transactions_that_ran_before() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    on_both(&db, LATE).await;
    db.site
        .batch_execute(&format!("CREATE PUBLICATION {} FOR TABLE notes", db.site.name))
        .await
        .unwrap();
    // Made before, matched only later: the publication is not ours to extend while it is left out.
    let config = ConfigFile::new(&db, "[sync]\ntables = [\"public.notes\"]\nreconnect_max_ms = 300\n");
    let mut first = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    first.kill9();
    let slow = db.site.connect().await;
    slow.batch_execute("BEGIN; INSERT INTO late SELECT i, 'slow' FROM generate_series(1, 100) i")
        .await
        .unwrap();
    db.site
        .batch_execute(&format!(
            "ALTER PUBLICATION {} ADD TABLE late; INSERT INTO late VALUES (1000, 'quick')",
            db.site.name
        ))
        .await
        .unwrap();
    let _daemon = start_sync(&quick(&db)).await;
    until_table(&db, "late", "new", 0).await;
    slow.batch_execute("COMMIT").await.unwrap();
    until_table(&db, "late", "streaming", 100).await;
    until_equal(&db, &["late", "notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_youngest_running_transaction_is_waited_for_as_well() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    on_both(&db, LATE).await;
    db.site
        .batch_execute(&format!("CREATE PUBLICATION {} FOR TABLE notes", db.site.name))
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ntables = [\"public.notes\"]\nreconnect_max_ms = 300\n");
    let mut first = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    first.kill9();
    // GIVEN a transaction that is younger than the one that adds the table, and has written it before that one ends: no
    // transaction after it has ended, so it is beyond the end of every snapshot's list
    let slow = db.site.connect().await;
    db.site
        .batch_execute(&format!(
            "BEGIN; ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
            db.site.name
        ))
        .await
        .unwrap();
    slow.batch_execute("BEGIN; INSERT INTO late SELECT i, 'slow' FROM generate_series(1, 100) i")
        .await
        .unwrap();
    db.site
        .batch_execute(&format!("ALTER PUBLICATION {} ADD TABLE late; COMMIT", db.site.name))
        .await
        .unwrap();
    let daemon = start_sync(&quick(&db)).await;
    until_table(&db, "late", "new", 0).await;
    daemon.says("older transactions").await;
    until_table(&db, "late", "new", 0).await;
    slow.batch_execute("COMMIT").await.unwrap();
    until_table(&db, "late", "streaming", 100).await;
    until_equal(&db, &["late", "notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_created_under_all_tables_brings_rows_of_transactions_that_ran_before() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    db.agent.batch_execute(LATE).await.unwrap();
    db.site
        .batch_execute(&format!("CREATE PUBLICATION {} FOR ALL TABLES", db.site.name))
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    db.site.batch_execute(LATE).await.unwrap();
    running_transactions_are_waited_for(&db, "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_created_while_the_daemon_runs_is_taken_in_before_its_next_change() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    on_both(&db, LATE).await;
    db.site
        .batch_execute("INSERT INTO late SELECT i, 'early' FROM generate_series(1, 50) i")
        .await
        .unwrap();
    until_table(&db, "late", "streaming", 0).await;
    until_equal(&db, &["late"], SOON).await;
    // And one that leaves is forgotten, so that it is read again should it come back.
    db.site
        .batch_execute(&format!(
            "ALTER PUBLICATION {} DROP TABLE late; DROP TABLE late",
            db.site.name
        ))
        .await
        .unwrap();
    eventually_equal("the table is forgotten", 2 * SOON, Some("notes".to_owned()), || {
        db.agent.text("SELECT string_agg(table_name, ' ') FROM twinlog.tables")
    })
    .await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (2, 'b', 2)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
}
