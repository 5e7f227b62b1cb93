//! The parked keys, and what a segment changes in their entries in `twinlog.failed_rows`.
//!
//! Within a segment everything happens in memory, so that a savepoint that is rolled back leaves no half-parked row; at
//! the segment's end [`ParkedKeys::flush`] writes it into the open transaction. The set of keys includes
//! uncommitted changes: after a rollback it must be loaded again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use indexmap::IndexMap;
use tokio_postgres::Client;

use super::parking_log::ParkingCounts;
use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::agent_db::bookkeeping::failed_rows::Fingerprint;
use crate::agent_db::bookkeeping::failed_rows::entries::{self, Healed, Parked, RefusedAgain};
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::error::AgentError;
use crate::change::{Change, Coalesced, ColumnValue, Key, Operation, Relation, TableName};
use crate::lsn::Lsn;

/// All parked keys of the slot.
#[derive(Debug)]
pub(super) struct ParkedKeys {
    slot: String,
    /// What texts the database can hold.
    encoding: Encoding,
    /// If more keys of one table than this are parked, the table itself is taken to be at fault.
    limit: usize,
    /// Wait before the first attempt to heal.
    retry_initial: Duration,
    /// Longest wait between two attempts.
    retry_max: Duration,
    by_table: AHashMap<TableName, AHashMap<Key, Arc<Fingerprint>>>,
    /// What the segment did, in order of the keys' first appearance.
    pending: IndexMap<(TableName, Key), Pending>,
    /// Tables that the segment truncated, before what is pending.
    cleared: Vec<TableName>,
    /// How to take the segment back.
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Pending {
    Parked {
        relation: Arc<Relation>,
        folded: Coalesced,
        changes: i64,
        reason: Option<ParkReason>,
    },
    /// With what its rows had in common; `None` for a key that was not parked.
    Healed(Option<Arc<Fingerprint>>),
    Refused(ParkReason),
}

#[derive(Debug)]
enum Undo {
    Added(TableName, Key),
    Removed(TableName, Key, Arc<Fingerprint>),
    /// It is parked for another reason now.
    Changed(TableName, Key, Arc<Fingerprint>),
    Cleared(TableName, AHashMap<Key, Arc<Fingerprint>>),
}

impl ParkedKeys {
    pub(super) fn new(
        slot: &str,
        encoding: Encoding,
        limit: usize,
        retry_initial: Duration,
        retry_max: Duration,
    ) -> Self {
        Self {
            slot: slot.to_owned(),
            encoding,
            limit,
            retry_initial,
            retry_max,
            by_table: AHashMap::new(),
            pending: IndexMap::new(),
            cleared: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Reads the keys as the connection's transaction sees them.
    pub(super) async fn load(&mut self, client: &Client) -> Result<(), AgentError> {
        let keys = entries::keys(client, &self.slot).await?;
        self.by_table.clear();
        self.pending.clear();
        self.cleared.clear();
        self.undo.clear();
        for (key, fingerprint) in keys {
            let fingerprint = Arc::new(fingerprint);
            self.by_table
                .entry(fingerprint.table.clone())
                .or_default()
                .insert(key, fingerprint);
        }
        Ok(())
    }

    /// Begins what [`ParkedKeys::take_back`] can undo.
    pub(super) fn begin_segment(&mut self) {
        self.undo.clear();
    }

    /// Undoes everything since [`ParkedKeys::begin_segment`].
    pub(super) fn take_back(&mut self) {
        self.pending.clear();
        self.cleared.clear();
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Added(table, key) => {
                    self.by_table.entry(table).or_default().remove(&key);
                }
                Undo::Removed(table, key, fingerprint) | Undo::Changed(table, key, fingerprint) => {
                    self.by_table.entry(table).or_default().insert(key, fingerprint);
                }
                Undo::Cleared(table, keys) => {
                    self.by_table.insert(table, keys);
                }
            }
        }
    }

    pub(super) fn contains(&self, table: &TableName, key: &Key) -> bool {
        self.by_table.get(table).is_some_and(|keys| keys.contains_key(key))
    }

    /// Whether a key is parked at all.
    pub(super) fn any(&self) -> bool {
        self.by_table.values().any(|keys| !keys.is_empty())
    }

    /// The parked keys of a table.
    pub(super) fn keys(&self, table: &TableName) -> impl Iterator<Item = &Key> {
        self.by_table.get(table).into_iter().flat_map(|keys| keys.keys())
    }

    /// Whether the segment did anything to entries.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.cleared.is_empty()
    }

