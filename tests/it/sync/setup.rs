//! Every bad start gives one clear sentence with the statement to paste, the process stays up, and goes on by itself once
//! somebody has acted.

use std::time::Duration;

use super::{admin, on_both, quick, start_sync, until_equal, until_state};
use crate::harness::{ConfigFile, Databases, Process, SOON, databases, eventually, private_databases};
use twinlog::dev::postgres::{Settings, Shutdown};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

/// Held, with these words on the console and in readyz.
async fn held(config: &ConfigFile, daemon: &mut Process, words: &[&str]) {
    for word in words {
        daemon.wait_for_output(word, 2 * SOON).await;
    }
    until_state(config, "held").await;
    eventually("readyz says it, too", SOON, || async {
        let (status, body) = admin(config, "/readyz").await.unwrap_or_default();
        let said = words.iter().all(|word| body.contains(&word.replace('"', "\\\"")));
        if status == 503 && said {
            Ok(())
        } else {
            Err((status, body))
        }
    })
    .await;
    assert!(daemon.is_running());
}

/// The URL of the same database as another role.
fn url_as(url: &str, role: &str) -> String {
    let (_, rest) = url.split_once('@').unwrap();
    format!("postgresql://{role}:{role}@{rest}")
}

async fn role(database: &crate::harness::Database, name: &str) {
    database
        .batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD '{name}'"))
        .await
        .unwrap();
}

