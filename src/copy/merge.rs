//! Merging one chunk with the changes that its read did not see. Pure; [`super::window`] explains why the result is
//! right.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::chunk::{Chunk, InvalidChunk, Merged, Purpose, RequestedKeys};
use super::counted;
use crate::change::{Change, Key, Operation, Origin, Relation, Row, Xid, overlay};

/// Merges a chunk with the stream's changes between its fences. The result takes effect at the high fence.
///
/// # Errors
/// The chunk has to be read again.
pub(super) fn merge(read: Chunk, window: &[(Xid, Change)]) -> Result<Merged, InvalidChunk> {
    let Chunk {
        relation,
        snapshot,
        rows,
        purpose,
    } = read;
    let unseen: Vec<&Change> = window
        .iter()
        .filter(|(xid, change)| change.relation.id == relation.id && !snapshot.sees(*xid))
        .map(|(_, change)| change)
        .collect();
    if let Purpose::Counts(counts) | Purpose::ComparedCounts(counts) = &purpose {
        return Ok(Merged {
            changes: counted::merge(&relation, rows, counts, &unseen),
            respelled: Vec::new(),
        });
    }
    let respelled = purpose
        .keys()
        .map_or_else(Vec::new, |requested| respelled_rows(&relation, requested, &rows));

    let mut states = KeyStates::default();
    if let Some(requested) = purpose.keys() {
        states.expect_rows(requested, &respelled);
    }
    states.add_rows(&relation, rows);
    if may_touch_another_spelling(&purpose, &states, &respelled, &unseen) {
        return Err(InvalidChunk::OtherSpelling);
    }
    for change in unseen {
        match purpose {
            Purpose::Parked(_) | Purpose::Compared(_) => states.overtake(change),
            _ => states.apply(change),
        }
    }
    if let Purpose::Compared(requested) = &purpose
        && !states.answer_all(requested, &respelled)
    {
        return Err(InvalidChunk::PartlyKnown);
    }

    let chunk_change = |key, operation| Change {
        relation: Arc::clone(&relation),
        key,
        operation,
        origin: Origin::Chunk,
    };
    Ok(Merged {
        changes: states.into_changes(&chunk_change),
        respelled: respelled_changes(&purpose, respelled, &chunk_change),
    })
}

/// The merged state of each key, in the order in which the keys were added.
#[derive(Default)]
struct KeyStates {
    /// The row, or `None` if the key was requested and the read saw no row. For a key that is not in the map nothing is
    /// written: the stream's own changes are enough.
    rows: HashMap<Key, Option<Row>>,
    order: Vec<Key>,
}

impl KeyStates {
    /// Adds requested keys without a row. A key that found a row under another spelling is left out: its deletion would
    /// delete that row.
    fn expect_rows(&mut self, requested: &RequestedKeys, respelled: &[Respelled]) {
        let elsewhere: HashSet<&Key> = respelled.iter().map(|row| &row.requested).collect();
        for key in requested.keys.iter().filter(|key| !elsewhere.contains(key)) {
            self.set(key.clone(), None);
        }
    }

    fn add_rows(&mut self, relation: &Relation, rows: Vec<Row>) {
        for row in rows {
            // A primary key is never NULL, so every row that was read has a key.
            if let Some(key) = relation.key_of(&row) {
                self.set(key, Some(row));
            }
        }
    }

    fn set(&mut self, key: Key, row: Option<Row>) {
        if self.rows.insert(key.clone(), row).is_none() {
            self.order.push(key);
        }
    }

    /// Whether it is known what each requested key is now.
    fn answer_all(&self, requested: &RequestedKeys, respelled: &[Respelled]) -> bool {
        let is_known = |key: &Key| self.rows.contains_key(key) || respelled.iter().any(|row| row.requested == *key);
        requested.keys.iter().all(is_known)
    }

    /// Whether a requested key found no row.
    fn lacks_a_row(&self) -> bool {
        self.rows.values().any(Option::is_none)
    }

    /// Applies a change that the read did not see. If it has the whole row, or deletes it, the key is removed from the
    /// map: the stream's change is enough. If it has only some columns, they replace those of the row that was read.
    fn apply(&mut self, change: &Change) {
        match &change.operation {
            // The last three are of tables without keys, which `counted` merges.
            Operation::Insert(_)
            | Operation::Delete
            | Operation::DeleteOne(_)
            | Operation::Count { .. }
            | Operation::ReplaceOne(_) => {
                self.rows.remove(&change.key);
            }
            Operation::Update { old_key: None, row } => self.update(&change.key, row),
            Operation::Update {
                old_key: Some(old),
                row,
            } => self.update_with_new_key(old, &change.key, row),
        }
    }

