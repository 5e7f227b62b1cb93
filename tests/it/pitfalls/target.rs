//! What the Agent DB and its surroundings do to the stream, and what the figures say of it.

use std::time::Duration;

use crate::harness::{ConfigFile, Direction, Process, Proxy, SOON, databases, eventually, eventually_equal};
use crate::sync::{admin, on_both, parked, quick, start_sync, until_equal};

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_as_they_are_enabled_for_replicas() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    db.agent
        .batch_execute(
            "CREATE TABLE fired (name text);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO public.fired VALUES (TG_NAME); RETURN NEW; END $$;
             CREATE TRIGGER plain BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION note();
             CREATE TRIGGER always BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION note();
             CREATE TRIGGER replica BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE notes ENABLE ALWAYS TRIGGER always;
             ALTER TABLE notes ENABLE REPLICA TRIGGER replica;
             CREATE TABLE kinds (id int PRIMARY KEY);
             ALTER TABLE notes ADD CONSTRAINT kind FOREIGN KEY (n) REFERENCES kinds",
        )
        .await
        .unwrap();
    let config = ConfigFile::new(&db, "[sync]\ntables = [\"public.notes\"]\n");
    let _daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    assert_eq!(
        db.agent
            .text("SELECT string_agg(DISTINCT name, ',' ORDER BY name) FROM fired")
            .await
            .as_deref(),
        Some("always,replica")
    );
    assert_eq!(parked(&db).await, 0, "foreign keys are the source's matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_on_the_site_is_an_error_and_not_an_empty_copy() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let role = format!("reader_{}", db.site.name);
    db.site
        .batch_execute(&format!(
            "INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 20) i;
             CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{role}'; GRANT SELECT ON notes TO {role};
             ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON notes USING (n > 10);
             CREATE PUBLICATION \"{}\" FOR TABLE notes",
            db.site.name
        ))
        .await
        .unwrap();
    let (_, host) = db.site.url.split_once('@').unwrap();
    let site = format!("postgresql://{role}:{role}@{host}");
    let config = ConfigFile::with_urls(&site, &db.agent.url, &db.site.name, "");
    let mut daemon = Process::start(&config, &["sync"], "");
    daemon.wait_for_output("row-level security", 2 * SOON).await;
    daemon.says("BYPASSRLS").await;
    assert_eq!(db.agent.text("SELECT count(*) FROM notes").await.as_deref(), Some("0"));
    let finished = "SELECT count(*) FROM twinlog.tables WHERE state = 'streaming'";
    assert_eq!(db.agent.text(finished).await.as_deref(), Some("0"));
    db.site
        .batch_execute(&format!("ALTER ROLE {role} BYPASSRLS"))
        .await
        .unwrap();
    until_equal(&db, &["notes"], Duration::from_secs(60)).await;
    daemon.kill9();
    db.site
        .batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"))
        .await
        .unwrap();
}

/// The gauge of the delay, in seconds; `None` where nobody answers.
async fn delay(config: &ConfigFile) -> Option<f64> {
    let (_, body) = admin(config, "/metrics").await?;
    body.lines()
        .find_map(|line| line.strip_prefix("twinlog_sync_delay_seconds "))
        .and_then(|value| value.trim().parse().ok())
}

async fn until_delay(config: &ConfigFile, what: &str, is: impl Fn(f64) -> bool) {
    eventually(what, 2 * SOON, || async {
        match delay(config).await {
            Some(delay) if is(delay) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_is_zero_when_idle_and_grows_while_either_side_is_out_of_reach() {
    let db = databases().await;
    on_both(&db, NOTES).await;
    let (site, agent) = tokio::join!(
        Proxy::start(db.site.cluster.port()),
        Proxy::start(db.agent.cluster.port())
    );
    let config = ConfigFile::with_urls(
        &db.site.url_through(site.port()),
        &db.agent.url_through(agent.port()),
        &db.site.name,
        "[sync]\nreconnect_max_ms = 500\n",
    );
    let _daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', 1)")
        .await
        .unwrap();
    until_equal(&db, &["notes"], SOON).await;
    until_delay(&config, "caught up", |delay| delay == 0.0).await;
    // Longer than any tick or time-out of the measurement: a gauge that grows when idle is not zero again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    until_delay(&config, "still caught up", |delay| delay == 0.0).await;

    agent.hold(Direction::ToServer);
    db.site
        .batch_execute("INSERT INTO notes VALUES (2, 'b', 2)")
        .await
        .unwrap();
    until_delay(&config, "it grows while the Agent DB is silent", |delay| delay > 3.0).await;
    agent.release(Direction::ToServer);
    until_equal(&db, &["notes"], 2 * SOON).await;
    until_delay(&config, "caught up again", |delay| delay == 0.0).await;

    site.half_open();
    db.site
        .batch_execute("INSERT INTO notes VALUES (3, 'c', 3)")
        .await
        .unwrap();
    until_delay(&config, "it grows while the Site DB is silent", |delay| delay > 4.0).await;
    site.release(Direction::ToServer);
    site.release(Direction::ToClient);
    until_equal(&db, &["notes"], 2 * SOON).await;
    until_delay(&config, "caught up at last", |delay| delay == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_table_that_is_not_synchronised_any_more_keep_nobody_waiting() {
    let db = databases().await;
    on_both(
        &db,
        &format!("{NOTES}; CREATE TABLE left_out (id int PRIMARY KEY, n int)"),
    )
    .await;
    db.agent
        .batch_execute(
            "ALTER TABLE left_out ADD CHECK (n > 1000000); ALTER TABLE notes ADD CONSTRAINT positive CHECK (n > 0)",
        )
        .await
        .unwrap();
    let config = quick(&db);
    let mut daemon = start_sync(&config).await;
    // More than healing takes at a time.
    db.site
        .batch_execute("INSERT INTO left_out SELECT i, i FROM generate_series(1, 700) i")
        .await
        .unwrap();
    eventually_equal("they are parked", SOON, 700, || parked(&db)).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());
    let config = ConfigFile::new(
        &db,
        "[sync]\ntables = [\"public.notes\"]\nretry_initial_ms = 50\nretry_max_ms = 500\n",
    );
    let _daemon = start_sync(&config).await;
    db.site
        .batch_execute("INSERT INTO notes VALUES (1, 'a', -1)")
        .await
        .unwrap();
    eventually_equal("one more is parked", SOON, 701, || parked(&db)).await;
    db.agent
        .batch_execute("ALTER TABLE notes DROP CONSTRAINT positive")
        .await
        .unwrap();
    eventually_equal("it is healed", SOON, 700, || parked(&db)).await;
    until_equal(&db, &["notes"], SOON).await;
}
