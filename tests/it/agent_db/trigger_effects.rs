//! What triggers of the Agent DB leave behind: settings of the session, and changes of rows that come with the check of the
//! constraints.

use super::fixture::{Fixture, chunk, insert, update};

/// A trigger that fires for every role.
fn trigger(table: &str, name: &str, create: &str, body: &str) -> String {
    format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
         CREATE {create} EXECUTE FUNCTION {name}(); ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};"
    )
}

#[tokio::test]
async fn what_a_trigger_sets_in_the_session_ends_with_its_statement() {
    for replica in [true, false] {
        // GIVEN triggers of one table that set how values are read, whether triggers fire, and whether commits wait
        let sets = "PERFORM set_config('array_nulls', 'off', false); PERFORM set_config('DateStyle', 'SQL, DMY', false);
            SET LOCAL synchronous_commit = off;
            IF current_setting('session_replication_role') = 'replica' THEN SET session_replication_role = origin; END IF;
            RETURN NULL;";
        let sql = [
            "CREATE TABLE a (id int PRIMARY KEY, v text);
             CREATE TABLE b (id int PRIMARY KEY, v text[], d date);
             CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v = ''{changed}''; RETURN NEW; END';
             CREATE TRIGGER changed BEFORE INSERT ON b FOR EACH ROW EXECUTE FUNCTION changed();
             CREATE TABLE seen (setting text);"
                .to_owned(),
            trigger("a", "sets", "TRIGGER sets AFTER INSERT ON a FOR EACH ROW", sets),
            trigger(
                "a",
                "later",
                "CONSTRAINT TRIGGER later AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
                sets,
            ),
            trigger(
                "b",
                "sees",
                "TRIGGER sees AFTER INSERT ON b FOR EACH ROW",
                "INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL;",
            ),
        ]
        .concat();
        let mut fixture = if replica {
            Fixture::new(&sql).await
        } else {
            Fixture::without_replica_role(&sql).await
        };
        if !replica {
            fixture.on_agent("DROP TRIGGER changed ON b").await;
        }
        let (a, b) = (fixture.resolve("a").await, fixture.resolve("b").await);
        // WHEN it is written, and then another one: in the same segment, and in the next transaction
        let row = |id| insert(&b, &[id, "{x,NULL}", "2024-01-02"]);
        fixture.apply(vec![insert(&a, &["1", "v"]), row("1")]).await;
        fixture.apply(vec![row("2")]).await;
        // THEN it is written as if nothing had been set
        let rows = "SELECT concat_ws(' ', id, v[2] IS NULL, d = '2024-01-02') FROM b ORDER BY id";
        assert_eq!(fixture.lines(rows).await, ["1 t t", "2 t t"], "{replica}");
        assert_eq!(fixture.lines("SELECT DISTINCT setting FROM seen").await, ["on"]);
        assert_eq!(fixture.parked().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_row_that_a_deferred_trigger_changes_is_parked() {
    for replica in [true, false] {
        // GIVEN a trigger that changes some rows when the constraints are checked
        let body = "IF NEW.v LIKE 'a%' AND NEW.v NOT LIKE '%!' THEN UPDATE public.t SET v = v || '!' WHERE id = NEW.id; END IF;
            RETURN NULL;";
        let sql = format!(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int); {}",
            trigger(
                "t",
                "late",
                "CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
                body,
            )
        );
        let mut fixture = if replica {
            Fixture::new(&sql).await
        } else {
            Fixture::without_replica_role(&sql).await
        };
        let t = fixture.resolve("t").await;
        // WHEN rows are written, some twice, from the stream and from a copy
        let tally = fixture
            .apply(vec![
                insert(&t, &["1", "b", "1"]),
                insert(&t, &["2", "a", "1"]),
                insert(&t, &["3", "c", "1"]),
                update(&t, &["3", "d", "="]),
            ])
            .await;
        // THEN the one that it changes is parked, and the others are as they were sent
        assert_eq!(tally.parked, 1, "{replica}");
        fixture
            .apply(vec![
                chunk(insert(&t, &["4", "a", "1"])),
                chunk(insert(&t, &["5", "e", "1"])),
            ])
            .await;
        let rows = "SELECT concat_ws(' ', id, v, n) FROM t ORDER BY id";
        assert_eq!(fixture.lines(rows).await, ["1 b 1", "3 d 1", "5 e 1"], "{replica}");
        assert_eq!(
            fixture.parked().await,
            [r#"["2"] upsert TW003 1"#, r#"["4"] upsert TW003 1"#],
            "{replica}"
        );
    }
}

#[tokio::test]
async fn a_column_that_cant_be_set_without_deleting_other_rows_is_named() {
    // GIVEN a column that no UPDATE can set, of a row with which rows of another table go
    let mut fixture = Fixture::without_replica_role(
        "CREATE TABLE t (id int PRIMARY KEY, seq int GENERATED ALWAYS AS IDENTITY);
         CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE);",
    )
    .await;
    let t = fixture.resolve("t").await;
    fixture
        .apply(vec![insert(&t, &["1", "1"]), insert(&t, &["2", "2"])])
        .await;
    fixture.on_agent("INSERT INTO child VALUES (1, 1)").await;
    // WHEN it changes, THEN the row is parked for that and no trigger
    let tally = fixture.apply(vec![update(&t, &["1", "7"])]).await;
    assert_eq!(tally.parked, 1);
    assert_eq!(fixture.parked().await, [r#"["1"] upsert TW004 1"#]);
    assert_eq!(fixture.lines("SELECT id::text FROM child").await, ["1"]);
}
