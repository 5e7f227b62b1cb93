//! Each fault of the set-up is reported in one sentence with the statement to run; the process stays up, and continues by
//! itself once the cause is removed.

use twinlog::dev::postgres::{Settings, Shutdown};

use crate::harness::{Daemon, NOTES, SOON, Twins};

/// Held, with these words on the console and in readyz.
async fn held(daemon: &mut Daemon, words: &[&str]) {
    for word in words {
        daemon.wait_for_output(word, 2 * SOON).await;
    }
    daemon.until_state("held").await;
    daemon.until_ready(503, words).await;
    assert!(daemon.is_running());
}

/// All is well, and these tables are equal.
async fn streams(twins: &Twins, daemon: &Daemon, tables: &[&str]) {
    daemon.until_state("streaming").await;
    twins.until_equal(tables).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_named_and_used_once_it_has_one() {
    let site = Settings::default().parameter("wal_level", "replica");
    let mut twins = Twins::private_with(site, Settings::default(), NOTES).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    let mut daemon = twins.launch();
    let words = [
        "wal_level is replica, not logical",
        "ALTER SYSTEM SET wal_level = logical",
    ];
    held(&mut daemon, &words).await;

    twins.site.cluster.set("wal_level", "logical").await.unwrap();
    twins.site.cluster.restart(Shutdown::Fast).await.unwrap();
    twins.site.reconnect().await;
    streams(&twins, &daemon, &["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_right_on_the_site_db_is_named_one_after_another() {
    let mut twins = Twins::new(NOTES).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    let role = twins.site.create_role("reader", "").await;
    twins.set_site_url(&twins.site.url_as(&role));
    let publication = twins.site.name.clone();
    let mut daemon = twins.launch();

    let statement = format!("ALTER ROLE \"{role}\" REPLICATION");
    held(&mut daemon, &["may not replicate", &statement]).await;
    twins.on_site(&statement).await;

    let statement = "GRANT SELECT ON \"public\".\"notes\" TO";
    held(&mut daemon, &["may not read table public.notes", statement]).await;
    twins.on_site(&format!("{statement} {role}")).await;

    let statement = format!(
        "CREATE PUBLICATION \"{publication}\" FOR TABLE ONLY \"public\".\"notes\" WITH (publish_via_partition_root = true)"
    );
    held(&mut daemon, &["may not create it", &statement]).await;
    twins.on_site(&statement).await;
    streams(&twins, &daemon, &["notes"]).await;

    // And a table that comes later and is not the role's to publish.
    twins.on_both("CREATE TABLE later (id int PRIMARY KEY)").await;
    twins
        .on_site(&format!(
            "GRANT SELECT ON later TO {role}; INSERT INTO later VALUES (1)"
        ))
        .await;
    daemon.relaunch_with("");
    let statement = format!("ALTER PUBLICATION \"{publication}\" ADD TABLE ONLY \"public\".\"later\"");
    held(&mut daemon, &["is not in publication", &statement]).await;
    twins.on_site(&statement).await;
    streams(&twins, &daemon, &["notes", "later"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_do_not_fit_are_named_one_after_another() {
    let twins = Twins::new("").await;
    let mut daemon = twins.launch();
    held(&mut daemon, &["no table of the Site DB matches sync.tables"]).await;

    twins
        .on_site("CREATE TABLE notes (id bigint, body text, n int); INSERT INTO notes VALUES (1, 'a', 1)")
        .await;
    let words = [
        "table public.notes of the Site DB has no replica identity",
        "ALTER TABLE \"public\".\"notes\" REPLICA IDENTITY FULL;",
    ];
    held(&mut daemon, &words).await;

    twins.on_site("ALTER TABLE notes ADD PRIMARY KEY (id)").await;
    let words = ["table public.notes is missing in the Agent DB", "pg_dump --schema-only"];
    held(&mut daemon, &words).await;

    twins
        .on_agent("CREATE TABLE notes (id bigint PRIMARY KEY, body text)")
        .await;
    held(&mut daemon, &["column", "ADD COLUMN \"n\""]).await;

    twins.on_agent("ALTER TABLE notes ADD COLUMN \"n\" int").await;
    streams(&twins, &daemon, &["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_waits_for_a_server_that_cannot_be_reached() {
    let mut twins = Twins::private(NOTES).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;

    twins.site.cluster.stop(Shutdown::Fast).await.unwrap();
    let mut daemon = twins.launch();
    daemon.wait_for_output("reconnecting", SOON).await;
    daemon.until_state("connecting").await;
    twins.agent.cluster.stop(Shutdown::Fast).await.unwrap();

    twins.site.cluster.start_again().await.unwrap();
    twins.agent.cluster.start_again().await.unwrap();
    twins.reconnect().await;
    streams(&twins, &daemon, &["notes"]).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_is_left_alone() {
    let twins = Twins::new(NOTES).await;
    let slot = &twins.site.name;
    twins
        .on_site(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ))
        .await;
    let mut daemon = twins.launch();
    let statement = format!("SELECT pg_drop_replication_slot('{slot}')");
    held(&mut daemon, &["belongs to the output plugin test_decoding", &statement]).await;
    twins.on_site(&statement).await;
    daemon.until_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_on_the_agent_db_is_named_and_the_daemon_continues_once_granted() {
    let mut twins = Twins::new(NOTES).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    let role = twins.agent.create_role("writer", "").await;
    twins.set_agent_url(&twins.agent.url_as(&role));
    let mut daemon = twins.launch();

    let statement = format!("GRANT CREATE ON DATABASE \"{}\" TO", twins.agent.name);
    let words = ["may not create Twinlog's tables in the Agent DB", &statement];
    held(&mut daemon, &words).await;
    twins.on_agent(&format!("{statement} {role}")).await;

    held(&mut daemon, &["notes", "GRANT"]).await;
    twins
        .on_agent(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON notes TO {role}"
        ))
        .await;
    streams(&twins, &daemon, &["notes"]).await;

    twins
        .on_site("UPDATE notes SET n = 2; INSERT INTO notes VALUES (2, 'b', 2)")
        .await;
    twins.until_equal(&["notes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_one_stands_by_and_takes_over() {
    let twins = Twins::new(NOTES).await;
    let mut active = twins.start().await;
    let mut standby = Daemon::launch(twins.another_config(), "");
    standby.until_state("standby").await;
    // It can do its work.
    standby.until_ready(200, &[]).await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;

    active.kill9();
    standby.until_flowing().await;
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;
    twins.until_equal(&["notes"]).await;

    // The one that has taken over holds the lock: no other writes beside it.
    let third = Daemon::launch(twins.another_config(), "");
    third.until_state("standby").await;
}
