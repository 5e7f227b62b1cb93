//! Tables without any key: rows may be equal, and exactly one of several equal rows changes at a time.

use crate::harness::{SOON, Twins};

/// Values that are easily taken for each other, or that have no equality at all.
const READINGS: &str = "
    CREATE TABLE readings (n int, label text, x float8, doc json, price numeric, gone int,
        twice int GENERATED ALWAYS AS (n * 2) STORED, big text);
    ALTER TABLE readings DROP COLUMN gone;
    ALTER TABLE readings ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE readings REPLICA IDENTITY FULL";

const READINGS_ROWS: &str = r#"
    INSERT INTO readings (n, label, x, doc, price) SELECT i % 7, nullif('l' || i % 3, 'l0'), 0, '{"a": 1}', 1.0
        FROM generate_series(1, 200) i;
    INSERT INTO readings (n, label, x, doc, price) VALUES
        (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL),
        (1, '', 'NaN', '{"a":1}', 'NaN'), (1, '', 'NaN', '{"a":1}', 'NaN'),
        (1, NULL, '-0', '{"a": 1}', 1.00), (1, NULL, '0', '{"a": 1}', 1.0), (1, NULL, '0', '{"a": 1}', 1.0)"#;

/// Each touches one, or some, of several equal rows.
const READINGS_CHANGES: &str = r#"
    DELETE FROM readings WHERE ctid = (SELECT min(ctid) FROM readings WHERE n IS NULL);
    UPDATE readings SET label = 'one' WHERE ctid = (SELECT max(ctid) FROM readings WHERE n = 3 AND label IS NULL);
    UPDATE readings SET x = '-0' WHERE ctid = (SELECT min(ctid) FROM readings WHERE n = 2);
    UPDATE readings SET doc = '{"a":  1}' WHERE ctid = (SELECT min(ctid) FROM readings WHERE x = 'NaN');
    UPDATE readings SET price = 1.00 WHERE n = 4 AND label = 'l1';
    UPDATE readings SET n = n WHERE n = 5;
    DELETE FROM readings WHERE n = 6 AND label = 'l2';
    INSERT INTO readings (n, label) SELECT 9, 'same' FROM generate_series(1, 300);
    DELETE FROM readings WHERE ctid IN (SELECT ctid FROM readings WHERE n = 9 LIMIT 100);
    INSERT INTO readings (n, big) VALUES (10, repeat('big', 3000)), (10, repeat('big', 3000)), (11, repeat('é🚀', 4000));
    UPDATE readings SET n = 12 WHERE ctid = (SELECT min(ctid) FROM readings WHERE n = 10)"#;

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_several_equal_rows_changes() {
    let twins = Twins::new(READINGS).await;
    // Found by an index, where the Agent DB has one.
    twins.on_agent("CREATE INDEX ON readings (label)").await;
    twins.on_site(READINGS_ROWS).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["readings"]).await;

    for statement in READINGS_CHANGES.split(";\n") {
        twins.on_site(statement).await;
    }
    twins.until_equal(&["readings"]).await;
    twins.on_site(READINGS_CHANGES).await;
    twins.until_equal(&["readings"]).await;

    daemon.kill9();
    twins.on_site(READINGS_CHANGES).await;
    daemon.restart().await;
    twins.until_equal(&["readings"]).await;
    twins
        .on_site(&format!("TRUNCATE readings; {READINGS_ROWS}; {READINGS_CHANGES}"))
        .await;
    twins.until_equal(&["readings"]).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_makes_the_number_of_equal_rows_right() {
    let twins = Twins::new(READINGS).await;
    twins.on_site(READINGS_ROWS).await;
    let _daemon = twins.start().await;
    twins.until_equal(&["readings"]).await;
    twins
        .on_agent(
            "DELETE FROM readings WHERE ctid IN (SELECT ctid FROM readings WHERE n = 1 LIMIT 3);
             INSERT INTO readings (n) VALUES (NULL), (NULL), (77), (77);
             INSERT INTO readings (n, label, x, doc, price) SELECT n, label, x, doc, price FROM readings WHERE n = 2;
             UPDATE readings SET label = 'x' WHERE n = 3",
        )
        .await;
    twins
        .succeeds(&["resync", "readings", "--where", "n = 77", "--wait"])
        .await;
    assert_eq!(
        twins.agent.value("SELECT count(*) FROM readings WHERE n = 77").await,
        "0"
    );
    twins.succeeds(&["resync", "readings", "--wait"]).await;
    twins.until_equal(&["readings"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_is_parked_and_healed_by_its_number() {
    let twins = Twins::new(READINGS).await;
    twins
        .on_agent("ALTER TABLE readings ADD CONSTRAINT sound CHECK (n < 100)")
        .await;
    twins
        .on_site(&format!(
            "{READINGS_ROWS}; INSERT INTO readings (n, label) VALUES (100, 'old'), (100, 'old')"
        ))
        .await;
    let mut daemon = twins.start().await;
    twins.until_parked(1).await;
    twins
        .on_site(
            "INSERT INTO readings (n, label) SELECT i, 'new' FROM generate_series(98, 102) i, generate_series(1, 3);
             INSERT INTO readings (n, big) VALUES (200, repeat('é🚀', 4000)), (200, repeat('é🚀', 4000));
             DELETE FROM readings WHERE ctid = (SELECT min(ctid) FROM readings WHERE n = 100);
             UPDATE readings SET n = 150 WHERE ctid = (SELECT min(ctid) FROM readings WHERE n = 0)",
        )
        .await;
    twins.until_parked(6).await;
    daemon.restart().await;
    twins
        .on_site("DELETE FROM readings WHERE ctid = (SELECT min(ctid) FROM readings WHERE n = 101)")
        .await;
    let listed = twins.fails(&["failed", "list"]).await;
    assert!(listed.contains("readings") && listed.contains("23514"), "{listed}");
    twins.on_agent("ALTER TABLE readings DROP CONSTRAINT sound").await;
    twins.until_parked(0).await;
    twins.until_equal(&["readings"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_agent_db_alone_and_its_partitions_do_not_matter() {
    let twins = Twins::new("CREATE SCHEMA aside").await;
    twins
        .on_site(
            "CREATE TABLE events (at date, what varchar(20), n smallint); ALTER TABLE events REPLICA IDENTITY FULL",
        )
        .await;
    twins
        .on_agent(
            "CREATE TABLE events (extra int DEFAULT 7, n int, what text, at date, noted bigint GENERATED ALWAYS AS IDENTITY)
                 PARTITION BY RANGE (at);
             CREATE TABLE aside.old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
             CREATE TABLE aside.rest PARTITION OF events DEFAULT",
        )
        .await;
    twins
        .on_site(
            "INSERT INTO events SELECT date '2023-12-30' + i % 4, 'w' || i % 2, i % 3 FROM generate_series(1, 120) i;
             INSERT INTO events VALUES (NULL, NULL, NULL), (NULL, NULL, NULL)",
        )
        .await;
    let _daemon = twins.start().await;
    let lines = "SELECT md5(string_agg(ROW(at, what, n)::text, ' ' ORDER BY ROW(at, what, n)::text)) FROM events";
    let equal = || async {
        let site = twins.site.value(lines).await;
        twins.until_agent("the rows are equal", lines, &site).await;
    };
    equal().await;
    twins
        .on_site(
            "UPDATE events SET at = at + 2 WHERE ctid IN (SELECT ctid FROM events ORDER BY random() LIMIT 30);
             DELETE FROM events WHERE ctid IN (SELECT ctid FROM events ORDER BY random() LIMIT 20);
             DELETE FROM events WHERE ctid = (SELECT ctid FROM events WHERE at IS NULL LIMIT 1)",
        )
        .await;
    equal().await;
    twins
        .on_agent(
            "DELETE FROM events WHERE n = 1; INSERT INTO events (at, n) VALUES ('2020-01-01', 5), ('2025-01-01', 5)",
        )
        .await;
    twins.succeeds(&["resync", "events", "--wait"]).await;
    equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_receives_its_inserts() {
    let twins = Twins::new("CREATE TABLE log (n int, line text); CREATE TABLE keyed (n int NOT NULL, line text)").await;
    twins.on_agent("ALTER TABLE keyed ADD PRIMARY KEY (n)").await;
    twins
        .on_site(&format!(
            "CREATE UNIQUE INDEX keyed_n ON keyed (n); ALTER TABLE keyed REPLICA IDENTITY NOTHING;
             INSERT INTO log SELECT i % 5, 'old' FROM generate_series(1, 30) i;
             INSERT INTO keyed SELECT i, 'old' FROM generate_series(1, 30) i;
             CREATE PUBLICATION \"{}\" FOR ALL TABLES",
            twins.site.name
        ))
        .await;
    let mut daemon = twins.start().await;
    daemon.wait_for_output("the table has no replica identity", SOON).await;
    twins.until_equal(&["log", "keyed"]).await;
    twins
        .on_site("INSERT INTO log SELECT 1, 'new' FROM generate_series(1, 200); INSERT INTO keyed VALUES (100, 'new')")
        .await;
    twins.until_equal(&["log", "keyed"]).await;
    let shown = twins.until_status_is_good(&[]).await;
    assert_eq!(shown.matches("inserts only").count(), 2, "{shown}");
    twins.on_agent("DELETE FROM log WHERE n = 1").await;
    twins.succeeds(&["resync", "log", "keyed", "--wait"]).await;
    twins.until_equal(&["log", "keyed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_key_of_the_agent_db_alone_parks_what_it_has_no_place_for() {
    let twins = Twins::new("CREATE TABLE loose (id int, v text); ALTER TABLE loose REPLICA IDENTITY FULL").await;
    twins.on_agent("ALTER TABLE loose ADD PRIMARY KEY (id)").await;
    twins
        .on_site("INSERT INTO loose VALUES (1, 'a'), (2, 'b'), (2, 'c')")
        .await;
    let _daemon = twins.start().await;
    twins.until_parked(1).await;
    twins
        .on_site("INSERT INTO loose VALUES (1, 'z'), (NULL, 'n'), (3, 'd'); UPDATE loose SET v = 'dd' WHERE id = 3")
        .await;
    twins.until_parked(3).await;
    twins
        .on_site(
            "DELETE FROM loose WHERE v = 'a'; DELETE FROM loose WHERE id IS NULL; DELETE FROM loose WHERE v IN ('b')",
        )
        .await;
    twins.until_parked(0).await;
    twins.until_equal(&["loose"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_come_and_go() {
    let twins =
        Twins::new("CREATE TABLE loose (id int NOT NULL, v text); ALTER TABLE loose REPLICA IDENTITY FULL").await;
    twins
        .on_site("INSERT INTO loose VALUES (1, 'a'), (1, 'b'), (1, 'b'), (2, 'c')")
        .await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["loose"]).await;
    twins
        .on_site("DELETE FROM loose WHERE v = 'b'; ALTER TABLE loose ADD PRIMARY KEY (id); UPDATE loose SET v = 'aa' WHERE id = 1")
        .await;
    twins.until_equal(&["loose"]).await;
    twins.on_agent("ALTER TABLE loose ADD PRIMARY KEY (id)").await;
    daemon.restart().await;
    twins
        .on_site("INSERT INTO loose VALUES (3, 'd'); UPDATE loose SET id = 4 WHERE id = 2")
        .await;
    twins.until_equal(&["loose"]).await;

    twins
        .on_site("ALTER TABLE loose DROP CONSTRAINT loose_pkey; INSERT INTO loose VALUES (1, 'dup'), (3, 'd')")
        .await;
    daemon.restart().await;
    twins.until_parked(2).await;
    twins.on_agent("ALTER TABLE loose DROP CONSTRAINT loose_pkey").await;
    twins.until_parked(0).await;
    twins.until_equal(&["loose"]).await;
    twins
        .on_site("DELETE FROM loose WHERE v = 'dup'; UPDATE loose SET v = 'z' WHERE id = 3")
        .await;
    twins.until_equal(&["loose"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_would_change_a_row_without_a_key_is_named_with_the_statement() {
    let twins =
        Twins::new("CREATE TABLE prices (at date, price numeric); ALTER TABLE prices REPLICA IDENTITY FULL").await;
    twins
        .on_agent("ALTER TABLE prices ALTER price TYPE numeric(10,2)")
        .await;
    twins
        .on_site("INSERT INTO prices VALUES ('2024-01-01', 1.234), ('2024-01-01', 1.231)")
        .await;
    let mut daemon = twins.launch();
    let statement = r#"ALTER TABLE "public"."prices" ALTER COLUMN "price" TYPE numeric;"#;
    daemon.wait_for_output(statement, 2 * SOON).await;
    twins.on_agent(statement).await;
    twins.until_equal(&["prices"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_unique_index_on_what_may_be_null_has_no_key() {
    let twins = Twins::new("CREATE TABLE half (id int UNIQUE, v text); ALTER TABLE half REPLICA IDENTITY FULL").await;
    twins
        .on_site("INSERT INTO half VALUES (1, 'a'), (NULL, 'n'), (NULL, 'n'), (NULL, NULL)")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["half"]).await;
    twins
        .on_site(
            "UPDATE half SET v = 'm' WHERE ctid = (SELECT min(ctid) FROM half WHERE v = 'n'); UPDATE half SET id = 2 WHERE id = 1;
             INSERT INTO half VALUES (1, 'again'); DELETE FROM half WHERE v = 'n'",
        )
        .await;
    twins.until_equal(&["half"]).await;
    assert_eq!(twins.parked().await, 0);
}
