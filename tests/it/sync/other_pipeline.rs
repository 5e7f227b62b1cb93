//! Two Site DBs and one Agent DB with one name of a slot: the second writes nothing, and names the first.

use crate::harness::{ConfigFile, Daemon, NOTES, Process, SOON, Twins, eventually_is};

/// All that the first pipeline has in the Agent DB, as one text.
async fn all(twins: &Twins) -> Option<String> {
    twins
        .agent
        .text(
            "SELECT concat_ws(' | ', (SELECT string_agg(n::text, ',' ORDER BY id) FROM notes n),
                 (SELECT string_agg(concat_ws(' ', k.slot, k.table_name, k.system_identifier, k.database), ',' ORDER BY k.table_name)
                  FROM twinlog.claims k),
                 (SELECT string_agg(concat_ws(' ', t.table_name, t.state), ',' ORDER BY t.table_name) FROM twinlog.tables t),
                 (SELECT concat_ws(' ', c.system_identifier, c.database, c.gap_reason) FROM twinlog.checkpoint c),
                 (SELECT count(*) FROM information_schema.columns WHERE table_name = 'notes'))",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_site_db_with_the_slots_name_of_the_first_writes_nothing_and_names_the_first() {
    // GIVEN a first pipeline, and another cluster with a database that has other rows, one table fewer and a column more
    let first = Twins::new(NOTES).await;
    first.on_both("CREATE TABLE more (id int PRIMARY KEY)").await;
    first.on_site("INSERT INTO notes VALUES (1, 'first', 1)").await;
    let slot = first.site.name.clone();
    let mut daemon = first.start().await;
    first.until_equal(&["notes", "more"]).await;
    for table in ["notes", "more"] {
        first.until_table(table, "streaming", 0).await;
    }
    let before = all(&first).await;
    let other = first.another().await;
    other.on_agent(NOTES).await;
    other
        .on_agent("ALTER TABLE notes ADD added int; INSERT INTO notes VALUES (2, 'second', 2)")
        .await;
    let system = "SELECT system_identifier::text FROM pg_control_system()";
    let (is, was) = (other.agent.value(system).await, first.site.value(system).await);
    let named = format!("of database {slot} of the server with the system identifier {was}");

    // WHEN its daemon starts while the first one's runs
    let add = "sync.on_new_column = 'add'";
    let second = Daemon::launch(
        ConfigFile::with_urls(&other.agent.url, &first.agent.url, &slot, add),
        "",
    );
    second.until_state("held").await;

    // THEN it names both and what to do, and the report in the Agent DB stays the first one's
    second
        .until_ready(503, &[&named, &is, &format!("sync.slot = '{slot}_2'")])
        .await;
    eventually_is(
        "the report is the first one's",
        SOON,
        || first.agent.text("SELECT state FROM twinlog.daemon"),
        |state| state.as_deref() == Some("streaming"),
    )
    .await;
    second.stop().await;
    let stopped = "SELECT bool_or(state = 'stopped') FROM twinlog.daemon";
    assert_eq!(first.agent.value(stopped).await, "false", "the first one runs");

    // and WHEN the first one is down
    daemon.kill9();
    let launch = || {
        let config = ConfigFile::with_urls(&other.agent.url, &first.agent.url, &slot, add);
        Daemon::launch(config, "")
    };
    let mut second = launch();
    second.until_state("gap").await;
    second.until_ready(503, &["another cluster", &named]).await;
    // also if a resync is asked for that is meant for the first one, or for nobody knows which
    for site in [format!(r#", "site": "{slot} of {was}""#), String::new()] {
        let ask = format!(
            r#"INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ('{slot}', 'resync', '{{"all": true{site}}}')"#
        );
        first.on_agent(&ask).await;
    }
    second.kill9();
    second = launch();
    second.until_ready(503, &["another cluster", &named]).await;
    second.kill9();
    assert_eq!(all(&first).await, before, "nothing was written");

    // THEN the first one goes on as if nothing had been
    daemon.restart().await;
    first.on_site("INSERT INTO notes VALUES (3, 'first', 3)").await;
    first.until_equal(&["notes", "more"]).await;
    first.until_status_is_good(&[]).await;

    // and the second takes its place once that is asked for with its own configuration
    daemon.kill9();
    let config = ConfigFile::with_urls(&other.agent.url, &first.agent.url, &slot, add);
    let mut resync = Process::start(&config, &["resync", "--all", "--wait"], "");
    let status = resync.wait(2 * SOON).await;
    assert!(status.success(), "{}", resync.output());
    assert_eq!(
        first.agent.value("SELECT string_agg(r::text, ',') FROM notes r").await,
        "(2,second,2,)"
    );
}
