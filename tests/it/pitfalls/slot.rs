//! Slot and position: what moves the stream on, what may take it over, what must not be believed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use nix::sys::signal::Signal;
use twinlog::dev::postgres::{Settings, Shutdown};
use twinlog::failpoint::name;
use twinlog::lsn::Lsn;
use twinlog::wire::ReplicationConnection;

use crate::harness::{
    ConfigFile, Databases, Process, Proxy, SOON, databases, eventually, eventually_equal, private_databases,
};
use crate::sync::{
    accounting, balanced, command, on_both, parked, quick, start_sync, until_equal, until_state, until_table,
};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// The process that serves the test's slot.
async fn walsender(db: &Databases) -> Option<String> {
    db.site
        .text(&format!(
            "SELECT max(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
            db.site.name
        ))
        .await
}

/// Drops the slot as soon as nobody uses it.
async fn drop_slot(db: &Databases) {
    eventually("the slot is dropped", 2 * SOON, || async {
        db.site
            .execute("SELECT pg_drop_replication_slot($1)", &[&db.site.name])
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_db_that_was_restored_from_a_backup_is_a_gap_and_never_gone_on_with() {
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'kept', i FROM generate_series(1, 100) i")
        .await
        .unwrap();
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());

    // GIVEN a backup, and changes after it that have reached the Agent DB
    let data = db.site.cluster.data();
    let backup = tempfile::tempdir().unwrap();
    let saved = backup.path().join("data");
    db.site.cluster.stop(Shutdown::Fast).await.unwrap();
    copy_folder(&data, &saved);
    db.site.cluster.start_again().await.unwrap();
    db.site.reconnect().await;
    let mut daemon = start_sync(&config).await;
    db.site
        .batch_execute(
            "INSERT INTO notes SELECT 1000 + i, repeat('lost', 100), i FROM generate_series(1, 2000) i;
             UPDATE notes SET body = 'lost' WHERE id <= 10",
        )
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());

    // WHEN the backup takes the server's place
    db.site.cluster.stop(Shutdown::Fast).await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&saved, &data);
    db.site.cluster.start_again().await.unwrap();
    db.site.reconnect().await;

    // THEN nothing flows until everything was read again
    let daemon = Process::start(&config, &["sync"], "");
    until_state(&config, "gap").await;
    daemon.says("restored from a backup").await;
    let (status, output) = command(&config, &["resync", "--all", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
    until_state(&config, "streaming").await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_share_one_position_are_applied_all_or_none() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = ConfigFile::new(&db, "[sync]\nbatch_rows = 100\nreconnect_max_ms = 500\n");
    let mut daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (0, 'first', 0)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());

    // COPY writes many rows with one log record; they all have its position.
    let lines: String = (1..=5000).map(|id| format!("{id}\tcopied\t{id}\n")).collect();
    let sink = db.site.copy_in("COPY notes FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from(lines)).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 5000);

    for point in [name::AGENT_BEFORE_COMMIT, name::AGENT_AFTER_COMMIT] {
        let mut daemon = Process::start(&config, &["sync"], &format!("{point}=return(abort)"));
        assert!(!daemon.wait(2 * SOON).await.success(), "{point} was reached");
        let rows = db.agent.text("SELECT count(*) FROM notes").await.unwrap();
        assert!(["1", "5001"].contains(&rows.as_str()), "{rows} rows");
    }
    let _daemon = start_sync(&config).await;
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(accounting(&db).await, (5001, 5001), "each row once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_missing_for_a_while_is_named_and_got_over() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'before', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    // The log holds a change from a time without a publication: no publication of today helps to decode it.
    db.site
        .batch_execute(&format!("DROP PUBLICATION \"{}\"", db.site.name))
        .await
        .unwrap();
    db.site
        .batch_execute("INSERT INTO notes VALUES (2, 'unpublished', 2)")
        .await
        .unwrap();
    eventually("it is said what to do", 2 * SOON, || async {
        let output = daemon.output();
        if output.contains("held until somebody acts") && output.contains("publication") {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    drop_slot(&db).await;
    until_state(&config, "gap").await;
    let (status, output) = command(&config, &["resync", "--all", "--wait"]).await;
    assert!(status.success(), "{output}");
    until_equal(&db, &["notes"], SOON).await;
    until_state(&config, "streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_that_holds_the_slots_creation_up_is_named_and_waited_for() {
    let db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    let idle = db.site.connect().await;
    idle.batch_execute("BEGIN; INSERT INTO notes VALUES (1, 'late', 1)")
        .await
        .unwrap();
    let pid: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let config = quick(&db);
    let mut daemon = Process::start(&config, &["sync"], "");
    daemon
        .wait_for_output("creating the slot waits", Duration::from_secs(60))
        .await;
    eventually("the one who holds it up is named", SOON, || async {
        let output = daemon.output();
        if output.contains(&pid.to_string()) {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    // No attempt leaves a process behind that waits for ever.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'twinlog stream%' \
                   AND datname = current_database()";
    let count: i64 = db.site.text(waiting).await.unwrap().parse().unwrap();
    assert!(count <= 1, "{count} processes for one daemon");
    idle.batch_execute("COMMIT").await.unwrap();
    until_equal(&db, &["notes"], Duration::from_secs(60)).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_of_a_dead_predecessor_gives_the_slot_up() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let proxy = Proxy::start(db.site.cluster.port()).await;
    let old = ConfigFile::with_urls(&db.site.url_through(proxy.port()), &db.agent.url, &db.site.name, "");
    let mut dead = start_sync(&old).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    // Its machine is gone, and the Site DB does not hear of it.
    proxy.half_open();
    dead.kill9();
    let before = walsender(&db).await;
    assert!(before.is_some(), "the server still believes in it");
    db.site
        .batch_execute("INSERT INTO notes VALUES (2, 'b', 2)")
        .await
        .unwrap();
    let _daemon = start_sync(&quick(&db)).await;
    until_equal(&db, &["notes"], SOON).await;
    assert_ne!(walsender(&db).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_connection_keeps_the_slot() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());
    let stranger = ReplicationConnection::connect(&db.site.database_url(), "stranger")
        .await
        .unwrap()
        .start_replication(
            &db.site.name.parse().unwrap(),
            Lsn::INVALID,
            std::slice::from_ref(&db.site.name),
        )
        .await
        .unwrap();
    eventually("the stranger has the slot", SOON, || async {
        walsender(&db).await.map(drop).ok_or("nobody has it")
    })
    .await;
    let before = walsender(&db).await;
    let mut daemon = Process::start(&config, &["sync"], "");
    daemon.wait_for_output("is active", SOON).await;
    assert_eq!(walsender(&db).await, before, "it was not ours to end");
    assert!(daemon.is_running());
    drop(stranger);
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], 2 * SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_not_go_on_without_its_slot() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 200000) i")
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ncopy_chunk_rows = 100\nreconnect_max_ms = 500\n");
    let daemon = start_sync(&config).await;
    until_table(&db, "notes", "copying", 200).await;
    daemon.signal(Signal::SIGSTOP);
    db.site
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active",
            &[&db.site.name],
        )
        .await
        .unwrap();
    drop_slot(&db).await;
    daemon.signal(Signal::SIGCONT);
    until_state(&config, "gap").await;
    let copied = "SELECT rows_copied FROM twinlog.tables";
    let before = db.agent.text(copied).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(db.agent.text(copied).await, before, "hours of copying for nothing");
    assert_eq!(
        db.agent.text("SELECT state FROM twinlog.tables").await.as_deref(),
        Some("copying")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_blocked_for_long_does_not_lose_the_stream() {
    /// Three times what the walsender waits for a sign of life.
    const BLOCKED: Duration = Duration::from_secs(6);
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute(&format!(
            "ALTER DATABASE \"{}\" SET wal_sender_timeout = '2s'",
            db.site.name
        ))
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\nbatch_rows = 500\n");
    let daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (0, 'first', 0)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    let before = walsender(&db).await;
    let locker = db.agent.connect().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    db.site
        .batch_execute("INSERT INTO notes SELECT i, repeat('x', 500), i FROM generate_series(1, 20000) i")
        .await
        .unwrap();
    tokio::time::sleep(BLOCKED).await;
    assert_eq!(walsender(&db).await, before, "{}", daemon.output());
    locker.batch_execute("COMMIT").await.unwrap();
    until_equal(&db, &["notes"], 2 * SOON).await;
    assert_eq!(walsender(&db).await, before, "{}", daemon.output());
    assert!(!daemon.output().contains("reconnecting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predecessors_unflushed_commit_is_made_durable_before_it_is_acknowledged() {
    let agent = Settings::default()
        .parameter("wal_writer_delay", "10s")
        .parameter("synchronous_commit", "off");
    let mut db = private_databases(Settings::default(), agent).await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (0, 'first', 0)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());

    // GIVEN a predecessor that committed rows and checkpoint without a flush, and died
    let rows = "INSERT INTO notes SELECT i, 'unflushed', i FROM generate_series(1, 100) i";
    db.site.batch_execute(rows).await.unwrap();
    let position = db.site.text("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    db.agent
        .batch_execute(&format!(
            "BEGIN; SET LOCAL synchronous_commit = off; {rows};
             UPDATE twinlog.checkpoint SET end_lsn = '{position}'; COMMIT"
        ))
        .await
        .unwrap();

    // WHEN a new daemon acknowledges it, and then the Agent DB crashes
    let _daemon = Process::start(&config, &["sync"], "");
    let acknowledged = format!("SELECT confirmed_flush_lsn >= '{position}'::pg_lsn FROM pg_replication_slots");
    eventually_equal("it is acknowledged", SOON, Some("true".to_owned()), || {
        db.site.text(&acknowledged)
    })
    .await;
    db.agent.cluster.restart(Shutdown::Kill).await.unwrap();
    db.agent.reconnect().await;

    // THEN the rows are there
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(parked(&db).await, 0);
}
