//! Rows whose text has more than a gigabyte, which Postgres can't send: only their table waits.

use crate::harness::{SOON, Twins, eventually};

/// A `bytea` of 560 MB: its text would have 1.12 GB. (It is compressed in the table and in the log.)
const TOO_LARGE: &str = "convert_to(repeat('x', 560000000), 'UTF8')";

/// What the daemon may take besides two copies of the row, in MB.
const MOST_MB: u64 = 150;

/// Waits until `twinlog status` shows that `big` is waiting, with the reason and the remedy.
async fn until_big_is_held(twins: &Twins) {
    let words = ["a row of table public.big", "more than 1 GB", "make the value smaller"];
    twins.until_status_says(&words, 3 * SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_site_can_not_print_keeps_only_its_own_table() {
    // GIVEN such a row before the first copy
    let twins = Twins::new(
        "CREATE TABLE big (id int PRIMARY KEY, b bytea);
         CREATE TABLE notes (id int PRIMARY KEY, v text)",
    )
    .await;
    twins
        .on_site(&format!(
            "INSERT INTO big VALUES (1, {TOO_LARGE}); INSERT INTO notes VALUES (1, 'copied')"
        ))
        .await;
    let daemon = twins.start().await;

    // THEN the other table is copied, and flows
    twins.until_equal(&["notes"]).await;
    until_big_is_held(&twins).await;
    twins.on_site("UPDATE notes SET v = 'streamed'").await;
    twins.until_equal(&["notes"]).await;
    // and its own is copied once the row is smaller
    twins.on_site("UPDATE big SET b = 'small'").await;
    twins.until_equal(&["big", "notes"]).await;

    // WHEN such a row comes with the stream, in a transaction with others, among other transactions
    twins.on_site("INSERT INTO notes VALUES (2, 'before')").await;
    twins
        .on_site(&format!(
            "BEGIN; INSERT INTO notes VALUES (3, 'with it'); INSERT INTO big VALUES (2, {TOO_LARGE}); \
             UPDATE notes SET v = 'after it' WHERE id = 2; COMMIT"
        ))
        .await;
    twins.on_site("INSERT INTO notes VALUES (4, 'behind')").await;

    // THEN the other table gets all of it, and flows
    twins.until_equal(&["notes"]).await;
    until_big_is_held(&twins).await;
    twins.on_site("DELETE FROM notes WHERE id = 3").await;
    twins.until_equal(&["notes"]).await;
    if let Some(peak) = daemon.peak_mb() {
        println!("peak {peak} MB: a row of 560 MB that can't be printed");
        assert!(peak <= MOST_MB + 2 * 560, "{peak} MB");
    }
    // and the stream is not started again and again
    let starts = daemon.output().matches("the stream flows").count();
    assert!(starts <= 3, "started {starts} times: {}", daemon.output());
    // and its own is equal once the row is gone
    twins.on_site("DELETE FROM big WHERE id = 2").await;
    twins.until_equal(&["big", "notes"]).await;
}

/// `TWINLOG_LONG_TESTS=1` runs it: it needs some GB of memory and disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_rows_are_copied_updated_or_held_with_a_reason_in_bounded_memory() {
    if std::env::var_os("TWINLOG_LONG_TESTS").is_none() {
        return;
    }
    for mb in [64_u64, 130, 250, 450, 900] {
        let twins = Twins::private(
            "CREATE TABLE big (id int PRIMARY KEY, v text);
             CREATE TABLE notes (id int PRIMARY KEY, v text)",
        )
        .await;
        let row = |letter: &str| format!("repeat('{letter}', {})", mb * 1_000_000);
        twins
            .on_site(&format!("INSERT INTO big VALUES (1, {})", row("c")))
            .await;
        let mut daemon = twins.start().await;
        let mut phases = Vec::new();
        for (what, change) in [
            ("copied", "SELECT 1".to_owned()),
            ("inserted", format!("INSERT INTO big VALUES (2, {})", row("i"))),
            ("updated", format!("UPDATE big SET v = {} WHERE id = 2", row("u"))),
            ("moved", "UPDATE big SET id = 3 WHERE id = 2".to_owned()),
        ] {
            twins
                .on_site(&format!(
                    "{change}; INSERT INTO notes VALUES ((SELECT count(*) FROM notes) + 1, '{what}')"
                ))
                .await;
            // The other table flows.
            twins.until_equal_within(6 * SOON, &["notes"]).await;
            let sums = "SELECT string_agg(id || left(v, 1) || length(v), ' ' ORDER BY id) FROM big";
            let wanted = twins.site.text(sums).await;
            let end = eventually(
                &format!("a row of {mb} MB is {what}, or its table is held"),
                9 * SOON,
                || async {
                    let state = "SELECT detail FROM twinlog.tables WHERE table_name = 'big' AND detail IS NOT NULL";
                    if twins.agent.text(sums).await == wanted {
                        return Ok("equal".to_owned());
                    }
                    match twins.agent.text(state).await {
                        Some(reason) => Ok(format!("held: {reason}")),
                        None => Err(()),
                    }
                },
            )
            .await;
            phases.push(format!("{what}: {end}, peak {:?} MB", daemon.peak_mb()));
            assert!(daemon.is_running());
        }
        println!("{mb} MB: {}", phases.join("; "));
        if let Some(peak) = daemon.peak_mb() {
            assert!(peak <= MOST_MB + 2 * mb, "{mb} MB: {peak} MB: {phases:?}");
        }
    }
}
