//! Planned and applied is the same as one by one.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::agent_db::apply::sql::Kind;
use crate::change::{ColumnValue, Origin, RelationId, TableName, overlay};

type Table = BTreeMap<Key, Row>;

fn relation() -> Arc<Relation> {
    Arc::new(Relation {
        id: RelationId(1),
        table: TableName::new("public", "t"),
        columns: ["id", "a", "b"].map(Arc::from).into(),
        key: [0].into(),
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
/// nothing (the sink parks the former and inserts full images of the latter).
fn write(table: &mut Table, line: &Line<'_>, kind: &Kind) {
    match kind {
        Kind::Copy | Kind::Upsert { .. } => {
            table.insert(line.change.key.clone(), line.row.unwrap().clone());
        }
        Kind::Delete => {
            table.remove(line.key);
        }
        Kind::Partial { .. } => {
            if let Some(base) = table.get_mut(line.key) {
                overlay(base, line.row.unwrap().clone());
            }
        }
        Kind::Move { .. } => {
            if let Some(mut base) = table.remove(line.key) {
                overlay(&mut base, line.row.unwrap().clone());
                table.insert(line.change.key.clone(), base);
            } else if line.row.unwrap().is_full() {
                table.insert(line.change.key.clone(), line.row.unwrap().clone());
            }
        }
    }
}

fn write_round(table: &mut Table, round: &Round<'_>) {
    for part in &round.tables {
        for group in Group::of_moves(part).iter().chain(&Group::of_rows(part, |_| true)) {
            let keys: AHashSet<_> = group.lines.iter().map(|line| line.key).collect();
            assert_eq!(keys.len(), group.lines.len(), "a key twice in one statement");
            // Backwards: the order within a statement must not matter.
            for line in group.lines.iter().rev() {
                write(table, line, &group.kind);
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
            write(&mut one_by_one, &group.lines[0], &group.kind);
        }

        let mut round = Round::default();
        for change in &changes {
            while matches!(round.offer(change, false), Offer::WriteFirst) {
                let part = round.take(&change.relation);
                prop_assert!(!part.tables.is_empty());
                write_round(&mut planned, &part);
            }
        }
        write_round(&mut planned, &round);
        prop_assert_eq!(&planned, &one_by_one);

        let mut run = Run::default();
        let mut write_group = |group: Group<'_>| {
            for line in &group.lines {
                write(&mut runs, line, &group.kind);
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
fn each_change_is_in_the_round_or_reported_as_folded() {
    let relation = relation();
    let changes: Vec<Change> = (0..10_u8)
        .map(|index| Change {
            relation: Arc::clone(&relation),
            key: key(index % 3),
            operation: Operation::Insert(row(index % 3, [ColumnValue::Null, ColumnValue::Null])),
            origin: Origin::Stream,
        })
        .collect();
    let mut round = Round::default();
    let folded = changes
        .iter()
        .filter(|change| matches!(round.offer(change, false), Offer::Folded(_)))
        .count();
    let groups = Group::of_rows(&round.tables[0], |_| true);
    assert_eq!((folded, groups.len(), groups[0].lines.len()), (7, 1, 3));
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
    let mut round = Round::default();
    assert!(matches!(round.offer(&heal, true), Offer::Taken));
    assert!(matches!(round.offer(&later, false), Offer::WriteFirst));
    assert_eq!(Group::of_heals(&round.take(&relation).tables[0]).len(), 1);
    assert!(matches!(round.offer(&later, false), Offer::Taken));
}
