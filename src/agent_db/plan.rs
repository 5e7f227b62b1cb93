//! Which changes can be written together: pure.
//!
//! A [`Round`] folds each key's changes into one, column by column, so that a statement never meets a key twice (P25)
//! and an unchanged value is never lost (P20). Rows of one round have distinct keys, so their order does not matter to
//! the result; what would matter ends the round of that table first:
//!
//! - a key change whose old or new key already has something in the round,
//! - a partial image after a delete of the key: it has no base and must be looked at in its own place,
//! - a chunk's row for a parked key, whose outcome decides what the key's next change means,
//! - another set of columns for the table,
//! - a truncate (ends the rounds of all tables).
//!
//! What does matter to secondary unique indexes and foreign keys is not known here: where the database refuses a round,
//! the sink replays the segment in exact order with [`Group`]s (P24).

use std::sync::Arc;

use ahash::AHashSet;
use indexmap::IndexMap;
use indexmap::map;

use super::sql::Kind;
use crate::change::{Change, Coalesced, Key, Operation, Origin, Relation, Row};

/// What a key's folded changes come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image<'e> {
    /// The row's full image.
    Upsert(&'e Row),
    /// Columns to set on a row that must exist.
    Partial(&'e Row),
    /// The row is gone.
    Delete,
}

/// A key's changes within a round.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    folded: Folded<'a>,
    /// The last of them: decides how the result is counted.
    pub last: &'a Change,
}

#[derive(Debug)]
enum Folded<'a> {
    /// One change stands for all: nothing is copied.
    One(&'a Operation),
    /// A partial image was laid over an earlier one.
    Many(Coalesced),
}

impl Entry<'_> {
    /// What they come to.
    pub(super) fn image(&self) -> Image<'_> {
        match &self.folded {
            Folded::One(operation) => image(operation),
            Folded::Many(Coalesced::Upsert(row)) => Image::Upsert(row),
            Folded::Many(Coalesced::Partial(row)) => Image::Partial(row),
            Folded::Many(Coalesced::Delete) => Image::Delete,
        }
    }
}

/// What an operation that keeps its key comes to.
pub(super) fn image(operation: &Operation) -> Image<'_> {
    match operation {
        Operation::Insert(row) => Image::Upsert(row),
        Operation::Update { row, .. } if row.is_full() => Image::Upsert(row),
        Operation::Update { row, .. } => Image::Partial(row),
        Operation::Delete => Image::Delete,
    }
}

/// The old key and the new image, where a change moves a row to another key.
pub(super) fn moved(change: &Change) -> Option<(&Key, &Row)> {
    match &change.operation {
        Operation::Update {
            old_key: Some(old),
            row,
        } if *old != change.key => Some((old, row)),
        _ => None,
    }
}

/// What can be written together.
#[derive(Debug, Default)]
pub(super) struct Round<'a> {
    /// By table.
    pub tables: Vec<TableRound<'a>>,
}

/// What can be written together in one table: the moves first, then rows, then heals.
#[derive(Debug)]
pub(super) struct TableRound<'a> {
    /// The table.
    pub relation: &'a Arc<Relation>,
    /// Changed keys; no key is in two of them.
    pub moves: Vec<&'a Change>,
    touched_by_moves: AHashSet<&'a Key>,
    /// Rows by key, folded.
    pub rows: IndexMap<&'a Key, Entry<'a>, ahash::RandomState>,
    /// Rows of a chunk whose key is parked: each may be refused again without harm to the others.
    pub heals: Vec<&'a Change>,
    touched_by_heals: AHashSet<&'a Key>,
}

/// What became of a change that was offered to a round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Offer<'a> {
    /// It is in the round.
    Taken,
    /// It is in the round, and this earlier change is now part of it.
    Folded(&'a Change),
    /// Write this table's round first, then offer it again.
    WriteFirst,
}

impl<'a> Round<'a> {
    /// Offers the next change. `heal`: it comes from a chunk and its key is parked.
    pub(super) fn offer(&mut self, change: &'a Change, heal: bool) -> Offer<'a> {
        let position = self.position(&change.relation).unwrap_or_else(|| {
            self.tables.push(TableRound::new(&change.relation));
            self.tables.len() - 1
        });
        let table = &mut self.tables[position];
        if !Arc::ptr_eq(table.relation, &change.relation) && table.relation != &change.relation {
            return Offer::WriteFirst;
        }
        table.offer(change, heal)
    }

    /// Whether the round is about to heal a key of the change: only then is it known what the change means.
    pub(super) fn is_healing(&self, change: &Change) -> bool {
        self.position(&change.relation).is_some_and(|position| {
            let heals = &self.tables[position].touched_by_heals;
            heals.contains(&change.key) || moved(change).is_some_and(|(old, _)| heals.contains(old))
        })
    }

    /// Takes one table's round out, to be written.
    pub(super) fn take(&mut self, relation: &Arc<Relation>) -> Self {
        Self {
            tables: self
                .position(relation)
                .map(|position| self.tables.swap_remove(position))
                .into_iter()
                .collect(),
        }
    }

    fn position(&self, relation: &Arc<Relation>) -> Option<usize> {
        self.tables
            .iter()
            .position(|table| Arc::ptr_eq(table.relation, relation) || table.relation.table == relation.table)
    }
}

impl<'a> TableRound<'a> {
    fn new(relation: &'a Arc<Relation>) -> Self {
        Self {
            relation,
            moves: Vec::new(),
            touched_by_moves: AHashSet::new(),
            rows: IndexMap::default(),
            heals: Vec::new(),
            touched_by_heals: AHashSet::new(),
        }
    }

