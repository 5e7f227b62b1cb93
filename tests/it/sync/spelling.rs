//! Keys that are equal and written otherwise, as 1.0 and 1.00 are: one row, whoever asks for it under which spelling.

use super::{balanced, command, on_both, parked, quick, start_sync, until_equal};
use crate::harness::{SOON, databases, eventually_equal};

const PRICES: &str = "CREATE TABLE prices (id numeric PRIMARY KEY, name text, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_row_that_comes_back_under_another_spelling_of_its_key_stays() {
    let db = databases().await;
    on_both(&db, PRICES).await;
    db.site
        .batch_execute("INSERT INTO prices SELECT round(i, 1), 'first', i FROM generate_series(1, 5) i")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["prices"], SOON).await;
    db.agent
        .batch_execute("ALTER TABLE prices ADD CONSTRAINT small CHECK (n < 100)")
        .await
        .unwrap();
    db.site.batch_execute("UPDATE prices SET n = 100 + n").await.unwrap();
    eventually_equal("all are parked", SOON, 5, || parked(&db)).await;
    for change in [
        "DELETE FROM prices WHERE id = 1",
        "INSERT INTO prices VALUES (1.00, 'again', 1)",
        "BEGIN; DELETE FROM prices WHERE id = 2; INSERT INTO prices VALUES (2.00, 'again', 2); COMMIT",
        "UPDATE prices SET id = 3.00, n = 3 WHERE id = 3",
        "BEGIN; DELETE FROM prices WHERE id = 4; INSERT INTO prices VALUES (4.00, 'again', 400); COMMIT",
        "DELETE FROM prices WHERE id = 5",
    ] {
        db.site.batch_execute(change).await.unwrap();
    }
    eventually_equal(
        "only the one that is refused is parked",
        SOON,
        Some("4".to_owned()),
        || {
            db.agent.text(
                "SELECT string_agg(DISTINCT trunc((key::jsonb ->> 0)::numeric)::text, ',') FROM twinlog.failed_rows",
            )
        },
    )
    .await;
    db.agent
        .batch_execute("ALTER TABLE prices DROP CONSTRAINT small")
        .await
        .unwrap();
    eventually_equal("nothing is parked", SOON, 0, || parked(&db)).await;
    until_equal(&db, &["prices"], SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_takes_the_site_dbs_spelling_over() {
    let db = databases().await;
    on_both(&db, PRICES).await;
    db.site
        .batch_execute("INSERT INTO prices SELECT round(i, 1), 'right', i FROM generate_series(1, 50) i")
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["prices"], SOON).await;
    db.agent
        .batch_execute(
            "UPDATE prices SET id = round(id, 3), name = 'wrong' WHERE id < 10;
             INSERT INTO prices VALUES (77.0, 'nobody knows', 1)",
        )
        .await
        .unwrap();
    let (status, output) = command(&config, &["resync", "prices", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["prices"], SOON).await;
}
