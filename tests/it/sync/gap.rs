//! Whenever rows could be missing, the state is `gap` until every table was read again.

use std::time::Duration;

use nix::sys::signal::Signal;
use twinlog::dev::postgres::Settings;

use crate::harness::{ConfigFile, Daemon, NOTES, SOON, Twins, eventually, eventually_is};

const GAP_REASON: &str = "SELECT gap_reason FROM twinlog.checkpoint";

/// Two equal databases, a daemon that has stopped cleanly, and rows that were changed, added and deleted since.
async fn stopped() -> Twins {
    stopped_on(Twins::new(NOTES).await).await
}

async fn stopped_on(twins: Twins) -> Twins {
    let daemon = equal(&twins).await;
    daemon.stop().await;
    unseen(&twins, 1).await;
    twins
}

/// A daemon that has made them equal.
async fn equal(twins: &Twins) -> Daemon {
    twins
        .on_site("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 500) i")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    daemon
}

/// Changes whose WAL no slot keeps.
async fn unseen(twins: &Twins, round: i32) {
    twins
        .on_site(&format!(
            "INSERT INTO notes SELECT {round}000 + i, 'unseen', i FROM generate_series(1, 50) i;
             UPDATE notes SET body = 'changed {round}' WHERE n % 10 = {round};
             DELETE FROM notes WHERE n % 11 = {round}"
        ))
        .await;
}

/// The daemon must say that rows may be missing, everywhere, and go on only after a full resync.
async fn shown_and_closed(twins: &Twins, mut daemon: Daemon, why: &str) {
    // Status, metrics and readiness say so.
    daemon.until_state("gap").await;
    daemon.until_ready(503, &[why]).await;
    assert_eq!(daemon.admin("/healthz").await.unwrap().0, 200, "it is alive");
    let (status, output) = eventually_is(
        "status says it",
        SOON,
        || twins.run(&["status", "--json"]),
        |(_, output)| output.contains(r#""state":"gap""#),
    )
    .await;
    assert!(!status.success() && output.contains(why), "{output}");
    daemon.says("twinlog resync --all").await;

    // A resync of single tables does not close the gap.
    drop(twins.spawn(&["resync", "notes"]));
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.agent.text(GAP_REASON).await, None, "the mark is gone");
    daemon.until_ready(200, &[]).await;

    // The stream continues.
    twins.on_site("INSERT INTO notes VALUES (777777, 'after', 0)").await;
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
    assert!(daemon.is_running());
}

/// A transaction of the Site DB that is open, so that the slot keeps what is written, and 96 MB that were written since.
async fn kept(twins: &Twins) -> tokio_postgres::Client {
    kept_segments(twins, 6).await
}

