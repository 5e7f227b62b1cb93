//! Everything that could hide a hole has the state `gap`, and nothing calls it healthy until every table was read again.

use std::time::Duration;

use super::{admin, balanced, command, on_both, quick, start_sync, until_equal, until_state};
use crate::harness::{
    ConfigFile, Databases, Process, SOON, databases, eventually, eventually_equal, private_databases,
};
use twinlog::dev::postgres::Settings;

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// Two equal databases, a daemon that has stopped cleanly, and rows that were changed, added and deleted since.
async fn stopped(db: &Databases) -> ConfigFile {
    on_both(db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 500) i")
        .await
        .unwrap();
    let config = quick(db);
    let mut daemon = start_sync(&config).await;
    until_equal(db, &["notes"], SOON).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());
    unseen(db, 1).await;
    config
}

/// Changes that no slot holds.
async fn unseen(db: &Databases, round: i32) {
    db.site
        .batch_execute(&format!(
            "INSERT INTO notes SELECT {round}000 + i, 'unseen', i FROM generate_series(1, 50) i;
             UPDATE notes SET body = 'changed {round}' WHERE n % 10 = {round};
             DELETE FROM notes WHERE n % 11 = {round}"
        ))
        .await
        .unwrap();
}

async fn drop_slot(db: &Databases) {
    eventually("the slot is dropped", SOON, || async {
        db.site
            .execute("SELECT pg_drop_replication_slot($1)", &[&db.site.name])
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

/// Waits until readyz answers so, with that in its words.
async fn until_ready(config: &ConfigFile, code: u16, why: &str) {
    eventually("readyz says it", SOON, || async {
        let (status, body) = admin(config, "/readyz").await.unwrap_or_default();
        if status == code && body.contains(why) {
            Ok(())
        } else {
            Err((status, body))
        }
    })
    .await;
}

/// The daemon must say that rows may be missing, everywhere, and go on only after a full resync.
async fn shown_and_closed(db: &Databases, config: &ConfigFile, daemon: &mut Process, why: &str) {
    until_state(config, "gap").await;
    until_ready(config, 503, why).await;
    assert!(admin(config, "/healthz").await.unwrap().0 == 200, "it is alive");
    let status = eventually("status says it", SOON, || async {
        let (status, output) = command(config, &["status", "--json"]).await;
        if output.contains(r#""state":"gap""#) {
            Ok((status, output))
        } else {
            Err(output)
        }
    })
    .await;
    assert!(!status.0.success() && status.1.contains(why), "{}", status.1);
    daemon.says("twinlog resync --all").await;
    // Single tables do not close it.
    let requested = Process::start(config, &["resync", "notes"], "");
    drop(requested);
    let (status, output) = command(config, &["resync", "--all", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_state(config, "streaming").await;
    until_equal(db, &["notes"], SOON).await;
    assert_eq!(
        db.agent.text("SELECT gap_reason FROM twinlog.checkpoint").await,
        None,
        "the mark is gone"
    );
    until_ready(config, 200, "").await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (777777, 'after', 0)")
        .await
        .unwrap();
    until_equal(db, &["notes"], SOON).await;
    balanced(db).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_is_a_gap_until_everything_was_read_again() {
    let db = databases().await;
    let config = stopped(&db).await;
    drop_slot(&db).await;
    unseen(&db, 2).await;
    let mut daemon = Process::start(&config, &["sync"], "");
    shown_and_closed(&db, &config, &mut daemon, "does not exist any more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_recreated_under_the_running_daemon_is_a_gap() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 500) i")
        .await
        .unwrap();
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    // Faster than the daemon comes back: it is stopped meanwhile.
    daemon.signal(nix::sys::signal::Signal::SIGSTOP);
    db.site
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1",
            &[&db.site.name],
        )
        .await
        .unwrap();
    drop_slot(&db).await;
    unseen(&db, 1).await;
    db.site
        .execute(
            "SELECT pg_create_logical_replication_slot($1, 'pgoutput')",
            &[&db.site.name],
        )
        .await
        .unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGCONT);
    shown_and_closed(&db, &config, &mut daemon, "past the checkpoint").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_advanced_by_hand_is_a_gap_that_a_restart_does_not_heal() {
    let db = databases().await;
    let config = stopped(&db).await;
    db.site
        .execute(
            "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())",
            &[&db.site.name],
        )
        .await
        .unwrap();
    let mut daemon = Process::start(&config, &["sync"], "");
    until_state(&config, "gap").await;
    daemon.kill9();
    // The closing of a gap may be killed, too: it stays one.
    let mut daemon = Process::start(&config, &["sync"], "copy.before_high_fence=return(abort)");
    until_state(&config, "gap").await;
    // The command must know of this daemon, or it would be one itself.
    eventually_equal("the daemon has reported", SOON, Some("true".to_owned()), || {
        db.agent
            .text("SELECT bool_or(state = 'gap' AND reported_at > now() - interval '1 s') FROM twinlog.daemon")
    })
    .await;
    let (status, output) = command(&config, &["resync", "--all"]).await;
    assert!(status.success(), "{output}");
    daemon.wait(2 * SOON).await;
    assert_ne!(db.agent.text("SELECT gap_reason FROM twinlog.checkpoint").await, None);
    let _daemon = Process::start(&config, &["sync"], "");
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(db.agent.text("SELECT gap_reason FROM twinlog.checkpoint").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_lost_its_log_is_a_gap() {
    let site = Settings::default()
        .parameter("max_slot_wal_keep_size", "1MB")
        .parameter("min_wal_size", "32MB")
        .parameter("max_wal_size", "32MB");
    let db = private_databases(site, Settings::default()).await;
    let config = stopped(&db).await;
    eventually("the slot is lost", 2 * SOON, || async {
        db.site
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS filler (x text); INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 500);
                 SELECT pg_switch_wal(); CHECKPOINT; DROP TABLE filler",
            )
            .await
            .unwrap();
        let status = db.site.text("SELECT wal_status FROM pg_replication_slots").await;
        if status.as_deref() == Some("lost") { Ok(()) } else { Err(status) }
    })
    .await;
    let mut daemon = Process::start(&config, &["sync"], "");
    shown_and_closed(&db, &config, &mut daemon, "max_slot_wal_keep_size").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_idle_for_too_long_is_a_gap() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    let config = stopped(&db).await;
    let limited = db.site.cluster.set("idle_replication_slot_timeout", "1s").await;
    if db.site.cluster.major() < 18 {
        limited.expect_err("18 brought it: an older server lets a slot be idle for ever");
        return;
    }
    limited.unwrap();
    eventually("the slot is invalidated", 2 * SOON, || async {
        db.site.batch_execute("CHECKPOINT").await.unwrap();
        let reason = db
            .site
            .text("SELECT invalidation_reason FROM pg_replication_slots")
            .await;
        if reason.as_deref() == Some("idle_timeout") {
            Ok(())
        } else {
            Err(reason)
        }
    })
    .await;
    let mut daemon = Process::start(&config, &["sync"], "");
    shown_and_closed(&db, &config, &mut daemon, "idle_replication_slot_timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_or_cluster_behind_the_same_url_is_a_gap_and_nothing_is_written() {
    let db = databases().await;
    let config = stopped(&db).await;
    let other = db.another().await;
    on_both(&other, NOTES).await;
    other
        .site
        .batch_execute("INSERT INTO notes VALUES (1, 'other', 1)")
        .await
        .unwrap();
    let rows = "SELECT count(*) FROM notes WHERE body = 'other'";

    // Another database of the cluster, with the slot's name.
    let elsewhere = ConfigFile::with_urls(&other.site.url, &db.agent.url, &db.site.name, "");
    let mut daemon = Process::start(&elsewhere, &["sync"], "");
    until_state(&elsewhere, "held").await;
    daemon.says("another database").await;
    daemon.kill9();
    assert_eq!(db.agent.text(rows).await.as_deref(), Some("0"));

    // Another cluster: the Agent DB's will do.
    other
        .agent
        .batch_execute("INSERT INTO notes VALUES (1, 'other', 1)")
        .await
        .unwrap();
    let elsewhere = ConfigFile::with_urls(&other.agent.url, &db.agent.url, &db.site.name, "");
    let mut daemon = Process::start(&elsewhere, &["sync"], "");
    until_state(&elsewhere, "gap").await;
    daemon.says("another cluster").await;
    daemon.kill9();
    assert_eq!(db.agent.text(rows).await.as_deref(), Some("0"));

    // Back at the right one nothing was lost: the mark must not outlive its cause.
    let _daemon = Process::start(&config, &["sync"], "");
    until_equal(&db, &["notes"], SOON).await;
    until_state(&config, "streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slot_moves_on_while_tables_that_nobody_publishes_are_written() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("CREATE TABLE busy (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ntables = [\"public.notes\"]\n");
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    db.site
        .batch_execute("INSERT INTO busy SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i")
        .await
        .unwrap();
    let goal = db.site.text("SELECT pg_current_wal_lsn()").await.unwrap();
    eventually(
        "the slot moves past what is none of its business",
        Duration::from_secs(60),
        || async {
            let confirmed = db
                .site
                .text(&format!(
                    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
                    db.site.name
                ))
                .await
                .unwrap();
            let past = db
                .site
                .text(&format!("SELECT '{confirmed}'::pg_lsn >= '{goal}'::pg_lsn"))
                .await;
            if past.as_deref() == Some("true") {
                Ok(())
            } else {
                Err(confirmed)
            }
        },
    )
    .await;
    // Never more than what the Agent DB has durably.
    let confirmed = db
        .site
        .text(&format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            db.site.name
        ))
        .await
        .unwrap();
    let behind = db
        .agent
        .text(&format!(
            "SELECT end_lsn >= '{confirmed}'::pg_lsn FROM twinlog.checkpoint"
        ))
        .await;
    assert_eq!(behind.as_deref(), Some("true"));
}
