//! The daemon's memory is bounded: 150 MB and twice the largest row, whatever the two databases hold and do.
//!
//! The tests measure the most that the process has taken (`VmHWM`). `TWINLOG_LONG_TESTS=1` runs them with as many rows as a
//! user has; without it, with as many as show an unbounded copy.

use crate::harness::{Daemon, SOON, Twins, eventually_is};

/// Databases with tables of these names on both sides.
async fn twins_with(tables: &[&str]) -> Twins {
    let schema: Vec<String> = tables
        .iter()
        .map(|table| format!("CREATE TABLE {table} (id int PRIMARY KEY, v text);"))
        .collect();
    Twins::new(&schema.concat()).await
}

/// A statement that inserts rows with texts of so many bytes.
fn insert(table: &str, rows: u32, bytes: u64) -> String {
    format!("INSERT INTO {table} SELECT i, repeat('v', {bytes}) FROM generate_series(1, {rows}) i;")
}

/// What the daemon may take besides two copies of the largest row.
const MOST_MB: u64 = 150;

/// `short`, or `long` where the environment asks for it.
fn rows(short: u32, long: u32) -> u32 {
    if std::env::var_os("TWINLOG_LONG_TESTS").is_some() {
        long
    } else {
        short
    }
}

/// `largest_row_mb`: of the text of its values.
fn assert_bounded(daemon: &Daemon, largest_row_mb: u64, what: &str) {
    // Only Linux tells.
    let Some(peak) = daemon.peak_mb() else { return };
    println!("peak {peak} MB: {what}");
    let most = MOST_MB + 2 * largest_row_mb;
    assert!(peak <= most, "{what}: {peak} MB, at most {most} MB");
}

/// Waits until a table of both databases has the same number of rows and bytes. (Such values are not compared one by one.)
async fn until_same_size(twins: &Twins, table: &str) {
    let size = format!("SELECT count(*) || ' rows, ' || coalesce(sum(length(v)), 0) || ' bytes' FROM {table}");
    let expected = twins.site.value(&size).await;
    let actual = || async { twins.agent.value(&size).await };
    eventually_is(&format!("{table} is the same"), 8 * SOON, actual, |actual| {
        *actual == expected
    })
    .await;
}

