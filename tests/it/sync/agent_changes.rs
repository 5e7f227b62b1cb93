//! The Agent DB is changed while the daemon runs, or can't hold every character.

use std::sync::Arc;

use crate::harness::{Database, NOTES, Twins, databases};

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_widened_in_the_agent_db_heals_its_rows_and_takes_further_ones() {
    // GIVEN a row that does not fit, which waits for long
    let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY, n bigint)")
        .await
        .with("sync.retry_initial_ms = 300000\nsync.retry_max_ms = 300000");
    twins.on_agent("ALTER TABLE t ALTER n TYPE int").await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    twins.on_site("INSERT INTO t VALUES (1, 3000000000), (2, 2)").await;
    twins.until_parked(1).await;
    // WHEN the column takes it
    twins.on_agent("ALTER TABLE t ALTER n TYPE bigint").await;
    // THEN it heals, and further rows are written
    twins.until_parked(0).await;
    twins.on_site("INSERT INTO t VALUES (3, 4000000000)").await;
    twins.until_equal(&["t"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_goes_in_the_agent_db_heals_its_rows() {
    let twins = Twins::new(NOTES)
        .await
        .with("sync.retry_initial_ms = 300000\nsync.retry_max_ms = 300000");
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT few CHECK (n < 10)")
        .await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    twins
        .on_site("INSERT INTO notes VALUES (1, 'a', 100), (2, 'b', 1)")
        .await;
    twins.until_parked(1).await;
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT few").await;
    twins.until_equal(&["notes"]).await;
    twins.until_parked(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_character_that_the_agent_db_can_not_hold_parks_its_row() {
    // GIVEN an Agent DB in LATIN1
    let mut databases = databases().await;
    let cluster = Arc::clone(&databases.agent.cluster);
    let name = format!("{}_latin1", databases.agent.name);
    let postgres = cluster.client("postgres").await.unwrap();
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    postgres.batch_execute(&create).await.unwrap();
    databases.agent = Database {
        url: cluster.url(&name),
        client: cluster.client(&name).await.unwrap(),
        name,
        cluster,
    };
    let twins = Twins::on(databases, "CREATE TABLE t (id text PRIMARY KEY, v text)").await;
    let _daemon = twins.start().await;
    // WHEN rows hold what it lacks: in a value, in a key, in both
    twins
        .on_site("INSERT INTO t VALUES ('a', 'fine'), ('b', '🚀'), ('🚀', 'c'), ('d', 'é')")
        .await;
    // THEN they are parked, and the others are there
    twins.until_parked(2).await;
    twins
        .until_agent(
            "the others",
            "SELECT string_agg(id || v, ' ' ORDER BY id) FROM t",
            "afine dé",
        )
        .await;
    // Changes of their keys fold in, and a row that fits heals.
    twins
        .on_site("UPDATE t SET v = 'B' WHERE id = 'b'; UPDATE t SET id = 'e' WHERE id = '🚀'")
        .await;
    twins
        .until_agent(
            "healed",
            "SELECT string_agg(id || v, ' ' ORDER BY id) FROM t WHERE id IN ('b', 'e')",
            "bB ec",
        )
        .await;
}
