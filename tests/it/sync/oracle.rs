//! Postgres's own subscription and Twinlog apply the same random programs: all three databases are equal. (But for tables
//! that its own can't apply: rows without a key that hold `json`, and an identity that the subscriber's table has not.)

use twinlog::dev::postgres::Settings;

use super::program::{Program, SCHEMA, SEED_ROWS, TABLES};
use crate::harness::{Database, SOON, Twins, eventually_equal, private_databases, until_equal};

/// Transactions of the program.
const TRANSACTIONS: u32 = 400;

/// The tables that the built-in subscription can apply.
fn common() -> Vec<&'static str> {
    let only_ours = ["places", "bag"];
    let tables = TABLES.iter().copied();
    tables.filter(|table| !only_ours.contains(table)).collect()
}

/// Subscribes a third database to the common tables with Postgres's own subscription, and waits for its copy.
async fn subscribe(third: &Database, twins: &Twins) {
    third.run(SCHEMA).await;
    // The subscription checks this constraint after each row; the statement broke it only for a moment.
    third.run("ALTER TABLE swaps DROP CONSTRAINT swaps_place_key").await;
    twins
        .on_site(&format!(
            "CREATE PUBLICATION oracle FOR TABLE {} WITH (publish_via_partition_root = true)",
            common().join(", ")
        ))
        .await;
    let (cluster, database) = (&twins.site.cluster, &twins.site.name);
    third
        .run(&format!(
            "CREATE SUBSCRIPTION oracle CONNECTION 'host=127.0.0.1 port={} dbname={database} user=postgres password={}'
             PUBLICATION oracle",
            cluster.port(),
            cluster.password(),
        ))
        .await;
    let not_copied = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
    eventually_equal("the built-in one has copied", 2 * SOON, "0".to_owned(), || {
        third.value(not_copied)
    })
    .await;
}

/// A subscription keeps its database from being dropped.
async fn unsubscribe(third: &Database) {
    for statement in [
        "ALTER SUBSCRIPTION oracle DISABLE",
        "ALTER SUBSCRIPTION oracle SET (slot_name = NONE)",
        "DROP SUBSCRIPTION oracle",
    ] {
        third.run(statement).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_subscription_and_ours_give_the_same_rows() {
    // GIVEN both on the same tables; clusters of the test's own, for what a failure would leave behind
    let databases = private_databases(Settings::default(), Settings::default()).await;
    let third = databases.another().await.agent;
    let twins = Twins::on(databases, SCHEMA)
        .await
        .with("sync.tables = ['*']\nsync.batch_rows = 50");
    twins.on_site(SEED_ROWS).await;
    let mut daemon = twins.start().await;
    subscribe(&third, &twins).await;

    // WHEN a random program runs
    let seed = rand::random::<u64>() % 1_000_000;
    eprintln!("program {seed}");
    let mut program = Program::new(seed);
    for round in 0..TRANSACTIONS {
        if twins.site.batch_execute(&program.transaction()).await.is_err() {
            twins.on_site("ROLLBACK").await;
        }
        if round == TRANSACTIONS / 2 {
            daemon.restart().await;
        }
    }

    // THEN all three are equal
    twins.until_equal_within(2 * SOON, TABLES).await;
    until_equal(&third, &twins.agent, &common(), 2 * SOON).await;
    twins.until_parked_within(2 * SOON, 0).await;
    twins.assert_balanced().await;
    unsubscribe(&third).await;
}