/// Starts a resync of `notes`, whose read runs into a lock and is cancelled.
async fn fail_a_resync(twins: &Twins, daemon: &Daemon) {
    let other = twins.site.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE notes").await.unwrap();
    twins.succeeds(&["resync", "notes"]).await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) > 0 FROM pg_stat_activity \
                  WHERE datname = current_database() AND application_name = 'twinlog copy' AND wait_event_type = 'Lock'";
    let cancelled = || async { twins.site.value(cancel).await };
    eventually_is("the reader is cancelled", SOON, cancelled, |cancelled| {
        cancelled == "true"
    })
    .await;
    daemon.says("the copy of a table was interrupted").await;
    other.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_bounded_by_bytes_whatever_its_rows_are() {
    // GIVEN tables of rows that are wide, rather wide, and narrow but for some in the middle
    let twins = twins_with(&["wide", "rather", "mixed"]).await;
    let (wide, rather) = (rows(40, 320), rows(800, 2000));
    twins
        .on_site(&format!(
            "{}{}
             INSERT INTO mixed SELECT i, repeat('m', CASE WHEN i BETWEEN 3000 AND 3040 THEN 4000000 ELSE 10 END)
                 FROM generate_series(1, 9000) i",
            insert("wide", wide, 4_000_000),
            insert("rather", rather, 200_000)
        ))
        .await;

    // WHEN they are copied
    let daemon = twins.start().await;
    for table in ["wide", "rather", "mixed"] {
        until_same_size(&twins, table).await;
    }

    // THEN the daemon has not held them
    assert_bounded(&daemon, 4, "first copy of wide rows");
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    assert_bounded(&daemon, 4, "resync of wide rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_failed_leaves_no_window_behind() {
    // GIVEN a resync whose chunk can't be read, and which is tried again later
    let twins = twins_with(&["notes", "big"]).await;
    twins.on_site(&insert("notes", 700, 1)).await;
    let daemon = twins.start().await;
    until_same_size(&twins, "notes").await;
    fail_a_resync(&twins, &daemon).await;

    // WHEN the table has small changes among large ones of another table
    let changes = rows(300, 600);
    let statements: Vec<String> = (1..=changes)
        .map(|i| {
            format!("UPDATE notes SET v = 'w' WHERE id = {i}; INSERT INTO big VALUES ({i}, repeat('b', 1000000));")
        })
        .collect();
    for some in statements.chunks(10) {
        twins.on_site(&some.concat()).await;
    }
    until_same_size(&twins, "big").await;

    // THEN they are not kept for a chunk that nobody reads any more
    assert_bounded(&daemon, 1, "changes after a chunk that failed");
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_other_tables_are_not_kept_for_the_few_of_ours_among_them() {
    let twins = twins_with(&["notes"]).await;
    twins
        .on_site(&format!(
            "CREATE TABLE foreign_rows (id int PRIMARY KEY, v text);
             CREATE PUBLICATION \"{}\" FOR ALL TABLES",
            twins.site.name
        ))
        .await;
    let twins = twins.with("sync.tables = [\"public.notes\"]");
    let daemon = twins.start().await;

    // Once in many transactions that arrive together, once in a single one.
    let changes = rows(400, 2000);
    twins
        .on_site(&format!(
            "DO $$ BEGIN FOR i IN 1..{changes} LOOP
                 INSERT INTO notes VALUES (i, 'v'); INSERT INTO foreign_rows VALUES (i, repeat('f', 1000000)); COMMIT;
             END LOOP; END $$"
        ))
        .await;
    twins
        .on_site(&format!(
            "DO $$ BEGIN FOR i IN 1..{changes} LOOP
                 INSERT INTO notes VALUES (-i, 'v'); INSERT INTO foreign_rows VALUES (-i, repeat('f', 1000000));
             END LOOP; END $$"
        ))
        .await;
    until_same_size(&twins, "notes").await;

    assert_bounded(&daemon, 1, "foreign traffic");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_huge_transaction_and_wide_rows_in_the_stream_are_bounded() {
    let twins = twins_with(&["narrow", "wide"]).await;
    let daemon = twins.start().await;

    let narrow = rows(400_000, 4_000_000);
    twins.on_site(&insert("narrow", narrow, 100)).await;
    until_same_size(&twins, "narrow").await;
    assert_bounded(&daemon, 0, "a huge transaction");

    let wide = rows(60, 320);
    for statement in [
        insert("wide", wide, 4_000_000),
        "UPDATE wide SET v = v || 'x'".to_owned(),
    ] {
        twins.on_site(&statement).await;
        until_same_size(&twins, "wide").await;
        assert_bounded(&daemon, 4, "wide rows in the stream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_wide_row_is_copied_and_streamed_alone() {
    let twins = twins_with(&["copied", "streamed"]).await;
    let mb = u64::from(rows(60, 200));
    twins.on_site(&insert("copied", 4, mb * 1_000_000)).await;

    let daemon = twins.start().await;
    until_same_size(&twins, "copied").await;
    assert_bounded(&daemon, mb, "very wide rows, copied");
    twins.on_site(&insert("streamed", 4, mb * 1_000_000)).await;
    until_same_size(&twins, "streamed").await;
    assert_bounded(&daemon, mb, "very wide rows, streamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_without_a_key_are_bounded() {
    // (Few: each page of such a copy reads the whole table.)
    let twins = Twins::new("CREATE TABLE plain (v text); ALTER TABLE plain REPLICA IDENTITY FULL").await;
    twins
        .on_site("INSERT INTO plain SELECT i || repeat('p', 1000000) FROM generate_series(1, 40) i")
        .await;

    let daemon = twins.start().await;
    until_same_size(&twins, "plain").await;

    assert_bounded(&daemon, 1, "first copy of large rows without a key");
}
