//! What stops everybody's rows is nobody's row's fault: held, said, nothing parked, and gone on with once it is mended.

use super::{balanced, command, on_both, parked, quick, start_sync, until_equal, until_state};
use crate::harness::{ConfigFile, Databases, SOON, databases, eventually, eventually_equal};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// Ends the daemon's connections to the Agent DB: settings of a database are for new ones.
async fn new_sessions(db: &Databases) {
    db.agent
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name LIKE 'twinlog %'",
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_db_that_is_read_only_holds_the_stream_and_parks_nothing() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    until_state(&config, "streaming").await;
    db.agent
        .batch_execute(&format!(
            "ALTER DATABASE \"{}\" SET default_transaction_read_only = on",
            db.agent.name
        ))
        .await
        .unwrap();
    new_sessions(&db).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 300) i")
        .await
        .unwrap();
    until_state(&config, "held").await;
    daemon.says("read-only").await;
    assert_eq!(parked(&db).await, 0);
    db.agent
        .batch_execute(&format!(
            "ALTER DATABASE \"{}\" RESET default_transaction_read_only",
            db.agent.name
        ))
        .await
        .unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(parked(&db).await, 0);
    balanced(&db).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_in_mid_stream_holds_the_stream_and_parks_nothing() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let name = format!("holder_{}", db.agent.name);
    db.agent
        .batch_execute(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{name}'; GRANT CREATE ON DATABASE \"{}\" TO {name};
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON notes TO {name}",
            db.agent.name
        ))
        .await
        .unwrap();
    let (_, host) = db.agent.url.split_once('@').unwrap();
    let agent = format!("postgresql://{name}:{name}@{host}");
    let config = ConfigFile::with_urls(&db.site.url, &agent, &db.site.name, "[sync]\nreconnect_max_ms = 500\n");
    let mut daemon = start_sync(&config).await;
    until_state(&config, "streaming").await;
    db.agent
        .batch_execute(&format!("REVOKE INSERT ON notes FROM {name}"))
        .await
        .unwrap();
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 300) i")
        .await
        .unwrap();
    until_state(&config, "held").await;
    daemon.says("permission denied for table notes").await;
    assert_eq!(parked(&db).await, 0);
    db.agent
        .batch_execute(&format!("GRANT INSERT ON notes TO {name}"))
        .await
        .unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(parked(&db).await, 0);
    daemon.kill9();
    db.agent
        .batch_execute(&format!("DROP OWNED BY {name} CASCADE; DROP ROLE {name}"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_in_the_agent_db_holds_the_stream_until_it_is_back() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    on_both(&db, "CREATE TABLE other (id int PRIMARY KEY)").await;
    let config = quick(&db);
    let daemon = start_sync(&config).await;
    until_state(&config, "streaming").await;
    db.agent.batch_execute("DROP TABLE notes").await.unwrap();
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1); INSERT INTO other VALUES (1)")
        .await
        .unwrap();
    until_state(&config, "held").await;
    daemon.says("notes").await;
    assert_eq!(parked(&db).await, 0);
    db.agent.batch_execute(NOTES).await.unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes", "other"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_parked_rows_than_are_allowed_hold_the_stream_with_the_reason() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.agent
        .batch_execute("ALTER TABLE notes ADD CONSTRAINT none CHECK (n < 0)")
        .await
        .unwrap();
    let config = ConfigFile::new(
        &db,
        "[sync]\nmax_failed_rows = 5\nretry_initial_ms = 50\nretry_max_ms = 200\nreconnect_max_ms = 500\n",
    );
    let mut daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 4) i")
        .await
        .unwrap();
    eventually_equal("a few are parked", SOON, 4, || parked(&db)).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, 'x', i FROM generate_series(5, 40) i")
        .await
        .unwrap();
    until_state(&config, "held").await;
    daemon.says("max_failed_rows").await;
    assert!(parked(&db).await <= 5);
    eventually("status says it", SOON, || async {
        let (status, output) = command(&config, &["status", "--json"]).await;
        if !status.success() && output.contains("max_failed_rows") {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await;
    db.agent
        .batch_execute("ALTER TABLE notes DROP CONSTRAINT none")
        .await
        .unwrap();
    eventually_equal("all are healed", SOON, 0, || parked(&db)).await;
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    balanced(&db).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_huge_transaction_passes_with_flat_memory() {
    /// What a process may ever have held: a few batches, not the transaction (which is 80 MB in the stream).
    const BOUND_KIB: u64 = 200 * 1024;
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = quick(&db);
    let daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes SELECT i, repeat('x', 300), i FROM generate_series(1, 200000) i")
        .await
        .unwrap();
    eventually("the transaction is there, whole", 3 * SOON, || async {
        let rows = db.agent.text("SELECT count(*) FROM notes").await.unwrap();
        // Never a part of it.
        assert!(
            ["0", "200000"].contains(&rows.as_str()),
            "a part of a transaction is visible: {rows}"
        );
        if rows == "200000" { Ok(()) } else { Err(rows) }
    })
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
        .unwrap();
    assert!(peak < BOUND_KIB, "{peak} KiB at the peak");
    until_equal(&db, &["notes"], SOON).await;
    balanced(&db).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_exactly_as_many_rows_as_a_batch_holds_is_committed_without_waiting_for_another() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let config = ConfigFile::new(&db, "[sync]\nbatch_rows = 10\n");
    let _daemon = start_sync(&config).await;
    until_state(&config, "streaming").await;
    for rows in [10, 20, 1] {
        db.site
            .batch_execute(&format!(
                "INSERT INTO notes SELECT {rows} * 100 + i, 'x', i FROM generate_series(1, {rows}) i"
            ))
            .await
            .unwrap();
        until_equal(&db, &["notes"], SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_privileges_truncates_a_table_that_its_transaction_has_changed() {
    const PLACES: &str = "CREATE TABLE places (id int PRIMARY KEY, place int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)";
    let db = databases().await;
    let name = db.agent.name.clone();
    db.agent
        .batch_execute(&format!(
            "CREATE ROLE {name} LOGIN PASSWORD '{name}'; ALTER DATABASE {name} OWNER TO {name}; SET ROLE {name}"
        ))
        .await
        .unwrap();
    on_both(&db, PLACES).await;
    let agent = format!("postgres://{name}:{name}@127.0.0.1:{}/{name}", db.agent.cluster.port());
    let config = ConfigFile::with_urls(&db.site.url, &agent, &db.site.name, "");
    let mut daemon = start_sync(&config).await;
    db.site
        .batch_execute(
            "INSERT INTO places SELECT i, i FROM generate_series(1, 20) i;
             BEGIN; UPDATE places SET place = place + 1; TRUNCATE places; INSERT INTO places VALUES (1, 1); COMMIT",
        )
        .await
        .unwrap();
    until_equal(&db, &["places"], SOON).await;
    daemon.kill9();
    db.agent
        .batch_execute(&format!(
            "RESET ROLE; ALTER DATABASE {name} OWNER TO CURRENT_USER; REASSIGN OWNED BY {name} TO CURRENT_USER; DROP ROLE {name}"
        ))
        .await
        .unwrap();
}
