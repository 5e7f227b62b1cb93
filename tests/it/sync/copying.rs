//! The first copy of tables that change while it runs, and what a publication may say about them.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::harness::{Background, SOON, Twins, eventually_is, pace};

const BIG: &str = "
    CREATE TABLE big (id bigint PRIMARY KEY, n int, body text);
    ALTER TABLE big ALTER body SET STORAGE EXTERNAL";

/// Changes rows all over the table: updates that leave the long value out, keys that move both ways over the copy's front,
/// deletes, inserts. Its result is the number of rounds.
async fn churn(twins: &Twins) -> Background<u32> {
    let client = twins.site.connect().await;
    Background::start(|rounds| async move {
        let mut round = 0_u32;
        while rounds.go_on() {
            round += 1;
            // A prime step reaches every part of the key space.
            let at = u64::from(round) * 7919 % 200_000;
            let sql = format!(
                "BEGIN;
                 UPDATE big SET n = n + 1 WHERE id BETWEEN {at} AND {at} + 20;
                 UPDATE big SET id = 400000 - id WHERE id BETWEEN {at} + 21 AND {at} + 23;
                 UPDATE big SET id = -id WHERE id BETWEEN {at} + 24 AND {at} + 25;
                 UPDATE big SET body = repeat('changed', 500) WHERE id = {at} + 50;
                 DELETE FROM big WHERE id BETWEEN {at} + 30 AND {at} + 33;
                 INSERT INTO big VALUES (1000000 + {round}, 0, repeat('new', 1000));
                 COMMIT"
            );
            client.batch_execute(&sql).await.unwrap();
            pace(Duration::from_millis(2)).await;
        }
        round
    })
}

/// How far the copy of `big` has come.
struct Copied {
    rows: i64,
    last_key: Option<String>,
}

