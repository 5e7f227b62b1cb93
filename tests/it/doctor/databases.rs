//! Faults of servers, connections and of what the daemon has stored.

use twinlog::dev::postgres::Settings;

use super::Diagnosis;
use crate::harness::{NOTES, Pooler, SOON, Twins, eventually_equal};

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_server_is_found_by_its_code() {
    // GIVEN a Site DB whose server is set up wrongly in many ways, and is a Supabase project that shows too much
    let settings = [
        ("wal_level", "replica"),
        ("max_replication_slots", "0"),
        ("max_wal_senders", "0"),
        ("wal_sender_timeout", "0"),
        ("synchronous_standby_names", "nobody"),
        ("synchronous_commit", "local"),
    ];
    let site = settings.iter().fold(Settings::default(), |settings, (name, value)| {
        settings.parameter(*name, *value)
    });
    let mut twins = Twins::private_with(site, Settings::default(), NOTES).await;
    twins
        .on_site(
            "CREATE ROLE anon; CREATE ROLE authenticated; CREATE PUBLICATION supabase_realtime;
             CREATE TABLE leads (id int PRIMARY KEY); GRANT SELECT ON leads TO anon;
             CREATE TABLE conversations (id int PRIMARY KEY); ALTER TABLE conversations ENABLE ROW LEVEL SECURITY;
             ALTER PUBLICATION supabase_realtime ADD TABLE conversations;
             CREATE TABLE notifications (id int PRIMARY KEY); GRANT SELECT ON notifications TO authenticated",
        )
        .await;
    let role = twins
        .site
        .create_role("reader", "GRANT SELECT ON notes TO {role}")
        .await;
    twins.set_site_url(&twins.site.url_as(&role));
    // And an Agent DB that takes no writes, where the daemon's schema can't be made.
    let writer = twins.agent.create_role("writer", "").await;
    twins.set_agent_url(&twins.agent.url_as(&writer));
    let database = twins.agent.name.clone();
    twins
        .on_agent(&format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = on"
        ))
        .await;

    // THEN each is found
    let diagnosis = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    diagnosis.finds(&[
        ("wal_level", "Site DB"),
        ("no_free_slot", "Site DB"),
        ("no_free_sender", "Site DB"),
        ("replication_right", "Site DB"),
        ("replication_login", "slot"),
        ("sender_timeout", "Site DB"),
        ("slot_wal_unlimited", "Site DB"),
        ("standby_waits_hidden", "Site DB"),
        ("not_durable", "Site DB"),
        ("publication_missing", "publication"),
        ("anonymous_reads", "public.leads"),
        ("no_policy", "public.conversations"),
        ("realtime_old_row", "public.conversations"),
        ("realtime_not_published", "supabase_realtime"),
        ("read_only", "Agent DB"),
        ("not_migrated", "Agent DB"),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_can_not_be_reached_are_told_and_the_rest_is_examined() {
    let mut twins = Twins::new(NOTES).await;
    let nowhere = "postgres://twinlog@[::1]:1/crm";
    twins.set_site_url(nowhere);
    let pooler = Pooler::start(&twins.agent, "transaction").await;
    if let Some(pooler) = &pooler {
        let url = pooler.url(&twins.agent);
        twins.set_agent_url(&url);
    }
    let diagnosis = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    diagnosis.finds(&[("unreachable", "Site DB"), ("ipv6_only", "Site DB")]);
    if pooler.is_some() {
        diagnosis.finds(&[("pooler", "Agent DB")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_has_met_is_told_with_the_way_out() {
    // GIVEN a daemon that has parked a row, and that was stopped
    let twins = Twins::private_with(
        Settings::default().parameter("max_slot_wal_keep_size", "1GB"),
        Settings::default(),
        NOTES,
    )
    .await;
    let before = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    before.is_quiet_but_for(&["not_durable"]);
    before.finds(&[("publication_later", "publication"), ("migrated_later", "Agent DB")]);
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let running = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    running.is_quiet_but_for(&["not_durable"]);
    assert!(running.success, "{}", running.output);
    twins.on_agent("ALTER TABLE notes ADD CHECK (n < 100)").await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1000)").await;
    eventually_equal("the row is parked", SOON, "1".to_owned(), || {
        twins.agent.value("SELECT count(*) FROM twinlog.failed_rows")
    })
    .await;
    daemon.stop().await;
    // A slot that another program has left behind keeps WAL.
    twins
        .on_site("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        .await;
    for _ in 0..6 {
        twins
            .on_site("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
            .await;
    }
    let stopped = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    stopped.finds(&[
        ("rows_parked", "public.notes"),
        ("daemon_not_running", "daemon"),
        ("idle_slot", "Site DB"),
    ]);

    // WHEN the slot is lost
    twins.drop_slot().await;
    let lost = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    lost.finds(&[("gap", "slot")]);

    // And when another program's slot has its name.
    let slot = twins.site.name.clone();
    twins
        .on_site(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ))
        .await;
    let other = Diagnosis::of(twins.spawn(&["doctor", "--json"])).await;
    other.finds(&[("slot_of_another", "slot")]);
}
