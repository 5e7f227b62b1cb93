//! What is left of a table that is not replicated any more under its name, or of a partition that is a table of its own.

use crate::harness::{SOON, Twins, eventually};

/// Three tables, and `done`, a row of which shows that the stream goes on.
const TABLES: &str = "
    CREATE TABLE renamed (id int PRIMARY KEY, n int); CREATE TABLE dropped (id int PRIMARY KEY, n int);
    CREATE TABLE left_out (id int PRIMARY KEY, n int); CREATE TABLE kept (id int PRIMARY KEY, n int);
    CREATE TABLE done (id int PRIMARY KEY)";

const ALL: [&str; 4] = ["renamed", "dropped", "left_out", "kept"];

#[tokio::test(flavor = "multi_thread")]
async fn parked_rows_of_a_table_that_is_renamed_dropped_or_left_out_do_not_stay_for_ever() {
    // GIVEN parked rows in each table
    let mut twins = Twins::new(TABLES).await;
    let daemon = twins.start().await;
    for table in ALL {
        twins
            .on_agent(&format!(
                "ALTER TABLE {table} ADD CONSTRAINT no CHECK (n <> 7) NOT VALID"
            ))
            .await;
        twins
            .on_site(&format!("INSERT INTO {table} VALUES (1, 7), (2, 7)"))
            .await;
    }
    twins.until_parked(8).await;

    // WHEN the tables go their ways
    twins.on_both("ALTER TABLE renamed RENAME TO other").await;
    twins.on_site("DROP TABLE dropped; INSERT INTO done VALUES (1)").await;

    // THEN the renamed one's rows are parked under its new name, those of the dropped one are gone, and the log says so
    let parked =
        "SELECT coalesce(string_agg(DISTINCT table_name, ' ' ORDER BY table_name), '') FROM twinlog.failed_rows";
    twins
        .until_agent("who has parked rows", parked, "kept left_out other")
        .await;
    twins.until_parked(6).await;
    daemon.says("entries of parked rows are removed").await;

    // WHEN a table is left out by the configuration
    daemon.stop().await;
    twins.configure("sync.tables = ['public.*', '!public.left_out']");
    let _daemon = twins.start().await;
    twins.until_agent("who has parked rows", parked, "kept other").await;

    // THEN all others heal as before
    twins
        .on_agent("ALTER TABLE kept DROP CONSTRAINT no; ALTER TABLE other DROP CONSTRAINT no")
        .await;
    twins.until_parked(0).await;
    twins.until_equal(&["kept", "other", "done"]).await;
    twins.until_status_is_good(&[]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_a_table_of_its_own_in_the_site_db_is_held_until_it_is_one_in_the_agent_db() {
    // GIVEN a partitioned table that is replicated as a whole
    let twins = Twins::new(
        "CREATE TABLE p (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); CREATE TABLE done (id int PRIMARY KEY)",
    )
    .await;
    twins
        .on_site("INSERT INTO p SELECT i, i, 'x' FROM generate_series(0, 19) i")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["p"]).await;

    // WHEN one partition is detached in the Site DB alone
    twins
        .on_site("ALTER TABLE p DETACH PARTITION p2; UPDATE p2 SET v = 'own'; INSERT INTO done VALUES (1)")
        .await;

    // THEN it is held with the statement, and the others are right
    let statement = r#"ALTER TABLE "public"."p" DETACH PARTITION "public"."p2";"#;
    twins
        .until_status_says(&["is a partition of public.p", &statement.replace('"', "\\\"")], SOON)
        .await;
    twins.until_equal_within(2 * SOON, &["p", "done"]).await;

    // WHEN the statement is pasted
    twins.on_agent(statement).await;
    twins.until_equal_within(2 * SOON, &["p", "p2"]).await;

    // and WHEN it is attached again, on the Agent DB first
    let attach = "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)";
    twins.on_agent(attach).await;
    twins.until_table("p2", "held", 0).await;
    twins
        .on_site(&format!(
            "UPDATE p2 SET v = 'again'; {attach}; INSERT INTO p VALUES (20, 19, 'new')"
        ))
        .await;
    twins.until_equal_within(2 * SOON, &["p"]).await;
    // It has left the publication, which the daemon notices at its next look.
    eventually("status has no problem", 2 * SOON, || async {
        let (status, output) = twins.run(&["status"]).await;
        if status.success() { Ok(()) } else { Err(output) }
    })
    .await;
}
