//! Merging one chunk with the changes that its read did not see. Pure; [`super::window`] explains why the result is right.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::chunk::{ChunkRead, InvalidChunk, Purpose, RequestedKeys};
use crate::change::{Change, Key, Operation, Origin, Relation, Row, Xid, overlay};

/// Merges a chunk with the changes between its fences, into changes that take effect at the high fence.
///
/// # Errors
/// The chunk has to be read again.
pub(super) fn merge(read: ChunkRead, window: &[(Xid, Change)]) -> Result<Vec<Change>, InvalidChunk> {
    let ChunkRead {
        relation,
        snapshot,
        rows,
        purpose,
    } = read;
    let unseen: Vec<&Change> = window
        .iter()
        .filter(|(xid, _)| !snapshot.sees(*xid))
        .map(|(_, change)| change)
        .collect();
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
        states.apply(change);
    }

    let chunk_change = |key, operation| Change {
        relation: Arc::clone(&relation),
        key,
        operation,
        origin: Origin::Chunk,
    };
    let mut changes = states.into_changes(&chunk_change);
    changes.extend(respelled_changes(&purpose, respelled, &chunk_change));
    Ok(changes)
}

/// What is known of each key, in the order in which the keys came.
#[derive(Default)]
struct KeyStates {
    /// The row, or `None` where the key was requested and the read saw no row. A key that is not here is left to the
    /// stream.
    rows: HashMap<Key, Option<Row>>,
    order: Vec<Key>,
}

impl KeyStates {
    /// Requested keys have no row until one is read. Those that found a row under another spelling are left out: to
    /// delete them would delete that row.
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

    /// Whether a requested key found no row.
    fn lacks_a_row(&self) -> bool {
        self.rows.values().any(Option::is_none)
    }

    /// A change that the read did not see. Where the stream itself brings the whole row, or its end, the key is left to
    /// the stream. Where it brings some of the columns, they are laid over the row that was read.
    fn apply(&mut self, change: &Change) {
        match &change.operation {
            Operation::Insert(_) | Operation::Delete => {
                self.rows.remove(&change.key);
            }
            Operation::Update { old_key: None, row } => self.update(&change.key, row),
            Operation::Update {
                old_key: Some(old),
                row,
            } => self.update_with_new_key(old, &change.key, row),
        }
    }

    fn update(&mut self, key: &Key, row: &Row) {
        if row.is_full() {
            self.rows.remove(key);
            return;
        }
        match self.rows.get_mut(key) {
            Some(Some(base)) => overlay(base, row.clone()),
            // Requested, not seen, and then partially updated: the insert between the two has removed the key above, so
            // this cannot happen; leave it to the stream.
            Some(None) => {
                self.rows.remove(key);
            }
            None => {}
        }
    }

    /// The row moved to another key. Where its image is partial, only the chunk knows the rest of it.
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

/// Only the Site DB knows which keys are equal. So where a respelled row was touched, or a row came that may be one of
/// the requested keys that found none, the chunk can't be merged.
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

/// A respelled row replaces the requested key. A parked key is told so under its own spelling as well.
fn respelled_changes(
    purpose: &Purpose,
    respelled: Vec<Respelled>,
    change: &impl Fn(Key, Operation) -> Change,
) -> Vec<Change> {
    let mut changes = Vec::new();
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

/// The key that the row had before, where the change gave it another one.
fn old_key(change: &Change) -> Option<&Key> {
    match &change.operation {
        Operation::Update { old_key, .. } => old_key.as_ref(),
        Operation::Insert(_) | Operation::Delete => None,
    }
}
