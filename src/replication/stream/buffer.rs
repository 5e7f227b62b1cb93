//! What was received and is not handed over yet: whole transactions, and perhaps the beginning of one more.

use std::mem;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::agent_db::Item;
use crate::change::{Operation, Relation, TableName};
use crate::copy::ChunkOutcome;
use crate::lsn::Lsn;
use crate::replication::tables::life::TableEvent;
use crate::timestamp::PgTimestamp;

/// A commit of the source that a batch holds whole.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct Boundary {
    /// The position after it.
    pub(in crate::replication) end_lsn: Lsn,
    /// When it committed.
    pub(in crate::replication) committed_at: PgTimestamp,
}

/// A chunk whose rows are among the items.
#[derive(Debug)]
pub(in crate::replication) struct MergedChunk {
    /// How it moves its table's copy on, to be written with the rows. Healed rows move none on.
    pub(in crate::replication) event: Option<(TableName, TableEvent)>,
    /// Whom to tell once it is durable.
    pub(in crate::replication) reader: oneshot::Sender<ChunkOutcome>,
}

/// Collects items up to a limit. Bounded by its owner, who asks [`TransactionBuffer::is_full`] after each item.
#[derive(Debug)]
pub(in crate::replication) struct TransactionBuffer {
    rows: usize,
    bytes: usize,
    /// Of these, the open transaction's.
    open_bytes: usize,
    max_rows: usize,
    max_bytes: usize,
    items: Vec<Item>,
    /// How many of the items belong to whole transactions.
    whole: usize,
    /// The last whole transaction.
    boundary: Option<Boundary>,
    /// When each whole transaction with effects committed, for the latency histogram.
    commits: Vec<PgTimestamp>,
    /// Chunks that were merged in whole transactions.
    chunks: Vec<MergedChunk>,
    /// The same of the open transaction.
    open_chunks: Vec<MergedChunk>,
    /// The beginning of the open transaction was taken.
    open_taken: bool,
    /// A whole transaction waits for its commit although no item of it may be left here.
    owed: bool,
}

/// Whole transactions, ready to be applied and committed.
#[derive(Debug)]
pub(in crate::replication) struct ReadyBatch {
    /// What to apply.
    pub(in crate::replication) items: Vec<Item>,
    /// Where to put the checkpoint.
    pub(in crate::replication) boundary: Boundary,
    /// When the transactions in it committed.
    pub(in crate::replication) commits: Vec<PgTimestamp>,
    /// The chunks among them.
    pub(in crate::replication) chunks: Vec<MergedChunk>,
}

