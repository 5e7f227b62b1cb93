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

use super::fence::ChunkId;
use super::snapshot::Snapshot;
use crate::change::{Change, Key, Operation, Origin, Relation, RelationId, Row, Xid, overlay};

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
    /// Keys that were asked for one by one, where that was so: those not among the rows do not exist.
    pub asked: Option<Vec<Key>>,
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
        Ok(merge(read, &window.changes))
    }
}

/// See the module's header.
fn merge(read: ChunkRead, window: &[(Xid, Change)]) -> Vec<Change> {
    let ChunkRead {
        relation,
        snapshot,
        rows,
        asked,
    } = read;
    // None: the key does not exist as far as the read saw, and was asked for.
    let mut merged: HashMap<Key, Option<Row>> = HashMap::with_capacity(rows.len());
    let mut order: Vec<Key> = Vec::with_capacity(rows.len());
    for key in asked.into_iter().flatten() {
        if merged.insert(key.clone(), None).is_none() {
            order.push(key);
        }
    }
    for row in rows {
        // A primary key is never NULL, so a row without a key cannot come out of the reader.
        let Some(key) = relation.key_of(&row) else { continue };
        if merged.insert(key.clone(), Some(row)).is_none() {
            order.push(key);
        }
    }
    for (xid, change) in window {
        if snapshot.sees(*xid) {
            continue;
        }
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
    order
        .into_iter()
        .filter_map(|key| {
            let operation = match merged.remove(&key)? {
                Some(row) => Operation::Insert(row),
                None => Operation::Delete,
            };
            Some(Change {
                relation: Arc::clone(&relation),
                key,
                operation,
                origin: Origin::Chunk,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{ColumnValue, TableName};

    const TABLE: RelationId = RelationId(1);

    fn relation() -> Arc<Relation> {
        Arc::new(Relation {
            id: TABLE,
            table: TableName::new("public", "t"),
            columns: ["id", "a", "b"].map(Arc::from).into(),
            key: [0].into(),
        })
    }

    fn text(value: impl ToString) -> ColumnValue {
        ColumnValue::Text(Bytes::from(value.to_string()))
    }

    fn key(id: u8) -> Key {
        Key([Bytes::from(id.to_string())].into())
    }

    /// A table as a database holds it.
    type Table = BTreeMap<Key, Row>;

    /// Applies a change as the sink does in a first copy: a partial image without a base is left to the chunk that will
    /// bring the row. Returns false where the sink would park.
    fn apply(table: &mut Table, change: Change) -> bool {
        match change.operation {
            Operation::Insert(row) => {
                table.insert(change.key, row);
            }
            Operation::Delete => {
                table.remove(&change.key);
            }
            Operation::Update { old_key: None, row } => match table.get_mut(&change.key) {
                Some(base) => overlay(base, row),
                None if row.is_full() => {
                    table.insert(change.key, row);
                }
                None => {}
            },
            Operation::Update {
                old_key: Some(old),
                row,
            } => match table.remove(&old) {
                Some(mut base) => {
                    overlay(&mut base, row);
                    table.insert(change.key, base);
                }
                None if row.is_full() => {
                    table.insert(change.key, row);
                }
                None => return false,
            },
        }
        true
    }

    /// One source transaction: what it did, and how long after its commit others see it.
    #[derive(Debug, Clone)]
    struct Step {
        key: u8,
        other: u8,
        what: u8,
        value: u8,
        delay: u8,
    }

    fn step() -> impl Strategy<Value = Step> {
        (
            0..5_u8,
            0..5_u8,
            0..4_u8,
            any::<u8>(),
            prop_oneof![4 => Just(0_u8), 1 => 1..8_u8],
        )
            .prop_map(|(key, other, what, value, delay)| Step {
                key,
                other,
                what,
                value,
                delay,
            })
    }

    /// A change that is valid on the source as it is, and done to it.
    fn perform(source: &mut Table, step: &Step) -> Change {
        let relation = relation();
        let id = key(step.key);
        let full = |id: u8| Row([text(id), text(step.value), text(step.value / 2)].into());
        let (key, operation) = if !source.contains_key(&id) {
            (id, Operation::Insert(full(step.key)))
        } else {
            let partial = |id: u8| Row([text(id), text(step.value), ColumnValue::Unchanged].into());
            match step.what {
                0 => (id, Operation::Delete),
                1 => (
                    id,
                    Operation::Update {
                        old_key: None,
                        row: full(step.key),
                    },
                ),
                2 => (
                    id,
                    Operation::Update {
                        old_key: None,
                        row: partial(step.key),
                    },
                ),
                _ if source.contains_key(&super::tests::key(step.other)) => (
                    id,
                    Operation::Update {
                        old_key: None,
                        row: partial(step.key),
                    },
                ),
                _ => {
                    let row = if step.value.is_multiple_of(2) {
                        full(step.other)
                    } else {
                        partial(step.other)
                    };
                    (
                        super::tests::key(step.other),
                        Operation::Update { old_key: Some(id), row },
                    )
                }
            }
        };
        let change = Change {
            relation,
            key,
            operation,
            origin: Origin::Stream,
        };
        assert!(apply(source, change.clone()), "the program is valid on the source");
        change
    }

    fn touched(change: &Change) -> Vec<Key> {
        let old = match &change.operation {
            Operation::Update { old_key: Some(old), .. } => Some(old.clone()),
            _ => None,
        };
        old.into_iter().chain([change.key.clone()]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Any history, any place of the fences, any delay between commit and visibility: after the high fence, and at
        /// the end, the copy equals the source, or the chunk was declared void for a reason.
        #[test]
        fn a_chunk_merged_with_the_stream_equals_the_serial_history(
            steps in prop::collection::vec(step(), 1..24),
            seeded in prop::collection::vec(step(), 0..6),
            low in 0..24_usize, read in 0..6_usize, high in 0..6_usize,
        ) {
            let mut source = Table::new();
            for step in &seeded {
                perform(&mut source, step);
            }
            let mut at_snapshot = source.clone();
            let (low, read, high) = (low, low + read, low + read + high);

            // Commit i happens at time i; it is visible at i + delay, but before anyone else commits to its keys (a row
            // lock is held until then).
            let changes: Vec<Change> = steps.iter().map(|step| perform(&mut source, step)).collect();
            let visible: Vec<usize> = (0..changes.len()).map(|commit| {
                let keys = touched(&changes[commit]);
                let next = (commit + 1..changes.len())
                    .find(|&later| touched(&changes[later]).iter().any(|key| keys.contains(key)))
                    .unwrap_or(usize::MAX);
                (commit + usize::from(steps[commit].delay)).min(next.saturating_sub(1))
            }).collect();
            let seen = |commit: usize| commit < read && visible[commit] < read.max(1);
            let xid = |commit: usize| u32::try_from(commit).unwrap() + 100;
            let unseen: Vec<String> =
                (0..changes.len()).filter(|&c| !seen(c)).map(|c| xid(c).to_string()).collect();
            let snapshot: Snapshot =
                format!("100:{}:{}", 100 + changes.len(), unseen.join(",")).parse().unwrap();
            for (commit, change) in changes.iter().enumerate() {
                if seen(commit) {
                    apply(&mut at_snapshot, change.clone());
                }
            }

            let mut windows = Windows::default();
            let mut target = Table::new();
            let mut parked = HashSet::new();
            let id = ChunkId(uuid::Uuid::nil());
            let mut merged_at = None;
            for time in 0..=changes.len().max(high) {
                if time == low {
                    windows.open(id, TABLE);
                }
                if time == high {
                    let read = ChunkRead {
                        relation: relation(),
                        snapshot: snapshot.clone(),
                        rows: at_snapshot.values().cloned().collect(),
                        asked: None,
                    };
                    match windows.close(id, Some(read)) {
                        Ok(changes) => {
                            for change in changes {
                                parked.remove(&change.key);
                                prop_assert!(apply(&mut target, change));
                            }
                            merged_at = Some(time);
                        }
                        Err(void) => {
                            prop_assert_eq!(void, Void::UnseenBeforeFence);
                            prop_assert!((0..low.min(changes.len())).any(|commit| !seen(commit)));
                            return Ok(());
                        }
                    }
                }
                if let Some(change) = changes.get(time) {
                    if windows.watches(TABLE) {
                        windows.observe(Xid(xid(time)), change);
                    }
                    if !apply(&mut target, change.clone()) {
                        parked.insert(change.key.clone());
                    }
                    if matches!(change.operation, Operation::Delete) {
                        parked.remove(&change.key);
                    }
                    windows.committed(Xid(xid(time)));
                }
            }
            prop_assert!(merged_at.is_some());
            for key in &parked {
                target.remove(key);
                source.remove(key);
            }
            prop_assert_eq!(target, source);
        }
    }

    #[test]
    fn a_window_that_grows_too_large_is_void_and_holds_nothing() {
        let mut windows = Windows::default();
        let id = ChunkId(uuid::Uuid::nil());
        windows.open(id, TABLE);
        let row = Row([
            text(1),
            ColumnValue::Text(Bytes::from(vec![b'x'; WINDOW_BYTES])),
            ColumnValue::Null,
        ]
        .into());
        let change = Change {
            relation: relation(),
            key: key(1),
            operation: Operation::Insert(row),
            origin: Origin::Stream,
        };
        windows.observe(Xid(5), &change);
        assert!(windows.open[&id].changes.is_empty());
        let read = ChunkRead {
            relation: relation(),
            snapshot: "5:5:".parse().unwrap(),
            rows: Vec::new(),
            asked: None,
        };
        assert_eq!(windows.close(id, Some(read)), Err(Void::WindowOverflow));
        assert!(!windows.watches(TABLE));
    }

    #[test]
    fn a_key_that_was_asked_for_and_is_absent_is_deleted_unless_the_stream_brought_it() {
        let ask = |windows: &mut Windows| {
            windows.close(
                ChunkId(uuid::Uuid::nil()),
                Some(ChunkRead {
                    relation: relation(),
                    snapshot: "5:5:".parse().unwrap(),
                    rows: Vec::new(),
                    asked: Some(vec![key(1)]),
                }),
            )
        };
        let mut windows = Windows::default();
        windows.open(ChunkId(uuid::Uuid::nil()), TABLE);
        let changes = ask(&mut windows).unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].operation, Operation::Delete);

        windows.open(ChunkId(uuid::Uuid::nil()), TABLE);
        let row = Row([text(1), text(2), text(3)].into());
        windows.observe(
            Xid(6),
            &Change {
                relation: relation(),
                key: key(1),
                operation: Operation::Insert(row),
                origin: Origin::Stream,
            },
        );
        assert_eq!(ask(&mut windows).unwrap(), Vec::new());
    }
}
