//! Planned and applied is the same as one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashSet;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::agent_db::apply::sql::StatementKind;
use crate::change::{
    Change, ColumnValue, Key, Operation, Origin, Relation, RelationId, Row, RowKey, TableName, overlay,
};

type Table = BTreeMap<Key, Row>;

fn relation() -> Arc<Relation> {
    Arc::new(Relation {
        id: RelationId(1),
        table: TableName::new("public", "t"),
        columns: ["id", "a", "b"].map(Arc::from).into(),
        key: RowKey::Columns([0].into()),
    })
}

fn key(id: u8) -> Key {
    Key([Bytes::from(id.to_string())].into())
}

fn value() -> impl Strategy<Value = ColumnValue> {
    prop_oneof![
        2 => "[a-c]{1,2}".prop_map(|text| ColumnValue::Text(Bytes::from(text))),
        1 => Just(ColumnValue::Unchanged),
    ]
}

fn row(id: u8, values: [ColumnValue; 2]) -> Row {
    let [a, b] = values;
    Row([ColumnValue::Text(Bytes::from(id.to_string())), a, b].into())
}

fn full(values: [ColumnValue; 2]) -> [ColumnValue; 2] {
    values.map(|value| match value {
        ColumnValue::Unchanged => ColumnValue::Null,
        other => other,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let relation = relation();
    (0_u8..4, 0_u8..4, [value(), value()], 0_u8..5).prop_map(move |(id, other, values, operation)| Change {
        relation: Arc::clone(&relation),
        key: key(id),
        operation: match operation {
            0 => Operation::Insert(row(id, full(values))),
            1 => Operation::Delete,
            2 => Operation::Update {
                old_key: Some(key(other)),
                row: row(id, values),
            },
            _ => Operation::Update {
                old_key: None,
                row: row(id, values),
            },
        },
        origin: Origin::Stream,
    })
}

/// What the database would hold after a statement on one row: partial updates and moves of missing rows touch
/// nothing (the writer parks the former and inserts full images of the latter).
fn apply(table: &mut Table, write: &RowWrite<'_>, kind: &StatementKind) {
    match kind {
        StatementKind::Copy | StatementKind::Upsert { .. } => {
            table.insert(write.change.key.clone(), write.row.unwrap().clone());
        }
        StatementKind::Look(_) | StatementKind::LookAtIdentity(_) => unreachable!("it writes nothing"),
        StatementKind::Delete => {
            table.remove(write.key);
        }
        StatementKind::Partial { .. } => {
            if let Some(base) = table.get_mut(write.key) {
                overlay(base, write.row.unwrap().clone());
            }
        }
        StatementKind::Insert
        | StatementKind::DeleteOne
        | StatementKind::UpdateOne
        | StatementKind::Reinsert { .. }
        | StatementKind::SetIdentity { .. }
        | StatementKind::Count => {
            panic!("rows with a key are not counted")
        }
        StatementKind::Move { .. } => {
            if let Some(mut base) = table.remove(write.key) {
                overlay(&mut base, write.row.unwrap().clone());
                table.insert(write.change.key.clone(), base);
            } else if write.row.unwrap().is_full() {
                table.insert(write.change.key.clone(), write.row.unwrap().clone());
            }
        }
    }
}

fn write_plan(table: &mut Table, plan: &WritePlan<'_>) {
    for part in &plan.tables {
        for group in Group::of_moves(part).iter().chain(&Group::of_rows(part, |_| true)) {
            let keys: AHashSet<_> = group.rows.iter().map(|write| write.key).collect();
            assert_eq!(keys.len(), group.rows.len(), "a key twice in one statement");
            // Backwards: the order within a statement must not matter.
            for write in group.rows.iter().rev() {
                apply(table, write, &group.kind);
            }
        }
    }
}

proptest! {
    #[test]
    fn planned_and_applied_equals_one_by_one(
        start in prop::collection::btree_map(0_u8..4, [value(), value()], 0..4),
        changes in prop::collection::vec(change(), 1..24),
    ) {
        let start: Table = start.into_iter().map(|(id, values)| (key(id), row(id, full(values)))).collect();
        let (mut one_by_one, mut planned, mut runs) = (start.clone(), start.clone(), start);
        for change in &changes {
            let group = Group::of_one(change, false);
            apply(&mut one_by_one, &group.rows[0], &group.kind);
        }

        let mut plan = WritePlan::default();
        for change in &changes {
            while matches!(plan.offer(change, false), Offer::WriteFirst) {
                let part = plan.take(&change.relation);
                prop_assert!(!part.tables.is_empty());
                write_plan(&mut planned, &part);
            }
        }
        write_plan(&mut planned, &plan);
        prop_assert_eq!(&planned, &one_by_one);

        let mut run = OrderedRun::default();
        let mut write_group = |group: Group<'_>| {
            for write in &group.rows {
                apply(&mut runs, write, &group.kind);
            }
        };
        for change in &changes {
            while let Some(group) = run.offer(change, false) {
                write_group(group);
            }
        }
        if let Some(group) = run.take() {
            write_group(group);
        }
        prop_assert_eq!(&runs, &one_by_one);
    }
}

#[test]
fn each_change_is_in_the_plan_or_reported_as_folded() {
    let relation = relation();
    let changes: Vec<Change> = (0..10_u8)
        .map(|index| Change {
            relation: Arc::clone(&relation),
            key: key(index % 3),
            operation: Operation::Insert(row(index % 3, [ColumnValue::Null, ColumnValue::Null])),
            origin: Origin::Stream,
        })
        .collect();
    let mut plan = WritePlan::default();
    let folded = changes
        .iter()
        .filter(|change| matches!(plan.offer(change, false), Offer::Folded(_)))
        .count();
    let groups = Group::of_rows(&plan.tables[0], |_| true);
    assert_eq!((folded, groups.len(), groups[0].rows.len()), (7, 1, 3));
}

#[test]
fn a_change_of_a_key_being_healed_waits_for_the_outcome() {
    let relation = relation();
    let change = |origin| Change {
        relation: Arc::clone(&relation),
        key: key(1),
        operation: Operation::Delete,
        origin,
    };
    let (heal, later) = (change(Origin::Chunk), change(Origin::Stream));
    let mut plan = WritePlan::default();
    assert!(matches!(plan.offer(&heal, true), Offer::Taken));
    assert!(matches!(plan.offer(&later, false), Offer::WriteFirst));
    assert_eq!(Group::of_heals(&plan.take(&relation).tables[0]).len(), 1);
    assert!(matches!(plan.offer(&later, false), Offer::Taken));
}

#[test]
fn changes_of_equal_rows_cancel_each_other_and_a_count_stands_alone() {
    let relation = Arc::new(Relation {
        id: RelationId(2),
        table: TableName::new("public", "n"),
        columns: ["a"].map(Arc::from).into(),
        key: RowKey::WholeRow,
    });
    let of = |value: &'static str, operation: fn(Row) -> Operation| {
        let row = Row([ColumnValue::Text(Bytes::from_static(value.as_bytes()))].into());
        Change {
            relation: Arc::clone(&relation),
            key: relation.key_of(&row).unwrap(),
            operation: operation(row),
            origin: Origin::Stream,
        }
    };
    let (insert, delete) = (Operation::Insert as fn(Row) -> _, Operation::DeleteOne as fn(Row) -> _);
    let changes = [
        of("x", insert),
        of("x", insert),
        of("y", delete),
        of("x", delete),
        of("y", delete),
        of("z", insert),
        of("z", delete),
        of("x", insert),
    ];
    let mut plan = WritePlan::default();
    let cancelled = changes
        .iter()
        .filter(|change| matches!(plan.offer(change, false), Offer::Cancelled(_)))
        .count();
    assert_eq!(cancelled, 2);
    let groups = Group::of_counted(&plan.tables[0], true);
    let rows: Vec<(&StatementKind, usize)> = groups.iter().map(|group| (&group.kind, group.rows.len())).collect();
    assert_eq!(rows, [(&StatementKind::Insert, 2), (&StatementKind::DeleteOne, 2)]);

    let count = Change {
        origin: Origin::Chunk,
        ..of("x", |row| Operation::Count { row, rows: 7 })
    };
    assert!(matches!(plan.offer(&count, false), Offer::WriteFirst));
    let mut plan = WritePlan::default();
    assert!(matches!(plan.offer(&count, false), Offer::Taken));
    assert!(matches!(plan.offer(&changes[0], false), Offer::WriteFirst));
}
