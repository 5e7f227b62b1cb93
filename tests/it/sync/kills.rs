//! Kills of the daemon, its walsender and the servers during traffic: both databases end up equal.

use std::sync::Arc;
use std::time::Duration;

use twinlog::dev::postgres::{Cluster, Shutdown};
use twinlog::failpoint::name;

use crate::harness::{Background, Rounds, Twins, pace};

const TABLES: &[&str] = &["notes", "links"];
const SCHEMA: &str = "
    CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int);
    CREATE TABLE links (a int, b int, note text, PRIMARY KEY (a, b));
    ALTER TABLE notes ALTER body SET STORAGE EXTERNAL";

/// Transactions on the Site DB, one after another, also after a restart of the server.
fn traffic(twins: &Twins) -> Background<()> {
    let (cluster, database) = (Arc::clone(&twins.site.cluster), twins.site.name.clone());
    Background::start(|rounds| write(cluster, database, rounds))
}

async fn write(cluster: Arc<Cluster>, database: String, rounds: Rounds) {
    let mut round = 0_i64;
    while rounds.go_on() {
        let Ok(client) = cluster.client(&database).await else {
            pace(Duration::from_millis(20)).await;
            continue;
        };
        while rounds.go_on() {
            round += 1;
            let sql = format!(
                "BEGIN;
                 INSERT INTO notes VALUES ({round}, repeat('x', 3000 * ({round} % 3)), 0);
                 UPDATE notes SET n = n + 1 WHERE id BETWEEN {round} - 5 AND {round};
                 DELETE FROM notes WHERE id = {round} - 40 AND id % 3 = 0;
                 UPDATE notes SET id = -id WHERE id = {round} - 30 AND id % 5 = 0;
                 INSERT INTO links VALUES ({round} % 50, {round} % 7, 'r{round}')
                 ON CONFLICT (a, b) DO UPDATE SET note = excluded.note;
                 COMMIT"
            );
            if client.batch_execute(&sql).await.is_err() {
                break;
            }
            rounds.count();
        }
    }
}

/// The traffic ends, and nothing is lost or repeated.
async fn nothing_is_lost(twins: &Twins, traffic: Background<()>) {
    traffic.end().await;
    twins.until_equal(TABLES).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let twins = Twins::new(SCHEMA).await;
    let traffic = traffic(&twins);
    let mut daemon = twins.start().await;
    for round in 0..6 {
        traffic.more(20 + 30 * round).await;
        daemon.restart().await;
    }
    traffic.more(50).await;
    nothing_is_lost(&twins, traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_each_durability_edge_converges() {
    // GIVEN traffic with a row that is refused, so that parking is reached as well
    let twins = Twins::new(SCHEMA).await;
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT no_seven CHECK (id <> 7)")
        .await;
    let traffic = traffic(&twins);

    // WHEN daemons die before and after each commit
    for point in [
        name::SLOT_AFTER_CREATE,
        name::COPY_BEFORE_HIGH_FENCE,
        name::COPY_AFTER_MERGE,
        name::AGENT_BEFORE_COMMIT,
        name::AGENT_AFTER_COMMIT,
        name::FEEDBACK_BEFORE_SEND,
        name::HEAL_AFTER_READ,
        name::AGENT_BEFORE_COMMIT,
        name::AGENT_AFTER_COMMIT,
    ] {
        twins.dies_at(&format!("{point}=return(abort)")).await;
        traffic.more(5).await;
    }
    twins.dies_at("agent.before_commit=20*off->return(abort)").await;

    // THEN the next one makes both databases equal
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT no_seven").await;
    let _daemon = twins.start().await;
    traffic.more(20).await;
    nothing_is_lost(&twins, traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_killed_is_replaced_and_nothing_is_lost() {
    let twins = Twins::new(SCHEMA).await;
    let traffic = traffic(&twins);
    let _daemon = twins.start().await;
    for _ in 0..5 {
        traffic.more(40).await;
        twins.terminate_walsender().await;
    }
    traffic.more(40).await;
    nothing_is_lost(&twins, traffic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn either_server_may_crash_and_come_back_in_the_middle_of_traffic() {
    let mut twins = Twins::private(SCHEMA).await;
    let traffic = traffic(&twins);
    let mut daemon = twins.start().await;
    traffic.more(50).await;

    for _ in 0..2 {
        twins.agent.cluster.restart(Shutdown::Kill).await.unwrap();
        traffic.more(50).await;
        twins.site.cluster.restart(Shutdown::Immediate).await.unwrap();
        traffic.more(50).await;
    }

    traffic.end().await;
    twins.reconnect().await;
    twins.until_equal_within(Duration::from_secs(40), TABLES).await;
    twins.assert_balanced().await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_acknowledges_everything_and_exits_0_within_the_grace_period() {
    let twins = Twins::new(SCHEMA).await;
    let mut daemon = twins.start().await;
    let traffic = traffic(&twins);
    traffic.more(100).await;

    daemon.terminate();
    let status = daemon.wait(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");

    traffic.end().await;
    let slot = &twins.site.name;
    let confirmed = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(
        twins.site.value(&confirmed).await,
        twins.agent.value("SELECT end_lsn FROM twinlog.checkpoint").await,
        "what is durable is acknowledged"
    );
    let _daemon = twins.start().await;
    twins.until_equal(TABLES).await;
}
