//! A statement that does not end is cancelled, and holds the table that it is about; rows that are merely slow are written.

use std::time::{Duration, Instant};

use twinlog::agent_db::{ApplierSettings, Item};

use super::fixture::{Fixture, chunk, delete, insert, settings, truncate, update};

/// Two tables. Writing a row of `t` takes as many milliseconds as its `n` says, at the moment that `when` says.
fn schema(key: &str, when: &str) -> String {
    format!(
        "CREATE TABLE t (id int {key}, n int);
         CREATE TABLE other (id int PRIMARY KEY, n int);
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
             DECLARE wait int := 3600000;
             BEGIN
                 IF TG_OP IN ('INSERT', 'UPDATE') THEN wait := NEW.n; ELSIF TG_OP = 'DELETE' THEN wait := OLD.n; END IF;
                 PERFORM pg_sleep(wait / 1000.0);
                 RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
             END $$;
         CREATE {when} EXECUTE FUNCTION slow();
         ALTER TABLE t ENABLE ALWAYS TRIGGER slow"
    )
}

const KEY: &str = "PRIMARY KEY";
const FOR_EVER: &str = "3600000";

async fn impatient(sql: &str) -> Fixture {
    with_limit(sql, Duration::from_millis(500)).await
}

async fn with_limit(sql: &str, statement_limit: Duration) -> Fixture {
    let settings = ApplierSettings {
        statement_limit,
        ..settings()
    };
    Fixture::with(sql, settings).await
}

#[tokio::test]
async fn a_row_that_takes_too_long_is_found_soon_and_one_that_does_not_has_the_whole_limit() {
    let sql = schema(KEY, "TRIGGER slow BEFORE INSERT ON t FOR EACH ROW")
        + "; CREATE TABLE late (id int PRIMARY KEY, n int);
           CREATE TRIGGER slow BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION slow();
           ALTER TABLE late ENABLE ALWAYS TRIGGER slow";
    let limit = Duration::from_secs(4);
    let mut fixture = with_limit(&sql, limit).await;
    let (t, other) = (fixture.resolve("t").await, fixture.resolve("other").await);
    let late = fixture.resolve("late").await;
    // WHEN one of many rows takes for ever, and one of another table less than the limit
    let mut changes = vec![insert(&other, &["1", "1"])];
    for id in 0..600 {
        changes.push(insert(&t, &[&id.to_string(), if id == 423 { FOR_EVER } else { "0" }]));
    }
    changes.push(insert(&late, &["1", "2000"]));
    let began = Instant::now();
    let applied = fixture.try_apply(changes).await.unwrap();
    let took = began.elapsed();
    // THEN it is found, by statements of several rows that have less time than the first one had, and holds only its table
    assert_eq!(applied.held[&t.table].cause.as_str(), "too_slow");
    assert_eq!(applied.held.len(), 1, "{:?}", applied.held);
    assert!(took >= 2 * limit && took < 5 * limit, "{took:?}");
    fixture.commit().await;
    assert_eq!(fixture.lines("SELECT count(*) FROM late").await, ["1"]);
    assert_eq!(fixture.parked().await, [r#"["423"] upsert 57014 1"#]);
    // AND the next segment's have the whole limit again
    fixture.release(&t);
    let applied = fixture.try_apply(vec![insert(&t, &["1000", "2500"])]).await.unwrap();
    assert!(applied.held.is_empty(), "{:?}", applied.held);
    fixture.commit().await;
}

#[tokio::test]
async fn a_row_whose_trigger_does_not_return_holds_its_table_alone() {
    for (key, when, shown) in [
        (
            KEY,
            "TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW",
            "PgSleep",
        ),
        (
            KEY,
            "TRIGGER slow AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW",
            "INSERT",
        ),
        (
            KEY,
            "CONSTRAINT TRIGGER slow AFTER INSERT OR DELETE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
            "took longer than",
        ),
        (
            "",
            "TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW",
            "of 1 row(s)",
        ),
    ] {
        let mut fixture = impatient(&schema(key, when)).await;
        let (t, other) = (fixture.resolve("t").await, fixture.resolve("other").await);
        // WHEN one of many rows takes for ever
        let mut changes = Vec::new();
        for id in 0..40 {
            let n = if id == 23 { FOR_EVER } else { "0" };
            changes.push(insert(&t, &[&id.to_string(), n]));
            changes.push(insert(&other, &[&id.to_string(), "1"]));
        }
        let applied = fixture.try_apply(changes).await.unwrap();
        // THEN its table is held with the reason, and the other's rows are there
        let hold = &applied.held[&t.table];
        assert_eq!(hold.cause.as_str(), "too_slow", "{when}: {hold}");
        assert!(
            hold.reason.contains(shown) && hold.reason.contains("public.t"),
            "{when}: {hold}"
        );
        assert_eq!(applied.held.len(), 1, "{when}");
        fixture.commit().await;
        assert_eq!(fixture.lines("SELECT count(*) FROM other").await, ["40"], "{when}");
        assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["0"], "{when}");
        // AND that row is parked, so that it can be tried
        assert_eq!(
            fixture.lines("SELECT reason FROM twinlog.failed_rows").await,
            ["57014"],
            "{when}"
        );
        // AND the session goes on
        let tally = fixture
            .apply(vec![insert(&other, &["99", "1"]), insert(&t, &["99", "0"])])
            .await;
        assert_eq!((tally.applied, tally.held), (1, 1), "{when}");
    }
}

#[tokio::test]
async fn rows_that_are_merely_slow_are_written_in_pieces_and_hold_nothing() {
    let sql = schema(KEY, "TRIGGER slow BEFORE INSERT OR UPDATE ON t FOR EACH ROW");
    for written in [insert, update] {
        let mut fixture = impatient(&sql).await;
        let t = fixture.resolve("t").await;
        let rows = |from: i32| (from..from + 40).map(|id| id.to_string()).collect::<Vec<_>>();
        for ids in [rows(0), rows(100)] {
            let changes = ids.iter().map(|id| chunk(written(&t, &[id, "20"]))).collect();
            let applied = fixture.try_apply(changes).await.unwrap();
            assert!(applied.held.is_empty(), "{:?}", applied.held);
            fixture.commit().await;
        }
        assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["80"]);
        assert!(fixture.parked().await.is_empty());
    }
}

