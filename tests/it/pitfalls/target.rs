//! What the Agent DB's triggers, policies and outages do to the stream, and what the metrics show.

use std::time::Duration;

use crate::harness::{Daemon, Direction, NOTES, Proxy, SOON, Twins, eventually_is, holds_for};

#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_as_they_are_enabled_for_replicas() {
    let twins = Twins::new(NOTES).await.with("sync.tables = ['public.notes']");
    twins
        .on_agent(
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
        .await;
    let _daemon = twins.start().await;

    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(
        twins
            .agent
            .value("SELECT string_agg(DISTINCT name, ',' ORDER BY name) FROM fired")
            .await,
        "always,replica"
    );
    assert_eq!(twins.parked().await, 0, "foreign keys are the source's matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_on_the_site_is_an_error_and_not_an_empty_copy() {
    // GIVEN a role that sees only some rows
    let mut twins = Twins::with_notes(20).await;
    let rights = format!(
        "ALTER ROLE {{role}} REPLICATION; GRANT SELECT ON notes TO {{role}};
         ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON notes USING (n > 10);
         CREATE PUBLICATION \"{}\" FOR TABLE notes",
        twins.site.name
    );
    let role = twins.site.create_role("reader", &rights).await;
    twins.set_site_url(&twins.site.url_as(&role));

    // WHEN the daemon starts its copy, THEN it names the missing right and copies nothing
    let mut daemon = twins.launch();
    daemon.wait_for_output("row-level security", 2 * SOON).await;
    daemon.says("BYPASSRLS").await;
    assert_eq!(twins.agent.value("SELECT count(*) FROM notes").await, "0");
    let finished = "SELECT count(*) FROM twinlog.tables WHERE state = 'streaming'";
    assert_eq!(twins.agent.value(finished).await, "0");
    twins.on_site(&format!("ALTER ROLE {role} BYPASSRLS")).await;
    twins.until_equal_within(Duration::from_secs(60), &["notes"]).await;
}

/// Waits until the condition holds for the gauge of the delay, in seconds.
async fn until_delay(daemon: &Daemon, what: &str, is: impl Fn(f64) -> bool) {
    eventually_is(what, 2 * SOON, || delay(daemon), |delay| delay.is_some_and(&is)).await;
}

/// The gauge of the delay, in seconds; `None` if nothing answers.
async fn delay(daemon: &Daemon) -> Option<f64> {
    daemon.metric("twinlog_sync_delay_seconds").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_is_zero_when_idle_and_grows_while_either_database_is_unreachable() {
    let mut twins = Twins::new(NOTES).await;
    let site = Proxy::start(twins.site.cluster.port()).await;
    let agent = Proxy::start(twins.agent.cluster.port()).await;
    twins.set_site_url(&twins.site.url_through(site.port()));
    twins.set_agent_url(&twins.agent.url_through(agent.port()));
    let daemon = twins.start().await;

    // Idle, for longer than any tick or time-out of the measurement: it does not grow.
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
    until_delay(&daemon, "caught up", |delay| delay == 0.0).await;
    holds_for("an idle stream is hardly late", Duration::from_secs(5), || async {
        match delay(&daemon).await {
            Some(0.0..3.0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    until_delay(&daemon, "still caught up", |delay| delay == 0.0).await;

    // The Agent DB is unreachable.
    agent.hold(Direction::ToServer);
    twins.on_site("INSERT INTO notes VALUES (2, 'b', 2)").await;
    until_delay(&daemon, "it grows while the Agent DB is silent", |delay| delay > 3.0).await;
    agent.release(Direction::ToServer);
    twins.until_equal_within(2 * SOON, &["notes"]).await;
    until_delay(&daemon, "caught up again", |delay| delay == 0.0).await;

    // The Site DB is unreachable.
    site.half_open();
    twins.on_site("INSERT INTO notes VALUES (3, 'c', 3)").await;
    until_delay(&daemon, "it grows while the Site DB is silent", |delay| delay > 4.0).await;
    site.release(Direction::ToServer);
    site.release(Direction::ToClient);
    twins.until_equal_within(2 * SOON, &["notes"]).await;
    until_delay(&daemon, "caught up at last", |delay| delay == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_keys_of_a_table_that_was_left_out_do_not_delay_those_of_others() {
    // GIVEN more parked keys of a table than healing takes at a time
    let schema = format!("{NOTES}; CREATE TABLE left_out (id int PRIMARY KEY, n int)");
    let mut twins = Twins::new(&schema).await;
    twins
        .on_agent(
            "ALTER TABLE left_out ADD CHECK (n > 1000000); ALTER TABLE notes ADD CONSTRAINT positive CHECK (n > 0)",
        )
        .await;
    let daemon = twins.start().await;
    twins
        .on_site("INSERT INTO left_out SELECT i, i FROM generate_series(1, 700) i")
        .await;
    twins.until_parked(700).await;
    daemon.stop().await;

    // WHEN that table is left out, and a row of another one is parked
    twins.configure("sync.tables = ['public.notes']");
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', -1)").await;
    twins.until_parked(1).await;

    // THEN the row of the other table is healed
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT positive").await;
    twins.until_parked(0).await;
    twins.until_equal(&["notes"]).await;
}
