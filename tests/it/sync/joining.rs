//! Tables that join (and leave) while the daemon runs, with transactions under way that wrote them before (pitfall P10).

use tokio_postgres::Client;

use crate::harness::{SOON, Twins, eventually_equal};

const NOTES: &str =
    "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int); INSERT INTO notes VALUES (1, 'a', 1)";
const LATE: &str = "CREATE TABLE late (id int PRIMARY KEY, body text)";

/// Both tables on both sides, and a publication of `notes` alone, which a daemon has brought over and which was then killed.
async fn late_is_not_published_yet() -> Twins {
    let mut twins = Twins::private(NOTES).await;
    twins.on_both(LATE).await;
    let publication = twins.site.name.clone();
    twins
        .on_site(&format!("CREATE PUBLICATION {publication} FOR TABLE notes"))
        .await;
    // The daemon does not add `late` to the publication while the configuration excludes it.
    twins.configure("sync.tables = ['public.notes']");
    let mut first = twins.start().await;
    twins.until_equal(&["notes"]).await;
    first.kill9();
    twins.configure("");
    twins
}

/// A transaction that has written `late` and stays open.
async fn slow_writer(twins: &Twins) -> Client {
    let slow = twins.site.connect().await;
    slow.batch_execute("BEGIN; INSERT INTO late SELECT i, 'slow' FROM generate_series(1, 100) i")
        .await
        .unwrap();
    slow
}

/// Nothing is copied before the open transaction has ended; then all its rows are there.
async fn waits_for(twins: &Twins, slow: Client) {
    twins.until_table("late", "new", 0).await;
    slow.batch_execute("COMMIT").await.unwrap();
    twins.until_table("late", "streaming", 100).await;
    twins.until_equal(&["late", "notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_to_the_publication_brings_rows_of_transactions_that_ran_before() {
    let twins = late_is_not_published_yet().await;
    let publication = &twins.site.name;
    let slow = slow_writer(&twins).await;
    twins
        .on_site(&format!(
            "ALTER PUBLICATION {publication} ADD TABLE late; INSERT INTO late VALUES (1000, 'quick')"
        ))
        .await;
    let _daemon = twins.start().await;
    waits_for(&twins, slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_joins_waits_for_the_youngest_running_transaction_too() {
    // GIVEN a transaction that is younger than the one that adds the table, and has written it before that one ends: no
    // transaction after it has ended, so it is beyond the end of every snapshot's list
    let twins = late_is_not_published_yet().await;
    let publication = &twins.site.name;
    twins
        .on_site(&format!(
            "BEGIN; ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"
        ))
        .await;
    let slow = slow_writer(&twins).await;
    twins
        .on_site(&format!("ALTER PUBLICATION {publication} ADD TABLE late; COMMIT"))
        .await;

    // WHEN a daemon finds the table
    let daemon = twins.start().await;

    // THEN it waits
    twins.until_table("late", "new", 0).await;
    daemon.says("older transactions").await;
    waits_for(&twins, slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_created_under_all_tables_brings_rows_of_transactions_that_ran_before() {
    // GIVEN a publication of all tables, and one more table that a running transaction has written
    let twins = Twins::private(NOTES).await;
    twins.on_agent(LATE).await;
    twins
        .on_site(&format!("CREATE PUBLICATION {} FOR ALL TABLES", twins.site.name))
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    twins.on_site(LATE).await;
    let slow = slow_writer(&twins).await;

    // WHEN the stream contains the table for the first time, and it has joined
    twins.on_site("INSERT INTO late VALUES (1000, 'quick')").await;
    twins.until_table("late", "new", 0).await;
    twins.on_site("INSERT INTO late VALUES (1001, 'later')").await;
    twins
        .until_agent("rows stream already", "SELECT count(*) FROM late WHERE id = 1001", "1")
        .await;

    // THEN the copy waits for the running transaction
    slow.batch_execute("INSERT INTO late VALUES (2000, 'slow, too')")
        .await
        .unwrap();
    waits_for(&twins, slow).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_created_while_the_daemon_runs_is_taken_in_before_its_next_change() {
    let twins = Twins::private(NOTES).await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    twins.on_both(LATE).await;
    twins
        .on_site("INSERT INTO late SELECT i, 'early' FROM generate_series(1, 50) i")
        .await;
    twins.until_table("late", "streaming", 0).await;
    twins.until_equal(&["late"]).await;

    // A table that leaves is forgotten, so that it is read again if it comes back.
    let publication = &twins.site.name;
    twins
        .on_site(&format!(
            "ALTER PUBLICATION {publication} DROP TABLE late; DROP TABLE late"
        ))
        .await;
    let tables = "SELECT string_agg(table_name, ' ') FROM twinlog.tables";
    eventually_equal("the table is forgotten", 2 * SOON, Some("notes".to_owned()), || {
        twins.agent.text(tables)
    })
    .await;
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;
    twins.until_equal(&["notes"]).await;
}
