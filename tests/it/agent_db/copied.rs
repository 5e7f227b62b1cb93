//! New rows are written by COPY; what happens if rows exist already, are refused, or COPY is not possible.

use std::fmt::Write as _;

use twinlog::agent_db::TableMode;
use twinlog::change::{Change, TableName};
use twinlog::retry::Disposition;

use super::fixture::{Fixture, chunk, delete, insert, update};
use crate::harness::{SOON, eventually};

/// Enough rows for one COPY.
const MANY: usize = 200;

/// Records the statement that wrote rows, even if ordinary triggers do not fire.
const WITNESS: &str = "
    CREATE TABLE witness (sql text);
    CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        'BEGIN INSERT INTO public.witness VALUES (split_part(current_query(), '' '', 1)); RETURN NULL; END';
    CREATE TABLE t (id int PRIMARY KEY, a text CHECK (a <> 'bad'), u int UNIQUE);
    CREATE TRIGGER witness AFTER INSERT ON t EXECUTE FUNCTION witness();
    ALTER TABLE t ENABLE ALWAYS TRIGGER witness;";

const WITNESSED: &str = "SELECT string_agg(DISTINCT sql, ' ' ORDER BY sql) FROM witness";

fn inserts(fixture_table: &std::sync::Arc<twinlog::change::Relation>, ids: std::ops::Range<usize>) -> Vec<Change> {
    ids.map(|id| insert(fixture_table, &[&id.to_string(), &format!("row {id}"), &id.to_string()]))
        .collect()
}

#[tokio::test]
async fn many_new_rows_are_copied_and_few_are_not() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    let tally = fixture.apply(inserts(&t, 0..MANY)).await;
    assert_eq!((tally.received, tally.applied), (MANY as u64, MANY as u64));
    assert_eq!(fixture.lines(WITNESSED).await, ["COPY"]);
    fixture.on_agent("DELETE FROM witness").await;
    fixture.apply(inserts(&t, MANY..MANY + 5)).await;
    assert_eq!(fixture.lines(WITNESSED).await, ["INSERT"]);
    assert_eq!(
        fixture
            .lines("SELECT count(*) FROM t WHERE a = 'row ' || id AND u = id")
            .await,
        [(MANY + 5).to_string()]
    );
}

#[tokio::test]
async fn every_character_and_null_survive_a_copy() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id text PRIMARY KEY, a text)")
        .await
        .with_table("t")
        .await;
    let odd: Vec<String> = (1..=255_u32)
        .filter_map(char::from_u32)
        .chain("\u{2028}\u{feff}é🚀".chars())
        .map(|odd| format!("{odd}x{odd}"))
        .chain(["\\N", "\\.", "\\\\n", "", "\r\n", "\t\t"].map(str::to_owned))
        .collect();
    let mut changes = Vec::new();
    for (number, text) in odd.iter().enumerate() {
        changes.push(insert(&t, &[&format!("{number}:{text}"), text]));
    }
    changes.push(insert(&t, &["null", "∅"]));
    fixture.apply(changes).await;
    let mut expected = String::new();
    for (number, text) in odd.iter().enumerate() {
        let _ = write!(expected, "{number}:{text}={text};");
    }
    let rows = fixture
        .agent()
        .query(
            "SELECT id, a FROM t WHERE id <> 'null' ORDER BY substring(id from '^[0-9]+')::int",
            &[],
        )
        .await
        .unwrap();
    let mut found = String::new();
    for row in &rows {
        let _ = write!(found, "{}={};", row.get::<_, &str>("id"), row.get::<_, &str>("a"));
    }
    assert_eq!(found, expected);
    assert_eq!(fixture.lines("SELECT a FROM t WHERE id = 'null'").await, ["∅"]);
}

#[tokio::test]
async fn rows_that_are_there_already_are_overwritten() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    fixture
        .on_agent("INSERT INTO t VALUES (150, 'another hand''s', 1000); DELETE FROM witness")
        .await;
    // The commit in between must keep the segments before it.
    for round in 0..4 {
        let from = round * MANY;
        let tally = fixture.apply(inserts(&t, from..from + MANY)).await;
        assert_eq!((tally.applied, tally.parked), (MANY as u64, 0), "round {round}");
    }
    assert_eq!(
        fixture
            .lines("SELECT count(*) FROM t WHERE a = 'row ' || id AND u = id")
            .await,
        [(4 * MANY).to_string()]
    );
    // COPY is refused once, skipped once, and then used again.
    assert_eq!(
        fixture.lines("SELECT sql FROM witness").await,
        ["INSERT", "INSERT", "COPY", "COPY"]
    );
}

