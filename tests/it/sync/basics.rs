//! What every user does first.

use super::{accounting, on_both, quick, start_sync, until_equal};
use crate::harness::{SOON, databases, eventually_equal};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_there_and_rows_that_come_reach_the_agent_db() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'old ' || i, i FROM generate_series(1, 25000) i")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;

    db.site
        .batch_execute(
            "INSERT INTO notes SELECT i, 'new ' || i, i FROM generate_series(25001, 26000) i;
             UPDATE notes SET n = n + 1 WHERE id % 7 = 0;
             DELETE FROM notes WHERE id % 11 = 0;
             UPDATE notes SET id = id + 100000 WHERE id % 13 = 0",
        )
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    let (received, accounted) = accounting(&db).await;
    assert_eq!(received, accounted);
    assert!(received > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_toast_value_survives_every_path() {
    let db = databases().await;
    on_both(
        &db,
        "CREATE TABLE big (id int PRIMARY KEY, n int, body text); ALTER TABLE big ALTER body SET STORAGE EXTERNAL",
    )
    .await;
    db.site
        .batch_execute("INSERT INTO big SELECT i, 0, repeat(md5(i::text), 200) FROM generate_series(1, 50) i")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["big"], SOON).await;
    db.site
        .batch_execute(
            "UPDATE big SET n = n + 1;
             UPDATE big SET id = id + 1000 WHERE id <= 10;
             INSERT INTO big VALUES (500, 0, repeat('x', 9000));
             UPDATE big SET n = 7 WHERE id = 500",
        )
        .await
        .unwrap();
    until_equal(&db, &["big"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_only_the_agent_refuses_is_parked_and_healed_after_the_constraint_goes() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.agent
        .batch_execute("ALTER TABLE notes ADD CONSTRAINT positive CHECK (n >= 0)")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1), (2, 'b', -2), (3, 'c', 3)")
        .await
        .unwrap();
    db.site
        .batch_execute("UPDATE notes SET body = 'later' WHERE id = 2")
        .await
        .unwrap();
    let parked = || async {
        db.agent
            .query_one("SELECT count(*) FROM twinlog.failed_rows", &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    eventually_equal("the refused row is parked", SOON, 1, parked).await;
    eventually_equal("its neighbours are there", SOON, 2, || async {
        db.agent
            .query_one("SELECT count(*) FROM notes", &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    })
    .await;

    db.agent
        .batch_execute("ALTER TABLE notes DROP CONSTRAINT positive")
        .await
        .unwrap();
    eventually_equal("the row is healed", SOON, 0, parked).await;
    until_equal(&db, &["notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_applied_in_order() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 100) i")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    db.site
        .batch_execute(
            "BEGIN; INSERT INTO notes VALUES (1000, 'gone', 0); TRUNCATE notes; INSERT INTO notes VALUES (1, 'kept', 1); COMMIT",
        )
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
}
