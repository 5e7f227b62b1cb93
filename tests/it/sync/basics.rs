//! The basic cases: copy, stream, TRUNCATE, unchanged TOAST values, a parked row.

use crate::harness::{NOTES, Twins};

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_and_new_rows_reach_the_agent_db() {
    let twins = Twins::new(NOTES).await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'old ' || i, i FROM generate_series(1, 25000) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    twins
        .on_site(
            "INSERT INTO notes SELECT i, 'new ' || i, i FROM generate_series(25001, 26000) i;
             UPDATE notes SET n = n + 1 WHERE id % 7 = 0;
             DELETE FROM notes WHERE id % 11 = 0;
             UPDATE notes SET id = id + 100000 WHERE id % 13 = 0",
        )
        .await;
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
    assert!(twins.accounting().await.received > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_toast_value_survives_every_path() {
    let twins = Twins::new(
        "CREATE TABLE big (id int PRIMARY KEY, n int, body text); ALTER TABLE big ALTER body SET STORAGE EXTERNAL",
    )
    .await;
    twins
        .on_site("INSERT INTO big SELECT i, 0, repeat(md5(i::text), 200) FROM generate_series(1, 50) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["big"]).await;

    twins
        .on_site(
            "UPDATE big SET n = n + 1;
             UPDATE big SET id = id + 1000 WHERE id <= 10;
             INSERT INTO big VALUES (500, 0, repeat('x', 9000));
             UPDATE big SET n = 7 WHERE id = 500",
        )
        .await;
    twins.until_equal(&["big"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_only_the_agent_refuses_is_parked_and_healed_after_the_constraint_goes() {
    let twins = Twins::new(NOTES).await;
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT positive CHECK (n >= 0)")
        .await;
    let _daemon = twins.start().await;

    twins
        .on_site("INSERT INTO notes VALUES (1, 'a', 1), (2, 'b', -2), (3, 'c', 3)")
        .await;
    twins.on_site("UPDATE notes SET body = 'later' WHERE id = 2").await;
    twins.until_parked(1).await;
    twins
        .until_agent("the other rows are there", "SELECT count(*) FROM notes", "2")
        .await;

    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT positive").await;
    twins.until_parked(0).await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_applied_in_order() {
    let twins = Twins::with_notes(100).await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    twins
        .on_site(
            "BEGIN; INSERT INTO notes VALUES (1000, 'gone', 0); TRUNCATE notes; INSERT INTO notes VALUES (1, 'kept', 1);
             COMMIT",
        )
        .await;
    twins.until_equal(&["notes"]).await;
}