async fn drop_role(database: &crate::harness::Database, name: &str) {
    database
        .batch_execute(&format!("DROP OWNED BY {name} CASCADE; DROP ROLE {name}"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_log_is_named_and_gone_on_with_once_it_has_one() {
    let db = private_databases(
        Settings::default().parameter("wal_level", "replica"),
        Settings::default(),
    )
    .await;
    let mut db = db;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    let config = quick(&db);
    let mut daemon = Process::start(&config, &["sync"], "");
    held(
        &config,
        &mut daemon,
        &[
            "wal_level is replica, not logical",
            "ALTER SYSTEM SET wal_level = logical",
        ],
    )
    .await;
    db.site.cluster.set("wal_level", "logical").await.unwrap();
    db.site.cluster.restart(Shutdown::Fast).await.unwrap();
    db.site.reconnect().await;
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_lacks_every_right_is_told_one_right_after_another() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    let name = format!("reader_{}", db.site.name);
    role(&db.site, &name).await;
    let config = ConfigFile::with_urls(
        &url_as(&db.site.url, &name),
        &db.agent.url,
        &db.site.name,
        "[sync]\nreconnect_max_ms = 500\n",
    );
    let mut daemon = Process::start(&config, &["sync"], "");
    let statement = format!("ALTER ROLE \"{name}\" REPLICATION");
    held(&config, &mut daemon, &["may not replicate", &statement]).await;
    db.site.batch_execute(&statement).await.unwrap();

    held(
        &config,
        &mut daemon,
        &[
            "may not read table public.notes",
            "GRANT SELECT ON \"public\".\"notes\" TO",
        ],
    )
    .await;
    db.site
        .batch_execute(&format!("GRANT SELECT ON \"public\".\"notes\" TO {name}"))
        .await
        .unwrap();

    let statement = format!(
        "CREATE PUBLICATION \"{}\" FOR TABLE \"public\".\"notes\" WITH (publish_via_partition_root = true)",
        db.site.name
    );
    held(&config, &mut daemon, &["may not create it", &statement]).await;
    db.site.batch_execute(&statement).await.unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;

    // And a table that comes later and is not the role's to publish.
    on_both(&db, "CREATE TABLE later (id int PRIMARY KEY)").await;
    db.site
        .batch_execute(&format!(
            "GRANT SELECT ON later TO {name}; INSERT INTO later VALUES (1)"
        ))
        .await
        .unwrap();
    daemon.kill9();
    let mut daemon = Process::start(&config, &["sync"], "");
    let statement = format!("ALTER PUBLICATION \"{}\" ADD TABLE \"public\".\"later\"", db.site.name);
    held(&config, &mut daemon, &["lacks 1 table(s)", &statement]).await;
    db.site.batch_execute(&statement).await.unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes", "later"], SOON).await;
    daemon.kill9();
    drop_role(&db.site, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_do_not_fit_are_named_one_after_another() {
    let db = databases().await;
    let config = quick(&db);
    let mut daemon = Process::start(&config, &["sync"], "");
    held(&config, &mut daemon, &["no table of the Site DB matches sync.tables"]).await;
    db.site
        .batch_execute("CREATE TABLE notes (id bigint, body text, n int); INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    held(
        &config,
        &mut daemon,
        &[
            "table public.notes of the Site DB has no primary key",
            "ADD PRIMARY KEY",
        ],
    )
    .await;
    db.site
        .batch_execute("ALTER TABLE notes ADD PRIMARY KEY (id)")
        .await
        .unwrap();
    held(
        &config,
        &mut daemon,
        &["table public.notes is missing in the Agent DB", "pg_dump --schema-only"],
    )
    .await;
    db.agent
        .batch_execute("CREATE TABLE notes (id bigint PRIMARY KEY, body text)")
        .await
        .unwrap();
    held(&config, &mut daemon, &["column", "ADD COLUMN \"n\""]).await;
    db.agent
        .batch_execute("ALTER TABLE notes ADD COLUMN \"n\" int")
        .await
        .unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_is_waited_for() {
    let mut db = private_databases(Settings::default(), Settings::default()).await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    let config = quick(&db);
    db.site.cluster.stop(Shutdown::Fast).await.unwrap();
    let mut daemon = Process::start(&config, &["sync"], "");
    daemon.wait_for_output("reconnecting", SOON).await;
    until_state(&config, "connecting").await;
    db.agent.cluster.stop(Shutdown::Fast).await.unwrap();
    db.site.cluster.start_again().await.unwrap();
    db.agent.cluster.start_again().await.unwrap();
    db.site.reconnect().await;
    db.agent.reconnect().await;
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_is_left_alone() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .execute(
            "SELECT pg_create_logical_replication_slot($1, 'test_decoding')",
            &[&db.site.name],
        )
        .await
        .unwrap();
    let config = quick(&db);
    let mut daemon = Process::start(&config, &["sync"], "");
    let statement = format!("SELECT pg_drop_replication_slot('{}')", db.site.name);
    held(
        &config,
        &mut daemon,
        &["belongs to the output plugin test_decoding", &statement],
    )
    .await;
    db.site.batch_execute(&statement).await.unwrap();
    until_state(&config, "streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_role_without_rights_is_told_which_and_goes_on_with_them() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    let name = format!("writer_{}", db.agent.name);
    role(&db.agent, &name).await;
    let agent = url_as(&db.agent.url, &name);
    let config = ConfigFile::with_urls(&db.site.url, &agent, &db.site.name, "[sync]\nreconnect_max_ms = 500\n");
    let mut daemon = Process::start(&config, &["sync"], "");
    let statement = format!("GRANT CREATE ON DATABASE \"{}\" TO", db.agent.name);
    held(
        &config,
        &mut daemon,
        &["may not create Twinlog's tables in the Agent DB", &statement],
    )
    .await;
    db.agent.batch_execute(&format!("{statement} {name}")).await.unwrap();
    held(&config, &mut daemon, &["notes", "GRANT"]).await;
    db.agent
        .batch_execute(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON notes TO {name}"
        ))
        .await
        .unwrap();
    until_state(&config, "streaming").await;
    until_equal(&db, &["notes"], SOON).await;
    db.site
        .batch_execute("UPDATE notes SET n = 2; INSERT INTO notes VALUES (2, 'b', 2)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    daemon.kill9();
    drop_role(&db.agent, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_one_stands_by_and_takes_over() {
    let db: Databases = databases().await;
    on_both(&db, NOTES).await;
    let (first, second) = (quick(&db), quick(&db));
    let mut active = start_sync(&first).await;
    let mut standby = Process::start(&second, &["sync"], "");
    until_state(&second, "standby").await;
    eventually("it is ready to do its work", SOON, || async {
        match admin(&second, "/readyz").await {
            Some((200, _)) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    active.kill9();
    standby
        .wait_for_output("the stream flows", Duration::from_secs(30))
        .await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (2, 'b', 2)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    // A daemon that hangs has the lock still: nobody writes beside it.
    let third = quick(&db);
    let _third = Process::start(&third, &["sync"], "");
    until_state(&third, "standby").await;
}
