//! Tables of the Agent DB whose triggers do not return: each is held alone, while it streams, is copied and resynced, and is
//! released by itself once they return.

use crate::harness::{SOON, Twins};

/// Each table's trigger waits while its name is in `slow`: for a time, or for another session's lock.
const SCHEMA: &str = "
    CREATE TABLE one (id int PRIMARY KEY, v text);
    CREATE TABLE sleeps (id int PRIMARY KEY, v text);
    CREATE TABLE waits (id int PRIMARY KEY, v text);
    CREATE TABLE copied (id int PRIMARY KEY, v text);";
const TRIGGERS: &str = "
    CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF NEW.v = ''slow'' THEN PERFORM pg_sleep(3600); END IF; RETURN NEW; END';
    CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF NEW.v = ''slow'' THEN PERFORM pg_advisory_xact_lock(77); END IF; RETURN NEW; END';
    CREATE TRIGGER a BEFORE INSERT OR UPDATE ON sleeps FOR EACH ROW EXECUTE FUNCTION sleeps();
    CREATE TRIGGER a BEFORE INSERT OR UPDATE ON copied FOR EACH ROW EXECUTE FUNCTION sleeps();
    CREATE TRIGGER a AFTER INSERT ON waits FOR EACH ROW EXECUTE FUNCTION waits();
    ALTER TABLE sleeps ENABLE ALWAYS TRIGGER a; ALTER TABLE copied ENABLE ALWAYS TRIGGER a;
    ALTER TABLE waits ENABLE ALWAYS TRIGGER a";

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_do_not_return_hold_their_own_tables_until_they_do() {
    // GIVEN two tables whose triggers do not return for some rows, one of them is being copied, and an advisory lock
    let twins = Twins::new(SCHEMA).await.with("sync.statement_limit_ms = 4000");
    twins.on_agent(TRIGGERS).await;
    let holder = twins.agent.connect().await;
    holder.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
    twins
        .on_site("INSERT INTO copied SELECT i, CASE i WHEN 50 THEN 'slow' ELSE 'a' END FROM generate_series(1, 100) i")
        .await;
    let daemon = twins.start().await;

    // WHEN rows of all tables are written
    twins
        .on_site(
            "INSERT INTO one VALUES (1, 'a');
             INSERT INTO sleeps VALUES (1, 'a'), (2, 'slow'), (3, 'a');
             INSERT INTO waits VALUES (1, 'a'), (2, 'slow')",
        )
        .await;

    // THEN the others flow and are resynced, and the reason is told
    twins.until_equal_within(3 * SOON, &["one"]).await;
    let told = [
        "\"hold_cause\":\"too_slow\"",
        "Timeout: PgSleep",
        "public.sleeps",
        "public.copied",
    ];
    twins.until_status_says(&told, 3 * SOON).await;
    twins.on_agent("DELETE FROM one").await;
    twins.succeeds(&["resync", "one", "--wait"]).await;
    twins.on_site("INSERT INTO one VALUES (2, 'b')").await;
    twins.until_equal_within(2 * SOON, &["one"]).await;

    // WHEN the functions return, which no catalog of the tables shows, THEN all is released and equal
    twins
        .on_agent("CREATE OR REPLACE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
        .await;
    holder.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    for table in ["sleeps", "copied", "waits"] {
        twins.until_table(table, "streaming", 0).await;
    }
    twins.until_parked_within(3 * SOON, 0).await;
    twins.until_equal(&["one", "sleeps", "copied", "waits"]).await;
    twins.assert_balanced().await;
    daemon.stop().await;
}