    /// How many keys of a table are parked.
    pub(super) fn count(&self, table: &TableName) -> u64 {
        self.by_table.get(table).map_or(0, |keys| keys.len() as u64)
    }

    /// The counts of all tables that have, or had, parked keys.
    pub(super) fn counts(&self) -> BTreeMap<TableName, u64> {
        self.by_table
            .iter()
            .map(|(table, keys)| (table.clone(), keys.len() as u64))
            .collect()
    }

    /// Parks a change that was refused, or folds it into its key's entry. A change of the key parks both keys: the
    /// old row is still there, and only the Site DB knows the right state of each.
    pub(super) fn park(&mut self, change: &Change, reason: &ParkReason) -> Result<(), AgentError> {
        self.add(change, Some(reason))
    }

    /// Folds a change into its key's entry, because its new or its old key is parked. The entry keeps its
    /// reason.
    pub(super) fn fold_in(&mut self, change: &Change) -> Result<(), AgentError> {
        self.add(change, None)
    }

    fn add(&mut self, change: &Change, reason: Option<&ParkReason>) -> Result<(), AgentError> {
        if let Operation::Update {
            old_key: Some(old),
            row: _,
        } = &change.operation
            && *old != change.key
        {
            self.fold(&change.relation, old, Operation::Delete, reason)?;
        }
        let operation = match &change.operation {
            Operation::Update { row, .. } => Operation::Update {
                old_key: None,
                row: row.clone(),
            },
            other => other.clone(),
        };
        self.fold(&change.relation, &change.key, operation, reason)
    }

    fn fold(
        &mut self,
        relation: &Arc<Relation>,
        key: &Key,
        operation: Operation,
        reason: Option<&ParkReason>,
    ) -> Result<(), AgentError> {
        let table = &relation.table;
        if relation.counts_rows() && !is_text(&operation) {
            // A retry counts the row in the Site DB by its values, which can't be stored here.
            return Err(AgentError::KeyEncoding { table: table.clone() });
        }
        let keys = self.by_table.entry(table.clone()).or_default();
        let known = keys.get(key);
        if known.is_none() && keys.len() >= self.limit {
            return Err(AgentError::TooManyFailed {
                table: table.clone(),
                limit: self.limit,
                fingerprint: most_frequent(keys).map(ToString::to_string),
            });
        }
        let now = match (known, reason) {
            (Some(known), None) => Arc::clone(known),
            (None, None) => Arc::new(ParkReason::folded().fingerprint(table)),
            (_, Some(reason)) => Arc::new(reason.fingerprint(table)),
        };
        if known != Some(&now) {
            self.undo.push(match known {
                Some(known) => Undo::Changed(table.clone(), key.clone(), Arc::clone(known)),
                None => Undo::Added(table.clone(), key.clone()),
            });
            // Kept as long as it is parked, so without the buffer that it was read into.
            keys.insert(key.compact(), now);
        }
        let pending = self
            .pending
            .entry((table.clone(), key.clone()))
            .or_insert(Pending::Healed(None));
        match pending {
            Pending::Parked {
                relation: known,
                folded,
                changes,
                reason: known_reason,
            } => {
                // The columns of an image are those of its relation: another relation's image replaces the folded one.
                let operation = if known == relation {
                    folded.fold(operation).err()
                } else {
                    *known = Arc::clone(relation);
                    Some(operation)
                };
                if let Some(operation) = operation {
                    *folded = Coalesced::new(operation);
                }
                *changes += 1;
                if let Some(reason) = reason {
                    *known_reason = Some(reason.clone());
                }
            }
            Pending::Healed(_) | Pending::Refused(_) => {
                *pending = Pending::Parked {
                    relation: Arc::clone(relation),
                    folded: Coalesced::new(operation),
                    changes: 1,
                    reason: reason.cloned(),
                };
            }
        }
        Ok(())
    }

    /// The row is equal to the Site DB's again: the entry is removed.
    pub(super) fn healed(&mut self, table: &TableName, key: &Key) {
        let fingerprint = self.by_table.get_mut(table).and_then(|keys| keys.remove(key));
        if let Some(fingerprint) = &fingerprint {
            self.undo
                .push(Undo::Removed(table.clone(), key.clone(), Arc::clone(fingerprint)));
        }
        self.pending
            .insert((table.clone(), key.clone()), Pending::Healed(fingerprint));
    }

