//! Commits that are in the log and that no snapshot sees yet: they wait for a synchronous standby. Their rows have been
//! streamed; nothing that is read from the Site DB meanwhile may undo them.

use crate::harness::{NOTES, SOON, Twins, eventually_equal};

/// Notes that stream, and a standby that never answers.
async fn without_the_standby() -> Twins {
    let twins = Twins::private(NOTES).await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'old', i FROM generate_series(1, 10) i")
        .await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    standby(&twins, "absent").await;
    daemon.kill9();
    twins
}

async fn standby(twins: &Twins, name: &str) {
    let cluster = &twins.site.cluster;
    cluster.set("synchronous_standby_names", name).await.unwrap();
}

/// The Agent DB still has what the waiting transactions wrote.
async fn the_new_rows_stay(twins: &Twins) {
    let rows = "SELECT string_agg(id || ' ' || body, ', ' ORDER BY id) FROM notes WHERE id IN (1, 2, 11)";
    assert_eq!(twins.agent.value(rows).await, "1 new, 11 new");
}

async fn nothing_is_undone(twins: &Twins) {
    // GIVEN transactions that a run has applied, and that are not yet visible on the Site DB
    let mut first = twins.start().await;
    let mut waiting = Vec::new();
    for change in [
        "UPDATE notes SET body = 'new' WHERE id = 1",
        "DELETE FROM notes WHERE id = 2",
        "INSERT INTO notes VALUES (11, 'new', 11)",
    ] {
        let writer = twins.site.connect().await;
        waiting.push(tokio::spawn(async move { writer.batch_execute(change).await }));
    }
    twins
        .until_agent(
            "they are applied",
            "SELECT count(*) FILTER (WHERE body = 'old') || ' old, ' || count(*) FILTER (WHERE body = 'new') || ' new' \
             FROM notes",
            "8 old, 2 new",
        )
        .await;
    assert_eq!(
        twins.site.value("SELECT count(*) FROM notes WHERE body = 'new'").await,
        "0",
        "they are still waiting"
    );

    // WHEN the next run reads the table again
    first.kill9();
    let mut second = twins.start().await;
    twins.succeeds(&["resync", "notes"]).await;
    second.wait_for_output("a synchronous standby", SOON).await;

    // THEN it waits for them
    the_new_rows_stay(twins).await;
    twins.until_table("notes", "resyncing", 0).await;
    standby(twins, "").await;
    for writer in waiting {
        writer.await.unwrap().unwrap();
    }
    let state = "SELECT min(state) FROM twinlog.commands";
    eventually_equal("the resync has ended", 2 * SOON, Some("done".to_owned()), || {
        twins.agent.text(state)
    })
    .await;
    the_new_rows_stay(twins).await;
    twins.until_equal(&["notes"]).await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_run_reads_no_rows_before_commits_that_wait_for_a_standby_are_visible() {
    nothing_is_undone(&without_the_standby().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pg_read_all_stats_a_run_waits_for_every_open_transaction() {
    let mut twins = without_the_standby().await;
    twins.on_site("SET synchronous_commit = local").await;
    let rights = "ALTER ROLE {role} REPLICATION; GRANT SELECT ON notes TO {role}";
    let role = twins.site.create_role("plain", rights).await;
    twins.on_site("RESET synchronous_commit").await;
    twins.set_site_url(&twins.site.url_as(&role));
    nothing_is_undone(&twins).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_does_not_delay_a_resync() {
    let twins = without_the_standby().await;
    let long = twins.site.connect().await;
    long.batch_execute("BEGIN; UPDATE notes SET body = 'later' WHERE id = 3")
        .await
        .unwrap();

    let _daemon = twins.start().await;
    twins
        .on_agent("DELETE FROM notes WHERE id > 5; UPDATE notes SET n = -1")
        .await;
    twins.succeeds(&["resync", "notes", "--wait"]).await;
    twins.until_equal(&["notes"]).await;

    long.batch_execute("SET LOCAL synchronous_commit = local; COMMIT")
        .await
        .unwrap();
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_gets_another_name_or_schema_is_no_reason_to_copy_its_table_again() {
    let twins = Twins::new(
        "CREATE SCHEMA aside; CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN few AS int CHECK (value < 10);
         CREATE TABLE t (id int PRIMARY KEY, m mood, n few)",
    )
    .await;
    twins
        .on_site("INSERT INTO t SELECT i, 'sad', i % 10 FROM generate_series(1, 100) i")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["t"]).await;
    let copied = "SELECT sum(rows_copied)::text || min(started_at) FROM twinlog.tables";
    let before = twins.agent.value(copied).await;
    for change in [
        "ALTER TYPE mood SET SCHEMA aside",
        "ALTER TYPE aside.mood RENAME TO temper",
        "ALTER DOMAIN few RENAME TO fewer",
    ] {
        twins
            .on_site(&format!("{change}; INSERT INTO t SELECT max(id) + 1, 'glad' FROM t"))
            .await;
        twins.until_equal_within(2 * SOON, &["t"]).await;
    }
    daemon.until_state("streaming").await;
    assert_eq!(twins.agent.value(copied).await, before);
}
