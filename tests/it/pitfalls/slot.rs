//! Slot and position: what advances the position, what may take the slot over, and which positions are not trusted.

use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use nix::sys::signal::Signal;
use twinlog::dev::postgres::{Settings, Shutdown};
use twinlog::failpoint::name;
use twinlog::lsn::Lsn;
use twinlog::wire::ReplicationConnection;

use crate::harness::{Accounting, Daemon, NOTES, Proxy, SOON, Twins, eventually, eventually_is};

/// A daemon that has replicated one row.
async fn with_a_row(twins: &Twins) -> Daemon {
    let daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (0, 'first', 0)").await;
    twins.until_equal(&["notes"]).await;
    daemon
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_db_that_was_restored_from_a_backup_is_a_gap() {
    let mut twins = Twins::private(NOTES).await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'kept', i FROM generate_series(1, 100) i")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    daemon.stop().await;

    // GIVEN a backup, and changes after it that have reached the Agent DB
    let data = twins.site.cluster.data();
    let backup = tempfile::tempdir().unwrap();
    let saved = backup.path().join("data");
    twins.site.cluster.stop(Shutdown::Fast).await.unwrap();
    copy_folder(&data, &saved);
    twins.site.cluster.start_again().await.unwrap();
    twins.site.reconnect().await;
    let daemon = twins.start().await;
    twins
        .on_site(
            "INSERT INTO notes SELECT 1000 + i, repeat('lost', 100), i FROM generate_series(1, 2000) i;
             UPDATE notes SET body = 'lost' WHERE id <= 10",
        )
        .await;
    twins.until_equal(&["notes"]).await;
    daemon.stop().await;

    // WHEN the backup takes the server's place
    twins.site.cluster.stop(Shutdown::Fast).await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&saved, &data);
    twins.site.cluster.start_again().await.unwrap();
    twins.site.reconnect().await;

    // THEN no change is applied until every table was read again
    let daemon = twins.launch();
    daemon.until_state("gap").await;
    daemon.says("restored from a backup").await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
    daemon.until_state("streaming").await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_share_one_position_are_applied_all_or_none() {
    // GIVEN many rows by COPY: it writes them with one log record, and all have its position
    let twins = Twins::new(NOTES).await.with("sync.batch_rows = 100");
    with_a_row(&twins).await.stop().await;
    let lines: String = (1..=5000).map(|id| format!("{id}\tcopied\t{id}\n")).collect();
    let mut copy = pin!(twins.site.copy_in("COPY notes FROM STDIN").await.unwrap());
    copy.send(Bytes::from(lines)).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 5000);

    // WHEN daemons die around the commit, THEN all are there or none
    for point in [name::AGENT_BEFORE_COMMIT, name::AGENT_AFTER_COMMIT] {
        twins.dies_at(&format!("{point}=return(abort)")).await;
        let rows = twins.agent.value("SELECT count(*) FROM notes").await;
        assert!(["1", "5001"].contains(&rows.as_str()), "{rows} rows");
    }
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let once = Accounting {
        received: 5001,
        accounted: 5001,
    };
    assert_eq!(twins.accounting().await, once, "each row once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_missing_for_a_while_is_named_and_a_new_slot_recovers() {
    let twins = Twins::new(NOTES).await;
    let daemon = with_a_row(&twins).await;

    // WHEN the WAL has a change from a time without the publication: a publication created later does not help to decode it
    twins
        .on_site(&format!("DROP PUBLICATION \"{}\"", twins.site.name))
        .await;
    twins.on_site("INSERT INTO notes VALUES (2, 'unpublished', 2)").await;

    // THEN the daemon says what to do, and a new slot and a resync recover
    eventually_is(
        "the daemon says what to do",
        2 * SOON,
        async || daemon.output(),
        |output| output.contains("the stream is held") && output.contains("publication"),
    )
    .await;
    twins.drop_slot().await;
    daemon.until_state("gap").await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
    daemon.until_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_that_delays_the_slots_creation_is_named() {
    let twins = Twins::private(NOTES).await;
    let idle = twins.site.connect().await;
    idle.batch_execute("BEGIN; INSERT INTO notes VALUES (1, 'late', 1)")
        .await
        .unwrap();
    let row = idle.query_one("SELECT pg_backend_pid() AS pid", &[]).await.unwrap();
    let pid = row.get::<_, i32>("pid").to_string();

    let mut daemon = twins.launch();
    daemon
        .wait_for_output("creating the slot waits", Duration::from_secs(60))
        .await;
    daemon.says(&pid).await;
    // No attempt leaves a server process behind that waits for ever.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'twinlog stream%' \
                   AND datname = current_database()";
    let count: i64 = twins.site.value(waiting).await.parse().unwrap();
    assert!(count <= 1, "{count} processes for one daemon");

    idle.batch_execute("COMMIT").await.unwrap();
    twins.until_equal_within(Duration::from_secs(60), &["notes"]).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_of_a_dead_daemon_is_ended_and_its_slot_taken_over() {
    // GIVEN a daemon whose machine is gone, and the Site DB does not hear of it
    let mut twins = Twins::new(NOTES).await;
    let proxy = Proxy::start(twins.site.cluster.port()).await;
    twins.set_site_url(&twins.site.url_through(proxy.port()));
    let mut dead = with_a_row(&twins).await;
    proxy.half_open();
    dead.kill9();
    let before = twins.walsender().await;
    assert!(before.is_some(), "the server still believes in it");

    // WHEN another one starts
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;
    twins.set_site_url(&twins.site.url.clone());
    let _daemon = twins.start().await;

    // THEN it takes the slot over
    twins.until_equal(&["notes"]).await;
    assert_ne!(twins.walsender().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_another_program_keeps_the_slot() {
    // GIVEN a stranger on the slot
    let twins = Twins::new(NOTES).await;
    twins.start().await.stop().await;
    let slot = &twins.site.name;
    let stranger = ReplicationConnection::connect(&twins.site.database_url(), "stranger")
        .await
        .unwrap()
        .start_replication(&slot.parse().unwrap(), Lsn::INVALID, std::slice::from_ref(slot))
        .await
        .unwrap();
    let before = eventually_is("the stranger has the slot", SOON, || twins.walsender(), Option::is_some).await;

    // WHEN a daemon starts, THEN it waits for the slot
    let mut daemon = twins.launch();
    daemon.wait_for_output("is active", SOON).await;
    assert_eq!(twins.walsender().await, before, "it was not ours to end");
    assert!(daemon.is_running());
    drop(stranger);
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal_within(2 * SOON, &["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stops_when_its_slot_is_gone() {
    // GIVEN a copy under way
    let twins = Twins::with_notes(200_000).await.with("sync.copy_chunk_rows = 100");
    let daemon = twins.start().await;
    twins.until_table("notes", "copying", 200).await;

    // WHEN the slot is dropped before the daemon reconnects
    daemon.signal(Signal::SIGSTOP);
    twins.terminate_walsender().await;
    twins.drop_slot().await;
    daemon.signal(Signal::SIGCONT);
    daemon.until_state("gap").await;

    // THEN no further row is copied while the daemon reports the gap
    let copied = "SELECT rows_copied FROM twinlog.tables";
    let before = twins.agent.value(copied).await;
    for _ in 0..2 {
        let reported = "SELECT max(reported_at) FROM twinlog.daemon WHERE state = 'gap'";
        let last = twins.agent.text(reported).await;
        eventually_is(
            "the daemon reports again",
            SOON,
            || twins.agent.text(reported),
            |now| now.is_some() && *now != last,
        )
        .await;
    }
    assert_eq!(twins.agent.value(copied).await, before);
    assert_eq!(twins.agent.value("SELECT state FROM twinlog.tables").await, "copying");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_db_that_is_blocked_for_long_does_not_lose_the_stream() {
    // GIVEN a walsender that waits for a sign of life for 2 seconds
    let twins = Twins::new(NOTES).await.with("sync.batch_rows = 500");
    let site = &twins.site.name;
    twins
        .on_site(&format!("ALTER DATABASE \"{site}\" SET wal_sender_timeout = '2s'"))
        .await;
    let daemon = with_a_row(&twins).await;
    let before = twins.walsender().await.unwrap();

    // WHEN the Agent DB is blocked for three times as long
    let locker = twins.agent.connect().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    twins
        .on_site("INSERT INTO notes SELECT i, repeat('x', 500), i FROM generate_series(1, 20000) i")
        .await;
    let until = twins.site.value("SELECT now() + interval '6 s'").await;
    let heard = format!("SELECT reply_time >= '{until}' FROM pg_stat_replication WHERE pid = {before}");
    eventually("the walsender hears of the daemon all the time", SOON, || async {
        match twins.site.query_opt(&format!("SELECT ({heard}) AS heard"), &[]).await {
            Ok(Some(row)) if row.get::<_, Option<bool>>("heard") == Some(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // THEN the connection is still the same, and every row arrives
    assert_eq!(twins.walsender().await.as_ref(), Some(&before), "{}", daemon.output());
    locker.batch_execute("COMMIT").await.unwrap();
    twins.until_equal_within(2 * SOON, &["notes"]).await;
    assert_eq!(twins.walsender().await.as_ref(), Some(&before), "{}", daemon.output());
    assert!(!daemon.output().contains("reconnecting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_daemons_unflushed_commit_is_made_durable_before_it_is_acknowledged() {
    let agent = Settings::default()
        .parameter("wal_writer_delay", "10s")
        .parameter("synchronous_commit", "off");
    let mut twins = Twins::private_with(Settings::default(), agent, NOTES).await;
    with_a_row(&twins).await.stop().await;

    // GIVEN a predecessor that committed rows and checkpoint without a flush, and died
    let rows = "INSERT INTO notes SELECT i, 'unflushed', i FROM generate_series(1, 100) i";
    twins.on_site(rows).await;
    let position = twins.site.value("SELECT pg_current_wal_flush_lsn()").await;
    twins
        .on_agent(&format!(
            "BEGIN; SET LOCAL synchronous_commit = off; {rows};
             UPDATE twinlog.checkpoint SET end_lsn = '{position}'; COMMIT"
        ))
        .await;

    // WHEN a new daemon acknowledges it, and then the Agent DB crashes
    let _daemon = twins.launch();
    let acknowledged = format!("SELECT confirmed_flush_lsn >= '{position}'::pg_lsn FROM pg_replication_slots");
    twins.until_site("it is acknowledged", &acknowledged, "true").await;
    twins.agent.cluster.restart(Shutdown::Kill).await.unwrap();
    twins.agent.reconnect().await;

    // THEN the rows are there
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.parked().await, 0);
}
