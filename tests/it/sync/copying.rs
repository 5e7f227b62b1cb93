//! The first copy of tables that change while it runs, and what a publication may say about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::{balanced, on_both, parked, quick, start_sync, until_equal, until_table};
use crate::harness::{ConfigFile, Databases, Process, SOON, databases, eventually_equal};

const BIG: &str = "
    CREATE TABLE big (id bigint PRIMARY KEY, n int, body text);
    ALTER TABLE big ALTER body SET STORAGE EXTERNAL";

/// Changes rows all over the table until it is told to stop: updates that leave the long value out, keys that move both
/// ways over the copy's front, deletes, inserts.
struct Churn {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Churn {
    async fn start(db: &Databases) -> Self {
        let client = db.site.connect().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut round = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                // A prime step reaches every part of the key space.
                let at = u64::from(round) * 7919 % 200_000;
                client
                    .batch_execute(&format!(
                        "BEGIN;
                         UPDATE big SET n = n + 1 WHERE id BETWEEN {at} AND {at} + 20;
                         UPDATE big SET id = 400000 - id WHERE id BETWEEN {at} + 21 AND {at} + 23;
                         UPDATE big SET id = -id WHERE id BETWEEN {at} + 24 AND {at} + 25;
                         UPDATE big SET body = repeat('changed', 500) WHERE id = {at} + 50;
                         DELETE FROM big WHERE id BETWEEN {at} + 30 AND {at} + 33;
                         INSERT INTO big VALUES (1000000 + {round}, 0, repeat('new', 1000));
                         COMMIT"
                    ))
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            round
        });
        Self { stop, task }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn copied(db: &Databases) -> (i64, Option<String>) {
    let row = db
        .agent
        .query_one(
            "SELECT rows_copied, last_key FROM twinlog.tables WHERE table_name = 'big'",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_copy_that_is_killed_twice_goes_on_where_it_stopped_while_everything_changes() {
    let db = databases().await;
    on_both(&db, BIG).await;
    db.site
        .batch_execute(
            "INSERT INTO big SELECT i, 0, CASE WHEN i % 100 = 0 THEN repeat(md5(i::text), 100) ELSE 'b' END
             FROM generate_series(1, 200000) i",
        )
        .await
        .unwrap();
    let config = quick(&db);
    let churn = Churn::start(&db).await;

    let mut daemon = Process::start(&config, &["sync"], "copy.after_merge=4*off->return(abort)");
    daemon.wait(2 * SOON).await;
    let (first, first_key) = copied(&db).await;
    assert!(first >= 10_000 && first_key.is_some(), "some chunks are done: {first}");
    let mut daemon = Process::start(&config, &["sync"], "copy.before_high_fence=5*off->return(abort)");
    daemon.wait(2 * SOON).await;
    let (second, second_key) = copied(&db).await;
    assert!(
        second > first && second_key != first_key,
        "it went on: {first}, {second}"
    );

    let _daemon = start_sync(&config).await;
    until_table(&db, "big", "streaming", second).await;
    let rounds = churn.end().await;
    let (total, _) = copied(&db).await;
    // Rows move over the front at most once each way; a copy that starts over would count twice as many.
    let moved = 7 * i64::from(rounds);
    assert!(
        total <= 200_000 + moved,
        "no row is read twice: {total} with {moved} moved"
    );
    eventually_equal("nothing is parked", SOON, 0, || parked(&db)).await;
    until_equal(&db, &["big"], SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_keys_are_copied_and_compared_whatever_the_collations_of_both_sides() {
    let db = databases().await;
    let table = |collation: &str| {
        format!(
            "CREATE TABLE words (word text COLLATE \"{collation}\", part int, n int, PRIMARY KEY (word, part));
             CREATE TABLE tags (tag varchar(40) COLLATE \"{collation}\" PRIMARY KEY, n int)"
        )
    };
    db.site.batch_execute(&table("C")).await.unwrap();
    db.agent.batch_execute(&table("en-US-x-icu")).await.unwrap();
    let words = "unnest(ARRAY['a','A','b','B','_','-','é','E','Ä','ä','z','Z','','''','\"','a b','a,b','{x}','\\','ß','ss','日本']) w";
    db.site
        .batch_execute(&format!(
            "INSERT INTO words SELECT w, p, p FROM {words}, generate_series(1, 3) p; INSERT INTO tags SELECT w, 1 FROM {words}"
        ))
        .await
        .unwrap();
    // Rows that only the Agent DB has, and rows that are wrong there, between all the others.
    db.agent
        .batch_execute(&format!(
            "INSERT INTO words SELECT w, p, 99 FROM {words}, generate_series(2, 5) p; INSERT INTO tags SELECT w || 'x', 1 FROM {words}"
        ))
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ncopy_chunk_rows = 4\n");
    let _daemon = start_sync(&config).await;
    until_table(&db, "words", "streaming", 66).await;
    until_table(&db, "tags", "streaming", 22).await;
    until_equal(&db, &["words", "tags"], SOON).await;
    db.site
        .batch_execute("UPDATE words SET word = word || 'Y' WHERE part = 2; DELETE FROM tags WHERE tag < 'a'")
        .await
        .unwrap();
    until_equal(&db, &["words", "tags"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_extensions_types_are_ordered_and_found_by_their_own_operators() {
    let db = databases().await;
    on_both(
        &db,
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
         CREATE TABLE people (email ext.citext, part int, kind regclass, n int, PRIMARY KEY (email, part));
         CREATE TABLE names (name ext.citext PRIMARY KEY, n int);
         CREATE TABLE paths (path ext.ltree PRIMARY KEY, n int)",
    )
    .await;
    // In this order to the type; the text's own order has the capitals first.
    let names = "unnest(ARRAY['a','B','c','D','e','F','g','H','i','J','k','L']) w";
    db.site
        .batch_execute(&format!(
            "INSERT INTO people SELECT w, p, 'names', p FROM {names}, generate_series(1, 3) p;
             INSERT INTO names SELECT w, 1 FROM {names};
             INSERT INTO paths SELECT ('Top.' || w || '.x')::ext.ltree, 1 FROM {names}"
        ))
        .await
        .unwrap();
    // Some are there already, in another spelling, among others that are not the Site DB's.
    db.agent
        .batch_execute(
            "INSERT INTO names VALUES ('A', 9), ('b', 9), ('L', 9), ('nobody', 9);
             INSERT INTO people VALUES ('A', 1, 'paths', 9), ('x', 1, 'paths', 9);
             INSERT INTO paths VALUES ('Top.k.x', 9), ('Top.z', 9)",
        )
        .await
        .unwrap();
    let config = ConfigFile::new(
        &db,
        "[sync]\ncopy_chunk_rows = 4\nretry_initial_ms = 50\nretry_max_ms = 500\n",
    );
    let _daemon = start_sync(&config).await;
    until_table(&db, "people", "streaming", 36).await;
    until_table(&db, "names", "streaming", 12).await;
    until_table(&db, "paths", "streaming", 12).await;
    until_equal(&db, &["people", "names", "paths"], SOON).await;
    // And rows that are parked are found again.
    db.agent
        .batch_execute("ALTER TABLE names ADD CONSTRAINT small CHECK (n < 100); ALTER TABLE paths ADD CONSTRAINT small CHECK (n < 100)")
        .await
        .unwrap();
    db.site
        .batch_execute(
            "SET search_path = public, ext;
             UPDATE names SET n = 100 WHERE name = 'b'; UPDATE paths SET n = 100 WHERE path = 'Top.k.x';
             DELETE FROM names WHERE name = 'A'; UPDATE names SET name = 'f' WHERE name = 'F'",
        )
        .await
        .unwrap();
    eventually_equal("two are parked", SOON, 2, || parked(&db)).await;
    db.agent
        .batch_execute("ALTER TABLE names DROP CONSTRAINT small; ALTER TABLE paths DROP CONSTRAINT small")
        .await
        .unwrap();
    eventually_equal("nothing is parked", SOON, 0, || parked(&db)).await;
    until_equal(&db, &["people", "names", "paths"], SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publications_row_filter_and_column_list_hold_for_copy_stream_and_resync() {
    let db = databases().await;
    let published = db
        .site
        .batch_execute(&format!(
            "CREATE TABLE leads (id int PRIMARY KEY, secret text, name text, n int DEFAULT 0);
             INSERT INTO leads SELECT i, 'secret', 'name ' || i FROM generate_series(1, 1000) i;
             CREATE PUBLICATION {} FOR TABLE leads (id, name, n) WHERE (id % 2 = 0)",
            db.site.name
        ))
        .await;
    if db.site.cluster.major() < 15 {
        let error = published.expect_err("14 has neither, so there is nothing to obey");
        assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));
        return;
    }
    published.unwrap();
    db.agent
        .batch_execute(
            "CREATE TABLE leads (n int, name text, id int PRIMARY KEY);
             INSERT INTO leads SELECT 0, 'name ' || i, i FROM generate_series(1, 30) i",
        )
        .await
        .unwrap();
    let config = quick(&db);
    let _daemon = start_sync(&config).await;
    let digest = "SELECT count(*) || ' ' || coalesce(md5(string_agg(id || ' ' || name || ' ' || n, ',' ORDER BY id)), '') FROM leads";
    let equal = || async {
        let site = db.site.text(&format!("{digest} WHERE id % 2 = 0")).await;
        let agent = db.agent.text(digest).await;
        (site == agent, agent)
    };
    let until_filtered = |what: &'static str| async move {
        crate::harness::eventually(what, SOON, || async {
            match equal().await {
                (true, _) => Ok(()),
                (false, agent) => Err(agent),
            }
        })
        .await;
    };
    until_filtered("the copy obeys the filter").await;
    db.site
        .batch_execute(
            "UPDATE leads SET n = n + 1, secret = 'other';
             UPDATE leads SET id = id + 2001 WHERE id % 10 = 0;
             UPDATE leads SET id = id + 3001 WHERE id % 10 = 3 AND id < 1000;
             DELETE FROM leads WHERE id % 7 = 0",
        )
        .await
        .unwrap();
    until_filtered("the stream obeys the filter").await;
    db.agent
        .batch_execute("INSERT INTO leads VALUES (1, 'odd', 5), (1, 'gone', 90002); DELETE FROM leads WHERE id < 100")
        .await
        .unwrap();
    let (status, output) = super::command(&config, &["resync", "leads", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_filtered("the resync obeys the filter").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_arrives_as_one_whatever_partition_a_row_moves_to() {
    let db = databases().await;
    db.site
        .batch_execute(
            "CREATE TABLE events (id int, region int, body text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
             CREATE TABLE events_2 (region int NOT NULL, body text, id int NOT NULL);
             ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES IN (2);
             ALTER TABLE events_2 ALTER body SET STORAGE EXTERNAL;
             INSERT INTO events SELECT i, 1 + i % 2, repeat('e' || i, 1 + i % 900) FROM generate_series(1, 3000) i",
        )
        .await
        .unwrap();
    db.agent
        .batch_execute("CREATE TABLE events (id int, region int, body text, PRIMARY KEY (id, region))")
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ncopy_chunk_rows = 700\n");
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["events"], SOON).await;
    db.site
        .batch_execute(
            "UPDATE events SET region = 3 - region WHERE id % 5 = 0;
             CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3);
             INSERT INTO events SELECT i, 3, 'third' FROM generate_series(1, 50) i;
             UPDATE events SET region = 3 WHERE id = 999;
             DELETE FROM events WHERE id % 9 = 0",
        )
        .await
        .unwrap();
    until_equal(&db, &["events"], SOON).await;
    db.site.batch_execute("TRUNCATE events").await.unwrap();
    until_equal(&db, &["events"], SOON).await;
}