    fn offer(&mut self, change: &'a Change, heal: bool) -> Offer<'a> {
        if let Some((old, _)) = moved(change) {
            if [old, &change.key].iter().any(|key| self.touches(key)) {
                return Offer::WriteFirst;
            }
            self.touched_by_moves.extend([old, &change.key]);
            self.moves.push(change);
            return Offer::Taken;
        }
        if heal {
            if self.touches(&change.key) {
                return Offer::WriteFirst;
            }
            self.touched_by_heals.insert(&change.key);
            self.heals.push(change);
            return Offer::Taken;
        }
        if self.touched_by_heals.contains(&change.key) {
            return Offer::WriteFirst;
        }
        match self.rows.entry(&change.key) {
            map::Entry::Vacant(vacant) => {
                vacant.insert(Entry {
                    folded: Folded::One(&change.operation),
                    last: change,
                });
                Offer::Taken
            }
            map::Entry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                if matches!(image(&change.operation), Image::Partial(_)) {
                    if entry.image() == Image::Delete {
                        return Offer::WriteFirst;
                    }
                    let earlier = std::mem::replace(&mut entry.folded, Folded::One(&change.operation));
                    let mut folded = match earlier {
                        Folded::One(operation) => Coalesced::new(operation.clone()),
                        Folded::Many(folded) => folded,
                    };
                    // Refused only after a delete, which was asked above.
                    if folded.fold(change.operation.clone()).is_ok() {
                        entry.folded = Folded::Many(folded);
                    }
                } else {
                    entry.folded = Folded::One(&change.operation);
                }
                Offer::Folded(std::mem::replace(&mut entry.last, change))
            }
        }
    }

    fn touches(&self, key: &Key) -> bool {
        self.rows.contains_key(key) || self.touched_by_moves.contains(key) || self.touched_by_heals.contains(key)
    }
}

/// One row of a [`Group`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'e> {
    /// The change by which the result is counted, or parked.
    pub change: &'e Change,
    /// The key to find the row by: the old one for a move.
    pub key: &'e Key,
    /// The image to write; `None` for a delete.
    pub row: Option<&'e Row>,
}

/// Rows of one table that one statement writes. Their keys are distinct.
#[derive(Debug)]
pub(super) struct Group<'e> {
    /// The table.
    pub relation: &'e Arc<Relation>,
    /// The statement.
    pub kind: Kind,
    /// Whether the rows come from a chunk.
    pub origin: Origin,
    /// Whether the keys are parked, so that success heals them.
    pub heal: bool,
    /// The rows.
    pub lines: Vec<Line<'e>>,
}

/// The statement and the row for an image.
fn kind_of<'e>(image: Image<'e>, origin: Origin) -> (Kind, Option<&'e Row>) {
    match image {
        Image::Upsert(row) => (
            Kind::Upsert {
                only_if_different: origin == Origin::Chunk,
            },
            Some(row),
        ),
        Image::Partial(row) => (Kind::Partial { present: present(row) }, Some(row)),
        Image::Delete => (Kind::Delete, None),
    }
}

fn present(row: &Row) -> Box<[bool]> {
    row.0
        .iter()
        .map(|value| *value != crate::change::ColumnValue::Unchanged)
        .collect()
}

impl<'e> Group<'e> {
    /// A change alone, exactly as it came.
    pub(super) fn of_one(change: &'e Change, heal: bool) -> Self {
        let (kind, key, row) = match moved(change) {
            Some((old, row)) => (Kind::Move { present: present(row) }, old, Some(row)),
            None => {
                let (kind, row) = kind_of(image(&change.operation), change.origin);
                (kind, &change.key, row)
            }
        };
        Self {
            relation: &change.relation,
            kind,
            origin: change.origin,
            heal,
            lines: vec![Line { change, key, row }],
        }
    }

