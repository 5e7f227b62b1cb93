//! Without `session_replication_role`: triggers fire and foreign keys are checked.

use twinlog::retry::Disposition;

use super::fixture::{Fixture, chunk, delete, insert, rekey, update};

const FAMILY: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, n int CHECK (n < 100));
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
    CREATE TABLE grandchild (id int PRIMARY KEY, child int REFERENCES child);";

#[tokio::test]
async fn parents_are_written_before_children_and_deleted_after_them() {
    let mut fixture = Fixture::without_replica_role(FAMILY).await;
    let (parent, child, grandchild) = (
        fixture.resolve("parent").await,
        fixture.resolve("child").await,
        fixture.resolve("grandchild").await,
    );
    // An order that Postgres itself would refuse: all changes of a segment are applied as one.
    let tally = fixture
        .apply(vec![
            insert(&grandchild, &["1", "1"]),
            insert(&child, &["1", "1"]),
            insert(&parent, &["1", "1"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.parked), (3, 0));
    let tally = fixture
        .apply(vec![
            delete(&parent, &["1"]),
            delete(&child, &["1"]),
            delete(&grandchild, &["1"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.parked), (3, 0));
}

#[tokio::test]
async fn children_of_a_parked_parent_wait_for_it() {
    let mut fixture = Fixture::without_replica_role(FAMILY).await;
    let (parent, child) = (fixture.resolve("parent").await, fixture.resolve("child").await);
    let tally = fixture
        .apply(vec![
            insert(&parent, &["1", "100"]),
            insert(&child, &["1", "1"]),
            insert(&parent, &["2", "1"]),
            insert(&child, &["2", "2"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 2));
    assert_eq!(
        fixture.parked().await,
        [r#"["1"] upsert 23514 1"#, r#"["1"] upsert 23503 1"#]
    );
    let waiting = "SELECT next_attempt_at > now() FROM twinlog.failed_rows WHERE reason = '23503'";
    assert_eq!(fixture.lines(waiting).await, ["true"]);
    // The parent is healed: its children are retried at once.
    fixture.apply(vec![chunk(insert(&parent, &["1", "99"]))]).await;
    assert_eq!(fixture.lines(waiting).await, ["false"]);
    let tally = fixture.apply(vec![chunk(insert(&child, &["1", "1"]))]).await;
    assert_eq!(tally.healed, 1);
    assert!(fixture.parked().await.is_empty());
}

#[tokio::test]
async fn a_deferrable_constraint_is_looked_at_when_the_segment_ends_and_only_the_guilty_row_is_parked() {
    let mut fixture = Fixture::without_replica_role(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED,
             u int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    )
    .await;
    let (parent, child) = (fixture.resolve("parent").await, fixture.resolve("child").await);
    let tally = fixture
        .apply(vec![
            insert(&child, &["1", "1", "1"]),
            insert(&child, &["2", "2", "2"]),
            insert(&parent, &["1"]),
            insert(&parent, &["2"]),
            update(&child, &["1", "1", "2"]),
            update(&child, &["2", "2", "1"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.superseded, tally.parked), (4, 2, 0));
    let tally = fixture
        .apply(vec![
            insert(&parent, &["3"]),
            insert(&child, &["3", "9", "3"]),
            insert(&child, &["4", "3", "4"]),
            insert(&child, &["5", "3", "4"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 2));
    assert_eq!(
        fixture.parked().await,
        [r#"["3"] upsert 23503 1"#, r#"["5"] upsert 23505 1"#]
    );
    assert_eq!(fixture.lines("SELECT id FROM child ORDER BY id").await, ["1", "2", "4"]);
}

#[tokio::test]
async fn a_key_change_carries_the_children_that_follow_it() {
    let mut fixture = Fixture::without_replica_role(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE);
         INSERT INTO parent VALUES (1), (3); INSERT INTO child VALUES (1, 1), (3, 3)",
    )
    .await;
    let (parent, child) = (fixture.resolve("parent").await, fixture.resolve("child").await);
    let tally = fixture
        .apply(vec![
            rekey(&parent, &["1"], &["2"]),
            update(&child, &["1", "2"]),
            // A cascade on the Site DB arrives as a change of its own.
            delete(&parent, &["3"]),
            delete(&child, &["3"]),
        ])
        .await;
    assert_eq!((tally.received, tally.parked), (4, 0));
    assert!(tally.balances());
    assert_eq!(fixture.lines("SELECT child FROM child").await, ["(1,2)"]);
}

#[tokio::test]
async fn a_triggers_objection_parks_the_row_that_provoked_it() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.id = 13 THEN RAISE EXCEPTION ''unlucky''; END IF; RETURN NEW; END';
         CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()";
    let (mut fixture, t) = Fixture::without_replica_role(sql).await.with_table("t").await;
    let tally = fixture
        .apply(vec![insert(&t, &["12"]), insert(&t, &["13"]), insert(&t, &["14"])])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 1));
    assert_eq!(
        fixture
            .lines("SELECT reason || ' ' || message FROM twinlog.failed_rows")
            .await,
        ["P0001 unlucky"]
    );
    // With the right to set session_replication_role the trigger does not fire.
    let (mut fixture, t) = Fixture::new(sql).await.with_table("t").await;
    assert_eq!(fixture.apply(vec![insert(&t, &["13"])]).await.applied, 1);
}

#[tokio::test]
async fn a_session_is_a_replica_if_and_only_if_its_role_may_set_that() {
    let witness = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE witness (role text);
         CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.witness VALUES (current_setting(''session_replication_role''));
              RETURN NULL; END';
         CREATE TRIGGER witness AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION witness();
         ALTER TABLE t ENABLE ALWAYS TRIGGER witness";
    for (mut fixture, expected) in [
        (Fixture::new(witness).await, "replica"),
        (Fixture::without_replica_role(witness).await, "origin"),
    ] {
        let t = fixture.resolve("t").await;
        fixture.apply(vec![insert(&t, &["1"])]).await;
        assert_eq!(fixture.lines("SELECT role FROM witness").await, [expected]);
    }
}

#[tokio::test]
async fn row_level_security_holds_instead_of_hiding_rows() {
    let mut fixture = Fixture::without_replica_role(
        "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1);
         CREATE POLICY none ON t USING (false)",
    )
    .await;
    fixture.on_agent("ALTER TABLE t ENABLE ROW LEVEL SECURITY").await;
    let role = format!("plain_{}", fixture.db.agent.name);
    let bypasses = format!("SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = '{role}'");
    assert_eq!(fixture.lines(&bypasses).await, ["false"]);
    let description = fixture.describe("t").await;
    let error = fixture.applier().resolve(&description).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Systemic);
    assert_eq!(
        error.hint(),
        Some(format!(
            "in the Agent DB, as a superuser: ALTER ROLE \"{role}\" BYPASSRLS;"
        ))
    );
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["1"]);

    // With the right that the hint names, a new session applies the same change.
    fixture.on_agent(&format!("ALTER ROLE {role} BYPASSRLS")).await;
    fixture.reconnect().await;
    let t = fixture.resolve("t").await;
    assert_eq!(fixture.apply(vec![delete(&t, &["1"])]).await.applied, 1);
    assert!(fixture.lines("SELECT id FROM t").await.is_empty());
}

#[tokio::test]
async fn a_row_that_comes_back_under_another_spelling_of_its_key_stays() {
    let (mut fixture, t) = Fixture::without_replica_role(
        "CREATE TABLE t (id numeric PRIMARY KEY, a text); INSERT INTO t VALUES (1.0, 'old')",
    )
    .await
    .with_table("t")
    .await;
    let tally = fixture
        .apply(vec![delete(&t, &["1.0"]), insert(&t, &["1.00", "new"])])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 0));
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(1.00,new)"]);
}

#[tokio::test]
async fn a_row_that_comes_back_in_other_letters_stays_where_the_collation_takes_them_for_equal() {
    let (mut fixture, t) = Fixture::without_replica_role(
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE t (id text COLLATE ci PRIMARY KEY, a text); INSERT INTO t VALUES ('ABC', 'old')",
    )
    .await
    .with_table("t")
    .await;
    let tally = fixture
        .apply(vec![delete(&t, &["ABC"]), insert(&t, &["abc", "new"])])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 0));
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(abc,new)"]);
}
