//! Waiting costs nothing and raises no error: it is told soon, with what is waited for and who holds it, and readiness goes by
//! the delay.

use std::time::{Duration, Instant};

use twinlog::dev::postgres::Settings;

use crate::harness::{Daemon, NOTES, SOON, Twins, eventually};

/// Within this time a wait must be told.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Waits until `twinlog status` exits with a problem and says these words.
async fn until_told(twins: &Twins, words: &[&str]) {
    eventually(&format!("status says {words:?}"), TOLD_WITHIN, || async {
        let (status, output) = twins.run(&["status", "--json"]).await;
        let told = words.iter().all(|word| output.contains(word));
        if told && !status.success() {
            Ok(())
        } else {
            Err((status, output))
        }
    })
    .await;
}

/// A daemon that is late after two seconds.
async fn impatient(schema: &str) -> (Twins, Daemon) {
    let twins = Twins::new(schema).await.with("sync.ready_delay_ms = 2000");
    let daemon = twins.start().await;
    daemon.until_ready(200, &[]).await;
    (twins, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_in_the_agent_db_is_named_with_who_locks_it() {
    let (twins, daemon) = impatient(NOTES).await;
    let holder = twins.agent.connect().await;
    holder
        .batch_execute("SET application_name = 'somebody'; BEGIN; LOCK TABLE notes")
        .await
        .unwrap();

    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;

    until_told(&twins, &["a lock on table public.notes", "somebody"]).await;
    // Late, or by now held.
    daemon.until_ready(503, &["public.notes"]).await;
    daemon.says("waits for a lock on table public.notes").await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    twins.until_equal(&["notes"]).await;
    daemon.until_ready(200, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_locked_in_the_agent_db_is_named_with_who_locks_it() {
    let (twins, daemon) = impatient(NOTES).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
    let holder = twins.agent.connect().await;
    holder
        .batch_execute("SET application_name = 'somebody'; BEGIN; UPDATE notes SET n = 7")
        .await
        .unwrap();

    twins.on_site("UPDATE notes SET n = 2").await;

    until_told(&twins, &["waits for", "somebody"]).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    twins.until_equal(&["notes"]).await;
    daemon.until_ready(200, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_in_the_site_db_is_told_though_nothing_is_late() {
    let (twins, daemon) = impatient(NOTES).await;
    let holder = twins.site.connect().await;
    holder
        .batch_execute("SET application_name = 'somebody'; BEGIN; LOCK TABLE notes")
        .await
        .unwrap();

    twins.succeeds(&["resync", "notes"]).await;

    daemon.says("waits for a lock on table public.notes").await;
    daemon.says("somebody").await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    daemon.says("waits no longer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_the_slot_waits_for_is_named() {
    let site = Settings::default().parameter("max_prepared_transactions", "5");
    let twins = Twins::private_with(site, Settings::default(), NOTES).await;
    let other = twins.site.connect().await;
    other
        .batch_execute("BEGIN; INSERT INTO notes VALUES (1, 'a', 1); PREPARE TRANSACTION 'left behind'")
        .await
        .unwrap();

    let mut daemon = twins.launch();

    until_told(&twins, &["the prepared transaction 'left behind'", "ROLLBACK PREPARED"]).await;
    other.batch_execute("COMMIT PREPARED 'left behind'").await.unwrap();
    daemon.until_flowing().await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_held_at_its_start_tells_how_far_it_is_behind() {
    // GIVEN a daemon that has stopped 100 s ago, and whose slot is another's now
    let (twins, daemon) = impatient(NOTES).await;
    daemon.stop().await;
    twins.drop_slot().await;
    twins
        .on_site(&format!(
            "SELECT pg_create_physical_replication_slot('{}', true); INSERT INTO notes VALUES (1, 'a', 1)",
            twins.site.name
        ))
        .await;
    twins
        .on_agent("UPDATE twinlog.checkpoint SET updated_at = updated_at - interval '100 s'")
        .await;

    // WHEN it starts
    let _daemon = twins.launch();

    // THEN lag and delay are those since the last one has stopped
    eventually("lag and delay are true", SOON, || async {
        let (_, output) = twins.run(&["status", "--json"]).await;
        let status: serde_json::Value =
            serde_json::from_str(output.lines().last().unwrap_or_default()).unwrap_or_default();
        let (delay, lag) = (
            status["report"]["delay_seconds"].as_f64(),
            status["report"]["lag_bytes"].as_u64(),
        );
        let checkpoint = status["checkpoint"].as_str().unwrap_or("0/0");
        // Other tests write to the same cluster.
        let most = twins
            .site
            .value(&format!(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{checkpoint}')::bigint::text"
            ))
            .await;
        match (delay, lag) {
            (Some(delay), Some(lag)) if (100.0..200.0).contains(&delay) && lag <= most.parse().unwrap() => Ok(()),
            _ => Err(output),
        }
    })
    .await;
    twins.drop_slot().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_a_commit_waits_for_is_told_and_so_is_a_lock_on_our_own_tables() {
    // GIVEN an Agent DB whose synchronous standby is missing
    let twins = Twins::private(NOTES).await.with("sync.ready_delay_ms = 2000");
    let daemon = twins.start().await;
    daemon.until_ready(200, &[]).await;
    let reload = "SELECT pg_reload_conf()";
    twins
        .agent
        .connect()
        .await
        .batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await
        .unwrap();
    twins.agent.value(reload).await;

    // WHEN a row is to be committed there
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;

    // THEN status and readiness say what it waits for
    until_told(&twins, &["a synchronous standby"]).await;
    daemon.until_ready(503, &["a synchronous standby"]).await;
    let agent = twins.agent.connect().await;
    agent
        .batch_execute("ALTER SYSTEM RESET synchronous_standby_names")
        .await
        .unwrap();
    agent.batch_execute(reload).await.unwrap();
    twins.until_equal(&["notes"]).await;
    daemon.until_ready(200, &[]).await;

    // WHEN somebody locks the daemon's own tables
    agent
        .batch_execute("SET application_name = 'somebody'; BEGIN; LOCK TABLE twinlog.checkpoint, twinlog.daemon")
        .await
        .unwrap();
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;

    // THEN he is named
    daemon.until_ready(503, &["a lock on table twinlog.", "somebody"]).await;
    agent.batch_execute("ROLLBACK").await.unwrap();
    twins.until_equal(&["notes"]).await;
    daemon.until_ready(200, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_gets_no_connection_is_told_with_the_servers_own_words() {
    // GIVEN a daemon whose role has no connection left, as after a limit was set or all are taken
    let mut twins = Twins::new(NOTES).await;
    let role = twins
        .site
        .create_role("few", "ALTER ROLE {role} REPLICATION; GRANT SELECT ON notes TO {role}")
        .await;
    let publish = format!("CREATE PUBLICATION {} FOR TABLE notes", twins.site.name);
    twins.on_site(&publish).await;
    twins.set_site_url(&twins.site.url_as(&role));
    let daemon = twins.start().await;
    twins.until_table("notes", "streaming", 0).await;
    // The commands come as somebody else, whose connections are not limited.
    twins.set_site_url(&twins.site.url.clone());
    let limit = |limit: u32| format!("ALTER ROLE {role} CONNECTION LIMIT {limit}");
    twins.on_site(&limit(1)).await;

    // WHEN a table is to be read
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.run(&["resync", "notes"]).await;

    // THEN it is said, and the stream goes on
    until_told(
        &twins,
        &[
            "the copy of table public.notes is held",
            "too many connections for role",
            "CONNECTION LIMIT",
        ],
    )
    .await;
    let (_, output) = twins.run(&["status", "--json"]).await;
    assert!(!output.contains("db error") && !output.contains("at line"), "{output}");
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;
    twins.until_equal(&["notes"]).await;
    twins.on_site(&limit(50)).await;
    daemon.until_ready(200, &[]).await;
    twins.until_status_is_good(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_does_not_wait_for_who_has_locked_the_daemons_tables() {
    let twins = Twins::new(NOTES).await;
    let mut daemon = twins.start().await;
    for table in ["checkpoint", "tables", "failed_rows"] {
        let holder = twins.agent.connect().await;
        holder
            .batch_execute(&format!("BEGIN; LOCK TABLE twinlog.{table}"))
            .await
            .unwrap();

        let asked = Instant::now();
        let said = twins.fails(&["status"]).await;

        assert!(asked.elapsed() < TOLD_WITHIN, "{:?}", asked.elapsed());
        for words in ["lock timeout", "locked a table of the schema twinlog: SELECT l.pid"] {
            assert!(said.contains(words), "{said}");
        }
        holder.batch_execute("ROLLBACK").await.unwrap();
    }
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
    assert!(daemon.is_running());
}