#[tokio::test]
async fn a_refused_row_among_copied_ones_is_parked_alone() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    let mut changes = inserts(&t, 0..MANY);
    changes.push(insert(&t, &["1000", "bad", "1000"]));
    changes.extend(inserts(&t, MANY..2 * MANY));
    changes.push(update(&t, &["7", "changed", "7"]));
    let tally = fixture.apply(changes).await;
    assert_eq!(
        (tally.applied, tally.superseded, tally.parked),
        (2 * MANY as u64 + 1, 0, 1),
        "in the replay nothing is folded"
    );
    assert_eq!(fixture.parked().await, [r#"["1000"] upsert 23514 1"#]);
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, [(2 * MANY).to_string()]);
}

#[tokio::test]
async fn new_rows_take_unique_values_that_other_rows_release() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    fixture
        .on_agent("INSERT INTO t VALUES (1001, 'a', 1), (1002, 'b', 2); DELETE FROM witness")
        .await;
    let mut changes = vec![delete(&t, &["1001"]), update(&t, &["1002", "b", "1002"])];
    changes.extend(inserts(&t, 0..MANY));
    let tally = fixture.apply(changes).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64 + 2, 0));
    assert_eq!(fixture.lines("SELECT sql FROM witness").await, ["INSERT", "COPY"]);
}

#[tokio::test]
async fn a_first_copys_chunk_is_copied_and_a_resyncs_is_not() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    fixture
        .transaction()
        .set_mode(&TableName::new("public", "t"), TableMode::LacksRows);
    let tally = fixture
        .apply(inserts(&t, 0..MANY).into_iter().map(chunk).collect())
        .await;
    assert_eq!((tally.received, tally.copied), (0, MANY as u64));
    assert_eq!(fixture.lines(WITNESSED).await, ["COPY"]);
    fixture.on_agent("DELETE FROM witness").await;
    fixture
        .transaction()
        .set_mode(&TableName::new("public", "t"), TableMode::Complete);
    let tally = fixture
        .apply(inserts(&t, 0..2 * MANY).into_iter().map(chunk).collect())
        .await;
    assert_eq!(tally.copied, MANY as u64, "the others were there and equal");
    assert_eq!(fixture.lines(WITNESSED).await, ["INSERT"]);
}

#[tokio::test]
async fn parents_are_copied_before_their_children_are_written() {
    let mut fixture = Fixture::without_replica_role(
        "CREATE TABLE parent (id int PRIMARY KEY, a text, u int);
         CREATE TABLE child (id int PRIMARY KEY, a text, u int REFERENCES parent)",
    )
    .await;
    let (parent, child) = (fixture.resolve("parent").await, fixture.resolve("child").await);
    let mut changes = inserts(&child, 0..MANY);
    changes.extend(inserts(&child, 1000..1005).into_iter().map(|change| {
        let id = String::from_utf8_lossy(&change.key.0[0]).into_owned();
        insert(&child, &[&id, "few", "3"])
    }));
    changes.extend(inserts(&parent, 0..MANY));
    let tally = fixture.apply(changes).await;
    assert_eq!((tally.applied, tally.parked), (2 * MANY as u64 + 5, 0));
}

#[tokio::test]
async fn a_table_with_rules_is_written_without_copy() {
    let mut fixture = Fixture::new(WITNESS).await;
    fixture
        .on_agent("CREATE RULE r AS ON DELETE TO t DO ALSO NOTHING")
        .await;
    let t = fixture.resolve("t").await;
    let tally = fixture.apply(inserts(&t, 0..MANY)).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64, 0));
    assert_eq!(fixture.lines(WITNESSED).await, ["INSERT"]);
}

