//! Postgres's own subscription beside ours, on the same random programs: three databases, all equal.

use std::time::Duration;

use super::program::{Program, SCHEMA, SEED_ROWS, TABLES};
use super::{balanced, on_both, parked, start_sync, until_equal};
use crate::harness::{ConfigFile, SOON, differing_tables, eventually_equal, private_databases};
use twinlog::dev::postgres::Settings;

/// Transactions of the program.
const TRANSACTIONS: u32 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_subscription_and_ours_come_to_the_same() {
    // A subscription left behind by a failure would keep its database from being dropped.
    let db = private_databases(Settings::default(), Settings::default()).await;
    let third = db.another().await.agent;
    on_both(&db, SCHEMA).await;
    db.site.batch_execute(SEED_ROWS).await.unwrap();
    third.batch_execute(SCHEMA).await.unwrap();
    // It checks row by row what the statement was allowed to break for a moment.
    third
        .batch_execute("ALTER TABLE swaps DROP CONSTRAINT swaps_place_key")
        .await
        .unwrap();
    let config = ConfigFile::new(
        &db,
        "[sync]\ntables = [\"*\"]\nbatch_rows = 50\nretry_initial_ms = 50\n",
    );
    let mut daemon = start_sync(&config).await;
    let cluster = &db.site.cluster;
    third
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION oracle CONNECTION 'host=127.0.0.1 port={} dbname={} user=postgres password={}' PUBLICATION {}",
            cluster.port(),
            db.site.name,
            cluster.password(),
            db.site.name
        ))
        .await
        .unwrap();
    eventually_equal("the built-in one has copied", 2 * SOON, Some("0".to_owned()), || {
        third.text("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'")
    })
    .await;
    let seed = rand::random::<u64>() % 1_000_000;
    eprintln!("program {seed}");
    let mut program = Program::new(seed);
    for round in 0..TRANSACTIONS {
        if db.site.batch_execute(&program.transaction()).await.is_err() {
            db.site.batch_execute("ROLLBACK").await.unwrap();
        }
        if round == TRANSACTIONS / 2 {
            daemon.kill9();
            daemon = start_sync(&config).await;
        }
    }
    until_equal(&db, TABLES, 2 * SOON).await;
    eventually_equal(
        "the built-in one agrees",
        Duration::from_secs(40),
        Vec::<String>::new(),
        || differing_tables(&third, &db.agent, TABLES),
    )
    .await;
    assert_eq!(parked(&db).await, 0);
    balanced(&db).await;
    third.batch_execute("ALTER SUBSCRIPTION oracle DISABLE").await.unwrap();
    third
        .batch_execute("ALTER SUBSCRIPTION oracle SET (slot_name = NONE)")
        .await
        .unwrap();
    third.batch_execute("DROP SUBSCRIPTION oracle").await.unwrap();
}