    /// The same for parked keys, whose changes the stream does not write: the result is the row at the high fence.
    fn overtake(&mut self, change: &Change) {
        let (old, row) = match &change.operation {
            Operation::Insert(row) => (None, Some(row)),
            Operation::Delete | Operation::DeleteOne(_) | Operation::Count { .. } | Operation::ReplaceOne(_) => {
                (None, None)
            }
            Operation::Update { old_key, row } => (old_key.as_ref(), Some(row)),
        };
        let base = self.rows.get(old.unwrap_or(&change.key)).cloned();
        let is_asked = base.is_some() || self.rows.contains_key(&change.key);
        if let Some(old) = old.filter(|old| self.rows.contains_key(*old)) {
            self.set(old.clone(), None);
        }
        if !is_asked {
            return;
        }
        let after = match (row, base.flatten()) {
            (None, _) => None,
            (Some(row), _) if row.is_full() => Some(row.clone()),
            (Some(row), Some(mut base)) => {
                overlay(&mut base, row.clone());
                Some(base)
            }
            // The row came from a key that was not asked for, and only some of its columns are known: the next attempt.
            (Some(_), None) => {
                self.rows.remove(&change.key);
                return;
            }
        };
        self.set(change.key.clone(), after);
    }

    fn update(&mut self, key: &Key, row: &Row) {
        if row.is_full() {
            self.rows.remove(key);
            return;
        }
        match self.rows.get_mut(key) {
            Some(Some(base)) => overlay(base, row.clone()),
            // Cannot happen: a requested key without a row must be inserted before it is updated, and that insert has
            // removed the key from the map.
            Some(None) => {
                self.rows.remove(key);
            }
            None => {}
        }
    }

    /// The row got another key. If the change has only some columns, the rest is known only from the chunk.
    fn update_with_new_key(&mut self, old: &Key, new: &Key, row: &Row) {
        match self.rows.remove(old).flatten() {
            Some(mut base) if !row.is_full() => {
                overlay(&mut base, row.clone());
                self.set(new.clone(), Some(base));
            }
            _ => {
                self.rows.remove(new);
            }
        }
    }

    fn into_changes(mut self, change: &impl Fn(Key, Operation) -> Change) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.order.len());
        for key in self.order {
            match self.rows.remove(&key) {
                Some(Some(row)) => changes.push(change(key, Operation::Insert(row))),
                Some(None) => changes.push(change(key, Operation::Delete)),
                None => {}
            }
        }
        changes
    }
}

/// A row whose own key is spelled differently from the key that found it.
struct Respelled {
    requested: Key,
    own: Key,
    row: Row,
}

fn respelled_rows(relation: &Relation, requested: &RequestedKeys, rows: &[Row]) -> Vec<Respelled> {
    rows.iter()
        .zip(&requested.found_by)
        .filter_map(|(row, &position)| {
            let (own, requested) = (relation.key_of(row)?, requested.keys.get(position)?);
            (own != *requested).then(|| Respelled {
                requested: requested.clone(),
                own,
                row: row.clone(),
            })
        })
        .collect()
}

/// Only the Site DB can decide whether two spellings are equal keys. So the chunk can't be merged if a respelled row
/// was changed, or if a new row may be one of the requested keys that found none.
fn may_touch_another_spelling(
    purpose: &Purpose,
    states: &KeyStates,
    respelled: &[Respelled],
    unseen: &[&Change],
) -> bool {
    let touched = |key: &Key| {
        unseen
            .iter()
            .any(|change| change.key == *key || old_key(change) == Some(key))
    };
    let rows_came = || {
        unseen
            .iter()
            .any(|change| matches!(change.operation, Operation::Insert(_)) || old_key(change).is_some())
    };
    let spellings_differ = purpose.keys().is_some_and(|requested| !requested.spelled_alike);
    respelled.iter().any(|row| touched(&row.own)) || (spellings_differ && states.lacks_a_row() && rows_came())
}

/// A respelled row replaces the row with the requested key. For a parked key there is also a change with the requested
/// spelling, which heals its entry.
fn respelled_changes(
    purpose: &Purpose,
    respelled: Vec<Respelled>,
    change: &impl Fn(Key, Operation) -> Change,
) -> Vec<Change> {
    let mut changes = Vec::new();
    if purpose.compares() {
        return changes;
    }
    for Respelled { requested, own, row } in respelled {
        let update = Operation::Update {
            old_key: Some(requested.clone()),
            row: row.clone(),
        };
        changes.push(change(own, update));
        if let Purpose::Parked(_) = purpose {
            changes.push(change(requested, Operation::Insert(row)));
        }
    }
    changes
}

/// The row's key before, if the change gave it another one.
fn old_key(change: &Change) -> Option<&Key> {
    match &change.operation {
        Operation::Update { old_key, .. } => old_key.as_ref(),
        _ => None,
    }
}
