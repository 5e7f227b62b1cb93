//! The stream's changes between a chunk's fences, and the merge of both: the pure part of copy, resync and healing.
//!
//! A chunk is read between two fences, under one snapshot:
//!
//! ```text
//! stream   ──T1──[low]──T2──T3──[high]──T4──▶        T1…T4: commits, in the order of the log
//! reading          └──snapshot──┘                    sees T1, and of T2 and T3 none, one or both
//! ```
//!
//! At the high fence every transaction that committed before it has been received. Which of them the read saw is not
//! guessed from positions: the snapshot tells it for each transaction. So for each key of the chunk its newest state is
//! known, from the row that was read and the changes of unseen transactions, and is written:
//!
//! - nothing unseen touched the key: the chunk's row is the newest. Write it.
//! - an unseen transaction wrote the full row, or deleted it: the stream's own change is applied at its place in the
//!   log. Write nothing for the key: newer changes win, deleted rows stay deleted.
//! - an unseen transaction set some of its columns (an unchanged TOAST value was not repeated): replace these columns
//!   in the chunk's row and write that. The stream's change alone is not enough: in a first copy the row does not exist.
//!
//! # Commits that precede the fence but not the snapshot
//!
//! A transaction is visible to others a moment *after* its commit record is in the log (and much later if it waits for
//! a synchronous standby). So T1 can precede the low fence and still be unseen by a snapshot that is taken after it;
//! then the chunk holds the row before T1, although T1's change has been applied already. This is detected:
//! [`Windows`] remembers the last transactions of the stream, and if the snapshot does not see one of them that came
//! before the low fence, the chunk is invalid and read again. For the transactions of earlier runs, which are not
//! remembered, each run waits before it reads rows (`source::visibility`).

use std::collections::{HashMap, HashSet, VecDeque};

use super::chunk::{Chunk, InvalidChunk, Merged};
use super::merge::merge;
use crate::change::{Change, RelationId, Xid};
use crate::source::ChunkId;

/// Transactions remembered for the check above. A commit stays invisible for microseconds, or, with a synchronous
/// standby, until the standby answers (other backends wait then as well). 131,072 transactions take more than a second
/// on any server that one decoder can follow.
const REMEMBERED_TRANSACTIONS: usize = 1 << 17;

/// Bytes of changes that all windows together may hold. A transaction that rewrites a table inside of its window would
/// otherwise be held whole; past this the chunk is invalid, and read again after that transaction.
const WINDOWS_BYTES: usize = 32 << 20;

/// The changes of a chunk's tables between its fences.
#[derive(Debug)]
struct Window {
    relations: Box<[RelationId]>,
    changes: Vec<(Xid, Change)>,
    bytes: usize,
    invalid: Option<InvalidChunk>,
    /// The value of [`Windows::received`] at the low fence.
    received_before: u64,
}

impl Window {
    /// The chunk has to be read again, so the changes are not needed. Returns the bytes that they took.
    fn invalidate(&mut self, why: InvalidChunk) -> usize {
        self.invalid = Some(why);
        self.changes = Vec::new();
        std::mem::take(&mut self.bytes)
    }
}

/// All open windows, and the ids of recent transactions.
#[derive(Debug, Default)]
pub struct Windows {
    open: HashMap<ChunkId, Window>,
    /// The relations of the open windows, so that the check for most changes is one look-up.
    relations: HashSet<RelationId>,
    /// Bytes of the changes in all windows.
    bytes: usize,
    recent: VecDeque<Xid>,
    /// Number of transactions received in this run.
    received: u64,
}

impl Windows {
    /// A transaction of the stream was received whole: remember it.
    pub fn committed(&mut self, xid: Xid) {
        if self.recent.len() == REMEMBERED_TRANSACTIONS {
            self.recent.pop_front();
        }
        self.recent.push_back(xid);
        self.received += 1;
    }

    /// The stream's low fence of a chunk: collect its tables' changes from here on.
    pub fn open(&mut self, id: ChunkId, relations: &[RelationId]) {
        self.relations.extend(relations);
        let window = Window {
            relations: relations.into(),
            changes: Vec::new(),
            bytes: 0,
            invalid: None,
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
            .filter(|window| window.relations.contains(&change.relation.id))
        {
            if window.invalid.is_some() {
                continue;
            }
            // Copied, because a change of the stream keeps the whole buffer that it was read into.
            let change = change.compact();
            let bytes = change.size();
            if self.bytes + bytes > WINDOWS_BYTES {
                self.bytes -= window.invalidate(InvalidChunk::WindowOverflow);
            } else {
                self.bytes += bytes;
                window.bytes += bytes;
                window.changes.push((xid, change));
            }
        }
    }

    /// The stream truncated a table: rows that were read before are not valid.
    pub fn truncated(&mut self, relation: RelationId) {
        for window in self
            .open
            .values_mut()
            .filter(|window| window.relations.contains(&relation))
        {
            self.bytes -= window.invalidate(InvalidChunk::Truncated);
        }
    }

    /// The table's columns change here: chunks that are being read have the old columns.
    pub fn relation_changed(&mut self, relation: RelationId) {
        for window in self
            .open
            .values_mut()
            .filter(|window| window.relations.contains(&relation))
        {
            self.bytes -= window.invalidate(InvalidChunk::RelationChanged);
        }
    }

    /// The table is held, or was until here: changes of it were passed over.
    pub fn table_held(&mut self, relation: RelationId) {
        for window in self
            .open
            .values_mut()
            .filter(|window| window.relations.contains(&relation))
        {
            self.bytes -= window.invalidate(InvalidChunk::TableHeld);
        }
    }

    /// The chunk was given up: no high fence of it will come.
    pub fn abandon(&mut self, id: ChunkId) {
        self.remove(id);
    }

    fn remove(&mut self, id: ChunkId) -> Option<Window> {
        let window = self.open.remove(&id)?;
        self.bytes -= window.bytes;
        self.relations = self
            .open
            .values()
            .flat_map(|window| window.relations.iter().copied())
            .collect();
        Some(window)
    }

    /// The stream's high fence: merges the rows that were read with the window's changes. The result takes effect at
    /// this place of the stream.
    ///
    /// # Errors
    /// The chunk has to be read again.
    pub fn close(&mut self, id: ChunkId, reads: Vec<Chunk>) -> Result<Merged, InvalidChunk> {
        let Some(window) = self.remove(id).filter(|_| !reads.is_empty()) else {
            return Err(InvalidChunk::Unknown);
        };
        if let Some(invalid) = window.invalid {
            return Err(invalid);
        }
        let since = usize::try_from(self.received - window.received_before).unwrap_or(usize::MAX);
        let before = self.recent.len().saturating_sub(since);
        let sees_all = |read: &Chunk| self.recent.iter().take(before).all(|&xid| read.snapshot.sees(xid));
        // All of them have one snapshot.
        if !reads.first().is_some_and(sees_all) {
            return Err(InvalidChunk::UnseenBeforeFence);
        }
        let mut merged = Merged::default();
        for read in reads {
            let of_table = merge(read, &window.changes)?;
            merged.changes.extend(of_table.changes);
            merged.respelled.extend(of_table.respelled);
        }
        Ok(merged)
    }
}

#[cfg(test)]
mod tests;
