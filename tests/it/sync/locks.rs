//! Locks and transactions that stay, on either side, hold their own tables and keep no other from flowing or being copied.

use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;
use twinlog::dev::postgres::Settings;

use crate::harness::{SOON, Twins, eventually, holds_for};

/// Clusters of its own, since its transactions stay open.
async fn private() -> Twins {
    let settings = || Settings::default().parameter("max_prepared_transactions", "5");
    let schema = "CREATE TABLE one (id int PRIMARY KEY, v text); CREATE TABLE two (id int PRIMARY KEY, v text);
        CREATE TABLE \"It's\nnew\" (id int PRIMARY KEY, v text);
        CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts DEFAULT";
    Twins::private_with(settings(), settings(), schema)
        .await
        .with("sync.copy_workers = 2")
}

async fn change(twins: &Twins, id: u32) {
    let insert = |table: &str| format!("INSERT INTO {table} VALUES ({id}, 'a');");
    let all: String = ["one", "\"It's\nnew\"", "parts", "two"]
        .into_iter()
        .map(insert)
        .collect();
    twins.on_site(&format!("BEGIN; {all} COMMIT")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_transactions_that_stay_are_their_own_tables_alone() {
    let twins = private().await;
    let daemon = twins.start().await;
    change(&twins, 1).await;
    let all = ["one", "two", "\"It's\nnew\"", "parts"];
    twins.until_equal(&all).await;

    // WHEN a prepared transaction and an idle one have locked a table and a partition of the Agent DB
    twins
        .on_agent("BEGIN; LOCK TABLE \"It's\nnew\"; PREPARE TRANSACTION 'left behind'")
        .await;
    let other = twins.agent.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE parts_1").await.unwrap();
    change(&twins, 2).await;

    // THEN both are held, the statement shows who, the others flow, and no watch waits for a lock
    twins.until_table("It''s\nnew", "held", 0).await;
    twins.until_table("parts", "held", 0).await;
    twins.until_equal(&["one", "two"]).await;
    let detail = "SELECT detail FROM twinlog.tables WHERE table_name = 'It''s\nnew'";
    let detail = twins.agent.value(detail).await;
    let query = detail.split_once("locked the table: ").unwrap().1.trim_end_matches(';');
    let who = twins.agent.query(query, &[]).await.unwrap();
    assert!(
        who.iter()
            .any(|row| row.get::<_, Option<&str>>("gid") == Some("left behind")),
        "{detail}"
    );
    holds_for("no watch waits for a lock", Duration::from_secs(5), || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE application_name = 'twinlog control' AND wait_event_type = 'Lock'";
        match twins.agent.value(waiting).await.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    twins.on_agent("ROLLBACK PREPARED 'left behind'").await;
    other.batch_execute("COMMIT").await.unwrap();
    twins.until_equal(&all).await;

    // WHEN a new table is locked on the Site DB at the start, by a transaction that also keeps two others from being copied
    daemon.stop().await;
    twins
        .on_both("CREATE TABLE locked (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
        .await;
    let creator = twins.site.connect().await;
    creator
        .batch_execute("BEGIN; LOCK TABLE locked; INSERT INTO locked VALUES (1)")
        .await
        .unwrap();
    let began = Instant::now();
    let _daemon = twins.start().await;
    change(&twins, 3).await;
    twins.until_equal(&all).await;
    assert!(began.elapsed() < Duration::from_secs(15), "nothing waits for the lock");
    twins
        .until_status_says(&["locked", "tried again", "older transactions"], SOON)
        .await;

    // THEN a third is read again meanwhile, and all three are copied when the transaction has ended
    twins.on_agent("DELETE FROM two").await;
    twins.succeeds(&["resync", "two", "--wait"]).await;
    twins.until_equal(&["two"]).await;
    creator.batch_execute("COMMIT").await.unwrap();
    for table in ["locked", "a", "b"] {
        twins.until_table(table, "streaming", 0).await;
    }
    twins.until_equal(&["locked", "a", "b"]).await;
}

/// A trigger that waits: for an advisory lock, for another table. What is locked meanwhile, and what the table waits for.
const WAITING_TRIGGERS: [(&str, &str, &str); 2] = [
    (
        "first",
        "PERFORM pg_advisory_xact_lock(7, 8);",
        "SELECT pg_advisory_lock(7, 8)",
    ),
    (
        "second",
        "INSERT INTO public.audit VALUES (NEW.id);",
        "BEGIN; LOCK TABLE audit IN EXCLUSIVE MODE",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_of_the_agent_db_waits_for_is_found_by_the_query_of_the_reason() {
    // GIVEN tables whose triggers need a lock
    let twins = Twins::new(
        "CREATE TABLE first (id int PRIMARY KEY); CREATE TABLE second (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
    )
    .await;
    twins.on_agent("CREATE TABLE audit (id int)").await;
    let _daemon = twins.start().await;
    for (table, waits, locks) in WAITING_TRIGGERS {
        twins
            .on_agent(&format!(
                "CREATE FUNCTION {table}_waits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {waits} RETURN NEW; END $$;
                 CREATE TRIGGER waits BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_waits();
                 ALTER TABLE {table} ENABLE ALWAYS TRIGGER waits"
            ))
            .await;
        // WHEN somebody holds that lock, and many rows come
        let session = twins.agent.connect().await;
        session.batch_execute(locks).await.unwrap();
        let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        twins
            .on_site(&format!(
                "INSERT INTO {table} SELECT generate_series(1, 30); INSERT INTO other SELECT coalesce(max(id), 0) + 1 FROM other"
            ))
            .await;
        // THEN the table is held, the others flow, and its reason has a query that finds the session
        twins.until_equal(&["other"]).await;
        let detail = format!("SELECT detail FROM twinlog.tables WHERE table_name = '{table}' AND state = 'held'");
        let reason = eventually("it is held", 2 * SOON, || async {
            let row = twins.agent.query_opt(&detail, &[]).await.unwrap();
            row.map(|row| row.get::<_, String>("detail")).ok_or(())
        })
        .await;
        let (_, query) = reason.split_once("one of these: ").unwrap();
        let found = twins.agent.simple_query(query).await.unwrap();
        let finds = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get("pid") == Some(&pid.to_string()));
        assert!(found.iter().any(finds), "{pid}: {query}");
        // and is equal once it has ended
        drop(session);
        twins.until_equal_within(4 * SOON, &[table]).await;
    }
    twins.until_parked(0).await;
    twins.assert_balanced().await;
}