/// The same with so many segments of 16 MB.
async fn kept_segments(twins: &Twins, segments: u32) -> tokio_postgres::Client {
    let open = twins.site.connect().await;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    for _ in 0..segments {
        twins
            .on_site("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
            .await;
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_keeps_too_much_is_given_up_and_the_daemon_recovers_by_itself_if_it_may() {
    let twins = Twins::private(NOTES)
        .await
        .with("sync.give_up_slot_at = '32MB'\nsync.on_lost_slot = 'resync'");
    let mut daemon = equal(&twins).await;
    let open = kept(&twins).await;
    daemon.wait_for_output("the slot is given up", 2 * SOON).await;
    // The Agent DB is readable, and it is told what it may lack.
    eventually_is(
        "the gap is stored",
        2 * SOON,
        || twins.agent.text(GAP_REASON),
        |reason| {
            reason
                .as_deref()
                .is_some_and(|reason| reason.contains("sync.give_up_slot_at (32 MB)"))
        },
    )
    .await;
    assert_eq!(twins.agent.value("SELECT count(*) FROM notes").await, "500");
    unseen(&twins, 1).await;

    // WHEN the new slot needs to wait no more
    open.batch_execute("COMMIT").await.unwrap();

    // THEN the databases become equal, and the time that it took is told
    daemon.wait_for_output("the gap is closed", 4 * SOON).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.agent.text(GAP_REASON).await, None);
    assert!(daemon.metric("twinlog_gap_recovery_seconds").await.unwrap() > 0.0);
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(twins.site.value(slots).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_only_an_open_transaction_holds_back_is_kept_and_the_transaction_named() {
    let twins = Twins::private(NOTES).await.with("sync.give_up_slot_at = '32MB'");
    let mut daemon = equal(&twins).await;
    let open = kept_segments(&twins, 3).await;
    daemon.wait_for_output("though the daemon is caught up", 2 * SOON).await;
    open.batch_execute("COMMIT").await.unwrap();
    daemon.wait_for_output("waits no longer", 4 * SOON).await;
    twins.on_site("INSERT INTO notes VALUES (777777, 'after', 0)").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.agent.text(GAP_REASON).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_just_gone_is_asked_about_even_where_a_lost_one_is_made_up_for() {
    let twins = Twins::new(NOTES).await.with("sync.on_lost_slot = 'resync'");
    let twins = stopped_on(twins).await;
    twins.drop_slot().await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "does not exist any more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_of_the_same_name_is_a_gap() {
    let twins = stopped().await;
    // As after DROP DATABASE and a restore.
    twins.on_agent("UPDATE twinlog.checkpoint SET database_oid = 1").await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "is another one than before, under the same name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_when_it_has_given_the_slot_up_finds_the_gap_again() {
    let twins = Twins::private(NOTES).await.with("sync.give_up_slot_at = '32MB'");
    equal(&twins).await.stop().await;
    let mut dying = twins.launch_with("slot.after_give_up=return(abort)");
    dying.until_flowing().await;
    let open = kept(&twins).await;
    assert!(!dying.wait(2 * SOON).await.success());
    open.batch_execute("COMMIT").await.unwrap();
    unseen(&twins, 2).await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "does not exist any more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_another_program_reads_is_not_given_up() {
    // GIVEN another Agent DB's daemon, without a limit, that reads the slot
    let twins = Twins::private(NOTES).await.with("sync.give_up_slot_at = '32MB'");
    let other = twins.another().await;
    other.agent.run(NOTES).await;
    let config = ConfigFile::with_urls(&twins.site.url, &other.agent.url, &twins.site.name, "");
    let mut reader = Daemon::launch(config, "");
    reader.until_flowing().await;
    let open = kept(&twins).await;

    // WHEN a daemon with a limit wants it
    let mut daemon = twins.launch();
    daemon.wait_for_output("is active for PID", 2 * SOON).await;
    until_over(&daemon).await;

    // THEN the slot is still there, and is read
    assert_eq!(
        twins
            .site
            .value("SELECT count(*) FROM pg_replication_slots WHERE active")
            .await,
        "1"
    );
    assert!(daemon.is_running() && reader.is_running());
    drop(open);
}

/// Waits until the daemon has measured the slot twice.
async fn until_over(daemon: &Daemon) {
    eventually_is(
        "the slot is measured",
        SOON,
        || daemon.metric("twinlog_slot_retained_bytes"),
        |kept| kept.is_some_and(|kept| kept > f64::from(32 << 20)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_is_a_gap_until_everything_was_read_again() {
    let twins = stopped().await;
    twins.drop_slot().await;
    unseen(&twins, 2).await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "does not exist any more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_recreated_under_the_running_daemon_is_a_gap() {
    let twins = Twins::new(NOTES).await;
    let daemon = equal(&twins).await;
    // The daemon is stopped meanwhile, so that it cannot reconnect before the slot is recreated.
    daemon.signal(Signal::SIGSTOP);
    twins.terminate_walsender().await;
    twins.drop_slot().await;
    unseen(&twins, 1).await;
    let slot = &twins.site.name;
    twins
        .on_site(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
        ))
        .await;
    daemon.signal(Signal::SIGCONT);
    shown_and_closed(&twins, daemon, "past the checkpoint").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_advanced_by_hand_is_a_gap_that_a_restart_does_not_heal() {
    // GIVEN a slot that was advanced past changes
    let twins = stopped().await;
    let slot = &twins.site.name;
    twins
        .on_site(&format!(
            "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
        ))
        .await;
    let mut daemon = twins.launch();
    daemon.until_state("gap").await;

    // WHEN the daemon is killed, and the next one in the middle of closing the gap
    daemon.relaunch_with("copy.before_high_fence=return(abort)");
    daemon.until_state("gap").await;
    // The command must see this daemon's report, or it would do the resync itself.
    twins
        .until_agent(
            "the daemon has reported",
            "SELECT bool_or(state = 'gap' AND reported_at > now() - interval '1 s') FROM twinlog.daemon",
            "true",
        )
        .await;
    twins.succeeds(&["resync", "--all"]).await;
    daemon.wait(2 * SOON).await;

    // THEN the gap remains until a further daemon has closed it
    assert_ne!(twins.agent.text(GAP_REASON).await, None);
    let daemon = twins.launch();
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.agent.text(GAP_REASON).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_lost_its_wal_is_a_gap() {
    let site = Settings::default()
        .parameter("max_slot_wal_keep_size", "1MB")
        .parameter("min_wal_size", "32MB")
        .parameter("max_wal_size", "32MB");
    let twins = stopped_on(Twins::private_with(site, Settings::default(), NOTES).await).await;
    eventually("the slot is lost", 2 * SOON, || async {
        twins
            .on_site(
                "CREATE TABLE IF NOT EXISTS filler (x text);
                 INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 500);
                 SELECT pg_switch_wal(); CHECKPOINT; DROP TABLE filler",
            )
            .await;
        let status = twins.site.value("SELECT wal_status FROM pg_replication_slots").await;
        if status == "lost" { Ok(()) } else { Err(status) }
    })
    .await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "max_slot_wal_keep_size").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_idle_for_too_long_is_a_gap() {
    let twins = Twins::private(NOTES).await;
    let known = twins.site.batch_execute("SHOW idle_replication_slot_timeout").await;
    if twins.site.cluster.major() < 18 {
        known.expect_err("18 brought it: an older server lets a slot be idle for ever");
        return;
    }
    known.unwrap();
    let twins = stopped_on(twins).await;
    let cluster = &twins.site.cluster;
    cluster.set("idle_replication_slot_timeout", "1s").await.unwrap();
    eventually("the slot is invalidated", 2 * SOON, || async {
        twins.on_site("CHECKPOINT").await;
        let query = "SELECT invalidation_reason FROM pg_replication_slots";
        match twins.site.text(query).await {
            Some(reason) if reason == "idle_timeout" => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let daemon = twins.launch();
    shown_and_closed(&twins, daemon, "idle_replication_slot_timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_or_cluster_behind_the_same_url_is_a_gap_and_nothing_is_written() {
    let twins = stopped().await;
    let other = twins.another().await;
    other.on_both(NOTES).await;
    other.on_site("INSERT INTO notes VALUES (1, 'other', 1)").await;
    let rows = "SELECT count(*) FROM notes WHERE body = 'other'";
    let daemon_on = |site_url: &str| {
        let config = ConfigFile::with_urls(site_url, &twins.agent.url, &twins.site.name, "");
        Daemon::launch(config, "")
    };

    // Another database of the cluster, with the slot's name.
    let mut daemon = daemon_on(&other.site.url);
    daemon.until_state("held").await;
    daemon.says("another database").await;
    daemon.kill9();
    assert_eq!(twins.agent.value(rows).await, "0");

    // Another cluster: the Agent DB's.
    other.on_agent("INSERT INTO notes VALUES (1, 'other', 1)").await;
    let mut daemon = daemon_on(&other.agent.url);
    daemon.until_state("gap").await;
    daemon.says("another cluster").await;
    daemon.kill9();
    assert_eq!(twins.agent.value(rows).await, "0");

    // At the right database again nothing is missing, so the state must not stay `gap`.
    let daemon = twins.launch();
    twins.until_equal(&["notes"]).await;
    daemon.until_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slot_advances_while_only_unpublished_tables_are_written() {
    // GIVEN a table that is published, and one that is not
    let twins = Twins::new(NOTES).await.with("sync.tables = ['public.notes']");
    twins
        .on_site("CREATE TABLE busy (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (1, 'a', 1)")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    // WHEN only the other one is written
    twins
        .on_site("INSERT INTO busy SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i")
        .await;
    let goal = twins.site.value("SELECT pg_current_wal_lsn()").await;

    // THEN the slot moves past that, and never past what the Agent DB has durably
    let slot = &twins.site.name;
    let confirmed = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'");
    eventually(
        "the slot moves past what is not published",
        Duration::from_secs(60),
        || async {
            let confirmed = twins.site.value(&confirmed).await;
            let past = format!("SELECT '{confirmed}'::pg_lsn >= '{goal}'::pg_lsn");
            match twins.site.value(&past).await.as_str() {
                "true" => Ok(()),
                _ => Err(confirmed),
            }
        },
    )
    .await;
    let confirmed = twins.site.value(&confirmed).await;
    let durable = format!("SELECT end_lsn >= '{confirmed}'::pg_lsn FROM twinlog.checkpoint");
    assert_eq!(twins.agent.value(&durable).await, "true");
}
