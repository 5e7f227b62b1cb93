//! Merging a chunk with the stream: the pure heart of copy, resync and healing.
//!
//! A chunk is read between two fences, under one snapshot:
//!
//! ```text
//! stream   ──T1──[low]──T2──T3──[high]──T4──▶        T1…T4: commits, in the order of the log
//! reading          └──snapshot──┘                    sees T1, and of T2 and T3 none, one or both
//! ```
//!
//! At the high fence every transaction that committed before it has been received. Which of them the read saw is not
//! guessed from positions: the snapshot says it, transaction by transaction. So for each key of the chunk, the newest
//! of (what the read saw, what unseen transactions did after) is known, and written:
//!
//! - nothing unseen touched the key: the chunk's row is the newest. Write it.
//! - an unseen transaction wrote the full row, or deleted it: the stream's own change was or will be applied in its
//!   place in the log. Leave the key alone: newer changes win, deleted rows stay deleted.
//! - an unseen transaction set some of its columns (an unchanged TOAST value was not repeated): lay them over the
//!   chunk's row and write that. The stream alone could not: in a first copy the row is not there yet.
//!
//! # Commits that precede the fence but not the snapshot
//!
//! A transaction is visible to others a moment *after* its commit record is in the log (and much later where it waits
//! for a synchronous standby). So T1 can precede the low fence and still be unseen by a snapshot that is taken after it;
//! then the chunk holds the row before T1, and T1's change is already behind us. That is detected, not hoped away:
//! [`Windows`] remembers the transactions that the stream brought lately, and where the snapshot does not see one of
//! them that came before the low fence, the chunk is void and read again. What came before the first of them is waited
//! for by whoever reads (`replication`, at the beginning of each run).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::change::{Change, Key, Operation, Origin, Relation, RelationId, Row, Xid, overlay};
use crate::source::{ChunkId, Snapshot};

/// Transactions remembered for the check above. A commit that is in the log but not yet visible is at most as old as a
/// commit takes (microseconds; a synchronous standby's answer where one is awaited, during which the other backends
/// wait as well). 131,072 transactions are more than a second of any server that one decoder can follow.
const REMEMBERED_TRANSACTIONS: usize = 1 << 17;

/// Bytes of changes that one window may hold. A transaction that rewrites the table inside the window would otherwise be
/// held whole; past this the chunk is void, and read again after that transaction.
const WINDOW_BYTES: usize = 32 << 20;

/// What was read between the fences.
#[derive(Debug)]
pub struct ChunkRead {
    /// The table, with the columns as they were read.
    pub relation: Arc<Relation>,
    /// What the read saw.
    pub snapshot: Snapshot,
    /// The rows, all full.
    pub rows: Vec<Row>,
    /// What was asked for, where that were single keys.
    pub asked: Option<Asked>,
}

/// Keys that were asked for one by one: those that found no row do not exist.
#[derive(Debug)]
pub struct Asked {
    /// The keys.
    pub keys: Vec<Key>,
    /// For each row, which of the keys found it. The row's own key may be written otherwise (1.0 finds 1.00).
    pub found_by: Vec<usize>,
    /// Whether keys of this table that are equal are always written alike.
    pub alike: bool,
    /// Whether the keys are parked: then each has to be told what became of it under its own spelling.
    pub parked: bool,
}

/// Why a chunk has to be read again. Nothing is lost by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Void {
    /// A transaction before the low fence was not yet visible to the read.
    UnseenBeforeFence,
    /// The stream changed more of the table inside the window than is held.
    WindowOverflow,
    /// The table's columns changed between the fences.
    RelationChanged,
    /// A row came or changed that may be one of those asked for in another spelling.
    OtherSpelling,
    /// The fences of another run, or the read was given up.
    Unknown,
}

impl Void {
    /// For logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnseenBeforeFence => "a commit was in the log but not yet visible",
            Self::WindowOverflow => "the table changed too much while it was read",
            Self::RelationChanged => "the table's columns changed while it was read",
            Self::OtherSpelling => "a row changed that may be one of those asked for under another spelling of its key",
            Self::Unknown => "the fence is not of this run",
        }
    }
}

