//! What a pattern of `sync.tables` selects though its rows never come through the log: UNLOGGED and foreign tables, views,
//! partitions without their root. Nothing of it is left out without a word.

use crate::harness::{SOON, Twins, eventually};

/// Waits until a table is held for a reason with these words; returns the reason.
async fn until_held(twins: &Twins, table: &str, words: &str) -> String {
    let detail = format!("SELECT detail FROM twinlog.tables WHERE table_name = '{table}' AND state = 'held'");
    eventually(&format!("{table} is held: {words}"), SOON, || async {
        let row = twins.agent.query_opt(&detail, &[]).await.ok().flatten();
        let reason = row.map(|row| row.get::<_, String>("detail"));
        reason.clone().filter(|reason| reason.contains(words)).ok_or(reason)
    })
    .await
}

const SITE: &str = "
    CREATE UNLOGGED TABLE \"Un logged\" (id int PRIMARY KEY, v text);
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE UNLOGGED TABLE part_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
    INSERT INTO \"Un logged\" SELECT i, 'x' FROM generate_series(1, 50) i;
    INSERT INTO parted SELECT i, 'x' FROM generate_series(1, 150) i";

const AGENT: &str = "
    CREATE TABLE \"Un logged\" (id int PRIMARY KEY, v text);
    CREATE TABLE parted (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_unlogged_on_the_site_db_are_held_with_the_statement_and_read_once_they_are_logged() {
    for publication in [
        "",
        "CREATE PUBLICATION {publication} FOR ALL TABLES WITH (publish_via_partition_root = true);",
    ] {
        let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
        let site = format!("{publication} {SITE}").replace("{publication}", &format!("\"{}\"", twins.site.name));
        twins.on_site(&site).await;
        twins.on_agent(AGENT).await;
        let daemon = twins.launch();
        let of_table = until_held(&twins, "Un logged", "is UNLOGGED in the Site DB").await;
        let of_partition = until_held(&twins, "parted", "a partition of it is").await;
        daemon.until_state("held").await;
        // Others flow meanwhile.
        twins
            .on_site("INSERT INTO t VALUES (1, 'a'); UPDATE \"Un logged\" SET v = 'y' WHERE id < 9")
            .await;
        twins.until_equal(&["t"]).await;

        for (reason, statement) in [
            (of_table, r#"ALTER TABLE public."Un logged" SET LOGGED;"#),
            (of_partition, "ALTER TABLE public.part_2 SET LOGGED;"),
        ] {
            assert!(reason.contains(&format!("on the Site DB: {statement}")), "{reason}");
            twins.on_site(statement).await;
        }
        twins.until_equal_within(2 * SOON, &["\"Un logged\"", "parted"]).await;
        daemon.until_state("streaming").await;
        twins
            .on_site("DELETE FROM \"Un logged\" WHERE id < 5; UPDATE parted SET v = 'z' WHERE id > 90")
            .await;
        twins.until_equal(&["\"Un logged\"", "parted"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_table_that_is_left_out_is_told_and_joins_once_it_is_logged() {
    let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY)")
        .await
        .with("sync.on_unreplicable_table = 'ignore'");
    twins
        .on_site("CREATE UNLOGGED TABLE fast (id int PRIMARY KEY); INSERT INTO fast VALUES (1)")
        .await;
    twins.on_agent("CREATE TABLE fast (id int PRIMARY KEY)").await;
    let daemon = twins.start().await;
    daemon.says("public.fast is UNLOGGED in the Site DB").await;
    daemon.until_state("streaming").await;
    twins
        .until_status_says(&["ignored_tables\":[\"public.fast\"]"], SOON)
        .await;
    twins
        .on_site("ALTER TABLE fast SET LOGGED; INSERT INTO fast VALUES (2)")
        .await;
    twins.until_table("fast", "streaming", 0).await;
    twins.until_equal(&["fast"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_are_nobodys_business_and_a_read_only_site_db_keeps_only_new_tables_out() {
    // GIVEN temporary tables on both sides, of which one has the name of a table
    let twins =
        Twins::new("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA more; CREATE TABLE more.u (id int PRIMARY KEY)")
            .await
            .with("sync.tables = ['*.*']");
    let daemon = twins.start().await;
    twins
        .on_both("CREATE TEMPORARY TABLE t (v text); CREATE TEMPORARY TABLE scratch (id int PRIMARY KEY); INSERT INTO scratch VALUES (1)")
        .await;
    twins
        .on_site("INSERT INTO public.t VALUES (1); CREATE TABLE late (id int PRIMARY KEY)")
        .await;
    twins.on_agent("CREATE TABLE late (id int PRIMARY KEY)").await;
    twins.until_table("late", "streaming", 0).await;
    twins.until_equal(&["public.t"]).await;
    let status = twins.until_status_is_good(&["--json"]).await;
    assert!(
        status.contains(r#""ignored_tables":[]"#) && !status.contains("scratch"),
        "{status}"
    );

    // WHEN the Site DB takes no writes, as where its disk is full, and a table is new all the same
    let database = &twins.site.name;
    twins
        .on_site(&format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = on"
        ))
        .await;
    twins
        .on_site("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'twinlog %'")
        .await;
    twins
        .on_site("CREATE TABLE newest (id int PRIMARY KEY); INSERT INTO newest VALUES (1)")
        .await;
    twins.on_agent("CREATE TABLE newest (id int PRIMARY KEY)").await;
    // THEN it is held, and the others flow
    until_held(&twins, "newest", "read-only transaction").await;
    twins
        .on_site("INSERT INTO public.t VALUES (2); INSERT INTO more.u VALUES (2)")
        .await;
    twins.until_equal(&["public.t", "more.u"]).await;
    twins
        .on_site(&format!(
            "ALTER DATABASE {database} RESET default_transaction_read_only"
        ))
        .await;
    twins
        .on_site("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'twinlog %'")
        .await;
    twins.until_equal_within(2 * SOON, &["newest"]).await;
    daemon.until_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_table_of_its_own_is_told_and_held_only_where_it_is_named() {
    let mut twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    twins
        .on_site(
            "CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none;
             CREATE FOREIGN TABLE elsewhere (id int) SERVER nowhere;
             CREATE VIEW looks AS SELECT * FROM t; CREATE MATERIALIZED VIEW keeps AS SELECT * FROM t;
             CREATE SCHEMA other; CREATE TABLE other.root (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE alone PARTITION OF other.root DEFAULT",
        )
        .await;
    let mut daemon = twins.start().await;
    let told = [
        "public.elsewhere of the Site DB is a foreign table",
        "public.looks of the Site DB is a view",
        "public.keeps of the Site DB is a materialized view",
        "public.alone of the Site DB is a partition of other.root",
    ];
    for words in told {
        daemon.says(words).await;
    }
    daemon.until_state("streaming").await;
    let names = [
        "ignored_tables",
        "public.elsewhere",
        "public.looks",
        "public.keeps",
        "public.alone",
    ];
    twins.until_status_says(&names, SOON).await;
    // Also those that come later; and who goes is named no more.
    twins.on_site("CREATE VIEW later AS SELECT 1; DROP VIEW looks").await;
    daemon.says("public.later of the Site DB is a view").await;
    twins.until_status_says(&["public.later"], SOON).await;
    let status = twins.succeeds(&["status"]).await;
    assert!(
        status.contains("left out") && !status.contains("public.looks"),
        "{status}"
    );

    twins.configure("sync.tables = ['public.t', 'public.keeps', 'public.alone', 'public.elsewhere']");
    daemon.kill9();
    daemon = twins.start().await;
    for (table, words) in [
        ("keeps", "is a materialized view"),
        ("elsewhere", "is a foreign table"),
        ("alone", "select other.root"),
    ] {
        let reason = until_held(&twins, table, words).await;
        assert!(reason.contains(&format!(r#""!public.{table}"]"#)), "{reason}");
    }
    twins.on_site("INSERT INTO t VALUES (1)").await;
    twins.until_equal(&["t"]).await;
    // The root is selected: its partition comes with it.
    twins
        .on_agent("CREATE SCHEMA other; CREATE TABLE other.root (id int PRIMARY KEY)")
        .await;
    twins.configure("sync.tables = ['public.*', 'other.*']");
    daemon.kill9();
    daemon = twins.start().await;
    twins.on_site("INSERT INTO other.root VALUES (7)").await;
    twins.until_equal(&["t", "other.root"]).await;
    daemon.until_state("streaming").await;
}
