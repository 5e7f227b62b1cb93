//! One table's fault holds that table: the others flow, and it is read again and released by itself once the cause is gone.

use crate::harness::{NOTES, Twins};

/// A table whose fault is made, and two that must not notice.
const THREE: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int);
    CREATE TABLE one (id int PRIMARY KEY, v text);
    CREATE TABLE two (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_in_the_agent_db_is_held_and_the_others_flow() {
    let twins = Twins::new(THREE).await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;

    twins.on_agent("DROP TABLE notes").await;
    twins
        .on_site(
            "INSERT INTO notes VALUES (1, 'a', 1); INSERT INTO one VALUES (1, 'a'); INSERT INTO two VALUES (1, 'a')",
        )
        .await;
    twins.until_equal(&["one", "two"]).await;
    twins.until_table("notes", "held", 0).await;
    daemon.says("notes is missing").await;

    twins.on_agent(NOTES).await;
    twins.until_table("notes", "streaming", 0).await;
    twins.until_equal(&["notes", "one", "two"]).await;
    twins.assert_balanced().await;
}