/// A table's changes between a chunk's fences.
#[derive(Debug)]
struct Window {
    relation: RelationId,
    changes: Vec<(Xid, Change)>,
    bytes: usize,
    void: Option<Void>,
    /// Transactions that were received before the low fence, as a length of the memory at that time.
    received_before: u64,
}

/// All open windows, and the memory of recent transactions.
#[derive(Debug, Default)]
pub struct Windows {
    open: HashMap<ChunkId, Window>,
    /// Whether any open window is for the relation, so that the common case costs one look.
    relations: HashSet<RelationId>,
    recent: VecDeque<Xid>,
    /// How many transactions were ever received.
    received: u64,
}

impl Windows {
    /// A transaction of the stream was received whole.
    pub fn committed(&mut self, xid: Xid) {
        if self.recent.len() == REMEMBERED_TRANSACTIONS {
            self.recent.pop_front();
        }
        self.recent.push_back(xid);
        self.received += 1;
    }

    /// The stream's low fence of a chunk.
    pub fn open(&mut self, id: ChunkId, relation: RelationId) {
        self.relations.insert(relation);
        let window = Window {
            relation,
            changes: Vec::new(),
            bytes: 0,
            void: None,
            received_before: self.received,
        };
        self.open.insert(id, window);
    }

    /// Whether a change of this relation has to be [observed](Self::observe).
    #[must_use]
    pub fn watches(&self, relation: RelationId) -> bool {
        !self.relations.is_empty() && self.relations.contains(&relation)
    }

    /// A change of the stream, of a relation that is watched.
    pub fn observe(&mut self, xid: Xid, change: &Change) {
        for window in self
            .open
            .values_mut()
            .filter(|window| window.relation == change.relation.id)
        {
            if window.void.is_some() {
                continue;
            }
            window.bytes += 128
                + match &change.operation {
                    Operation::Insert(row) | Operation::Update { row, .. } => row.size(),
                    Operation::Delete => 0,
                };
            if window.bytes > WINDOW_BYTES {
                window.void = Some(Void::WindowOverflow);
                window.changes = Vec::new();
            } else {
                window.changes.push((xid, change.clone()));
            }
        }
    }

    /// The stream truncated a table: what was read before is void.
    pub fn truncated(&mut self, relation: RelationId) {
        for window in self.open.values_mut().filter(|window| window.relation == relation) {
            window.void = Some(Void::WindowOverflow);
            window.changes = Vec::new();
        }
    }

    /// The table's columns are others from here on.
    pub fn relation_changed(&mut self, relation: RelationId) {
        for window in self.open.values_mut().filter(|window| window.relation == relation) {
            window.void = Some(Void::RelationChanged);
            window.changes = Vec::new();
        }
    }

    /// The stream's high fence: merges what was read with what the stream did, into changes that stand exactly here.
    ///
    /// # Errors
    /// The chunk has to be read again.
    pub fn close(&mut self, id: ChunkId, read: Option<ChunkRead>) -> Result<Vec<Change>, Void> {
        let window = self.open.remove(&id);
        self.relations = self.open.values().map(|window| window.relation).collect();
        let (Some(window), Some(read)) = (window, read) else {
            return Err(Void::Unknown);
        };
        if let Some(void) = window.void {
            return Err(void);
        }
        let since = usize::try_from(self.received - window.received_before).unwrap_or(usize::MAX);
        let before = self.recent.len().saturating_sub(since);
        if self.recent.iter().take(before).any(|&xid| !read.snapshot.sees(xid)) {
            return Err(Void::UnseenBeforeFence);
        }
        merge(read, &window.changes)
    }
}

