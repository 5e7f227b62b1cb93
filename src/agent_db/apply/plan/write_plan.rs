//! Which changes can be written together, regardless of their order.

use std::sync::Arc;

use ahash::AHashSet;
use indexmap::{IndexMap, map};

use super::counted::CountedRow;
use super::image::{FoldedChanges, moved};
use super::offer::Offer;
use crate::change::{Change, Key, Operation, Relation};

/// Changes that can be written together.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct WritePlan<'a> {
    /// At most one entry for a table.
    pub tables: Vec<TablePlan<'a>>,
}

/// Changes of one table that can be written together: first the moves and updates, then the rows, then the heals.
#[derive(Debug)]
pub(in crate::agent_db::apply) struct TablePlan<'a> {
    /// The table. All images have its columns.
    pub relation: &'a Arc<Relation>,
    /// Changed keys; no key is in two of them.
    pub moves: Vec<&'a Change>,
    touched_by_moves: AHashSet<&'a Key>,
    /// Updates of counted rows that are written in place: none of a row that another one has made.
    pub updates: Vec<&'a Change>,
    updated_to: AHashSet<&'a Key>,
    /// Rows by key, in the order of their first change.
    pub rows: IndexMap<&'a Key, FoldedChanges<'a>, ahash::RandomState>,
    /// Rows that are counted, by their digest, in the order of their first change.
    pub(super) counted: IndexMap<&'a Key, CountedRow<'a>, ahash::RandomState>,
    /// Rows of a chunk whose key is parked: each may be refused again without harm to the others.
    pub heals: Vec<&'a Change>,
    touched_by_heals: AHashSet<&'a Key>,
}

impl<'a> WritePlan<'a> {
    /// Offers the next change. `heal`: it comes from a chunk and its key is parked.
    pub(in crate::agent_db::apply) fn offer(&mut self, change: &'a Change, heal: bool) -> Offer<'a> {
        let position = self.position(&change.relation).unwrap_or_else(|| {
            self.tables.push(TablePlan::new(&change.relation));
            self.tables.len() - 1
        });
        let table = &mut self.tables[position];
        if !Arc::ptr_eq(table.relation, &change.relation) && table.relation != &change.relation {
            return Offer::WriteFirst;
        }
        table.offer(change, heal)
    }

    /// Whether the plan is about to heal a key of the change. Only after that it is known whether the key is still parked.
    pub(in crate::agent_db::apply) fn is_healing(&self, change: &Change) -> bool {
        self.position(&change.relation).is_some_and(|position| {
            let heals = &self.tables[position].touched_by_heals;
            heals.contains(&change.key) || moved(change).is_some_and(|(old, _)| heals.contains(old))
        })
    }

    /// Takes one table's plan out, to be written.
    pub(in crate::agent_db::apply) fn take(&mut self, relation: &Arc<Relation>) -> Self {
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

impl<'a> TablePlan<'a> {
    fn new(relation: &'a Arc<Relation>) -> Self {
        Self {
            relation,
            moves: Vec::new(),
            touched_by_moves: AHashSet::new(),
            updates: Vec::new(),
            updated_to: AHashSet::new(),
            rows: IndexMap::default(),
            counted: IndexMap::default(),
            heals: Vec::new(),
            touched_by_heals: AHashSet::new(),
        }
    }

    fn offer(&mut self, change: &'a Change, heal: bool) -> Offer<'a> {
        if let Operation::ReplaceOne(replaced) = &change.operation {
            let (old, new) = (&replaced.old.key, &replaced.new.key);
            if self.updated_to.contains(old) || [old, new].iter().any(|key| self.touches(key)) {
                return Offer::WriteFirst;
            }
            self.updated_to.insert(new);
            self.updates.push(change);
            return Offer::Taken;
        }
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
        if self.relation.counts_rows() {
            return match self.counted.entry(&change.key) {
                map::Entry::Vacant(vacant) => {
                    vacant.insert(CountedRow::new(change));
                    Offer::Taken
                }
                map::Entry::Occupied(mut occupied) => occupied.get_mut().offer(change),
            };
        }
        match self.rows.entry(&change.key) {
            map::Entry::Vacant(vacant) => {
                vacant.insert(FoldedChanges::new(change));
                Offer::Taken
            }
            map::Entry::Occupied(mut occupied) => match occupied.get_mut().fold(change) {
                Some(earlier) => Offer::Folded(earlier),
                None => Offer::WriteFirst,
            },
        }
    }

    fn touches(&self, key: &Key) -> bool {
        self.rows.contains_key(key)
            || self.counted.contains_key(key)
            || self.touched_by_moves.contains(key)
            || self.touched_by_heals.contains(key)
    }
}
