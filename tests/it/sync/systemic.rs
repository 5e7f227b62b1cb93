//! Faults that stop every row: the stream is held with the reason, nothing is parked, and it continues once the cause is
//! removed.

use crate::harness::{NOTES, SOON, Twins, eventually, eventually_is};

/// Ends the daemon's connections to the Agent DB, because a database's settings apply to new connections only.
async fn new_sessions(twins: &Twins) {
    twins
        .on_agent(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name LIKE 'twinlog %'",
        )
        .await;
}

/// Changes in the Site DB, more than one row.
async fn insert_notes(twins: &Twins, from: u32, to: u32) {
    twins
        .on_site(&format!(
            "INSERT INTO notes SELECT i, 'x', i FROM generate_series({from}, {to}) i"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_db_that_is_read_only_holds_the_stream_and_parks_nothing() {
    let twins = Twins::new(NOTES).await;
    let mut daemon = twins.start().await;
    daemon.until_state("streaming").await;
    let set = format!("ALTER DATABASE \"{}\"", twins.agent.name);

    twins
        .on_agent(&format!("{set} SET default_transaction_read_only = on"))
        .await;
    new_sessions(&twins).await;
    insert_notes(&twins, 1, 300).await;
    daemon.until_state("held").await;
    daemon.says("read-only").await;
    assert_eq!(twins.parked().await, 0);

    twins
        .on_agent(&format!("{set} RESET default_transaction_read_only"))
        .await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_in_mid_stream_holds_the_stream_and_parks_nothing() {
    let mut twins = Twins::new(NOTES).await;
    let rights = format!(
        "GRANT CREATE ON DATABASE \"{}\" TO {{role}};
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON notes TO {{role}}",
        twins.agent.name
    );
    let role = twins.agent.create_role("holder", &rights).await;
    twins.set_agent_url(&twins.agent.url_as(&role));
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;

    twins.on_agent(&format!("REVOKE INSERT ON notes FROM {role}")).await;
    insert_notes(&twins, 1, 300).await;
    daemon.until_state("held").await;
    daemon.says("INSERT").await;
    assert_eq!(twins.parked().await, 0);

    twins.on_agent(&format!("GRANT INSERT ON notes TO {role}")).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_in_the_agent_db_holds_the_stream_until_it_is_back() {
    let twins = Twins::new(&format!("{NOTES}; CREATE TABLE other (id int PRIMARY KEY)")).await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;

    twins.on_agent("DROP TABLE notes").await;
    twins
        .on_site("INSERT INTO notes VALUES (1, 'a', 1); INSERT INTO other VALUES (1)")
        .await;
    daemon.until_state("held").await;
    daemon.says("notes").await;
    assert_eq!(twins.parked().await, 0);

    twins.on_agent(NOTES).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_parked_rows_than_are_allowed_hold_the_stream_with_the_reason() {
    // GIVEN a table that refuses all rows
    let twins = Twins::new(NOTES)
        .await
        .with("sync.max_failed_rows = 5\nsync.retry_max_ms = 200");
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT none CHECK (n < 0)")
        .await;
    let mut daemon = twins.start().await;
    insert_notes(&twins, 1, 4).await;
    twins.until_parked(4).await;

    // WHEN more rows are refused than may be parked
    insert_notes(&twins, 5, 40).await;

    // THEN the stream is held, with the reason, until the rows are accepted
    daemon.until_state("held").await;
    daemon.says("max_failed_rows").await;
    assert!(twins.parked().await <= 5);
    eventually_is(
        "status says it",
        SOON,
        || twins.run(&["status", "--json"]),
        |(status, output)| !status.success() && output.contains("max_failed_rows"),
    )
    .await;
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT none").await;
    twins.until_parked(0).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_huge_transaction_passes_with_flat_memory() {
    /// The limit of the process's memory: a few batches, not the transaction (80 MB in the stream).
    const BOUND_KIB: u64 = 200 * 1024;
    let twins = Twins::new(NOTES).await;
    let daemon = twins.start().await;

    twins
        .on_site("INSERT INTO notes SELECT i, repeat('x', 300), i FROM generate_series(1, 200000) i")
        .await;
    eventually("the transaction is there, whole", 3 * SOON, || async {
        let rows = twins.agent.value("SELECT count(*) FROM notes").await;
        // Never only a part of the transaction.
        assert!(
            ["0", "200000"].contains(&rows.as_str()),
            "a part of a transaction is visible: {rows}"
        );
        if rows == "200000" { Ok(()) } else { Err(rows) }
    })
    .await;

    let peak = peak_kib(daemon.pid());
    assert!(peak < BOUND_KIB, "{peak} KiB at the peak");
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
}

/// The most memory that a process has ever held.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_exactly_as_many_rows_as_a_batch_holds_is_committed_without_waiting_for_another() {
    let twins = Twins::new(NOTES).await.with("sync.batch_rows = 10");
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    for rows in [10, 20, 1] {
        insert_notes(&twins, rows * 100 + 1, rows * 100 + rows).await;
        twins.until_equal(&["notes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_privileges_truncates_a_table_that_its_transaction_has_changed() {
    let mut twins = Twins::new("").await;
    twins.agent_is_owner().await;
    twins
        .on_both("CREATE TABLE places (id int PRIMARY KEY, place int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)")
        .await;
    let _daemon = twins.start().await;
    twins
        .on_site(
            "INSERT INTO places SELECT i, i FROM generate_series(1, 20) i;
             BEGIN; UPDATE places SET place = place + 1; TRUNCATE places; INSERT INTO places VALUES (1, 1); COMMIT",
        )
        .await;
    twins.until_equal(&["places"]).await;
}
