//! Tables are followed by their OID: whatever happens to a table's name, its rows go to the table that it is now, and
//! those of a table that is gone are passed over. In every kind of publication, with a daemon and without.

use crate::harness::{Daemon, SOON, Twins, eventually_is};

/// `done` is never touched by an accident: a row of it shows that the stream goes on.
const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t2 (id int PRIMARY KEY, v text);
    CREATE TABLE done (id int PRIMARY KEY); CREATE SCHEMA other";

/// How the tables are published and selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// By the publication that the daemon makes, with its default patterns.
    ByDefault,
    /// The same, with the tables' names in place of the patterns.
    ByName,
    /// `FOR ALL TABLES`.
    AllTables,
    /// `FOR TABLES IN SCHEMA public`.
    InSchema,
}

const KINDS: [Published; 4] = [
    Published::ByDefault,
    Published::ByName,
    Published::AllTables,
    Published::InSchema,
];

/// Two rows in each table, which a daemon has copied. `None`: this server knows no such publication.
async fn twins(published: Published) -> Option<(Twins, Daemon)> {
    let mut twins = Twins::new(TABLES).await;
    let publication = twins.site.name.clone();
    match published {
        Published::ByDefault => {}
        Published::ByName => twins.configure("sync.tables = ['public.t', 'public.t2', 'public.done']"),
        Published::AllTables => {
            let all = format!("CREATE PUBLICATION {publication} FOR ALL TABLES");
            twins.on_site(&all).await;
        }
        Published::InSchema => {
            if twins
                .site
                .value("current_setting('server_version_num')::int >= 150000")
                .await
                != "true"
            {
                return None;
            }
            let schema = format!("CREATE PUBLICATION {publication} FOR TABLES IN SCHEMA public");
            twins.on_site(&schema).await;
        }
    }
    twins
        .on_site("INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO t2 VALUES (1, 'x'), (3, 'y')")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["t", "t2", "done"]).await;
    Some((twins, daemon))
}

/// Runs statements on the Site DB one after the other, each in a transaction of its own.
async fn one_by_one(twins: &Twins, statements: &[&str]) {
    for statement in statements {
        twins.on_site(statement).await;
    }
}

/// The stream goes on, and these tables become equal by themselves; then nothing is wrong.
async fn converges(twins: &Twins, daemon: &Daemon, what: &str, tables: &[&str]) {
    twins.on_site("INSERT INTO done SELECT count(*) FROM done").await;
    let tables: Vec<&str> = tables.iter().copied().chain(["done"]).collect();
    eprintln!("{what}");
    twins.until_equal_within(2 * SOON, &tables).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&tables).await;
    let runs = daemon.output().matches("the stream flows").count();
    assert!(runs <= 6, "{what}: {runs} runs");
}

