//! Columns that the Agent DB lacks together with their types: the statements that the reason names create both, and the table is
//! released by itself.

use crate::harness::{SOON, Twins, eventually};

const TABLES: &[&str] = &["domains", "composites", "ranges", "extensions", "enums"];

const NEW: &str = r#"
    CREATE SCHEMA "Ty pes";
    CREATE DOMAIN "Ty pes"."Po's" AS numeric(8,2) DEFAULT 3 NOT NULL CONSTRAINT "a""b" CHECK (VALUE > 0) CHECK (VALUE < 1000);
    CREATE DOMAIN "Ty pes".odd AS "Ty pes"."Po's" DEFAULT 5 CHECK (VALUE <> 7);
    CREATE DOMAIN "Ty pes".words AS text[] COLLATE "C" CHECK (cardinality(VALUE) < 9);
    ALTER TABLE domains ADD a "Ty pes".odd, ADD b "Ty pes"."Po's"[] DEFAULT '{5}', ADD c "Ty pes".words DEFAULT '{x,NULL}';

    CREATE TYPE "Ty pes".inner AS (x int, "Y y" text COLLATE "C", z "Ty pes".odd[]);
    CREATE TYPE "Ty pes"."Out,er" AS (a "Ty pes".inner, b "Ty pes".inner[]);
    ALTER TABLE composites ADD a "Ty pes"."Out,er"[];
    UPDATE composites SET a = ARRAY[ROW(ROW(1, 'a', '{2}'), NULL)]::"Ty pes"."Out,er"[];

    CREATE FUNCTION "Ty pes".difference(float8, float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT $1 - $2';
    CREATE TYPE "Ty pes".floats AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = "Ty pes".difference);
    CREATE TYPE "Ty pes".texts AS RANGE (SUBTYPE = text, COLLATION = "C", MULTIRANGE_TYPE_NAME = "Ty pes".many_texts);
    ALTER TABLE ranges ADD a "Ty pes".floats DEFAULT '[1,2)', ADD b "Ty pes".many_texts DEFAULT '{[B,a)}',
        ADD c "Ty pes".texts[] DEFAULT '{"[B,a)"}';

    CREATE EXTENSION hstore SCHEMA "Ty pes"; CREATE EXTENSION citext SCHEMA "Ty pes";
    CREATE DOMAIN "Ty pes".email AS "Ty pes".citext CHECK (VALUE ~ '@');
    ALTER TABLE extensions ADD h "Ty pes".hstore[], ADD m "Ty pes".email;
    UPDATE extensions SET h = ARRAY['c=>d'::"Ty pes".hstore], m = 'x@Y';

    CREATE TYPE "Ty pes".mood AS ENUM ('it''s', 'c"d', '');
    CREATE DOMAIN "Ty pes".good AS "Ty pes".mood CHECK (VALUE <> '');
    CREATE TABLE "Ty pes".of_a_table (q int, w "Ty pes".good);
    ALTER TABLE enums ADD a "Ty pes".of_a_table, ADD b "Ty pes".good[];
    UPDATE enums SET a = ROW(1, 'c"d'), b = '{it''s}';
"#;

#[tokio::test(flavor = "multi_thread")]
async fn types_that_the_agent_db_lacks_are_created_by_the_statements_that_are_named() {
    // GIVEN tables with rows on both sides, and columns of every kind of type on one
    let create = TABLES.map_each(|table| format!("CREATE TABLE {table} (id int PRIMARY KEY); "));
    let twins = Twins::new(&create).await;
    twins
        .on_site(&TABLES.map_each(|table| format!("INSERT INTO {table} SELECT generate_series(1, 5); ")))
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(TABLES).await;
    twins.on_site(NEW).await;
    twins
        .on_site(&TABLES.map_each(|table| format!("INSERT INTO {table} VALUES (9); ")))
        .await;
    // WHEN what the reasons name is run in the Agent DB, one table after the other
    for table in TABLES {
        let detail = format!("SELECT detail FROM twinlog.tables WHERE table_name = '{table}' AND state = 'held'");
        // Types that two tables have are missing only once.
        eventually(&format!("the statements for {table} work"), 2 * SOON, || async {
            let row = twins
                .agent
                .query_opt(&detail, &[])
                .await
                .map_err(|error| error.to_string())?;
            let reason: String = row.ok_or("not held")?.get("detail");
            let (_, statements) = reason.split_once("in the Agent DB: ").ok_or(reason.clone())?;
            let statements = &statements[..=statements.rfind(';').ok_or(reason.clone())?];
            let ran = twins.agent.batch_execute(&format!("BEGIN; {statements} COMMIT")).await;
            if let Err(error) = ran {
                let _ = twins.agent.batch_execute("ROLLBACK").await;
                return Err(format!("{error:?}: {statements}"));
            }
            Ok(())
        })
        .await;
    }
    // THEN they are equal
    twins.until_equal_within(2 * SOON, TABLES).await;
}

/// Statements, one for each table.
trait MapEach {
    fn map_each(&self, statement: impl Fn(&str) -> String) -> String;
}

impl MapEach for &[&str] {
    fn map_each(&self, statement: impl Fn(&str) -> String) -> String {
        self.iter().map(|table| statement(table)).collect()
    }
}