/// See the module's header.
fn merge(read: ChunkRead, window: &[(Xid, Change)]) -> Result<Vec<Change>, Void> {
    let ChunkRead {
        relation,
        snapshot,
        rows,
        asked,
    } = read;
    // None: the key does not exist as far as the read saw, and was asked for.
    let mut merged: HashMap<Key, Option<Row>> = HashMap::with_capacity(rows.len());
    let mut order: Vec<Key> = Vec::with_capacity(rows.len());
    let spellings = asked
        .as_ref()
        .map_or_else(Vec::new, |asked| spellings(&relation, asked, &rows));
    let elsewhere: HashSet<&Key> = spellings.iter().map(|(asked, ..)| asked).collect();
    for key in asked.iter().flat_map(|asked| &asked.keys) {
        if !elsewhere.contains(key) && merged.insert(key.clone(), None).is_none() {
            order.push(key.clone());
        }
    }
    for row in rows {
        // A primary key is never NULL, so a row without a key cannot come out of the reader.
        let Some(key) = relation.key_of(&row) else { continue };
        if merged.insert(key.clone(), Some(row)).is_none() {
            order.push(key);
        }
    }
    let unseen = || {
        window
            .iter()
            .filter(|(xid, _)| !snapshot.sees(*xid))
            .map(|(_, change)| change)
    };
    // What is equal is known to the Site DB only: a row that it did not show may be any of those asked for.
    let touches = |key: &Key| unseen().any(|change| change.key == *key || moved_from(change) == Some(key));
    let came =
        || unseen().any(|change| matches!(change.operation, Operation::Insert(_)) || moved_from(change).is_some());
    let absent = merged.values().any(Option::is_none);
    if spellings.iter().any(|(_, found, _)| touches(found))
        || (asked.as_ref().is_some_and(|asked| !asked.alike) && absent && came())
    {
        return Err(Void::OtherSpelling);
    }
    for change in unseen() {
        match &change.operation {
            Operation::Insert(_) | Operation::Delete => {
                merged.remove(&change.key);
            }
            Operation::Update { old_key: None, row } if row.is_full() => {
                merged.remove(&change.key);
            }
            Operation::Update { old_key: None, row } => {
                if let Some(base) = merged.get_mut(&change.key) {
                    match base {
                        Some(base) => overlay(base, row.clone()),
                        // Asked for, absent to the read, and partially updated after: the insert between the two
                        // removed the key above, so this cannot be; leave it to the stream.
                        None => {
                            merged.remove(&change.key);
                        }
                    }
                }
            }
            Operation::Update {
                old_key: Some(old),
                row,
            } => {
                // The row moved to another key. Where its image is partial, only the chunk knows the rest of it.
                let base = merged.remove(old).flatten();
                match base {
                    Some(mut base) if !row.is_full() => {
                        overlay(&mut base, row.clone());
                        if merged.insert(change.key.clone(), Some(base)).is_none() {
                            order.push(change.key.clone());
                        }
                    }
                    _ => {
                        merged.remove(&change.key);
                    }
                }
            }
        }
    }
    let change = |key, operation| Change {
        relation: Arc::clone(&relation),
        key,
        operation,
        origin: Origin::Chunk,
    };
    let mut changes = Vec::with_capacity(order.len());
    for key in order {
        match merged.remove(&key) {
            Some(Some(row)) => changes.push(change(key, Operation::Insert(row))),
            Some(None) => changes.push(change(key, Operation::Delete)),
            None => {}
        }
    }
    let parked = asked.is_some_and(|asked| asked.parked);
    for (asked, found, row) in spellings {
        let old_key = Some(asked.clone());
        changes.push(change(
            found,
            Operation::Update {
                old_key,
                row: row.clone(),
            },
        ));
        if parked {
            changes.push(change(asked, Operation::Insert(row)));
        }
    }
    Ok(changes)
}

/// The keys that found a row whose own key is written otherwise, that key, and the row. To delete what was asked for would
/// delete the row itself.
fn spellings(relation: &Relation, asked: &Asked, rows: &[Row]) -> Vec<(Key, Key, Row)> {
    rows.iter()
        .zip(&asked.found_by)
        .filter_map(|(row, &by)| {
            let (found, by) = (relation.key_of(row)?, asked.keys.get(by)?);
            (found != *by).then(|| (by.clone(), found, row.clone()))
        })
        .collect()
}

fn moved_from(change: &Change) -> Option<&Key> {
    match &change.operation {
        Operation::Update { old_key, .. } => old_key.as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
