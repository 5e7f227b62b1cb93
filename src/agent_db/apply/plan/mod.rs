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

mod group;

use std::sync::Arc;

use ahash::AHashSet;
use indexmap::IndexMap;
use indexmap::map;

pub(super) use group::{Group, Line, Run};

use crate::change::{Change, Coalesced, Key, Operation, Relation, Row};

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
    /// The first of them was an insert: no row should be there yet.
    pub is_new: bool,
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
                    is_new: matches!(change.operation, Operation::Insert(_)),
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

#[cfg(test)]
mod tests;
