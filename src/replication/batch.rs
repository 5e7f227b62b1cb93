//! What was received and not handed to the sink yet: whole transactions, and perhaps the beginning of one more.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::agent_db::Item;
use crate::change::{Operation, Relation};
use crate::copy::board::Outcome;
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// A commit of the source that a batch holds whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boundary {
    /// The position after it.
    pub(super) end_lsn: Lsn,
    /// When it committed.
    pub(super) committed_at: PgTimestamp,
}

/// Collects items up to a limit. Bounded by its owner, who asks [`Batch::is_full`] after each item.
#[derive(Debug)]
pub(super) struct Batch {
    rows: usize,
    bytes: usize,
    max_rows: usize,
    max_bytes: usize,
    items: Vec<Item>,
    /// How many of the items belong to whole transactions.
    whole: usize,
    /// The last whole transaction.
    boundary: Option<Boundary>,
    /// When each whole transaction with effects committed, for the latency histogram.
    commits: Vec<PgTimestamp>,
    /// Readers of merged chunks, to be told once the batch is durable.
    chunks: Vec<oneshot::Sender<Outcome>>,
}

/// Whole transactions, ready to be applied and committed.
#[derive(Debug)]
pub(super) struct Closed {
    /// What to apply.
    pub(super) items: Vec<Item>,
    /// Where to put the checkpoint.
    pub(super) boundary: Boundary,
    /// When the transactions in it committed.
    pub(super) commits: Vec<PgTimestamp>,
    /// Whom to tell.
    pub(super) chunks: Vec<oneshot::Sender<Outcome>>,
}

impl Batch {
    /// An empty batch with its limits.
    #[must_use]
    pub(super) const fn new(max_rows: usize, max_bytes: usize) -> Self {
        Self {
            rows: 0,
            bytes: 0,
            max_rows,
            max_bytes,
            items: Vec::new(),
            whole: 0,
            boundary: None,
            commits: Vec::new(),
            chunks: Vec::new(),
        }
    }

    /// Adds something of the open transaction.
    pub(super) fn push(&mut self, item: Item) {
        self.bytes += match &item {
            Item::Change(change) => {
                // The change itself, its key's box and the shares of both.
                160 + match &change.operation {
                    Operation::Insert(row) | Operation::Update { row, .. } => row.size(),
                    Operation::Delete => 64,
                }
            }
            _ => 64,
        };
        self.rows += 1;
        self.items.push(item);
    }

    /// Changes of a table that are not ours to apply; merged with the last item where that says the same.
    pub(super) fn count_filtered(&mut self, relation: &Arc<Relation>) {
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

    /// A reader waits for the chunk that was just pushed.
    pub(super) fn await_chunk(&mut self, reader: oneshot::Sender<Outcome>) {
        self.chunks.push(reader);
    }

    /// The open transaction is whole.
    pub(super) fn close_transaction(&mut self, boundary: Boundary) {
        if self.items.len() > self.whole {
            self.commits.push(boundary.committed_at);
        }
        self.whole = self.items.len();
        self.boundary = Some(boundary);
    }

    /// Whether it holds as much as it may.
    #[must_use]
    pub(super) const fn is_full(&self) -> bool {
        self.rows >= self.max_rows || self.bytes >= self.max_bytes
    }

    /// When the oldest transaction in it committed.
    #[must_use]
    pub(super) fn oldest_commit(&self) -> Option<PgTimestamp> {
        self.commits.first().copied()
    }

    /// Takes the whole transactions out; `None` where they hold nothing to apply. What is left belongs to the open one.
    pub(super) fn take_whole(&mut self) -> Option<Closed> {
        if self.whole == 0 {
            return None;
        }
        let boundary = self.boundary?;
        let rest = self.items.split_off(self.whole);
        let items = mem::replace(&mut self.items, rest);
        self.whole = 0;
        self.rows = self.items.len();
        if self.rows == 0 {
            self.bytes = 0;
        }
        Some(Closed {
            items,
            boundary,
            commits: mem::take(&mut self.commits),
            chunks: mem::take(&mut self.chunks),
        })
    }

    /// Takes the beginning of the open transaction, to be applied without a commit. Call after [`Batch::take_whole`].
    pub(super) fn take_open(&mut self) -> Vec<Item> {
        self.rows = 0;
        self.bytes = 0;
        mem::take(&mut self.items)
    }
}

/// How long ago something happened by the source's clock, whose offset to ours is known; never negative.
#[must_use]
pub(super) fn age(then: PgTimestamp, now: PgTimestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0))
}

/// Whether two descriptions of a table give the same row images.
#[must_use]
pub(super) fn same_shape(one: &Relation, other: &Relation) -> bool {
    one.columns == other.columns && one.key == other.key
}