#[tokio::test]
async fn a_delete_or_a_truncate_that_does_not_return_holds_its_table_alone() {
    let sql = schema(KEY, "TRIGGER slow BEFORE TRUNCATE ON t FOR EACH STATEMENT");
    let mut fixture = impatient(&sql).await;
    let (t, other) = (fixture.resolve("t").await, fixture.resolve("other").await);
    fixture
        .apply(vec![insert(&t, &["1", FOR_EVER]), insert(&other, &["1", "1"])])
        .await;

    let items = vec![truncate(&[&other, &t]), Item::Change(insert(&other, &["2", "2"]))];
    let applied = fixture.try_apply_items(items).await.unwrap();
    assert_eq!(applied.held[&t.table].cause.as_str(), "too_slow");
    assert!(applied.held[&t.table].reason.contains("TRUNCATE"), "{:?}", applied.held);
    fixture.commit().await;
    assert_eq!(fixture.lines("SELECT id FROM other").await, ["2"]);

    fixture
        .on_agent(
            "DROP TRIGGER slow ON t; CREATE TRIGGER slow BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION slow();
             ALTER TABLE t ENABLE ALWAYS TRIGGER slow",
        )
        .await;
    fixture.release(&t);
    let applied = fixture
        .try_apply(vec![delete(&t, &["1"]), delete(&other, &["2"])])
        .await
        .unwrap();
    assert!(applied.held[&t.table].reason.contains("DELETE"), "{:?}", applied.held);
    fixture.commit().await;
    assert_eq!(fixture.lines("SELECT count(*) FROM other").await, ["0"]);
    assert_eq!(fixture.parked().await, [r#"["1"] delete 57014 1"#]);
}