    /// The statements of the moves of a table's round.
    pub(super) fn of_moves(table: &TableRound<'e>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for &change in &table.moves {
            join(&mut groups, Self::of_one(change, false));
        }
        groups
    }

    /// The statements of the heals of a table's round.
    pub(super) fn of_heals(table: &TableRound<'e>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for &change in &table.heals {
            join(&mut groups, Self::of_one(change, true));
        }
        groups
    }

    /// The statements of the rows of a table's round.
    pub(super) fn of_rows(table: &'e TableRound<'_>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for (&key, entry) in &table.rows {
            let (kind, row) = kind_of(entry.image(), entry.last.origin);
            let line = Line {
                change: entry.last,
                key,
                row,
            };
            // Nearly always the same statement as the row before.
            match groups
                .iter_mut()
                .rev()
                .find(|group| group.origin == entry.last.origin && group.kind == kind)
            {
                Some(group) => group.lines.push(line),
                None => groups.push(Self {
                    relation: table.relation,
                    kind,
                    origin: entry.last.origin,
                    heal: false,
                    lines: vec![line],
                }),
            }
        }
        groups
    }

    /// Whether another group's rows may join this one's statement.
    fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.relation, other.relation)
            && self.origin == other.origin
            && self.heal == other.heal
            && self.kind == other.kind
    }

    /// Both halves, in order.
    pub(super) fn halves(mut self) -> (Self, Self) {
        let second = self.lines.split_off(self.lines.len() / 2);
        let second = Self {
            relation: self.relation,
            kind: self.kind.clone(),
            origin: self.origin,
            heal: self.heal,
            lines: second,
        };
        (self, second)
    }

    /// Of moved rows, those whose full image is known, to be inserted under their new keys.
    pub(super) fn as_upserts(&self, lines: &[Line<'e>]) -> Option<Self> {
        let lines: Vec<Line<'e>> = lines
            .iter()
            .filter(|line| line.row.is_some_and(Row::is_full))
            .map(|line| Line {
                key: &line.change.key,
                ..*line
            })
            .collect();
        (!lines.is_empty()).then_some(Self {
            kind: Kind::Upsert {
                only_if_different: false,
            },
            lines,
            ..*self
        })
    }

    /// Of moved rows, those whose full image is known, to be deleted under their old keys.
    pub(super) fn as_deletes(&self, lines: &[Line<'e>]) -> Option<Self> {
        let lines: Vec<Line<'e>> = lines
            .iter()
            .filter(|line| line.row.is_some_and(Row::is_full))
            .map(|line| Line { row: None, ..*line })
            .collect();
        (!lines.is_empty()).then_some(Self {
            kind: Kind::Delete,
            lines,
            ..*self
        })
    }

    /// Whether this removes rows: what must come first for unique indexes, and last for foreign keys.
    pub(super) fn deletes(&self) -> bool {
        self.kind == Kind::Delete
    }
}

fn join<'e>(groups: &mut Vec<Group<'e>>, one: Group<'e>) {
    match groups.iter_mut().rev().find(|group| group.is_like(&one)) {
        Some(group) => group.lines.extend(one.lines),
        None => groups.push(one),
    }
}

/// Changes in exact stream order, cut into runs that one statement can write: neighbours of one table and kind whose
/// keys are distinct.
#[derive(Debug, Default)]
pub(super) struct Run<'a> {
    group: Option<Group<'a>>,
    keys: AHashSet<&'a Key>,
}

impl<'a> Run<'a> {
    /// Takes the change, or gives back what must be written before it can be taken.
    pub(super) fn offer(&mut self, change: &'a Change, heal: bool) -> Option<Group<'a>> {
        let one = Group::of_one(change, heal);
        let old = moved(change).map(|(old, _)| old);
        if let Some(group) = &mut self.group {
            let is_known = self.keys.contains(&change.key) || old.is_some_and(|old| self.keys.contains(old));
            if is_known || !group.is_like(&one) {
                return self.take();
            }
            group.lines.extend(one.lines);
        } else {
            self.group = Some(one);
        }
        self.keys.insert(&change.key);
        self.keys.extend(old);
        None
    }

    /// Whether the run is about to heal a key of the change.
    pub(super) fn is_healing(&self, change: &Change) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| group.heal && group.relation.table == change.relation.table)
            && (self.keys.contains(&change.key) || moved(change).is_some_and(|(old, _)| self.keys.contains(old)))
    }

    /// What is left to be written.
    pub(super) fn take(&mut self) -> Option<Group<'a>> {
        self.keys.clear();
        self.group.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{ColumnValue, RelationId, TableName, overlay};

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
            Kind::Upsert { .. } => {
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
            for group in Group::of_moves(part).iter().chain(&Group::of_rows(part)) {
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
        let groups = Group::of_rows(&round.tables[0]);
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
}
