//! Rows that are read together because they wait for each other: what one of them alone could never do.

use twinlog::agent_db::Item;
use twinlog::change::Change;

use super::fixture::{Fixture, chunk, delete, insert};

fn heal(changes: Vec<Change>) -> Vec<Item> {
    vec![Item::Heal(changes.into_iter().map(chunk).collect())]
}

/// Parks the changes: the Agent DB refuses all rows of its tables meanwhile.
async fn park(fixture: &mut Fixture, tables: &[&str], changes: Vec<Change>) {
    for table in tables {
        let refuse = format!(
            "CREATE FUNCTION no_{table}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
             CREATE TRIGGER no BEFORE INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION no_{table}();
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER no"
        );
        fixture.on_agent(&refuse).await;
    }
    fixture.apply(changes).await;
    for table in tables {
        fixture.on_agent(&format!("DROP TRIGGER no ON {table}")).await;
    }
}

#[tokio::test]
async fn rows_of_two_tables_that_refer_to_each_other_are_written_by_one_statement() {
    let schema = "CREATE TABLE land (id int PRIMARY KEY, capital int NOT NULL);
        CREATE TABLE city (id int PRIMARY KEY, land int NOT NULL REFERENCES land);
        ALTER TABLE land ADD FOREIGN KEY (capital) REFERENCES city";
    let mut fixture = Fixture::without_replica_role(schema).await;
    let (land, city) = (fixture.resolve("land").await, fixture.resolve("city").await);
    let rows = || vec![insert(&land, &["1", "7"]), insert(&city, &["7", "1"])];
    fixture.apply(rows()).await;
    assert_eq!(fixture.parked().await.len(), 2, "each waits for the other");

    let applied = fixture.try_apply_items(heal(rows())).await.unwrap();
    fixture.commit().await;
    assert_eq!(applied.total().healed, 2);
    assert!(fixture.parked().await.is_empty());
}

#[tokio::test]
async fn unique_values_that_rows_have_exchanged_heal_whether_they_may_be_null_or_not() {
    for column in ["int UNIQUE", "int NOT NULL UNIQUE"] {
        let schema =
            format!("CREATE TABLE t (id int PRIMARY KEY, u {column}); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)");
        let (mut fixture, t) = Fixture::without_replica_role(&schema).await.with_table("t").await;
        let rows = || {
            vec![
                insert(&t, &["1", "2"]),
                insert(&t, &["2", "3"]),
                insert(&t, &["3", "1"]),
            ]
        };
        park(&mut fixture, &["t"], rows()).await;
        assert_eq!(fixture.parked().await.len(), 3);

        fixture.try_apply_items(heal(rows())).await.unwrap();
        fixture.commit().await;
        assert_eq!(
            fixture.lines("SELECT u FROM t ORDER BY id").await,
            ["2", "3", "1"],
            "{column}"
        );
        assert!(fixture.parked().await.is_empty());
    }
}

#[tokio::test]
async fn one_bad_row_keeps_those_that_depend_on_it_and_no_others() {
    let schema = "CREATE TABLE node (id int PRIMARY KEY, up int REFERENCES node, n int CHECK (n < 100))";
    let (mut fixture, node) = Fixture::without_replica_role(schema).await.with_table("node").await;
    let row = |id: &str, up: &str, n: &str| insert(&node, &[id, up, n]);
    // 1 ⇄ 2 is a cycle; 4 is bad, 5 refers to it and 6 to 5.
    let rows = || {
        vec![
            row("1", "2", "0"),
            row("2", "1", "0"),
            row("3", "1", "0"),
            row("4", "∅", "100"),
            row("5", "4", "0"),
            row("6", "5", "0"),
        ]
    };
    park(&mut fixture, &["node"], rows()).await;

    let applied = fixture.try_apply_items(heal(rows())).await.unwrap();
    fixture.commit().await;
    assert_eq!(applied.total().healed, 3);
    assert_eq!(
        fixture
            .lines("SELECT key || ' ' || reason FROM twinlog.failed_rows ORDER BY key")
            .await,
        [r#"["4"] 23514"#, r#"["5"] 23503"#, r#"["6"] 23503"#]
    );
}

#[tokio::test]
async fn a_row_goes_only_when_no_parked_row_refers_to_it_where_its_removal_would_cascade() {
    // GIVEN a parked row that has left its parent in the Site DB, and still refers to it here
    let schema = "CREATE TABLE a (id int PRIMARY KEY);
        CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE);
        CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b ON DELETE CASCADE);
        INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1, 1)";
    let mut fixture = Fixture::without_replica_role(schema).await;
    let (a, b) = (fixture.resolve("a").await, fixture.resolve("b").await);
    fixture.resolve("c").await;
    park(&mut fixture, &["b"], vec![insert(&b, &["1", "2"])]).await;

    // WHEN the parent goes
    fixture.apply(vec![delete(&a, &["1"])]).await;

    // THEN it waits, and nothing is lost
    assert_eq!(fixture.parked().await.len(), 2);
    assert_eq!(fixture.lines("SELECT id FROM c").await, ["1"]);
    fixture
        .try_apply_items(heal(vec![insert(&b, &["1", "2"]), delete(&a, &["1"])]))
        .await
        .unwrap();
    fixture.commit().await;
    assert!(fixture.parked().await.is_empty());
    assert_eq!(fixture.lines("SELECT id FROM a").await, ["2"]);
    assert_eq!(fixture.lines("SELECT id FROM c").await, ["1"]);
}
