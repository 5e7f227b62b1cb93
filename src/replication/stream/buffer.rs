//! Changes that were received and are not given to the apply task yet: whole transactions, and perhaps the beginning of
//! one more.

use std::mem;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::agent_db::{Item, PassedOver};
use crate::change::{Change, Relation, TableName};
use crate::copy::ChunkOutcome;
use crate::lsn::Lsn;
use crate::replication::tables::life::TableEvent;
use crate::timestamp::PgTimestamp;

/// A change of more bytes is wide.
const WIDE: usize = 1 << 20;

/// The commit of a source transaction that was received completely.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct Boundary {
    /// The position after the commit record.
    pub(in crate::replication) end_lsn: Lsn,
    /// Commit time, by the Site DB's clock.
    pub(in crate::replication) committed_at: PgTimestamp,
}

/// A chunk whose rows are among the items.
#[derive(Debug)]
pub(in crate::replication) struct MergedChunk {
    /// The tables of its rows; one, if it belongs to a copy.
    pub(in crate::replication) tables: Vec<TableName>,
    /// The progress of the table's copy, to be committed with the rows. `None` for healed rows, which belong to no copy.
    pub(in crate::replication) event: Option<TableEvent>,
    /// The reader, which waits until the rows are durable.
    pub(in crate::replication) reader: oneshot::Sender<ChunkOutcome>,
}

/// Collects items. The limit is kept by its owner, which checks [`TransactionBuffer::is_full`] after each item.
#[derive(Debug)]
pub(in crate::replication) struct TransactionBuffer {
    rows: usize,
    bytes: usize,
    /// The part of `bytes` that belongs to the open transaction.
    open_bytes: usize,
    /// One of the items is wide.
    has_wide: bool,
    max_rows: usize,
    max_bytes: usize,
    items: Vec<Item>,
    /// How many of the items belong to whole transactions.
    whole: usize,
    /// The commit of the last whole transaction.
    boundary: Option<Boundary>,
    /// Commit times of the whole transactions that have something to write, for the latency histogram.
    commits: Vec<PgTimestamp>,
    /// Chunks that were merged in whole transactions.
    chunks: Vec<MergedChunk>,
    /// Chunks that were merged in the open transaction.
    open_chunks: Vec<MergedChunk>,
    /// The beginning of the open transaction was taken out by [`TransactionBuffer::take_open`].
    open_taken: bool,
    /// A commit is needed even if no item is left: the end of a transaction whose beginning was taken, or a chunk whose
    /// reader waits.
    needs_commit: bool,
}

/// Whole transactions, ready to be applied and committed.
#[derive(Debug)]
pub(in crate::replication) struct ReadyBatch {
    /// The changes to apply, in the order of the stream.
    pub(in crate::replication) items: Vec<Item>,
    /// The last commit in the batch: the new checkpoint.
    pub(in crate::replication) boundary: Boundary,
    /// Commit times of the transactions in it, by the Site DB's clock.
    pub(in crate::replication) commits: Vec<PgTimestamp>,
    /// The chunks whose rows are among the items.
    pub(in crate::replication) chunks: Vec<MergedChunk>,
}

