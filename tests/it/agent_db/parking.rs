//! Rows that the Agent DB refuses: only these rows stop, and none of their changes is lost.

use std::sync::Arc;
use std::time::Duration;

use twinlog::agent_db::{Control, Item, Tally};
use twinlog::change::Relation;

use super::fixture::{Fixture, chunk, delete, insert, rekey, settings, truncate, update};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n < 100), v varchar(3), u int UNIQUE)";

/// A table in which the rows of these keys are parked: their `n` is too large.
async fn with_parked(keys: &[&str]) -> (Fixture, Arc<Relation>) {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    let rows = keys.iter().map(|key| insert(&t, &[key, "100", "a", "∅"]));
    fixture.apply(rows.collect()).await;
    (fixture, t)
}

#[tokio::test]
async fn a_refused_row_is_parked_and_the_other_rows_are_applied() {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    let mut changes: Vec<_> = (0..50)
        .map(|id| insert(&t, &[&id.to_string(), "1", "abc", "∅"]))
        .collect();
    changes[17] = insert(&t, &["17", "100", "abc", "∅"]);
    changes[31] = insert(&t, &["31", "1", "abcd", "∅"]);
    changes[49] = insert(&t, &["49", "not a number", "abc", "∅"]);
    let applied = fixture.try_apply(changes).await.unwrap();
    fixture.commit().await;
    assert_eq!(applied.parked_now[&t.table], 3);
    assert_eq!(
        applied.total(),
        Tally {
            received: 50,
            applied: 47,
            parked: 3,
            ..Tally::default()
        }
    );
    assert_eq!(fixture.lines("SELECT count(*) FROM t").await, ["47"]);
    assert_eq!(
        fixture.parked().await,
        [
            r#"["17"] upsert 23514 1"#,
            r#"["31"] upsert 22001 1"#,
            r#"["49"] upsert 22P02 1"#
        ]
    );
    assert_eq!(
        fixture
            .lines("SELECT image::text || ' ' || constraint_name || ' ' || first_lsn FROM twinlog.failed_rows WHERE reason = '23514'")
            .await,
        [r#"{"n": "100", "u": null, "v": "abc", "id": "17"} t_n_check 0/2"#]
    );
}

#[tokio::test]
async fn later_changes_fold_into_the_entry_of_a_parked_key() {
    // GIVEN a parked key
    let (mut fixture, t) = with_parked(&["1"]).await;
    let before = fixture
        .lines("SELECT next_attempt_at > now() FROM twinlog.failed_rows")
        .await;

    // WHEN the stream changes it again
    let tally = fixture
        .apply(vec![
            update(&t, &["1", "=", "b", "="]),
            insert(&t, &["2", "1", "b", "∅"]),
        ])
        .await;

    // THEN the entry has both changes
    assert_eq!((tally.parked, tally.applied), (1, 1));
    assert_eq!(fixture.parked().await, [r#"["1"] upsert 23514 2"#]);
    assert_eq!(
        fixture
            .lines("SELECT image->>'v' || (image->>'n') FROM twinlog.failed_rows")
            .await,
        ["b100"]
    );
    // A row that just failed waits; a row that has changed since is retried at once.
    let after = fixture
        .lines("SELECT next_attempt_at > now() FROM twinlog.failed_rows")
        .await;
    assert_eq!((before, after), (vec!["true".to_owned()], vec!["false".to_owned()]));
    assert_eq!(
        fixture
            .lines("SELECT first_lsn < last_lsn FROM twinlog.failed_rows")
            .await,
        ["true"]
    );

    fixture.apply(vec![delete(&t, &["1"])]).await;
    fixture.apply(vec![update(&t, &["1", "=", "c", "="])]).await;
    assert_eq!(fixture.parked().await, [r#"["1"] partial 23514 4"#]);
    assert_eq!(
        fixture.lines("SELECT image FROM twinlog.failed_rows").await,
        [r#"{"v": "c", "id": "1"}"#]
    );
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["2"]);
}

#[tokio::test]
async fn a_parked_key_is_healed_from_the_site_row() {
    let (mut fixture, t) = with_parked(&["1", "2"]).await;
    let tally = fixture
        .apply(vec![
            chunk(insert(&t, &["1", "99", "a", "∅"])),
            chunk(delete(&t, &["2"])),
            // After the heal the key is like any other again.
            update(&t, &["1", "=", "b", "="]),
        ])
        .await;
    assert_eq!(
        tally,
        Tally {
            received: 1,
            applied: 1,
            healed: 2,
            ..Tally::default()
        }
    );
    assert!(fixture.parked().await.is_empty());
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(1,99,b,)"]);
    assert_eq!(fixture.lines("SELECT healed FROM twinlog.accounting").await, ["2"]);
}

#[tokio::test]
async fn a_heal_that_is_refused_waits_longer_and_affects_no_other_row() {
    let (mut fixture, t) = with_parked(&["1", "2"]).await;
    for attempt in 1..=3 {
        let tally = fixture
            .apply(vec![
                chunk(insert(&t, &["1", "101", "long", "∅"])),
                insert(&t, &["3", &attempt.to_string(), "a", "∅"]),
            ])
            .await;
        assert_eq!((tally.healed, tally.applied, tally.parked), (0, 1, 0));
    }
    assert_eq!(
        fixture
            .lines(
                "SELECT attempts || ' ' || changes || ' ' || reason || ' '
                     || (next_attempt_at - now() BETWEEN interval '115 s' AND interval '245 s')
                 FROM twinlog.failed_rows ORDER BY id"
            )
            .await[0],
        "3 1 22001 true"
    );
    let applied = fixture
        .try_apply(vec![
            chunk(insert(&t, &["1", "1", "a", "∅"])),
            chunk(insert(&t, &["2", "100", "a", "∅"])),
        ])
        .await
        .unwrap();
    assert_eq!((applied.total().healed, applied.parked_now[&t.table]), (1, 1));
}

#[tokio::test]
async fn a_refused_key_change_parks_both_keys() {
    let (mut fixture, t) = Fixture::new(&format!("{TABLE}; INSERT INTO t VALUES (1, 1, 'a', 1), (5, 5, 'e', 5)"))
        .await
        .with_table("t")
        .await;
    let tally = fixture
        .apply(vec![
            rekey(&t, &["1"], &["2", "100", "a", "1"]),
            update(&t, &["5", "6", "e", "5"]),
        ])
        .await;
    assert_eq!((tally.received, tally.applied, tally.parked), (2, 1, 1));
    assert_eq!(
        fixture.parked().await,
        [r#"["1"] delete 23514 1"#, r#"["2"] upsert 23514 1"#]
    );

    let tally = fixture
        .apply(vec![
            // The stream moves the parked key on.
            rekey(&t, &["2"], &["3", "7", "a", "1"]),
        ])
        .await;
    assert_eq!(tally.parked, 1);

    let tally = fixture
        .apply(vec![
            chunk(delete(&t, &["1"])),
            chunk(delete(&t, &["2"])),
            chunk(insert(&t, &["3", "7", "a", "1"])),
        ])
        .await;
    assert_eq!(tally.healed, 3);
    assert_eq!(
        fixture.lines("SELECT t FROM t ORDER BY id").await,
        ["(3,7,a,1)", "(5,6,e,5)"]
    );
    assert!(fixture.parked().await.is_empty());
}

#[tokio::test]
async fn a_key_that_is_parked_within_the_segment_takes_its_later_changes_with_it() {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    let tally = fixture
        .apply(vec![
            insert(&t, &["1", "100", "a", "∅"]),
            insert(&t, &["2", "1", "a", "∅"]),
            update(&t, &["1", "101", "b", "∅"]),
            update(&t, &["2", "2", "b", "∅"]),
        ])
        .await;
    assert_eq!((tally.received, tally.applied, tally.parked), (4, 2, 2));
    assert_eq!(fixture.parked().await, [r#"["1"] upsert 23514 2"#]);
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(2,2,b,)"]);
}

#[tokio::test]
async fn a_bad_value_that_is_mended_within_the_segment_is_never_seen() {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    let tally = fixture
        .apply(vec![
            insert(&t, &["1", "100", "a", "∅"]),
            update(&t, &["1", "99", "a", "∅"]),
        ])
        .await;
    assert_eq!((tally.applied, tally.superseded, tally.parked), (1, 1, 0));
}

#[tokio::test]
async fn a_replay_forgets_what_the_first_try_had_parked_and_healed() {
    let (mut fixture, t) = Fixture::new(&format!("{TABLE}; INSERT INTO t VALUES (8, 1, 'a', NULL)"))
        .await
        .with_table("t")
        .await;
    fixture.apply(vec![insert(&t, &["1", "100", "a", "∅"])]).await;
    let tally = fixture
        .apply(vec![
            // Parked because its base row is missing, in a round of its own.
            update(&t, &["7", "=", "x", "="]),
            rekey(&t, &["7"], &["6", "=", "x", "="]),
            // Healed, and changed again.
            chunk(insert(&t, &["1", "1", "a", "∅"])),
            update(&t, &["1", "=", "b", "="]),
            // Refused: the whole segment is applied again, in order.
            insert(&t, &["9", "100", "a", "∅"]),
            delete(&t, &["8"]),
        ])
        .await;
    assert_eq!(
        tally,
        Tally {
            received: 5,
            applied: 2,
            parked: 3,
            healed: 1,
            ..Tally::default()
        }
    );
    assert_eq!(
        fixture.parked().await,
        [
            r#"["7"] delete TW001 2"#,
            r#"["6"] partial TW002 1"#,
            r#"["9"] upsert 23514 1"#
        ]
    );
    assert_eq!(fixture.lines("SELECT t FROM t").await, ["(1,1,b,)"]);
}

#[tokio::test]
async fn a_truncate_forgets_the_tables_parked_rows() {
    let (mut fixture, t) = with_parked(&["1"]).await;
    fixture
        .try_apply_items(vec![
            Item::Change(insert(&t, &["2", "100", "a", "∅"])),
            truncate(&[&t]),
            Item::Change(insert(&t, &["3", "100", "a", "∅"])),
            Item::Change(insert(&t, &["1", "1", "a", "∅"])),
        ])
        .await
        .unwrap();
    fixture.commit().await;
    assert_eq!(fixture.parked().await, [r#"["3"] upsert 23514 1"#]);
    assert_eq!(fixture.lines("SELECT id FROM t").await, ["1"]);
}

#[tokio::test]
async fn a_rolled_back_transaction_parks_nothing() {
    let (mut fixture, t) = with_parked(&["1"]).await;
    fixture
        .try_apply(vec![
            insert(&t, &["2", "100", "a", "∅"]),
            chunk(insert(&t, &["1", "1", "a", "∅"])),
        ])
        .await
        .unwrap();
    fixture.rollback().await.unwrap();
    let applied = fixture
        .try_apply(vec![
            insert(&t, &["2", "1", "a", "∅"]),
            update(&t, &["1", "1", "a", "∅"]),
        ])
        .await
        .unwrap();
    fixture.commit().await;
    let tally = applied.total();
    assert_eq!((tally.applied, tally.parked, applied.parked_now[&t.table]), (1, 1, 1));
    assert_eq!(fixture.parked().await, [r#"["1"] upsert 23514 2"#]);
}

#[tokio::test]
async fn a_new_session_knows_what_is_parked() {
    let (mut fixture, _) = with_parked(&["1"]).await;
    fixture.reconnect().await;
    let t = fixture.resolve("t").await;
    let applied = fixture
        .try_apply(vec![update(&t, &["1", "=", "b", "="])])
        .await
        .unwrap();
    assert_eq!((applied.total().parked, applied.parked_now[&t.table]), (1, 1));
}

#[tokio::test]
async fn too_many_refused_rows_hold_the_table_and_lose_nothing() {
    let (mut fixture, t) = Fixture::with(
        TABLE,
        twinlog::agent_db::ApplierSettings {
            max_failed_rows: 5,
            ..settings()
        },
    )
    .await
    .with_table("t")
    .await;
    let changes = (0..6)
        .map(|id| Item::Change(insert(&t, &[&id.to_string(), "100", "a", "∅"])))
        .collect();
    let reason = fixture.holds(changes).await;
    assert!(reason.contains("more than 5 failed rows"), "{reason}");
    assert!(fixture.parked().await.is_empty());
    // Held until it is released.
    let tally = fixture.apply(vec![insert(&t, &["7", "1", "a", "∅"])]).await;
    assert_eq!((tally.held, tally.applied), (1, 0));
    fixture.release(&t);
    let tally = fixture.apply(vec![insert(&t, &["7", "1", "a", "∅"])]).await;
    assert_eq!((tally.held, tally.applied), (0, 1));
}

#[tokio::test]
async fn a_revoked_right_holds_and_never_parks() {
    let (mut fixture, t) = Fixture::without_replica_role(TABLE).await.with_table("t").await;
    let role = format!("plain_{}", fixture.db.agent.name);
    fixture.on_agent(&format!("REVOKE UPDATE ON t FROM {role}")).await;
    let reason = fixture
        .holds(vec![
            Item::Change(insert(&t, &["1", "100", "a", "∅"])),
            Item::Change(insert(&t, &["2", "1", "a", "∅"])),
        ])
        .await;
    // The statement is ready to paste.
    let grant = &reason[reason.find("GRANT").unwrap()..=reason.find(';').unwrap()];
    fixture.on_agent(grant).await;
    fixture.release(&t);
    let tally = fixture.apply(vec![insert(&t, &["2", "1", "a", "∅"])]).await;
    assert_eq!((tally.applied, tally.parked), (1, 0));
}

#[tokio::test]
async fn a_table_dropped_under_the_daemon_holds_and_never_parks() {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    fixture.apply(vec![insert(&t, &["1", "1", "a", "∅"])]).await;
    fixture.on_agent("ALTER TABLE t DROP COLUMN v").await;
    let insert = || vec![Item::Change(insert(&t, &["2", "1", "a", "∅"]))];
    fixture.holds(insert()).await;
    fixture.on_agent("DROP TABLE t").await;
    fixture.release(&t);
    let reason = fixture.holds(insert()).await;
    assert!(reason.contains("public.t"), "{reason}");
}

#[tokio::test]
async fn a_not_null_column_that_only_the_agent_db_has_holds_and_never_parks() {
    let (mut fixture, t) = Fixture::new(TABLE).await.with_table("t").await;
    fixture.on_agent("ALTER TABLE t ADD COLUMN must int NOT NULL").await;
    let reason = fixture
        .holds(vec![Item::Change(insert(&t, &["2", "1", "a", "∅"]))])
        .await;
    assert!(reason.contains("column must"), "{reason}");
    // A NULL that the stream sends is the row's fault, so the row is parked.
    fixture.release(&t);
    fixture
        .on_agent("ALTER TABLE t DROP COLUMN must; ALTER TABLE t ALTER COLUMN n SET NOT NULL")
        .await;
    let tally = fixture.apply(vec![insert(&t, &["2", "∅", "a", "∅"])]).await;
    assert_eq!(tally.parked, 1);
}

#[tokio::test]
async fn a_key_with_every_odd_character_is_parked_and_found_again() {
    let (mut fixture, t) = Fixture::new("CREATE TABLE t (k text PRIMARY KEY, n int CHECK (n < 100))")
        .await
        .with_table("t")
        .await;
    let odd = "a\"b\\c\u{1F600}\n[\",";
    fixture.apply(vec![insert(&t, &[odd, "100"])]).await;
    let control = Control::connect(&fixture.db.agent.database_url(), "slot", "twinlog control")
        .await
        .unwrap();
    fixture
        .on_agent("UPDATE twinlog.failed_rows SET next_attempt_at = now()")
        .await;
    let due = control.due_failed_rows(10).await.unwrap();
    assert!(due.is_empty(), "the table is not synchronised (any more)");
    let record = twinlog::agent_db::TableRecord::new(t.table.clone());
    fixture
        .applier()
        .write_table(&twinlog::agent_db::TableChange::Saved(record))
        .await
        .unwrap();
    let due = control.due_failed_rows(10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((&due[0].table, &due[0].key), (&t.table, &super::fixture::key(&[odd])));
    assert_eq!(control.next_failed_row_due().await.unwrap(), Some(Duration::ZERO));
    assert_eq!(control.failed_counts().await.unwrap(), [(t.table.clone(), 1)]);
    fixture.apply(vec![chunk(insert(&t, &[odd, "1"]))]).await;
    assert_eq!(control.next_failed_row_due().await.unwrap(), None);
}
