//! Rows: after each change the table holds what the stream sent.

use twinlog::agent_db::{AgentError, Item, TableMode, Tally};
use twinlog::retry::Disposition;

use super::fixture::{Fixture, chunk, delete, insert, rekey, row, truncate, update};

#[tokio::test]
async fn a_keys_changes_fold_into_one_row_and_all_are_accounted_for() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
        .await
        .with_table("t")
        .await;
    let tally = fixture
        .apply(vec![
            insert(&t, &["1", "x", "big"]),
            update(&t, &["1", "y", "="]),
            insert(&t, &["2", "x", "∅"]),
            delete(&t, &["2"]),
            delete(&t, &["3"]),
            insert(&t, &["4", "", "NULL"]),
        ])
        .await;
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(1,y,big)", "(4,\"\",NULL)"]
    );
    assert_eq!(
        tally,
        Tally {
            received: 6,
            applied: 2,
            unchanged: 2,
            superseded: 2,
            ..Tally::default()
        }
    );
    assert_eq!(
        fixture
            .lines("SELECT received || ' ' || applied || ' ' || unchanged || ' ' || superseded FROM twinlog.accounting")
            .await,
        ["6 2 2 2"]
    );
}

#[tokio::test]
async fn an_unchanged_value_is_never_overwritten() {
    let (mut fixture, t) =
        Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t VALUES (1, 'a', 'b')")
            .await
            .with_table("t")
            .await;
    fixture
        .apply(vec![update(&t, &["1", "=", "b2"]), update(&t, &["1", "a2", "="])])
        .await;
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(1,a2,b2)"]);
    fixture.apply(vec![update(&t, &["1", "=", "="])]).await;
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(1,a2,b2)"]);
}

#[tokio::test]
async fn a_partial_image_after_a_delete_in_the_same_segment_does_not_make_a_row() {
    let (mut fixture, t) =
        Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t VALUES (1, 'a', 'b')")
            .await
            .with_table("t")
            .await;
    let tally = fixture
        .apply(vec![delete(&t, &["1"]), update(&t, &["1", "=", "c"])])
        .await;
    assert_eq!((tally.applied, tally.parked), (1, 1));
    assert!(fixture.lines("SELECT t FROM t").await.is_empty());
    assert_eq!(fixture.parked().await, [r#"["1"] partial TW001 1"#]);
}

#[tokio::test]
async fn rows_swap_their_keys_through_a_third_one() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, big text); INSERT INTO t VALUES (1, 'one', 'B1'), (2, 'two', 'B2')").await.with_table("t").await;
    let tally = fixture
        .apply(vec![
            rekey(&t, &["1"], &["9", "one", "="]),
            rekey(&t, &["2"], &["1", "two", "="]),
            rekey(&t, &["9"], &["2", "one", "="]),
            update(&t, &["2", "ONE", "="]),
        ])
        .await;
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(1,two,B2)", "(2,ONE,B1)"]
    );
    assert_eq!((tally.received, tally.applied, tally.parked), (4, 4, 0));
}

#[tokio::test]
async fn a_changed_key_leaves_no_row_behind_and_keeps_columns_of_the_agents_own() {
    let mut fixture =
        Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, note text); INSERT INTO t VALUES (1, 'a', 'ours')")
            .await;
    let mut description = fixture.describe("t").await;
    description.columns.truncate(2);
    let t = fixture.transaction().resolve(&description).await.unwrap();
    fixture
        .apply(vec![
            rekey(&t, &["1"], &["2", "b"]),
            insert(&t, &["1", "new"]),
            // No row has this old key: the full image is inserted all the same.
            rekey(&t, &["7"], &["8", "c"]),
        ])
        .await;
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(1,new,)", "(2,b,ours)", "(8,c,)"]
    );
}

#[tokio::test]
async fn a_delete_after_a_key_change_of_a_missing_row_leaves_nothing() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .await
        .with_table("t")
        .await;
    fixture
        .apply(vec![rekey(&t, &["1"], &["2", "b"]), delete(&t, &["2"])])
        .await;
    assert!(fixture.lines("SELECT t FROM t").await.is_empty());
}

#[tokio::test]
async fn unique_values_cross_between_rows_without_parking() {
    let (mut fixture, t) = Fixture::new(
        "CREATE TABLE t (id text PRIMARY KEY, u int UNIQUE); INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3)",
    )
    .await
    .with_table("t")
    .await;
    let tally = fixture
        .apply(vec![
            update(&t, &["a", "99"]),
            update(&t, &["b", "1"]),
            update(&t, &["a", "2"]),
            // A value that moves to a new row after its holder was deleted.
            delete(&t, &["c"]),
            insert(&t, &["d", "3"]),
        ])
        .await;
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(a,2)", "(b,1)", "(d,3)"]
    );
    assert_eq!(tally.parked, 0);
    assert!(tally.balances());
}

