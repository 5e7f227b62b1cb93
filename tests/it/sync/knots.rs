//! Rows that wait for each other, for a role that may not set `session_replication_role`: foreign keys, unique values,
//! exclusion constraints, cycles and actions of the Agent DB, in random programs. At the end nothing is parked, and both
//! databases are equal.
//!
//! The seed is printed; `TWINLOG_SEED=7` runs that one again.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use crate::harness::{Databases, NOTES, SOON, Twins, databases, eventually, holds_for};

/// How long programs run by default.
const BUDGET: Duration = Duration::from_secs(8);

/// Transactions of one program.
const TRANSACTIONS: u32 = 60;

const NODES: &str = "
    CREATE TABLE node (id text PRIMARY KEY, parent text REFERENCES node ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
        u bigint UNIQUE DEFERRABLE);";

/// Every kind of foreign key and unique constraint, most of them checked at once.
const WEB: &str = "
    CREATE TABLE land (id int PRIMARY KEY, code int NOT NULL UNIQUE, capital int);
    CREATE TABLE city (id int PRIMARY KEY, land int REFERENCES land ON DELETE CASCADE ON UPDATE CASCADE, no int, pop int,
        UNIQUE (land, no));
    ALTER TABLE land ADD FOREIGN KEY (capital) REFERENCES city ON DELETE SET NULL;
    CREATE TABLE person (id int PRIMARY KEY, city int REFERENCES city ON DELETE RESTRICT,
        boss int REFERENCES person ON DELETE SET NULL, mail text UNIQUE);
    CREATE TABLE house (id int PRIMARY KEY, city int NOT NULL REFERENCES city ON DELETE CASCADE,
        owner int REFERENCES person ON DELETE SET NULL ON UPDATE CASCADE);
    CREATE TABLE stay (id int PRIMARY KEY, house int REFERENCES house ON DELETE CASCADE, days int4range,
        EXCLUDE USING gist (days WITH &&));
    CREATE TABLE bill (a int, b int, total int, PRIMARY KEY (a, b));
    CREATE TABLE line (a int, b int, n int, v int, next int, PRIMARY KEY (a, b, n),
        FOREIGN KEY (a, b) REFERENCES bill ON UPDATE CASCADE ON DELETE CASCADE,
        FOREIGN KEY (a, b, next) REFERENCES line (a, b, n) ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE odd (id numeric PRIMARY KEY, up numeric REFERENCES odd ON DELETE CASCADE ON UPDATE CASCADE, u int UNIQUE);";

const NODE_TABLES: &[&str] = &["node"];
const WEB_TABLES: &[&str] = &["land", "city", "person", "house", "stay", "bill", "line", "odd"];

/// Constraints that only the Agent DB has for a while, so that rows are parked for a reason of their own.
const TROUBLE: &[(&str, &str)] = &[
    ("node", "u % 7 <> 3"),
    ("land", "code % 5 <> 1"),
    ("city", "no % 4 <> 2"),
    ("person", "mail NOT LIKE '%3'"),
    ("house", "id % 6 <> 5"),
    ("stay", "id % 5 <> 4"),
    ("bill", "total % 3 <> 1"),
    ("line", "v % 4 <> 3"),
    ("odd", "u % 3 <> 2"),
];

struct Program {
    random: StdRng,
    web: bool,
}

impl Program {
    fn below(&mut self, end: i64) -> i64 {
        self.random.random_range(0..end)
    }

    fn or_null(&mut self, value: String) -> String {
        if self.random.random_ratio(1, 5) {
            "NULL".to_owned()
        } else {
            value
        }
    }

    /// Statements of one transaction; each may fail.
    fn transaction(&mut self) -> Vec<String> {
        let many = if self.random.random_ratio(1, 6) { 60 } else { 6 };
        let statements = 1 + self.below(many);
        (0..statements)
            .map(|_| if self.web { self.of_web() } else { self.of_nodes() })
            .collect()
    }

    fn of_nodes(&mut self) -> String {
        let (id, other, third) = (self.below(40), self.below(40), self.below(40));
        let u = self.below(40);
        match self.below(8) {
            0..=2 => {
                let (parent, u) = (self.or_null(format!("'n{other}'")), self.or_null(u.to_string()));
                format!("INSERT INTO node VALUES ('n{id}', {parent}, {u})")
            }
            3 => format!("UPDATE node SET id = 'n{other}' WHERE id = 'n{id}'"),
            4 => format!("UPDATE node SET parent = 'n{third}' WHERE id IN ('n{id}', 'n{other}')"),
            5 => format!("DELETE FROM node WHERE id = 'n{id}'"),
            6 => format!(
                "UPDATE node a SET u = b.u FROM node b WHERE (a.id, b.id) IN (('n{id}', 'n{other}'), ('n{other}', 'n{id}'))"
            ),
            _ => format!("UPDATE node SET u = {u} WHERE id = 'n{id}'"),
        }
    }

    fn of_web(&mut self) -> String {
        let (id, other, third) = (self.below(12), self.below(12), self.below(12));
        let (big, bigger) = (self.below(25), self.below(25));
        let day = self.below(60);
        let sql = match self.below(36) {
            0 | 1 => format!("INSERT INTO land VALUES ({id}, {other}, {{}})"),
            2 => format!("UPDATE land SET id = {other} WHERE id = {id}"),
            3 => format!(
                "UPDATE land SET code = -1 WHERE id = {id}; UPDATE land SET code = {third} WHERE id = {other};
                 UPDATE land SET code = {other} WHERE code = -1"
            ),
            4 => format!("DELETE FROM land WHERE id = {id}"),
            5 => format!("UPDATE land SET capital = {{}} WHERE id = {id}"),
            6..=8 => format!("INSERT INTO city VALUES ({big}, {{}}, {third}, 0)"),
            9 => format!("UPDATE city SET id = {bigger} WHERE id = {big}"),
            10 => format!("UPDATE city SET land = {{}}, no = {third} WHERE id = {big}"),
            11 => format!("DELETE FROM city WHERE id = {big}"),
            12 | 13 => format!("INSERT INTO person VALUES ({big}, {{}}, NULL, 'm{bigger}')"),
            14 => format!("UPDATE person SET boss = {bigger}, city = {{}} WHERE id = {big}"),
            15 => format!("UPDATE person SET id = {bigger} WHERE id = {big}"),
            16 => format!("DELETE FROM person WHERE id IN ({big}, {bigger})"),
            17 => format!(
                "UPDATE person SET mail = NULL WHERE id = {big}; UPDATE person SET mail = 'm{big}' WHERE id = {bigger};
                 UPDATE person SET mail = 'm{bigger}' WHERE id = {big}"
            ),
            18 | 19 => format!("INSERT INTO house VALUES ({big}, {id}, {{}})"),
            20 => format!("UPDATE house SET city = {bigger} WHERE id = {big}"),
            21 => format!("UPDATE house SET id = {bigger} WHERE id = {big}"),
            22 | 23 => format!("INSERT INTO stay VALUES ({big}, {{}}, int4range({day}, {day} + 3))"),
            24 => format!("UPDATE stay SET days = int4range({day}, {day} + 3), house = {{}} WHERE id = {big}"),
            25 => format!("DELETE FROM stay WHERE id = {big}"),
            26 | 27 => format!(
                "INSERT INTO bill VALUES ({id}, {other}, {third});
                 INSERT INTO line SELECT {id}, {other}, i, i, CASE WHEN i < 3 THEN i + 1 END FROM generate_series(1, 3) i"
            ),
            28 => format!("UPDATE bill SET a = {third}, total = {big} WHERE a = {id}"),
            29 => format!("UPDATE line SET n = n + 1, v = {big} WHERE a = {id} AND b = {other}"),
            30 => format!("UPDATE line SET a = {third} WHERE a = {id} AND n > 1"),
            31 => format!("DELETE FROM bill WHERE b = {id}"),
            32 | 33 => format!("INSERT INTO odd VALUES ({id}.0, {{}}, {big})"),
            34 => format!("UPDATE odd SET up = {other}, u = {big} WHERE id = {id}; DELETE FROM odd WHERE id = {third}"),
            _ => format!("UPDATE odd SET id = {other}.00 WHERE id = {id}"),
        };
        let value = self.or_null(third.to_string());
        sql.replace("{}", &value)
    }
}

/// Runs the statements of a transaction; one that is refused is left out.
async fn run(client: &Client, statements: &[String]) {
    client.batch_execute("BEGIN").await.unwrap();
    for statement in statements {
        if client
            .batch_execute(&format!("SAVEPOINT s; {statement}; RELEASE s"))
            .await
            .is_err()
        {
            client.batch_execute("ROLLBACK TO s").await.unwrap();
        }
    }
    // A deferred constraint may refuse all of it.
    let _ = client.batch_execute("COMMIT").await;
}

async fn program(databases: Databases, seed: u64, web: bool) {
    eprintln!("TWINLOG_SEED={seed}");
    // GIVEN ordinary roles, the same constraints on both sides, and batches that divide transactions
    let mut random = StdRng::seed_from_u64(seed);
    let mut twins = Twins::on(databases, "").await.with(&format!(
        "sync.retry_initial_ms = 20
         sync.retry_max_ms = 200
         sync.batch_rows = {}
         sync.copy_chunk_rows = {}",
        [1, 7, 8192][random.random_range(0..3)],
        [3, 10_000][random.random_range(0..2)],
    ));
    twins.agent_is_owner().await;
    let (schema, tables) = if web { (WEB, WEB_TABLES) } else { (NODES, NODE_TABLES) };
    twins.on_both(schema).await;
    let writer = twins.site.connect().await;
    let mut program = Program { random, web };
    for _ in 0..TRANSACTIONS / 4 {
        run(&writer, &program.transaction()).await;
    }

    // WHEN a program runs, while the Agent DB refuses some rows for reasons of their own
    let _daemon = twins.start().await;
    for round in 0..TRANSACTIONS {
        run(&writer, &program.transaction()).await;
        if round % 10 == 5 {
            for (table, condition) in TROUBLE.iter().filter(|(table, _)| tables.contains(table)) {
                let statement = if round % 20 == 5 {
                    format!("ALTER TABLE {table} ADD CONSTRAINT trouble CHECK ({condition}) NOT VALID")
                } else {
                    format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS trouble")
                };
                // It may be the victim of a deadlock with the daemon.
                eventually(&statement, SOON, || twins.agent.batch_execute(&statement)).await;
            }
        }
    }

    // THEN all rows heal, though none can be written alone
    for table in tables {
        let statement = format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS trouble");
        eventually(&statement, SOON, || twins.agent.batch_execute(&statement)).await;
    }
    eprintln!("seed {seed}: {} row(s) parked", twins.parked().await);
    twins.until_equal_within(6 * SOON, tables).await;
    twins.until_parked_within(3 * SOON, 0).await;
    twins.until_equal(tables).await;
    twins.assert_balanced().await;
}

async fn campaign(web: bool) {
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let end = Instant::now() + number("TWINLOG_CAMPAIGN_SECONDS").map_or(BUDGET, Duration::from_secs);
    if let Some(seed) = number("TWINLOG_SEED") {
        return program(databases().await, seed, web).await;
    }
    loop {
        program(databases().await, rand::random::<u64>() % 1_000_000, web).await;
        if Instant::now() >= end {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_table_that_wait_for_each_other_heal_for_a_role_without_privileges() {
    campaign(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_several_tables_that_wait_for_each_other_heal_for_a_role_without_privileges() {
    campaign(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parking_folding_and_healing_are_told_by_their_cause_and_never_by_a_value() {
    // GIVEN rows that wait for each other, and one that the Agent DB refuses for a reason of its own
    let waits = "sync.retry_initial_ms = 60000\nsync.retry_max_ms = 60000";
    let mut twins = Twins::new("").await.with(waits);
    twins.agent_is_owner().await;
    twins.on_both(NODES).await;
    let daemon = twins.start().await;
    twins
        .on_agent("ALTER TABLE node ADD CONSTRAINT no_root CHECK (id <> 'secret-root')")
        .await;
    twins
        .on_site("INSERT INTO node VALUES ('secret-root', NULL, 1); INSERT INTO node VALUES ('secret-leaf', 'secret-root', 2)")
        .await;
    twins.until_parked(2).await;
    twins.on_site("UPDATE node SET u = 3 WHERE id = 'secret-leaf'").await;

    // THEN each cause is told once
    daemon.says("the Agent DB refused rows").await;
    daemon.says("no_root").await;
    daemon.says("node_parent_fkey").await;
    daemon.says("changes of parked rows are kept").await;
    let list = twins.fails(&["failed", "list", "--json"]).await;
    assert!(list.contains(r#""fingerprint":"23514 no_root public.node""#), "{list}");
    assert!(
        list.contains(r#""fingerprint":"23503 node_parent_fkey public.node""#),
        "{list}"
    );

    // and asking for a key that is not parked is a mistake
    let unknown = twins
        .fails(&["failed", "retry", "node", "--key", r#"["nobody"]"#])
        .await;
    assert!(unknown.contains("no row with this key is parked"), "{unknown}");

    // WHEN the reason is gone, and all are asked for
    twins.on_agent("ALTER TABLE node DROP CONSTRAINT no_root").await;
    let healed = twins.succeeds(&["failed", "retry"]).await;
    assert!(healed.contains("2 healed"), "{healed}");
    daemon.says("parked rows are healed").await;
    let (_, metrics) = daemon.admin("/metrics").await.unwrap();
    for event in ["parked", "folded", "healed"] {
        let of_event = format!(r#"twinlog_failed_row_events_total{{table="public.node",event="{event}",reason="235"#);
        assert!(metrics.contains(&of_event), "{event}: {metrics}");
    }
    let output = daemon.output();
    assert!(!output.contains("secret"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_refuses_a_row_at_the_commit_parks_the_row_and_stops_no_other() {
    // GIVEN a constraint trigger that fires in spite of the session's role, and waits for the commit
    let twins = Twins::new(
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int); CREATE TABLE other (id int PRIMARY KEY)",
    )
    .await;
    let _daemon = twins.start().await;
    let trigger = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF NEW.n = 13 THEN RAISE unique_violation; END IF; RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON notes DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse();
        ALTER TABLE notes ENABLE ALWAYS TRIGGER late";
    twins.on_agent(trigger).await;

    // WHEN it refuses one of several rows
    twins
        .on_site("INSERT INTO notes SELECT i, 'x', i FROM generate_series(1, 20) i; INSERT INTO other VALUES (1)")
        .await;

    // THEN that row is parked, the others are there, and it heals when the trigger is gone
    twins.until_parked_within(2 * SOON, 1).await;
    twins
        .until_agent("the other rows", "SELECT count(*) FROM notes", "19")
        .await;
    twins.until_equal(&["other"]).await;
    twins.on_agent("DROP TRIGGER late ON notes").await;
    twins.until_parked(0).await;
    twins.until_equal(&["notes", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_refusals_of_one_cause_hold_their_table_until_one_of_its_rows_is_taken() {
    // GIVEN two tables, one of which refuses all rows
    let twins = Twins::new(&format!("{NOTES}; CREATE TABLE other (id int PRIMARY KEY)"))
        .await
        .with("sync.max_failed_rows = 5\nsync.retry_max_ms = 200");
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT none CHECK (n < 0)")
        .await;
    let daemon = twins.start().await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'a', i FROM generate_series(1, 4) i")
        .await;
    twins.until_parked(4).await;
    twins.until_table("notes", "streaming", 0).await;

    // WHEN more of them are refused than may be parked
    twins
        .on_site("INSERT INTO notes SELECT i, 'a', i FROM generate_series(5, 40) i; INSERT INTO other VALUES (1)")
        .await;

    // THEN the table is held with one alert, and is not read again and again while nothing has changed
    twins.until_table("notes", "held", 0).await;
    daemon.says("most of them for one cause: 23514 none public.notes").await;
    twins.until_equal(&["other"]).await;
    holds_for("the table is not released", Duration::from_secs(6), || async {
        let output = daemon.output();
        if output.contains("a table is released") {
            Err(output)
        } else {
            Ok(())
        }
    })
    .await;

    // and it is released when the cause is gone
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT none").await;
    twins.until_equal(&["notes", "other"]).await;
    twins.until_parked(0).await;
    twins.assert_balanced().await;
}