impl TransactionBuffer {
    /// An empty buffer. `max_bytes` is compared with an estimate of the memory of the items.
    #[must_use]
    pub(in crate::replication) const fn new(max_rows: usize, max_bytes: usize) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            open_bytes: 0,
            has_wide: false,
            max_rows,
            max_bytes,
            items: Vec::new(),
            whole: 0,
            boundary: None,
            commits: Vec::new(),
            chunks: Vec::new(),
            open_chunks: Vec::new(),
            open_taken: false,
            needs_commit: false,
        }
    }

    /// Adds an item of the open transaction.
    pub(in crate::replication) fn push(&mut self, item: Item) {
        let bytes = match &item {
            Item::Change(change) => change.size(),
            Item::Heal(changes) => changes.iter().map(Change::size).sum(),
            _ => 64,
        };
        self.has_wide |= bytes > WIDE;
        self.bytes += bytes;
        self.open_bytes += bytes;
        self.rows += 1;
        self.items.push(item);
    }

    /// Counts bytes that were received among the items and belong to none of them: changes of other tables, old images.
    /// The items are slices of the buffers that all of it was read into, and keep those whole.
    pub(in crate::replication) const fn received_besides(&mut self, bytes: usize) {
        if !self.items.is_empty() {
            self.bytes += bytes;
            self.open_bytes += bytes;
        }
    }

    /// Whether nothing waits in it, and nothing of the open transaction was taken out.
    #[must_use]
    pub(in crate::replication) const fn is_empty(&self) -> bool {
        self.items.is_empty() && !self.open_taken
    }

    /// The estimate of the memory that the items take.
    #[must_use]
    pub(in crate::replication) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts a change that is not applied. Consecutive ones of a table share one item.
    pub(in crate::replication) fn pass_over(&mut self, relation: &Arc<Relation>, why: PassedOver) {
        if let Some(Item::PassedOver {
            relation: last,
            count,
            why: last_why,
        }) = self.items.get_mut(self.whole..).and_then(<[_]>::last_mut)
            && Arc::ptr_eq(last, relation)
            && *last_why == why
        {
            *count += 1;
            return;
        }
        self.push(Item::PassedOver {
            relation: Arc::clone(relation),
            count: 1,
            why,
        });
    }

    /// Adds a chunk, after its rows were pushed.
    pub(in crate::replication) fn push_chunk(&mut self, chunk: MergedChunk) {
        self.open_chunks.push(chunk);
    }

    /// The open transaction has been received completely.
    pub(in crate::replication) fn close_transaction(&mut self, boundary: Boundary) {
        if self.items.len() > self.whole || self.open_taken {
            self.commits.push(boundary.committed_at);
        }
        self.needs_commit |= self.open_taken || !self.open_chunks.is_empty();
        self.open_taken = false;
        self.chunks.append(&mut self.open_chunks);
        self.whole = self.items.len();
        self.open_bytes = 0;
        self.boundary = Some(boundary);
    }

    /// Whether a limit is reached.
    #[must_use]
    pub(in crate::replication) const fn is_full(&self) -> bool {
        let max_bytes = if self.has_wide {
            self.max_bytes / 2
        } else {
            self.max_bytes
        };
        self.rows >= self.max_rows || self.bytes >= max_bytes
    }

    /// Whether it has a wide row. Such a batch is to be applied alone, while nothing more is read: each copy of the row is
    /// a large part of the memory that the daemon takes.
    #[must_use]
    pub(in crate::replication) const fn is_wide(&self) -> bool {
        self.has_wide
    }

    /// Commit time of the oldest transaction in it, by the Site DB's clock.
    #[must_use]
    pub(in crate::replication) fn oldest_commit(&self) -> Option<PgTimestamp> {
        self.commits.first().copied()
    }

    /// Takes the whole transactions out; `None` if nothing has to be applied or committed. What is left belongs to the
    /// open transaction.
    pub(in crate::replication) fn take_whole(&mut self) -> Option<ReadyBatch> {
        if self.whole == 0 && !self.needs_commit {
            return None;
        }
        let boundary = self.boundary?;
        let rest = self.items.split_off(self.whole);
        let items = mem::replace(&mut self.items, rest);
        self.whole = 0;
        self.needs_commit = false;
        self.rows = self.items.len();
        self.bytes = self.open_bytes;
        self.has_wide &= self.open_bytes > WIDE;
        Some(ReadyBatch {
            items,
            boundary,
            commits: mem::take(&mut self.commits),
            chunks: mem::take(&mut self.chunks),
        })
    }

    /// Takes the beginning of the open transaction, to be applied without a commit. Call after
    /// [`TransactionBuffer::take_whole`].
    pub(in crate::replication) fn take_open(&mut self) -> Vec<Item> {
        self.rows = 0;
        self.bytes = 0;
        self.open_bytes = 0;
        self.has_wide = false;
        self.open_taken |= !self.items.is_empty();
        mem::take(&mut self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{RelationId, RowKey};

    fn relation(name: &str) -> Arc<Relation> {
        let table = TableName::new("public", name);
        Arc::new(Relation {
            id: RelationId(1),
            table,
            columns: Box::default(),
            key: RowKey::Columns(Box::default()),
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
        buffer.pass_over(&ours, PassedOver::NotSelected);
        buffer.pass_over(&ours, PassedOver::NotSelected);
        assert!(!buffer.is_full(), "the same thing twice is one item");
        buffer.close_transaction(boundary(10));
        buffer.pass_over(&ours, PassedOver::NotSelected);
        buffer.pass_over(&other, PassedOver::NotSelected);
        assert!(buffer.is_full());
        let closed = buffer.take_whole().unwrap();
        assert_eq!(
            (closed.items.len(), closed.boundary.end_lsn, closed.commits.len()),
            (1, Lsn(10), 1)
        );
        assert!(
            matches!(closed.items[0], Item::PassedOver { count: 2, .. }),
            "and never merged over a commit"
        );
        assert!(!buffer.is_full());
        assert!(buffer.take_whole().is_none());
        assert_eq!(buffer.take_open().len(), 2);
    }

    #[test]
    fn foreign_changes_between_the_items_count_because_the_items_keep_their_buffers() {
        let mut buffer = TransactionBuffer::new(100, 1000);
        buffer.received_besides(5000);
        assert!(!buffer.is_full(), "nothing is kept yet");
        buffer.pass_over(&relation("ours"), PassedOver::NotSelected);
        buffer.received_besides(500);
        assert!(!buffer.is_full());
        buffer.received_besides(500);
        assert!(buffer.is_full());
        buffer.take_open();
        assert!(!buffer.is_full());
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
        buffer.pass_over(&relation("ours"), PassedOver::NotSelected);
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
        buffer.pass_over(&relation("ours"), PassedOver::NotSelected);
        buffer.close_transaction(boundary(10));
        let (reader, _outcome) = oneshot::channel();
        buffer.push_chunk(MergedChunk {
            tables: Vec::new(),
            event: None,
            reader,
        });
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