#[tokio::test]
async fn generated_and_identity_columns_are_left_to_the_agent_or_taken_as_they_come() {
    let (mut fixture, t) = Fixture::new(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,
             twice int GENERATED ALWAYS AS (a * 2) STORED, n int GENERATED BY DEFAULT AS IDENTITY)",
    )
    .await
    .with_table("t")
    .await;
    fixture
        .apply(vec![insert(&t, &["41", "3", "7"]), insert(&t, &["42", "4", "8"])])
        .await;
    let tally = fixture
        .apply(vec![
            update(&t, &["41", "5", "7"]),
            // A key column that Postgres allows no UPDATE to set.
            rekey(&t, &["42"], &["43", "6", "8"]),
        ])
        .await;
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(41,5,10,7)", "(43,6,12,8)"]
    );
    assert_eq!((tally.applied, tally.parked), (2, 0));
}

#[tokio::test]
async fn a_truncate_keeps_its_place_in_the_stream() {
    let mut fixture = Fixture::new(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE s (id int PRIMARY KEY); INSERT INTO t VALUES (1); INSERT INTO s VALUES (1);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1)",
    )
    .await;
    let (t, s, p) = (
        fixture.resolve("t").await,
        fixture.resolve("s").await,
        fixture.resolve("p").await,
    );
    let applied = fixture
        .try_apply_items(vec![
            Item::Change(insert(&t, &["2"])),
            truncate(&[&t, &s, &p]),
            Item::Change(insert(&t, &["3"])),
            Item::Change(insert(&p, &["4"])),
        ])
        .await
        .unwrap();
    fixture.commit().await;
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["3"]);
    assert_eq!(fixture.lines("SELECT id FROM p").await, ["4"]);
    assert!(fixture.lines("SELECT id FROM s").await.is_empty());
    assert!(applied.tables.values().all(Tally::balances));
}

#[tokio::test]
async fn rows_move_between_partitions() {
    let (mut fixture, t) = Fixture::new(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);
         INSERT INTO t VALUES (1, 'a', 'big'), (11, 'a', 'big'), (12, 'a', 'big')",
    )
    .await
    .with_table("t")
    .await;
    let tally = fixture
        .apply(vec![
            rekey(&t, &["1"], &["15", "b", "="]),
            rekey(&t, &["11"], &["5", "b", "="]),
            update(&t, &["12", "c", "="]),
            insert(&t, &["25", "nowhere to go", "∅"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.parked), (3, 1));
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(5,b,big)", "(12,c,big)", "(15,b,big)"]
    );
}

#[tokio::test]
async fn a_truncate_of_a_table_that_others_refer_to_is_refused_loudly() {
    let (mut fixture, t) = Fixture::new(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE extra (id int PRIMARY KEY, t int REFERENCES t);
         INSERT INTO t VALUES (1)",
    )
    .await
    .with_table("t")
    .await;
    let reason = fixture.holds(vec![truncate(&[&t])]).await;
    assert!(reason.contains("foreign key"), "{reason}");
}

#[tokio::test]
async fn a_chunks_row_overwrites_only_what_differs() {
    let (mut fixture, t) = Fixture::new(
        "CREATE TABLE t (id int PRIMARY KEY, a json, b point);
         INSERT INTO t VALUES (1, '{\"x\": 1}', '(1,2)'), (2, NULL, NULL), (3, 'null', NULL)",
    )
    .await
    .with_table("t")
    .await;
    let before = fixture.lines("SELECT xmin FROM t WHERE id = 1").await;
    let tally = fixture
        .apply(vec![
            chunk(insert(&t, &["1", "{\"x\": 1}", "(1,2)"])),
            chunk(insert(&t, &["2", "∅", "(3,4)"])),
            chunk(insert(&t, &["4", "∅", "∅"])),
            chunk(delete(&t, &["3"])),
            chunk(delete(&t, &["5"])),
        ])
        .await;
    assert_eq!(fixture.lines("SELECT xmin FROM t WHERE id = 1").await, before);
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(1,\"{\"\"x\"\": 1}\",\"(1,2)\")", "(2,,\"(3,4)\")", "(4,,)"]
    );
    assert_eq!(
        tally,
        Tally {
            copied: 3,
            ..Tally::default()
        }
    );
}

#[tokio::test]
async fn a_missing_base_in_a_table_that_is_being_copied_is_superseded() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
        .await
        .with_table("t")
        .await;
    fixture.transaction().set_mode(&t.table, TableMode::LacksRows);
    let tally = fixture
        .apply(vec![
            update(&t, &["1", "x", "="]),
            // The row is gone from under its old key and was not yet copied under the new one: that can't be left out.
            rekey(&t, &["2"], &["3", "x", "="]),
        ])
        .await;
    assert_eq!((tally.superseded, tally.parked), (1, 1));
    fixture.transaction().set_mode(&t.table, TableMode::Complete);
    let tally = fixture.apply(vec![update(&t, &["4", "x", "="])]).await;
    assert_eq!((tally.superseded, tally.parked), (0, 1));
}