#[tokio::test]
async fn a_right_that_a_copy_needs_holds_the_table_and_costs_no_connection() {
    let (mut fixture, t) = Fixture::without_replica_role("CREATE TABLE t (id int PRIMARY KEY, a text, u int)")
        .await
        .with_table("t")
        .await;
    fixture.apply(inserts(&t, 0..MANY)).await;
    let role = format!("plain_{}", fixture.db.agent.name);
    for (revoked, granted) in [
        ("REVOKE INSERT ON t FROM", "GRANT INSERT ON t TO"),
        (
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC; REVOKE USAGE ON SCHEMA public FROM",
            "GRANT USAGE ON SCHEMA public TO PUBLIC; GRANT USAGE ON SCHEMA public TO",
        ),
    ] {
        fixture.on_agent(&format!("{revoked} {role}")).await;
        let changes = inserts(&t, MANY..2 * MANY)
            .into_iter()
            .map(twinlog::agent_db::Item::Change)
            .collect();
        let reason = fixture.holds(changes).await;
        assert!(reason.contains("GRANT"), "{reason}");
        // The same connection goes on.
        fixture.on_agent(&format!("{granted} {role}")).await;
        assert_eq!(fixture.lines("SELECT count(*) FROM t").await, [MANY.to_string()]);
        fixture.release(&t);
    }
    let tally = fixture.apply(inserts(&t, MANY..2 * MANY)).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64, 0));
}

#[tokio::test]
async fn a_trigger_before_a_copy_may_refuse_it_and_nothing_is_lost() {
    // The trigger refuses a COPY after its start and before its first row.
    let refuses = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF current_query() LIKE ''COPY%'' THEN RAISE EXCEPTION ''no COPY''; END IF; RETURN NULL; END';
        CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION refuse();
        ALTER TABLE t ENABLE ALWAYS TRIGGER refuse";
    let mut fixture = Fixture::new(WITNESS).await;
    fixture.on_agent(refuses).await;
    let t = fixture.resolve("t").await;
    let tally = fixture.apply(inserts(&t, 0..MANY)).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64, 0));
    assert_eq!(fixture.lines(WITNESSED).await, ["INSERT"]);

    // Created while the daemon runs: that connection is lost, and the next one finds the trigger.
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    fixture.apply(inserts(&t, 0..MANY)).await;
    fixture.on_agent(refuses).await;
    fixture.try_apply(inserts(&t, MANY..2 * MANY)).await.unwrap_err();
    fixture.reconnect().await;
    let t = fixture.resolve("t").await;
    let tally = fixture.apply(inserts(&t, MANY..2 * MANY)).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64, 0));
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, [(2 * MANY).to_string()]);
}

#[tokio::test]
async fn a_refusal_in_a_later_segment_takes_nothing_of_the_earlier_ones_back() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    fixture
        .on_agent("INSERT INTO t VALUES (250, 'another hand''s', 1000); DELETE FROM witness")
        .await;
    let mut changes = inserts(&t, 0..MANY);
    changes.push(insert(&t, &["1000", "bad", "1000"]));
    fixture.try_apply(changes).await.unwrap();
    let mut changes = vec![update(&t, &["1000", "bad", "1001"]), update(&t, &["3", "mended", "3"])];
    changes.extend(inserts(&t, MANY..2 * MANY));
    let applied = fixture.try_apply(changes).await.unwrap().total();
    assert_eq!((applied.applied, applied.parked), (MANY as u64 + 1, 1));
    fixture.commit().await;
    assert_eq!(fixture.parked().await, [r#"["1000"] upsert 23514 2"#]);
    assert_eq!(
        fixture
            .lines("SELECT string_agg(a, ' ' ORDER BY id) FROM t WHERE id IN (3, 250)")
            .await,
        ["mended row 250"]
    );
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, [(2 * MANY).to_string()]);
}

#[tokio::test]
async fn a_connection_that_is_cut_in_the_middle_of_a_copy_leaves_nothing_behind() {
    let (mut fixture, t) = Fixture::new(WITNESS).await.with_table("t").await;
    // The COPY waits in the middle of its rows for a row that another session has not committed.
    let other = fixture.db.agent.connect().await;
    other
        .batch_execute("BEGIN; INSERT INTO t VALUES (150, 'not committed', 150)")
        .await
        .unwrap();
    let watcher = fixture.db.agent.connect().await;
    let cut = eventually("the COPY waits, and is cut", SOON, || async {
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND query LIKE 'COPY%' AND wait_event_type = 'Lock'";
        let rows = watcher.query(waiting, &[]).await.map_err(|error| error.to_string())?;
        if rows.is_empty() {
            Err("not yet".to_owned())
        } else {
            Ok(())
        }
    });
    let (error, ()) = tokio::join!(fixture.try_apply(inserts(&t, 0..MANY)), cut);
    assert_eq!(error.unwrap_err().disposition(), Disposition::Transient);
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["0"]);
    fixture.reconnect().await;
    let t = fixture.resolve("t").await;
    let tally = fixture.apply(inserts(&t, 0..MANY)).await;
    assert_eq!((tally.applied, tally.parked), (MANY as u64, 0));
}
