//! The daemon end to end: two real databases, the real binary.

mod basics;
mod kills;

use std::time::Duration;

use crate::harness::{ConfigFile, Databases, Process, differing_tables, eventually_equal};

/// Waits until the tables are equal in both databases, and fails with those that are not.
async fn until_equal(db: &Databases, tables: &[&str], deadline: Duration) {
    eventually_equal("the tables are equal", deadline, Vec::<String>::new(), || {
        differing_tables(&db.site, &db.agent, tables)
    })
    .await;
}

/// Starts `twinlog sync` and waits until the stream flows.
async fn start_sync(config: &ConfigFile) -> Process {
    let mut process = Process::start(config, &["sync"], "");
    process
        .wait_for_output("the stream flows", Duration::from_secs(30))
        .await;
    process
}

/// Creates the same schema on both sides.
async fn on_both(db: &Databases, sql: &str) {
    db.site.batch_execute(sql).await.unwrap();
    db.agent.batch_execute(sql).await.unwrap();
}

/// A configuration of the daemon for tests: quick retries.
fn quick(db: &Databases) -> ConfigFile {
    ConfigFile::new(
        db,
        "[sync]\nretry_initial_ms = 50\nretry_max_ms = 500\nreconnect_max_ms = 500\n",
    )
}

/// The sum of the accounting over all tables: (received, accounted for).
pub(crate) async fn accounting(db: &Databases) -> (i64, i64) {
    let row = db
        .agent
        .query_one(
            "SELECT coalesce(sum(received), 0)::bigint, \
             coalesce(sum(applied + unchanged + superseded + filtered + parked), 0)::bigint FROM twinlog.accounting",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}