async fn copied(twins: &Twins) -> Copied {
    let query = "SELECT rows_copied, last_key FROM twinlog.tables WHERE table_name = 'big'";
    let row = twins.agent.query_one(query, &[]).await.unwrap();
    Copied {
        rows: row.get("rows_copied"),
        last_key: row.get("last_key"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_copy_that_is_killed_twice_goes_on_where_it_stopped_while_everything_changes() {
    // GIVEN a large table that changes everywhere
    let twins = Twins::new(BIG).await;
    twins
        .on_site(
            "INSERT INTO big SELECT i, 0, CASE WHEN i % 100 = 0 THEN repeat(md5(i::text), 100) ELSE 'b' END
             FROM generate_series(1, 200000) i",
        )
        .await;
    let churn = churn(&twins).await;

    // WHEN two daemons are killed while they copy it
    twins.dies_at("copy.after_merge=4*off->return(abort)").await;
    let first = copied(&twins).await;
    assert!(
        first.rows >= 10_000 && first.last_key.is_some(),
        "some chunks are done: {}",
        first.rows
    );
    twins.dies_at("copy.before_high_fence=5*off->return(abort)").await;
    let second = copied(&twins).await;
    assert!(
        second.rows > first.rows && second.last_key != first.last_key,
        "it went on: {}, {}",
        first.rows,
        second.rows
    );

    // THEN the third goes on where they stopped
    let _daemon = twins.start().await;
    twins.until_table("big", "streaming", second.rows).await;
    let rounds = churn.end().await;
    let total = copied(&twins).await.rows;
    // Rows move over the front at most once each way; a copy that starts over would count twice as many.
    let moved = 7 * i64::from(rounds);
    assert!(
        total <= 200_000 + moved,
        "no row is read twice: {total} with {moved} moved"
    );
    twins.until_parked(0).await;
    twins.until_equal(&["big"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_keys_are_copied_and_compared_whatever_the_collations_of_both_sides() {
    // GIVEN keys in the orders of two collations
    let twins = Twins::new("").await.with("sync.copy_chunk_rows = 4");
    let table = |collation: &str| {
        format!(
            "CREATE TABLE words (word text COLLATE \"{collation}\", part int, n int, PRIMARY KEY (word, part));
             CREATE TABLE tags (tag varchar(40) COLLATE \"{collation}\" PRIMARY KEY, n int)"
        )
    };
    twins.on_site(&table("C")).await;
    twins.on_agent(&table("en-US-x-icu")).await;
    let words = "unnest(ARRAY['a','A','b','B','_','-','é','E','Ä','ä','z','Z','','''','\"','a b','a,b','{x}','\\','ß','ss','日本']) w";
    twins
        .on_site(&format!(
            "INSERT INTO words SELECT w, p, p FROM {words}, generate_series(1, 3) p;
             INSERT INTO tags SELECT w, 1 FROM {words}"
        ))
        .await;
    // Rows that only the Agent DB has, and rows that are wrong there, between all the others.
    twins
        .on_agent(&format!(
            "INSERT INTO words SELECT w, p, 99 FROM {words}, generate_series(2, 5) p;
             INSERT INTO tags SELECT w || 'x', 1 FROM {words}"
        ))
        .await;

    // WHEN they are copied, and changed
    let _daemon = twins.start().await;
    twins.until_table("words", "streaming", 66).await;
    twins.until_table("tags", "streaming", 22).await;

    // THEN both sides are equal
    twins.until_equal(&["words", "tags"]).await;
    twins
        .on_site("UPDATE words SET word = word || 'Y' WHERE part = 2; DELETE FROM tags WHERE tag < 'a'")
        .await;
    twins.until_equal(&["words", "tags"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_extensions_types_are_ordered_and_found_by_their_own_operators() {
    // GIVEN keys of types that order and compare in their own way
    let twins = Twins::new(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
         CREATE TABLE people (email ext.citext, part int, kind regclass, n int, PRIMARY KEY (email, part));
         CREATE TABLE names (name ext.citext PRIMARY KEY, n int);
         CREATE TABLE paths (path ext.ltree PRIMARY KEY, n int)",
    )
    .await
    .with("sync.copy_chunk_rows = 4");
    let tables = &["people", "names", "paths"];
    // In this order to the type; the text's own order has the capitals first.
    let names = "unnest(ARRAY['a','B','c','D','e','F','g','H','i','J','k','L']) w";
    twins
        .on_site(&format!(
            "INSERT INTO people SELECT w, p, 'names', p FROM {names}, generate_series(1, 3) p;
             INSERT INTO names SELECT w, 1 FROM {names};
             INSERT INTO paths SELECT ('Top.' || w || '.x')::ext.ltree, 1 FROM {names}"
        ))
        .await;
    // Some are there already, in another spelling, among others that are not the Site DB's.
    twins
        .on_agent(
            "INSERT INTO names VALUES ('A', 9), ('b', 9), ('L', 9), ('only here', 9);
             INSERT INTO people VALUES ('A', 1, 'paths', 9), ('x', 1, 'paths', 9);
             INSERT INTO paths VALUES ('Top.k.x', 9), ('Top.z', 9)",
        )
        .await;

    // WHEN they are copied
    let _daemon = twins.start().await;
    twins.until_table("people", "streaming", 36).await;
    twins.until_table("names", "streaming", 12).await;
    twins.until_table("paths", "streaming", 12).await;
    twins.until_equal(tables).await;

    // THEN rows that are parked are found again, too
    let add = "ADD CONSTRAINT small CHECK (n < 100)";
    twins
        .on_agent(&format!("ALTER TABLE names {add}; ALTER TABLE paths {add}"))
        .await;
    twins
        .on_site(
            "SET search_path = public, ext;
             UPDATE names SET n = 100 WHERE name = 'b'; UPDATE paths SET n = 100 WHERE path = 'Top.k.x';
             DELETE FROM names WHERE name = 'A'; UPDATE names SET name = 'f' WHERE name = 'F'",
        )
        .await;
    twins.until_parked(2).await;
    twins
        .on_agent("ALTER TABLE names DROP CONSTRAINT small; ALTER TABLE paths DROP CONSTRAINT small")
        .await;
    twins.until_parked(0).await;
    twins.until_equal(tables).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publications_row_filter_and_column_list_hold_for_copy_stream_and_resync() {
    // GIVEN a publication of some rows and columns
    let twins = Twins::new("").await;
    let published = twins
        .site
        .batch_execute(&format!(
            "CREATE TABLE leads (id int PRIMARY KEY, secret text, name text, n int DEFAULT 0);
             INSERT INTO leads SELECT i, 'secret', 'name ' || i FROM generate_series(1, 1000) i;
             CREATE PUBLICATION {} FOR TABLE leads (id, name, n) WHERE (id % 2 = 0)",
            twins.site.name
        ))
        .await;
    if twins.site.cluster.major() < 15 {
        let error = published.expect_err("14 has neither, so there is nothing to obey");
        assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));
        return;
    }
    published.unwrap();
    twins
        .on_agent(
            "CREATE TABLE leads (n int, name text, id int PRIMARY KEY);
             INSERT INTO leads SELECT 0, 'name ' || i, i FROM generate_series(1, 30) i",
        )
        .await;
    let _daemon = twins.start().await;
    let digest = "SELECT count(*) || ' ' || coalesce(md5(string_agg(id || ' ' || name || ' ' || n, ',' ORDER BY id)), '') FROM leads";
    let until_filtered = |what: &'static str| {
        let digests = || async {
            let site = twins.site.value(&format!("{digest} WHERE id % 2 = 0")).await;
            (site, twins.agent.value(digest).await)
        };
        async move { eventually_is(what, SOON, digests, |(site, agent)| site == agent).await }
    };

    // THEN copy, stream and resync obey
    until_filtered("the copy obeys the filter").await;
    twins
        .on_site(
            "UPDATE leads SET n = n + 1, secret = 'other';
             UPDATE leads SET id = id + 2001 WHERE id % 10 = 0;
             UPDATE leads SET id = id + 3001 WHERE id % 10 = 3 AND id < 1000;
             DELETE FROM leads WHERE id % 7 = 0",
        )
        .await;
    until_filtered("the stream obeys the filter").await;
    twins
        .on_agent("INSERT INTO leads VALUES (1, 'odd', 5), (1, 'gone', 90002); DELETE FROM leads WHERE id < 100")
        .await;
    twins.succeeds(&["resync", "leads", "--wait"]).await;
    until_filtered("the resync obeys the filter").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_arrives_as_one_whatever_partition_a_row_moves_to() {
    // GIVEN partitions, one of which has its columns in another order
    let twins = Twins::new("").await.with("sync.copy_chunk_rows = 700");
    twins
        .on_site(
            "CREATE TABLE events (id int, region int, body text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
             CREATE TABLE events_2 (region int NOT NULL, body text, id int NOT NULL);
             ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES IN (2);
             ALTER TABLE events_2 ALTER body SET STORAGE EXTERNAL;
             INSERT INTO events SELECT i, 1 + i % 2, repeat('e' || i, 1 + i % 900) FROM generate_series(1, 3000) i",
        )
        .await;
    twins
        .on_agent("CREATE TABLE events (id int, region int, body text, PRIMARY KEY (id, region))")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["events"]).await;

    // WHEN rows move between them
    twins
        .on_site(
            "UPDATE events SET region = 3 - region WHERE id % 5 = 0;
             CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3);
             INSERT INTO events SELECT i, 3, 'third' FROM generate_series(1, 50) i;
             UPDATE events SET region = 3 WHERE id = 999;
             DELETE FROM events WHERE id % 9 = 0",
        )
        .await;

    // THEN they arrive as those of one table
    twins.until_equal(&["events"]).await;
    twins.on_site("TRUNCATE events").await;
    twins.until_equal(&["events"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_role_copies_the_tables_first_to_which_others_refer() {
    // GIVEN children whose names come before their parents', more of them than rows may be parked, and a circle
    let mut twins = Twins::new("").await.with("sync.max_failed_rows = 50");
    twins.agent_is_owner().await;
    twins
        .on_both(
            "CREATE TABLE z_top (id int PRIMARY KEY); CREATE TABLE m_middle (id int PRIMARY KEY, top int REFERENCES z_top);
             CREATE TABLE a_leaf (id int PRIMARY KEY, middle int REFERENCES m_middle, self int REFERENCES a_leaf);
             CREATE TABLE one (id int PRIMARY KEY, two int); CREATE TABLE two (id int PRIMARY KEY, one int REFERENCES one);
             ALTER TABLE one ADD FOREIGN KEY (two) REFERENCES two",
        )
        .await;
    twins
        .on_site(
            "INSERT INTO z_top SELECT i FROM generate_series(1, 20000) i; INSERT INTO m_middle SELECT i, i FROM generate_series(1, 20000) i;
             INSERT INTO a_leaf SELECT i, i, nullif(i - 1, 0) FROM generate_series(1, 20000) i;
             INSERT INTO one VALUES (1); INSERT INTO two VALUES (1, 1); UPDATE one SET two = 1",
        )
        .await;
    // WHEN they are copied, THEN none is held or parked for a row that is not there yet
    let daemon = twins.start().await;
    twins
        .until_equal_within(3 * SOON, &["z_top", "m_middle", "a_leaf", "one", "two"])
        .await;
    assert!(
        !daemon.output().contains("public.a_leaf: they are parked"),
        "{}",
        daemon.output()
    );
    assert!(!daemon.output().contains("a table is held"), "{}", daemon.output());
    twins.until_parked(0).await;
}
