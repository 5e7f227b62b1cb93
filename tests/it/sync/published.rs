//! The list of a publication's tables: it is the one that Postgres itself has, and no lock of a table is waited for.

use twinlog::dev::postgres::Settings;
use twinlog::source::{Selection, Source, SourceError, publication};

use crate::harness::{SOON, Twins, databases};

/// Since this version a publication has column lists, row filters and whole schemas.
const WITH_COLUMN_LISTS: i32 = 150_000;

/// Since this version a publication may send generated columns.
const WITH_GENERATED: i32 = 180_000;

/// Each kind of relation that a list may have, or not have.
const RELATIONS: &str = r#"
CREATE SCHEMA aside;
CREATE TABLE plain (id int PRIMARY KEY, gone int, v text);
ALTER TABLE plain DROP COLUMN gone;
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (plain);
CREATE TABLE "O'dd ""name" (id int PRIMARY KEY, "a ""b" text);
CREATE TABLE gen (id int PRIMARY KEY, n int NOT NULL, g int GENERATED ALWAYS AS (n * 2) STORED);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE VIEW seen AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id;
CREATE TABLE aside.other (id int PRIMARY KEY);
CREATE TABLE root (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (1) TO (10);
CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE root_2_a PARTITION OF root_2 FOR VALUES FROM (10) TO (15);
CREATE TABLE aside.root_3 PARTITION OF root FOR VALUES FROM (20) TO (30);
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE TABLE mixed (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (1) TO (10);
CREATE FOREIGN TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (10) TO (20) SERVER nowhere;
CREATE TABLE empty_root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE torn (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE torn_1 PARTITION OF torn FOR VALUES FROM (1) TO (10);
CREATE TABLE torn_2 PARTITION OF torn FOR VALUES FROM (10) TO (20);
SET allow_system_table_mods = on;
-- As DETACH … CONCURRENTLY leaves it when it is interrupted.
UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = 'torn_2'::regclass;
RESET allow_system_table_mods"#;

/// Publications: since which version there are such, and what each is for. Each is made with and without
/// `publish_via_partition_root`.
const PUBLICATIONS: [(i32, &str); 10] = [
    (0, "FOR ALL TABLES"),
    (0, r#"FOR TABLE plain, "O'dd ""name", gen, root, empty_root, torn"#),
    (0, "FOR TABLE ONLY plain, root_2, aside.root_3, torn_1"),
    (0, ""),
    // Before 15, the view shows a partition beside its root.
    (WITH_COLUMN_LISTS, "FOR TABLE root, root_1, root_2, mixed"),
    (WITH_COLUMN_LISTS, "FOR TABLES IN SCHEMA public"),
    (WITH_COLUMN_LISTS, "FOR TABLES IN SCHEMA aside, public"),
    (
        WITH_COLUMN_LISTS,
        "FOR TABLES IN SCHEMA aside, TABLE root, plain WHERE (id > 3), root_2_a",
    ),
    (
        WITH_COLUMN_LISTS,
        r#"FOR TABLE plain (id) WHERE (id > 5 AND id IS NOT NULL), gen (n, id) WHERE (n > 0 OR id = 7),
           "O'dd ""name" WHERE (id <> 3), root_1 (id) WHERE (id < 3)"#,
    ),
    (WITH_GENERATED, "FOR TABLE gen (id, g), plain, aside.other"),
];

/// Name, row filter and columns of each table.
type Listed = Vec<(String, Option<String>, Vec<String>)>;

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_a_publication_are_those_that_postgres_lists() {
    // GIVEN publications of all kinds, and a role that can't change them
    let site = databases().await.site;
    site.run(RELATIONS).await;
    let more = "ALTER ROLE {role} REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}";
    let role = site.create_role("reader", more).await;
    let version: i32 = site
        .value("current_setting('server_version_num')")
        .await
        .parse()
        .unwrap();
    let source = Source::connect(&site.url_as(&role).parse().unwrap(), "twinlog test")
        .await
        .unwrap();
    let selection = Selection::new(&["*".to_owned()]).unwrap();
    let mut compared = 0;
    for (since, tables) in PUBLICATIONS.iter().filter(|(since, _)| *since <= version) {
        for options in [
            "publish_via_partition_root = false",
            "publish_via_partition_root = true",
        ] {
            let generated = *since == WITH_GENERATED || tables.contains("ALL TABLES") && version >= WITH_GENERATED;
            let stored = if generated {
                ", publish_generated_columns = stored"
            } else {
                ""
            };
            site.run(&format!("CREATE PUBLICATION p {tables} WITH ({options}{stored})"))
                .await;
            // WHEN the tables are listed
            let found: Listed = match publication::prepare(source.client(), "p", &selection).await {
                Ok(prepared) => (prepared.tables.values())
                    .map(|table| {
                        let columns = table.columns.iter().map(ToString::to_string).collect();
                        (table.table.to_string(), table.row_filter.clone(), columns)
                    })
                    .collect(),
                Err(SourceError::NoTableReplicable(_)) => Vec::new(),
                Err(error) => panic!("{tables}: {error}"),
            };
            // THEN they are those of the view
            let (columns, filter) = if version >= WITH_COLUMN_LISTS {
                ("a.attname = ANY (v.attnames)", "v.rowfilter")
            } else {
                ("true", "NULL::text")
            };
            let sent = if version >= WITH_GENERATED {
                "true"
            } else {
                "a.attgenerated = ''"
            };
            let query = format!(
                "SELECT v.schemaname || '.' || v.tablename, {filter}, ARRAY(SELECT a.attname::text FROM pg_attribute a
                 WHERE a.attrelid = format('%I.%I', v.schemaname, v.tablename)::regclass AND a.attnum > 0
                 AND NOT a.attisdropped AND {columns} AND {sent} ORDER BY a.attnum)
                 FROM pg_publication_tables v WHERE v.pubname = 'p' ORDER BY v.schemaname, v.tablename"
            );
            let rows = site.client.query(&query, &[]).await.unwrap();
            let mut expected: Listed = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
            expected.sort();
            let mut found = found;
            found.sort();
            assert_eq!(found, expected, "{tables} WITH ({options}{stored})");
            compared += expected.len();
            site.run("DROP PUBLICATION p").await;
        }
    }
    assert!(compared > 20, "{compared}");
}

/// A change of each table that nobody has locked.
async fn change(twins: &Twins, id: u32) {
    twins
        .on_site(&format!(
            "INSERT INTO one VALUES ({id}, 'a'); INSERT INTO two VALUES ({id}, 'a')"
        ))
        .await;
    twins.until_equal(&["one", "two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_site_db_that_is_locked_stops_no_start_no_reconnect_and_no_watch_over_the_others() {
    // GIVEN a daemon, and two of its tables locked on the Site DB, one of them with a row filter. Clusters of its own, since the
    // transaction stays open.
    let tables = ["one", "two", "locked", "filtered"];
    let schema: String = (tables.iter())
        .map(|table| format!("CREATE TABLE {table} (id int PRIMARY KEY, v text);"))
        .collect();
    let twins = Twins::private_with(Settings::default(), Settings::default(), &schema).await;
    let version: i32 = twins
        .site
        .value("current_setting('server_version_num')")
        .await
        .parse()
        .unwrap();
    let filter = if version >= WITH_COLUMN_LISTS {
        "WHERE (id < 1000)"
    } else {
        println!("this version of Postgres has no row filters: without one");
        ""
    };
    let publication = twins.site.name.clone();
    twins
        .on_site(&format!(
            "CREATE PUBLICATION {publication} FOR TABLE one, two, locked, filtered {filter}"
        ))
        .await;
    let mut daemon = twins.start().await;
    for table in tables {
        twins.until_table(table, "streaming", 0).await;
    }
    twins
        .on_site("INSERT INTO locked VALUES (1, 'a'); INSERT INTO filtered VALUES (1, 'a')")
        .await;
    change(&twins, 1).await;
    twins.until_equal(&tables).await;
    let locker = twins.site.connect().await;
    locker
        .batch_execute(
            "BEGIN; LOCK TABLE locked, filtered; INSERT INTO locked VALUES (2, 'b'); INSERT INTO filtered VALUES (2, 'b')",
        )
        .await
        .unwrap();

    // WHEN another table is rewritten, THEN the daemon that runs sees it
    twins.on_site("ALTER TABLE two ALTER v TYPE text USING upper(v)").await;
    change(&twins, 2).await;
    // WHEN it reconnects, or starts, THEN the others flow, and are read again
    twins.terminate_walsender().await;
    change(&twins, 3).await;
    daemon.restart().await;
    change(&twins, 4).await;
    twins.on_agent("DELETE FROM one").await;
    twins.succeeds(&["resync", "one", "--wait"]).await;
    twins.until_equal(&["one"]).await;
    // and those that are locked are told
    twins.succeeds(&["resync", "locked"]).await;
    twins.until_status_says(&["lock on table public.locked"], SOON).await;
    if !filter.is_empty() {
        twins.until_table("filtered", "held", 0).await;
        twins
            .until_status_says(&["public.filtered of the Site DB is locked"], SOON)
            .await;
    }

    // WHEN the lock is gone, THEN all are equal
    locker.batch_execute("COMMIT").await.unwrap();
    for table in ["locked", "filtered"] {
        twins.until_table(table, "streaming", 0).await;
    }
    twins.until_equal(&tables).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_published_by_itself_can_be_the_only_table() {
    // GIVEN a publication of a partition, which is all that is selected
    let twins = Twins::new("CREATE TABLE part (id int PRIMARY KEY, v text)")
        .await
        .with("sync.tables = ['public.part']");
    let publication = &twins.site.name;
    twins
        .on_site(&format!(
            "CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             ALTER TABLE root ATTACH PARTITION part FOR VALUES FROM (0) TO (100);
             INSERT INTO root VALUES (1, 'a'); CREATE PUBLICATION {publication} FOR TABLE part"
        ))
        .await;

    // WHEN the daemon starts, THEN it is copied and flows
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO root VALUES (2, 'b')").await;
    twins.until_equal(&["part"]).await;
}