/// Runs statements on the Site DB, with a daemon and without one meanwhile, in every kind of publication.
async fn survives(accident: &[&str], agent: &str, tables: &[&str]) {
    for published in KINDS {
        let Some((twins, daemon)) = twins(published).await else {
            continue;
        };
        twins.on_agent(agent).await;
        one_by_one(&twins, accident).await;
        converges(&twins, &daemon, &format!("{published:?}, in mid-stream"), tables).await;
        drop(twins);

        let Some((twins, mut daemon)) = self::twins(published).await else {
            continue;
        };
        daemon.kill9();
        twins.on_agent(agent).await;
        one_by_one(&twins, accident).await;
        let daemon = twins.start().await;
        converges(&twins, &daemon, &format!("{published:?}, while away"), tables).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_and_renamed_back() {
    survives(
        &[
            "INSERT INTO t VALUES (3, 'before')",
            "ALTER TABLE t RENAME TO t_aside",
            "INSERT INTO t_aside VALUES (4, 'aside'); UPDATE t_aside SET v = 'aside' WHERE id = 1",
            "DELETE FROM t_aside WHERE id = 2",
            "ALTER TABLE t_aside RENAME TO t",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_for_a_while_and_not_touched_after() {
    survives(
        &[
            "BEGIN; ALTER TABLE t RENAME TO t_aside; INSERT INTO t_aside VALUES (4, 'aside');
             ALTER TABLE t_aside RENAME TO t; COMMIT",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tables_that_are_swapped() {
    survives(
        &[
            "BEGIN; ALTER TABLE t RENAME TO t_aside; ALTER TABLE t2 RENAME TO t; ALTER TABLE t_aside RENAME TO t2; COMMIT",
            "INSERT INTO t VALUES (7, 'new t'); INSERT INTO t2 VALUES (8, 'new t2'); UPDATE t SET v = 'both' WHERE id = 1",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_created_anew() {
    survives(
        &[
            "INSERT INTO t VALUES (3, 'old')",
            "DROP TABLE t",
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'new'), (9, 'new')",
            "UPDATE t SET v = 'newer' WHERE id = 9",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_created_filled_and_dropped() {
    survives(
        &[
            "CREATE TABLE load (id int PRIMARY KEY, v text)",
            "INSERT INTO load SELECT i, 'x' FROM generate_series(1, 100) i; INSERT INTO t VALUES (5, 'loaded')",
            "DROP TABLE load",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped() {
    survives(
        &[
            "INSERT INTO t2 VALUES (10, 'last'); INSERT INTO t VALUES (10, 'last')",
            "DROP TABLE t2",
        ],
        "",
        &["t"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_moved_to_another_schema_and_back() {
    survives(
        &[
            "INSERT INTO t VALUES (3, 'before')",
            "ALTER TABLE t SET SCHEMA other",
            "INSERT INTO other.t VALUES (4, 'there'); DELETE FROM other.t WHERE id = 1",
            "ALTER TABLE other.t SET SCHEMA public",
        ],
        "",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_renamed_on_both_sides() {
    survives(
        &[
            "INSERT INTO t VALUES (3, 'before')",
            "ALTER TABLE t RENAME v TO w",
            "INSERT INTO t VALUES (4, 'after'); UPDATE t SET w = 'after' WHERE id = 1",
        ],
        "ALTER TABLE t RENAME v TO w",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_renamed_on_both_sides_and_not_touched_after() {
    survives(
        &["INSERT INTO t VALUES (3, 'before')", "ALTER TABLE t RENAME v TO w"],
        "ALTER TABLE t RENAME v TO w",
        &["t", "t2"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_gets_another_name_fills_the_table_of_that_name() {
    for published in [Published::ByDefault, Published::AllTables, Published::InSchema] {
        for is_away in [false, true] {
            let Some((twins, mut daemon)) = twins(published).await else {
                continue;
            };
            twins.on_agent("CREATE TABLE t_new (id int PRIMARY KEY, v text)").await;
            if is_away {
                daemon.kill9();
            }
            let accident = ["INSERT INTO t VALUES (3, 'before')", "ALTER TABLE t RENAME TO t_new"];
            one_by_one(&twins, &accident).await;
            twins.on_site("INSERT INTO t_new VALUES (4, 'after')").await;
            if is_away {
                daemon = twins.start().await;
            }
            converges(
                &twins,
                &daemon,
                &format!("{published:?}, away: {is_away}"),
                &["t_new", "t2"],
            )
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_held_from_its_start_is_not_said_to_flow() {
    // GIVEN a row that the Agent DB will refuse as a whole table
    let twins = Twins::new(TABLES).await;
    let mut daemon = twins.start().await;
    daemon.kill9();
    let read_only = format!(
        "ALTER DATABASE \"{}\" SET default_transaction_read_only",
        twins.agent.name
    );
    twins.on_agent(&format!("{read_only} = on")).await;
    twins.on_site("INSERT INTO t VALUES (1, 'a')").await;

    // WHEN a daemon starts, THEN it is held and never said to flow
    let daemon = twins.launch();
    daemon.until_state("held").await;
    assert!(!daemon.output().contains("the stream flows"));
    twins.on_agent("SET default_transaction_read_only = off").await;
    twins.on_agent(&read_only.replace(" SET ", " RESET ")).await;
    eventually_is(
        "then it does",
        2 * SOON,
        || std::future::ready(daemon.output()),
        |output| output.contains("the stream flows"),
    )
    .await;
    twins.until_equal(&["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_swap_their_names_for_a_while() {
    for is_away in [false, true] {
        let twins =
            Twins::new("CREATE TABLE t (id int PRIMARY KEY, a text, b text); CREATE TABLE done (id int PRIMARY KEY)")
                .await;
        twins.on_site("INSERT INTO t VALUES (1, 'a', 'b'), (2, 'a', 'b')").await;
        let mut daemon = twins.start().await;
        twins.until_equal(&["t"]).await;
        if is_away {
            daemon.kill9();
        }
        let swap =
            "BEGIN; ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b; COMMIT";
        let accident = [
            swap,
            "INSERT INTO t VALUES (3, 'first', 'second'); UPDATE t SET a = 'swapped' WHERE id = 1",
            swap,
        ];
        one_by_one(&twins, &accident).await;
        if is_away {
            daemon = twins.start().await;
        }
        converges(&twins, &daemon, &format!("away: {is_away}"), &["t"]).await;
    }
}