impl TransactionBuffer {
    /// An empty batch with its limits.
    #[must_use]
    pub(in crate::replication) const fn new(max_rows: usize, max_bytes: usize) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            open_bytes: 0,
            max_rows,
            max_bytes,
            items: Vec::new(),
            whole: 0,
            boundary: None,
            commits: Vec::new(),
            chunks: Vec::new(),
            open_chunks: Vec::new(),
            open_taken: false,
            owed: false,
        }
    }

    /// Adds something of the open transaction.
    pub(in crate::replication) fn push(&mut self, item: Item) {
        let bytes = match &item {
            Item::Change(change) => {
                // The change itself, its key's box and the shares of both.
                160 + match &change.operation {
                    Operation::Insert(row) | Operation::Update { row, .. } => row.size(),
                    Operation::Delete => 64,
                }
            }
            _ => 64,
        };
        self.bytes += bytes;
        self.open_bytes += bytes;
        self.rows += 1;
        self.items.push(item);
    }

    /// Changes of a table that are not ours to apply; merged with the last item where that says the same.
    pub(in crate::replication) fn count_filtered(&mut self, relation: &Arc<Relation>) {
        if let Some(Item::Filtered { relation: last, count }) =
            self.items.get_mut(self.whole..).and_then(<[_]>::last_mut)
            && Arc::ptr_eq(last, relation)
        {
            *count += 1;
            return;
        }
        self.push(Item::Filtered {
            relation: Arc::clone(relation),
            count: 1,
        });
    }

    /// The rows of this chunk were just pushed.
    pub(in crate::replication) fn push_chunk(&mut self, chunk: MergedChunk) {
        self.open_chunks.push(chunk);
    }

    /// The open transaction is whole.
    pub(in crate::replication) fn close_transaction(&mut self, boundary: Boundary) {
        if self.items.len() > self.whole || self.open_taken {
            self.commits.push(boundary.committed_at);
        }
        self.owed |= self.open_taken || !self.open_chunks.is_empty();
        self.open_taken = false;
        self.chunks.append(&mut self.open_chunks);
        self.whole = self.items.len();
        self.open_bytes = 0;
        self.boundary = Some(boundary);
    }

    /// Whether it holds as much as it may.
    #[must_use]
    pub(in crate::replication) const fn is_full(&self) -> bool {
        self.rows >= self.max_rows || self.bytes >= self.max_bytes
    }

    /// When the oldest transaction in it committed.
    #[must_use]
    pub(in crate::replication) fn oldest_commit(&self) -> Option<PgTimestamp> {
        self.commits.first().copied()
    }

    /// Takes the whole transactions out; `None` where nothing of them has to be applied or committed. What is left belongs to the open one.
    pub(in crate::replication) fn take_whole(&mut self) -> Option<ReadyBatch> {
        if self.whole == 0 && !self.owed {
            return None;
        }
        let boundary = self.boundary?;
        let rest = self.items.split_off(self.whole);
        let items = mem::replace(&mut self.items, rest);
        self.whole = 0;
        self.owed = false;
        self.rows = self.items.len();
        self.bytes = self.open_bytes;
        Some(ReadyBatch {
            items,
            boundary,
            commits: mem::take(&mut self.commits),
            chunks: mem::take(&mut self.chunks),
        })
    }

    /// Takes the beginning of the open transaction, to be applied without a commit. Call after [`TransactionBuffer::take_whole`].
    pub(in crate::replication) fn take_open(&mut self) -> Vec<Item> {
        self.rows = 0;
        self.bytes = 0;
        self.open_bytes = 0;
        self.open_taken |= !self.items.is_empty();
        mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::RelationId;

    fn relation(name: &str) -> Arc<Relation> {
        let table = TableName::new("public", name);
        Arc::new(Relation {
            id: RelationId(1),
            table,
            columns: Box::default(),
            key: Box::default(),
        })
    }

    fn boundary(end: u64) -> Boundary {
        Boundary {
            end_lsn: Lsn(end),
            committed_at: PgTimestamp(7),
        }
    }

    #[test]
    fn what_is_whole_and_what_is_open_are_taken_apart() {
        let mut buffer = TransactionBuffer::new(3, 1 << 20);
        let (ours, other) = (relation("ours"), relation("other"));
        buffer.count_filtered(&ours);
        buffer.count_filtered(&ours);
        assert!(!buffer.is_full(), "the same thing twice is one item");
        buffer.close_transaction(boundary(10));
        buffer.count_filtered(&ours);
        buffer.count_filtered(&other);
        assert!(buffer.is_full());
        let closed = buffer.take_whole().unwrap();
        assert_eq!(
            (closed.items.len(), closed.boundary.end_lsn, closed.commits.len()),
            (1, Lsn(10), 1)
        );
        assert!(
            matches!(closed.items[0], Item::Filtered { count: 2, .. }),
            "and never merged over a commit"
        );
        assert!(!buffer.is_full());
        assert!(buffer.take_whole().is_none());
        assert_eq!(buffer.take_open().len(), 2);
    }

    #[test]
    fn a_transaction_without_effects_leaves_nothing_to_apply() {
        let mut buffer = TransactionBuffer::new(10, 1 << 20);
        buffer.close_transaction(boundary(10));
        assert!(buffer.take_whole().is_none());
        assert_eq!(buffer.oldest_commit(), None);
    }

    #[test]
    fn a_transaction_whose_last_item_was_taken_before_its_end_is_committed_all_the_same() {
        let mut buffer = TransactionBuffer::new(1, 1 << 20);
        buffer.count_filtered(&relation("ours"));
        assert!(buffer.take_whole().is_none(), "not before its end");
        assert_eq!(buffer.take_open().len(), 1);
        buffer.close_transaction(boundary(10));
        let closed = buffer.take_whole().unwrap();
        assert_eq!(
            (closed.items.len(), closed.boundary.end_lsn, closed.commits.len()),
            (0, Lsn(10), 1)
        );
        assert!(buffer.take_whole().is_none(), "once");
    }

    #[test]
    fn a_reader_is_told_with_the_commit_of_its_own_transaction() {
        let mut buffer = TransactionBuffer::new(10, 1 << 20);
        buffer.count_filtered(&relation("ours"));
        buffer.close_transaction(boundary(10));
        let (reader, _outcome) = oneshot::channel();
        buffer.push_chunk(MergedChunk { event: None, reader });
        assert!(
            buffer.take_whole().unwrap().chunks.is_empty(),
            "not with the one before"
        );
        buffer.close_transaction(boundary(20));
        let closed = buffer.take_whole().unwrap();
        assert_eq!(
            (closed.items.len(), closed.chunks.len()),
            (0, 1),
            "even if it brought nothing"
        );
    }
}