    /// An attempt to heal was refused: the next one is later.
    pub(super) fn refused(&mut self, table: &TableName, key: &Key, refusal: ParkReason) {
        if let Some(known) = self.by_table.get_mut(table).and_then(|keys| keys.get_mut(key)) {
            let before = std::mem::replace(known, Arc::new(refusal.fingerprint(table)));
            self.undo.push(Undo::Changed(table.clone(), key.clone(), before));
        }
        match self.pending.entry((table.clone(), key.clone())) {
            indexmap::map::Entry::Occupied(mut known) => {
                if let Pending::Parked { reason, .. } = known.get_mut() {
                    *reason = Some(refusal);
                } else {
                    known.insert(Pending::Refused(refusal));
                }
            }
            indexmap::map::Entry::Vacant(vacant) => {
                vacant.insert(Pending::Refused(refusal));
            }
        }
    }

    /// The table was truncated: all its entries are removed.
    pub(super) fn clear(&mut self, table: &TableName) {
        if let Some(keys) = self.by_table.get_mut(table)
            && !keys.is_empty()
        {
            self.undo.push(Undo::Cleared(table.clone(), std::mem::take(keys)));
            self.pending.retain(|(other, _), _| other != table);
            self.cleared.push(table.clone());
        }
    }

    /// What the segment has done to each key that it has tried: why it stays parked, if it does.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&TableName, &Key, Option<&ParkReason>)> {
        fn reason(pending: &Pending) -> Option<&ParkReason> {
            match pending {
                Pending::Healed(_) => None,
                Pending::Refused(reason) => Some(reason),
                Pending::Parked { reason, .. } => reason.as_ref(),
            }
        }
        self.pending
            .iter()
            .map(|((table, key), pending)| (table, key, reason(pending)))
    }

    /// Writes what the segment did into the open transaction. `lsn`: where the changes stand in the source's log.
    pub(super) async fn flush(&mut self, client: &Client, lsn: Lsn) -> Result<ParkingCounts, AgentError> {
        for table in std::mem::take(&mut self.cleared) {
            entries::clear(client, &self.slot, &table).await?;
        }
        let mut counts = ParkingCounts::default();
        let is_new: AHashSet<(&TableName, &Key)> = self
            .undo
            .iter()
            .filter_map(|undo| match undo {
                Undo::Added(table, key) => Some((table, key)),
                _ => None,
            })
            .collect();
        let encoding = self.encoding;
        // In the order of their first appearance, which is that of the entries' ids.
        let mut parked: IndexMap<TableName, Parked> = IndexMap::new();
        let (mut healed, mut refused) = (Healed::new(encoding), RefusedAgain::new(encoding));
        for ((table, key), pending) in self.pending.drain(..) {
            match pending {
                Pending::Parked {
                    relation,
                    folded,
                    changes,
                    reason,
                } => {
                    if let Some(fingerprint) = self.by_table.get(&table).and_then(|keys| keys.get(&key)) {
                        let new = i64::from(is_new.contains(&(&table, &key)));
                        let count = counts.of(fingerprint);
                        count.parked += new.unsigned_abs();
                        count.folded += (changes - new).unsigned_abs();
                    }
                    parked
                        .entry(table)
                        .or_insert_with(|| Parked::new(encoding))
                        .push(&relation, &key, &folded, changes, reason);
                }
                Pending::Healed(fingerprint) => {
                    if let Some(fingerprint) = fingerprint {
                        counts.of(&fingerprint).healed += 1;
                    }
                    healed.push(&table, &key);
                }
                Pending::Refused(reason) => {
                    counts.of(&Arc::new(reason.fingerprint(&table))).refused += 1;
                    refused.push(&table, &key, reason);
                }
            }
        }
        for (table, entries) in &parked {
            entries
                .write(client, &self.slot, lsn, self.retry_initial)
                .await
                .map_err(|error| error.of_parking(table))?;
        }
        healed.write(client, &self.slot).await?;
        refused
            .write(client, &self.slot, self.retry_initial, self.retry_max)
            .await?;
        Ok(counts)
    }
}

/// The most frequent cause.
fn most_frequent(keys: &AHashMap<Key, Arc<Fingerprint>>) -> Option<&Fingerprint> {
    let mut counts: BTreeMap<&Fingerprint, usize> = BTreeMap::new();
    for fingerprint in keys.values() {
        *counts.entry(fingerprint).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(fingerprint, _)| fingerprint)
}

/// Whether all values are UTF-8.
fn is_text(operation: &Operation) -> bool {
    let is_text = |value: &ColumnValue| match value {
        ColumnValue::Text(text) => std::str::from_utf8(text).is_ok(),
        ColumnValue::Null | ColumnValue::Unchanged => true,
    };
    operation.row().is_none_or(|row| row.0.iter().all(is_text))
}
