//! Killed between any two lines: whatever dies in the middle of traffic, both databases end up equal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use twinlog::failpoint::name;
use twinlog::postgres::{self, Side};

use super::{balanced, on_both, quick, start_sync, until_equal};
use crate::harness::{ConfigFile, Databases, Process, SOON, databases, eventually, private_databases};
use twinlog::dev::postgres::{Settings, Shutdown};

const TABLES: &[&str] = &["notes", "links"];
const SCHEMA: &str = "
    CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int);
    CREATE TABLE links (a int, b int, note text, PRIMARY KEY (a, b));
    ALTER TABLE notes ALTER body SET STORAGE EXTERNAL";

/// Writes to the Site DB until it is told to stop; survives a restart of the server. Returns how many transactions it
/// committed.
struct Traffic {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Traffic {
    fn start(db: &Databases) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let url: twinlog::config::DatabaseUrl = db.site.url.parse().unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&committed));
        let task = tokio::spawn(async move {
            let mut round = 0_i64;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(client) = postgres::connect(Side::Site, &url, "traffic").await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while !stopped.load(Ordering::Relaxed) {
                    round += 1;
                    let sql = format!(
                        "BEGIN;
                         INSERT INTO public.notes VALUES ({round}, repeat('x', 3000 * ({round} % 3)), 0);
                         UPDATE public.notes SET n = n + 1 WHERE id BETWEEN {round} - 5 AND {round};
                         DELETE FROM public.notes WHERE id = {round} - 40 AND id % 3 = 0;
                         UPDATE public.notes SET id = -id WHERE id = {round} - 30 AND id % 5 = 0;
                         INSERT INTO public.links VALUES ({round} % 50, {round} % 7, 'r{round}')
                         ON CONFLICT (a, b) DO UPDATE SET note = excluded.note;
                         COMMIT"
                    );
                    if client.batch_execute(&sql).await.is_err() {
                        break;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, committed, task }
    }

    /// Waits until it has committed so many transactions more.
    async fn more(&self, transactions: u64) {
        let goal = self.committed.load(Ordering::Relaxed) + transactions;
        eventually("traffic goes on", SOON, || async {
            let now = self.committed.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(now) }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let db = databases().await;
    on_both(&db, SCHEMA).await;
    let config = quick(&db);
    let traffic = Traffic::start(&db);
    for round in 0..6_u64 {
        let mut daemon = start_sync(&config).await;
        traffic.more(20 + 30 * round).await;
        daemon.kill9();
    }
    let _daemon = start_sync(&config).await;
    traffic.more(50).await;
    traffic.end().await;
    until_equal(&db, TABLES, SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_each_durability_edge_converges() {
    let db = databases().await;
    on_both(&db, SCHEMA).await;
    // A row that is refused, so that parking is reached as well.
    db.agent
        .batch_execute("ALTER TABLE notes ADD CONSTRAINT no_seven CHECK (id <> 7)")
        .await
        .unwrap();
    let config = quick(&db);
    let traffic = Traffic::start(&db);
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
        let mut daemon = Process::start(&config, &["sync"], &format!("{point}=return(abort)"));
        let status = daemon.wait(SOON).await;
        assert!(!status.success(), "{point} was reached");
        traffic.more(5).await;
    }
    let mut daemon = Process::start(&config, &["sync"], "agent.before_commit=20*off->return(abort)");
    daemon.wait(SOON).await;
    db.agent
        .batch_execute("ALTER TABLE notes DROP CONSTRAINT no_seven")
        .await
        .unwrap();
    let _daemon = start_sync(&config).await;
    traffic.more(20).await;
    traffic.end().await;
    until_equal(&db, TABLES, SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_killed_is_replaced_and_nothing_is_lost() {
    let db = databases().await;
    on_both(&db, SCHEMA).await;
    let config = quick(&db);
    let traffic = Traffic::start(&db);
    let _daemon = start_sync(&config).await;
    for _ in 0..5 {
        traffic.more(40).await;
        db.site
            .execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active",
                &[&db.site.name],
            )
            .await
            .unwrap();
    }
    traffic.more(40).await;
    traffic.end().await;
    until_equal(&db, TABLES, SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn either_server_may_crash_and_come_back_in_the_middle_of_traffic() {
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, SCHEMA).await;
    let config: ConfigFile = quick(&db);
    let traffic = Traffic::start(&db);
    let mut daemon = start_sync(&config).await;
    traffic.more(50).await;
    for _ in 0..2 {
        db.agent.cluster.restart(Shutdown::Kill).await.unwrap();
        traffic.more(50).await;
        db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
        traffic.more(50).await;
    }
    traffic.end().await;
    db.site.reconnect().await;
    db.agent.reconnect().await;
    until_equal(&db, TABLES, Duration::from_secs(40)).await;
    balanced(&db).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_acknowledges_everything_and_exits_0_within_the_grace_period() {
    let db = databases().await;
    on_both(&db, SCHEMA).await;
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    let traffic = Traffic::start(&db);
    traffic.more(100).await;
    daemon.terminate();
    let status = daemon.wait(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    traffic.end().await;
    let row = db
        .site
        .query_one(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
            &[&db.site.name],
        )
        .await
        .unwrap();
    let checkpoint = db
        .agent
        .query_one("SELECT end_lsn::text FROM twinlog.checkpoint", &[])
        .await
        .unwrap();
    assert_eq!(
        row.get::<_, String>(0),
        checkpoint.get::<_, String>(0),
        "what is durable is acknowledged"
    );
    let _daemon = start_sync(&config).await;
    until_equal(&db, TABLES, SOON).await;
}