#[tokio::test]
async fn tables_of_keys_only_and_of_many_key_columns_are_matched() {
    let mut fixture = Fixture::new(
        "CREATE TABLE k (a int, b text, PRIMARY KEY (b, a));
         CREATE TABLE \"We\"\"ird\" (\"sel ect\" uuid PRIMARY KEY, \"$1\" int)",
    )
    .await;
    let k = fixture.resolve("k").await;
    let tally = fixture
        .apply(vec![
            insert(&k, &["1", "x"]),
            insert(&k, &["2", "x"]),
            insert(&k, &["1", "x"]),
            delete(&k, &["x", "2"]),
        ])
        .await;
    assert!(tally.balances());
    assert_eq!(fixture.lines("SELECT k FROM k").await, ["(1,x)"]);
    assert_eq!(k.key_of(&row(&["1", "x"])).unwrap().to_json(), r#"["x","1"]"#);

    let mut description = fixture.describe("\"We\"\"ird\"").await;
    description.table = twinlog::change::TableName::new("public", "We\"ird");
    let weird = fixture.transaction().resolve(&description).await.unwrap();
    fixture
        .apply(vec![insert(&weird, &["00000000-0000-0000-0000-000000000001", "5"])])
        .await;
    assert_eq!(fixture.lines("SELECT \"$1\" FROM \"We\"\"ird\"").await, ["5"]);
}

#[tokio::test]
async fn columns_in_another_order_and_columns_of_the_agents_own_do_no_harm() {
    let mut fixture =
        Fixture::new("CREATE TABLE t (note text DEFAULT 'ours', b text, id int PRIMARY KEY, a text)").await;
    let mut description = fixture.describe("t").await;
    description.columns = ["id", "a", "b"].map(std::sync::Arc::from).to_vec();
    let t = fixture.transaction().resolve(&description).await.unwrap();
    fixture.apply(vec![insert(&t, &["1", "A", "B"])]).await;
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(ours,B,1,A)"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_table_is_said_with_the_statement_to_paste() {
    let mut fixture = Fixture::new(
        "CREATE TABLE nokey (id int, a text);
         CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
         CREATE TABLE short (id int PRIMARY KEY);
         CREATE TABLE computed (id int PRIMARY KEY, a int GENERATED ALWAYS AS (id * 2) STORED);
         CREATE TABLE strict (id int PRIMARY KEY, must int NOT NULL);
         CREATE TABLE otherkey (id int, k int PRIMARY KEY);
         CREATE TABLE tenants (id int NOT NULL UNIQUE, tenant int PRIMARY KEY);
         CREATE VIEW v AS SELECT 1 AS id",
    )
    .await;
    let columns = |names: &[&str]| names.iter().map(|&name| std::sync::Arc::from(name)).collect::<Vec<_>>();
    let describe = |table: &str, names: &[&str]| twinlog::change::TableDescription {
        id: twinlog::change::RelationId(1),
        table: twinlog::change::TableName::new("public", table),
        columns: columns(names),
        identity: twinlog::change::Identity::Columns(vec![0]),
        facts: std::sync::Arc::default(),
    };
    let cases = [
        ("absent", &["id"][..], "pg_dump"),
        (
            "nokey",
            &["id", "a"],
            r#"ALTER TABLE "public"."nokey" ADD PRIMARY KEY ("id");"#,
        ),
        ("late", &["id"], r#"DROP CONSTRAINT "late_pkey""#),
        ("short", &["id", "a", "b"], "the statement is here within seconds"),
        ("computed", &["id", "a"], r#"ALTER COLUMN "a" DROP EXPRESSION"#),
        ("strict", &["id"], r#"ALTER COLUMN "must" DROP NOT NULL"#),
        ("tenants", &["id"], r#"ALTER COLUMN "tenant" SET DEFAULT"#),
        (
            "otherkey",
            &["id", "k"],
            r#"CREATE UNIQUE INDEX ON "public"."otherkey" ("id");"#,
        ),
        ("v", &["id"], "sync.tables"),
    ];
    for (table, names, expected) in cases {
        let error: AgentError = fixture
            .transaction()
            .resolve(&describe(table, names))
            .await
            .unwrap_err();
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(expected), "{table}: {error}: {hint}");
        assert_eq!(error.disposition(), Disposition::Systemic, "{error}");
        assert_eq!(
            error.table().map(|table| table.name.to_string()).as_deref(),
            Some(table)
        );
    }
    // The session is still usable.
    let t = fixture.resolve("short").await;
    fixture.apply(vec![insert(&t, &["1"])]).await;
}

#[tokio::test]
async fn a_type_that_was_changed_and_changed_back_is_written_as_what_it_is_now() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .await
        .with_table("t")
        .await;
    for (kind, value) in [("int", "7"), ("text", "seven")] {
        fixture
            .on_agent(&format!("ALTER TABLE t ALTER a TYPE {kind} USING a::{kind}"))
            .await;
        fixture.resolve("t").await;
        fixture.apply(vec![update(&t, &["1", value])]).await;
        assert_eq!(fixture.lines("SELECT t FROM t").await, [format!("(1,{value})")]);
    }
    assert!(fixture.lines("SELECT key FROM twinlog.failed_rows").await.is_empty());
}
