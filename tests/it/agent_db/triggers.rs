//! Triggers, checks, defaults and generated columns of the Agent DB: they work as they do for any application of the role,
//! whatever they raise parks the row that provoked it, and a row that they change or swallow is noticed.

use twinlog::agent_db::Item;

use super::fixture::{Fixture, chunk, delete, insert, rekey, update};

/// A trigger function named `f` with this body, on `t`, which fires for a superuser's daemon as well.
fn trigger(table: &str, when: &str, body: &str) -> String {
    format!(
        "CREATE TABLE t ({table});
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$;
         CREATE TRIGGER f {when} EXECUTE FUNCTION f();
         ALTER TABLE t ENABLE ALWAYS TRIGGER f;"
    )
}

const INSERT: &str = "BEFORE INSERT ON t FOR EACH ROW";

/// Which of the two daemons: one that may set `session_replication_role`, and one that may not.
#[derive(Debug, Clone, Copy)]
enum Role {
    Super,
    Ordinary,
}

async fn fixture(role: Role, sql: &str) -> Fixture {
    match role {
        Role::Super => Fixture::new(sql).await,
        Role::Ordinary => Fixture::without_replica_role(sql).await,
    }
}

#[tokio::test]
async fn functions_that_name_things_without_a_schema_find_them_as_for_any_application() {
    for role in [Role::Super, Role::Ordinary] {
        // GIVEN a trigger, a check, a default and a generated column whose functions use the search path
        let sql = "
            CREATE TABLE audit (id int, day text);
            CREATE FUNCTION label(int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ''n'' || $1';
            CREATE FUNCTION fine(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN label($1) <> ''n99''; END';
            CREATE FUNCTION latest() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM audit); END';
            CREATE FUNCTION shown(int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN label($1); END';
            CREATE TABLE t (id int PRIMARY KEY CHECK (fine(id)), n bigint DEFAULT latest(),
                s text GENERATED ALWAYS AS (shown(id)) STORED);
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO audit VALUES (NEW.id, label(NEW.id)); RETURN NULL; END';
            CREATE TRIGGER f AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
            ALTER TABLE t ENABLE ALWAYS TRIGGER f;";
        let mut fixture = fixture(role, sql).await;
        let mut description = fixture.describe("t").await;
        description.columns.truncate(1);
        let t = fixture.applier().resolve(&description).await.unwrap();
        // WHEN rows are written, THEN all of them worked, and the one that the check refuses is parked
        let tally = fixture
            .apply(vec![insert(&t, &["1"]), insert(&t, &["99"]), insert(&t, &["2"])])
            .await;
        assert_eq!((tally.applied, tally.parked), (2, 1), "{role:?}");
        assert_eq!(
            fixture
                .lines("SELECT t::text || a::text FROM t JOIN audit a USING (id) ORDER BY id")
                .await,
            ["(1,0,n1)(1,n1)", "(2,1,n2)(2,n2)"].map(str::to_owned),
            "{role:?}"
        );
        assert_eq!(fixture.parked().await, [r#"["99"] upsert 23514 1"#]);
    }
}

#[tokio::test]
async fn a_trigger_sees_the_search_path_of_its_role_and_utc() {
    let mut fixture = Fixture::new(&trigger(
        "id int PRIMARY KEY, path text, zone text",
        "AFTER INSERT ON t FOR EACH ROW",
        "BEGIN INSERT INTO public.seen VALUES (current_setting('search_path'), current_setting('TimeZone'),
             current_setting('row_security'), current_setting('lock_timeout')); RETURN NULL; END",
    ))
    .await;
    fixture
        .on_agent(&format!(
            "CREATE TABLE seen (path text, zone text, security text, patience text);
             ALTER DATABASE \"{0}\" SET search_path = elsewhere, public; ALTER DATABASE \"{0}\" SET TimeZone = 'Asia/Tokyo'",
            fixture.db.agent.name
        ))
        .await;
    fixture.reconnect().await;
    let t = fixture.resolve("t").await;
    fixture.apply(vec![insert(&t, &["1", "a", "b"])]).await;
    assert_eq!(
        fixture.lines("SELECT seen FROM seen").await,
        [r#"("elsewhere, public",UTC,on,3s)"#]
    );
}

#[tokio::test]
async fn whatever_a_trigger_raises_parks_the_row_that_provoked_it() {
    // GIVEN a trigger that raises, for some rows, what else means that the server, the table or the connection is at fault
    let raised = [
        "P0002", "P0003", "P0004", "PT409", "TW777", "22012", "42P01", "42501", "42703", "0A000", "57P01", "57014",
        "40001", "40P01", "55P03", "53100", "58030", "XX000", "XX001", "08006", "25006", "2F002", "HV000", "02000",
    ];
    for role in [Role::Super, Role::Ordinary] {
        let body = "BEGIN IF NEW.code <> '' THEN RAISE EXCEPTION 'secret %', NEW.id USING ERRCODE = NEW.code; END IF; RETURN NEW; END";
        let sql = trigger("id int PRIMARY KEY, code text", INSERT, body);
        let (mut fixture, t) = fixture(role, &sql).await.with_table("t").await;
        let ids: Vec<String> = (0..).take(raised.len()).map(|id| id.to_string()).collect();
        let mut changes = Vec::new();
        for (id, code) in ids.iter().zip(raised) {
            changes.push(insert(&t, &[id, code]));
            changes.push(insert(&t, &[&format!("10{id}"), ""]));
        }
        // WHEN they are applied, THEN those rows are parked under what was raised, and the others are there
        let tally = fixture.apply(changes).await;
        assert_eq!(
            (tally.applied, tally.parked),
            (raised.len() as u64, raised.len() as u64),
            "{role:?}"
        );
        let parked = fixture
            .lines("SELECT reason FROM twinlog.failed_rows ORDER BY id")
            .await;
        assert_eq!(parked, raised, "{role:?}");
    }
}

#[tokio::test]
async fn whatever_goes_wrong_within_a_function_parks_the_row_that_provoked_it() {
    let body = "DECLARE x int; BEGIN
        CASE NEW.id
            WHEN 1 THEN INSERT INTO nowhere VALUES (1);
            WHEN 2 THEN SELECT 1 INTO STRICT x WHERE false;
            WHEN 3 THEN SELECT g INTO STRICT x FROM generate_series(1, 2) g;
            WHEN 4 THEN ASSERT false;
            WHEN 5 THEN EXECUTE 'SELEC';
            WHEN 6 THEN x := no_such_function();
            WHEN 7 THEN INSERT INTO closed VALUES (1);
            WHEN 8 THEN INSERT INTO needy (a) VALUES (1);
            WHEN 9 THEN PERFORM 1 / 0;
            WHEN 10 THEN PERFORM currval('s');
            ELSE NULL;
        END CASE; RETURN NEW; END";
    let sql = format!(
        "{} CREATE TABLE needy (a int, b int NOT NULL); CREATE SEQUENCE s; CREATE VIEW closed AS SELECT 1 AS x;",
        trigger("id int PRIMARY KEY", INSERT, body)
    );
    let (mut fixture, t) = Fixture::new(&sql).await.with_table("t").await;
    let ids: Vec<String> = (0..12).map(|id: i32| id.to_string()).collect();
    let tally = fixture.apply(ids.iter().map(|id| insert(&t, &[id])).collect()).await;
    assert_eq!((tally.applied, tally.parked), (2, 10));
    assert_eq!(
        fixture
            .lines("SELECT reason FROM twinlog.failed_rows ORDER BY id")
            .await,
        [
            "42P01", "P0002", "P0003", "P0004", "42601", "42883", "55000", "23502", "22012", "55000"
        ]
    );
}

#[tokio::test]
async fn a_deferred_constraint_trigger_parks_its_row_and_not_the_commit() {
    for role in [Role::Super, Role::Ordinary] {
        let sql = "CREATE TABLE t (id int PRIMARY KEY);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN IF NEW.id = 13 THEN RAISE EXCEPTION ''no'' USING ERRCODE = ''P0002''; END IF; RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER f AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE t ENABLE ALWAYS TRIGGER f";
        let (mut fixture, t) = fixture(role, sql).await.with_table("t").await;
        let tally = fixture
            .apply(["12", "13", "14"].map(|id| insert(&t, &[id])).into())
            .await;
        assert_eq!((tally.applied, tally.parked), (2, 1), "{role:?}");
        assert_eq!(fixture.parked().await, [r#"["13"] upsert P0002 1"#], "{role:?}");
    }
}

#[tokio::test]
async fn what_refuses_a_statement_even_without_rows_is_the_tables_fault() {
    // GIVEN a table that the role may not write, another with a trigger on the statement, one under row-level security
    for (sql, words) in [
        ("CREATE TABLE t (id int PRIMARY KEY)", "no right to INSERT"),
        (
            "CREATE TABLE t (id int PRIMARY KEY);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO nowhere VALUES (1); RETURN NULL; END';
             CREATE TRIGGER f BEFORE INSERT ON t EXECUTE FUNCTION f()",
            "42P01",
        ),
    ] {
        let (mut fixture, t) = Fixture::without_replica_role(sql).await.with_table("t").await;
        if words.starts_with("no right") {
            let role = format!("plain_{}", fixture.db.agent.name);
            fixture.on_agent(&format!("REVOKE INSERT ON t FROM {role}")).await;
        }
        // WHEN rows are written, THEN the table is held with the reason, and no row is blamed
        let items = ["1", "2"].map(|id| Item::Change(insert(&t, &[id])));
        let reason = fixture.holds(items.into()).await;
        assert!(reason.contains(words), "{reason}");
        assert!(fixture.parked().await.is_empty());
    }
}

#[tokio::test]
async fn a_truncate_that_a_trigger_refuses_is_the_tables_fault() {
    let sql = trigger(
        "id int PRIMARY KEY",
        "BEFORE TRUNCATE ON t",
        "BEGIN RAISE EXCEPTION 'never'; END",
    );
    let (mut fixture, t) = Fixture::new(&sql).await.with_table("t").await;
    let reason = fixture.holds(vec![super::fixture::truncate(&[&t])]).await;
    assert!(reason.contains("truncate (public.t)"), "{reason}");
}

/// What becomes of row 13, in a table that has the rows 1 and 13.
struct Swallow {
    what: &'static str,
    when: &'static str,
    body: &'static str,
}

const SWALLOWS: &[Swallow] = &[
    Swallow {
        what: "an insert that a trigger swallows",
        when: "BEFORE INSERT ON t FOR EACH ROW",
        body: "BEGIN IF NEW.id = 13 THEN RETURN NULL; END IF; RETURN NEW; END",
    },
    Swallow {
        what: "a row whose key a trigger changes",
        when: "BEFORE INSERT ON t FOR EACH ROW",
        body: "BEGIN IF NEW.id = 13 THEN NEW.id := 130; END IF; RETURN NEW; END",
    },
    Swallow {
        what: "a row whose value a trigger changes",
        when: "BEFORE INSERT OR UPDATE ON t FOR EACH ROW",
        body: "BEGIN IF NEW.id = 13 THEN NEW.v := upper(NEW.v); END IF; RETURN NEW; END",
    },
    Swallow {
        what: "a row that is deleted by the trigger that its insert fires",
        when: "AFTER INSERT OR UPDATE ON t FOR EACH ROW",
        body: "BEGIN DELETE FROM t WHERE id = 13; RETURN NULL; END",
    },
    Swallow {
        what: "a row that is deleted by the trigger that its statement fires",
        when: "AFTER INSERT OR UPDATE ON t",
        body: "BEGIN DELETE FROM t WHERE id = 13; RETURN NULL; END",
    },
];

#[tokio::test]
async fn a_row_that_a_trigger_swallows_or_changes_is_parked_however_it_is_written() {
    for role in [Role::Super, Role::Ordinary] {
        for Swallow { what, when, body } in SWALLOWS {
            // 100 rows go by COPY, 3 do not.
            for rows in [3, 100] {
                let what = format!("{role:?}: {what}, {rows} rows");
                let sql = trigger("id int PRIMARY KEY, v text", when, body);
                let (mut fixture, t) = fixture(role, &sql).await.with_table("t").await;
                let ids: Vec<String> = (12..12 + rows).map(|id: i32| id.to_string()).collect();
                let tally = fixture
                    .apply(ids.iter().map(|id| insert(&t, &[id, "a"])).collect())
                    .await;
                assert_eq!((tally.applied, tally.parked), (rows as u64 - 1, 1), "{what}");
                assert_eq!(fixture.parked().await, [r#"["13"] upsert TW003 1"#], "{what}");
                assert_eq!(fixture.lines("SELECT count(*) FROM t").await, [(rows - 1).to_string()]);
                // Read from the Site DB, it is refused again.
                let tally = fixture.apply(vec![chunk(insert(&t, &["13", "b"]))]).await;
                assert_eq!(tally.healed, 0, "{what}");
                // Once the trigger is gone, it heals.
                fixture.on_agent("DROP TRIGGER f ON t").await;
                let tally = fixture.apply(vec![chunk(insert(&t, &["13", "b"]))]).await;
                assert_eq!(tally.healed, 1, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn an_update_a_move_and_a_delete_that_a_trigger_swallows_are_parked() {
    for role in [Role::Super, Role::Ordinary] {
        for (what, body) in [
            ("nothing is written", "RETURN NULL"),
            (
                "the key is changed",
                "IF TG_OP = 'DELETE' THEN RETURN NULL; END IF; NEW.id := NEW.id + 1000; RETURN NEW",
            ),
        ] {
            let what = format!("{role:?}: {what}");
            let when = "BEFORE UPDATE OR DELETE ON t FOR EACH ROW WHEN (OLD.id > 10)";
            let sql = trigger(
                "id int PRIMARY KEY, v text, w text",
                when,
                &format!("BEGIN {body}; END"),
            );
            let sql = format!("{sql} INSERT INTO t SELECT i, 'a', 'w' FROM generate_series(1, 20) i;");
            let (mut fixture, t) = fixture(role, &sql).await.with_table("t").await;
            let tally = fixture
                .apply(vec![
                    update(&t, &["1", "b", "="]),
                    update(&t, &["11", "b", "="]),
                    update(&t, &["2", "b", "w"]),
                    update(&t, &["12", "b", "w"]),
                    rekey(&t, &["3"], &["103", "b", "="]),
                    rekey(&t, &["13"], &["113", "b", "="]),
                    delete(&t, &["4"]),
                    delete(&t, &["14"]),
                    delete(&t, &["400"]),
                ])
                .await;
            assert_eq!(
                (tally.applied, tally.unchanged, tally.parked),
                (4, 1, 4),
                "{what}: {:?}",
                fixture.parked().await
            );
            let mut parked = fixture
                .lines("SELECT key || reason FROM twinlog.failed_rows ORDER BY key")
                .await;
            parked.retain(|line| line != r#"["113"]TW003"#);
            assert_eq!(
                parked,
                [r#"["11"]TW003"#, r#"["12"]TW003"#, r#"["13"]TW003"#, r#"["14"]TW003"#],
                "{what}"
            );
            assert_eq!(
                fixture.lines("SELECT id FROM t WHERE v = 'b' ORDER BY id").await,
                ["1", "2", "103"],
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn a_chunks_row_that_a_trigger_swallows_is_parked_and_equal_rows_fire_nothing() {
    let sql = trigger(
        "id int PRIMARY KEY, v text",
        "BEFORE INSERT OR UPDATE ON t FOR EACH ROW",
        "BEGIN IF TG_OP = 'UPDATE' THEN RETURN NULL; END IF; RETURN NEW; END",
    );
    let (mut fixture, t) = Fixture::new(&format!("{sql} INSERT INTO t VALUES (1, 'a'), (2, 'a')"))
        .await
        .with_table("t")
        .await;
    let rows = [["1", "a"], ["2", "b"], ["3", "c"]];
    fixture.apply(rows.map(|row| chunk(insert(&t, &row))).into()).await;
    assert_eq!(fixture.parked().await, [r#"["2"] upsert TW003 1"#]);
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(1,a)", "(2,a)", "(3,c)"]
    );
}

#[tokio::test]
async fn a_trigger_that_comes_while_rows_are_written_is_noticed() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await
        .with_table("t")
        .await;
    fixture.apply(vec![insert(&t, &["1", "a"])]).await;
    fixture
        .on_agent(
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN IF NEW.id = 13 THEN RETURN NULL; END IF; RETURN NEW; END';
             CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
             ALTER TABLE t ENABLE ALWAYS TRIGGER f",
        )
        .await;
    let tally = fixture
        .apply(["12", "13", "14"].map(|id| insert(&t, &[id, "a"])).into())
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 1));
    assert_eq!(fixture.parked().await, [r#"["13"] upsert TW003 1"#]);
}

#[tokio::test]
async fn a_partition_whose_trigger_swallows_rows_is_noticed() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (100);
         CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (100) TO (200);
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER f BEFORE INSERT ON t_high FOR EACH ROW EXECUTE FUNCTION f()";
    let (mut fixture, t) = Fixture::without_replica_role(sql).await.with_table("t").await;
    let tally = fixture
        .apply(["12", "113", "14", "999"].map(|id| insert(&t, &[id, "a"])).into())
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 2));
    assert_eq!(
        fixture.parked().await,
        [r#"["113"] upsert TW003 1"#, r#"["999"] upsert 23514 1"#]
    );
}

#[tokio::test]
async fn a_rule_that_swallows_deletes_is_noticed() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (13, 'a');
         CREATE RULE keep AS ON DELETE TO t WHERE OLD.id = 13 DO INSTEAD NOTHING; ALTER TABLE t ENABLE ALWAYS RULE keep";
    let (mut fixture, t) = Fixture::without_replica_role(sql).await.with_table("t").await;
    let tally = fixture.apply(vec![delete(&t, &["1"]), delete(&t, &["13"])]).await;
    assert_eq!((tally.applied, tally.parked), (1, 1));
    assert_eq!(fixture.parked().await, [r#"["13"] delete TW003 1"#]);
}

#[tokio::test]
async fn deletes_reach_a_table_again_after_a_rule_that_swallowed_all_of_them() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'a'), (3, 'a');
         CREATE RULE keep AS ON DELETE TO t DO INSTEAD NOTHING; ALTER TABLE t ENABLE ALWAYS RULE keep";
    let (mut fixture, t) = Fixture::new(sql).await.with_table("t").await;
    // Often enough that the server has a plan of the statement.
    for id in ["1", "2"] {
        let tally = fixture.apply(vec![delete(&t, &[id])]).await;
        assert_eq!((tally.applied, tally.parked), (0, 1));
    }
    fixture.on_agent("DROP RULE keep ON t").await;
    fixture.applier().agent_changed(&t.table).await.unwrap();
    let tally = fixture.apply(vec![delete(&t, &["3"])]).await;
    assert_eq!((tally.applied, tally.parked), (1, 0));
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["2"]);
}

#[tokio::test]
async fn triggers_that_change_nothing_cost_no_row() {
    // Types whose text is another one after a cast, limits that round, NULLs.
    let sql = trigger(
        "id numeric PRIMARY KEY, n numeric(10,2), c char(4), ts timestamptz(0), v varchar(5), f real, j json, a int[],
         i interval second(0), z text",
        "BEFORE INSERT OR UPDATE ON t FOR EACH ROW",
        "BEGIN RETURN NEW; END",
    );
    let (mut fixture, t) = Fixture::new(&sql).await.with_table("t").await;
    let row = [
        "1.0",
        "1.005",
        "ab",
        "2026-01-01 00:00:00.6+00",
        "abc",
        "0.1",
        "{\"a\":  1}",
        "{1,NULL}",
        "00:00:01.7",
        "∅",
    ];
    let mut other = row;
    other[9] = "x";
    let tally = fixture
        .apply(vec![
            insert(&t, &row),
            update(&t, &other),
            rekey(&t, &["1.0"], &{
                let mut moved = row;
                moved[0] = "2";
                moved
            }),
        ])
        .await;
    assert_eq!(
        tally.parked,
        0,
        "{:?}",
        fixture.lines("SELECT message FROM twinlog.failed_rows").await
    );
    assert_eq!(fixture.apply(vec![chunk(insert(&t, &other))]).await.copied, 1);
    assert!(fixture.parked().await.is_empty());
}
