//! Equal keys with different spellings, such as 1.0 and 1.00: they name one row.

use crate::harness::Twins;

const PRICES: &str = "CREATE TABLE prices (id numeric PRIMARY KEY, name text, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_row_that_comes_back_under_another_spelling_of_its_key_stays() {
    let twins = Twins::new(PRICES).await;
    twins
        .on_site("INSERT INTO prices SELECT round(i, 1), 'first', i FROM generate_series(1, 5) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["prices"]).await;

    twins
        .on_agent("ALTER TABLE prices ADD CONSTRAINT small CHECK (n < 100)")
        .await;
    twins.on_site("UPDATE prices SET n = 100 + n").await;
    twins.until_parked(5).await;

    for change in [
        "DELETE FROM prices WHERE id = 1",
        "INSERT INTO prices VALUES (1.00, 'again', 1)",
        "BEGIN; DELETE FROM prices WHERE id = 2; INSERT INTO prices VALUES (2.00, 'again', 2); COMMIT",
        "UPDATE prices SET id = 3.00, n = 3 WHERE id = 3",
        "BEGIN; DELETE FROM prices WHERE id = 4; INSERT INTO prices VALUES (4.00, 'again', 400); COMMIT",
        "DELETE FROM prices WHERE id = 5",
    ] {
        twins.on_site(change).await;
    }
    twins
        .until_agent(
            "only the one that is refused is parked",
            "SELECT string_agg(DISTINCT trunc((key::jsonb ->> 0)::numeric)::text, ',') FROM twinlog.failed_rows",
            "4",
        )
        .await;

    twins.on_agent("ALTER TABLE prices DROP CONSTRAINT small").await;
    twins.until_parked(0).await;
    twins.until_equal(&["prices"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_writes_the_site_dbs_spelling_of_a_key() {
    let twins = Twins::new(PRICES).await;
    twins
        .on_site("INSERT INTO prices SELECT round(i, 1), 'right', i FROM generate_series(1, 50) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["prices"]).await;
    twins
        .on_agent(
            "UPDATE prices SET id = round(id, 3), name = 'wrong' WHERE id < 10;
             INSERT INTO prices VALUES (77.0, 'only here', 1)",
        )
        .await;

    twins.succeeds(&["resync", "prices", "--wait"]).await;
    twins.until_equal(&["prices"]).await;
}
