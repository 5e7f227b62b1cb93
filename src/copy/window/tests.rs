//! The merge against the serial history, and each way in which a chunk is invalid.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::{ColumnValue, Key, Operation, Origin, Relation, Row, RowKey, TableName, overlay};
use crate::copy::chunk::{Purpose, RequestedKeys};
use crate::source::Snapshot;

const TABLE: RelationId = RelationId(1);

fn relation() -> Arc<Relation> {
    Arc::new(Relation {
        id: TABLE,
        table: TableName::new("public", "t"),
        columns: ["id", "a", "b"].map(Arc::from).into(),
        key: RowKey::Columns([0].into()),
    })
}

fn text(value: impl ToString) -> ColumnValue {
    ColumnValue::Text(Bytes::from(value.to_string()))
}

fn key(id: u8) -> Key {
    Key([Bytes::from(id.to_string())].into())
}

/// The merge of one table's chunk, all its changes in order.
fn close(windows: &mut Windows, id: ChunkId, read: Chunk) -> Result<Vec<Change>, InvalidChunk> {
    let Merged { mut changes, respelled } = windows.close(id, vec![read])?;
    changes.extend(respelled);
    Ok(changes)
}

/// A table as a database holds it.
type Table = BTreeMap<Key, Row>;

/// Applies a change as the Agent DB's applier does in a first copy: a partial image without a base is left to the chunk that will
/// bring the row. Returns false where the applier would park.
fn apply(table: &mut Table, change: Change) -> bool {
    match change.operation {
        Operation::Insert(row) => {
            table.insert(change.key, row);
        }
        Operation::Delete | Operation::DeleteOne(_) | Operation::Count { .. } | Operation::ReplaceOne(_) => {
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
                windows.open(id, &[TABLE]);
            }
            if time == high {
                let read = Chunk {
                    relation: relation(),
                    snapshot: snapshot.clone(),
                    rows: at_snapshot.values().cloned().collect(),
                    purpose: Purpose::Rows,
                };
                match close(&mut windows, id, read) {
                    Ok(changes) => {
                        for change in changes {
                            parked.remove(&change.key);
                            prop_assert!(apply(&mut target, change));
                        }
                        merged_at = Some(time);
                    }
                    Err(invalid) => {
                        prop_assert_eq!(invalid, InvalidChunk::UnseenBeforeFence);
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
    windows.open(id, &[TABLE]);
    let row = Row([
        text(1),
        ColumnValue::Text(Bytes::from(vec![b'x'; WINDOWS_BYTES])),
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
    let read = Chunk {
        relation: relation(),
        snapshot: "5:5:".parse().unwrap(),
        rows: Vec::new(),
        purpose: Purpose::Rows,
    };
    assert_eq!(close(&mut windows, id, read), Err(InvalidChunk::WindowOverflow));
    assert!(!windows.watches(TABLE));
}

fn parked_keys(keys: Vec<Key>, found_by: Vec<usize>, spelled_alike: bool) -> Purpose {
    Purpose::Parked(RequestedKeys {
        keys,
        found_by,
        spelled_alike,
    })
}

#[test]
fn a_row_that_is_found_under_another_spelling_is_renamed_and_never_deleted() {
    let spelt = |text: &'static str| Key([Bytes::from(text)].into());
    let row = |id: &str| Row([text(id), text("a"), text("b")].into());
    let close = |alike: bool, rows: Vec<Row>, change: Option<Operation>| {
        let mut windows = Windows::default();
        let id = ChunkId(uuid::Uuid::new_v4());
        windows.open(id, &[TABLE]);
        if let Some(operation) = change {
            let change = Change {
                relation: relation(),
                key: spelt("1.000"),
                operation,
                origin: Origin::Stream,
            };
            windows.observe(Xid(9), &change);
            windows.committed(Xid(9));
        }
        let found_by = (0..rows.len()).collect();
        let read = Chunk {
            relation: relation(),
            snapshot: "9:9:".parse().unwrap(),
            rows,
            purpose: parked_keys(vec![spelt("1.0")], found_by, alike),
        };
        close(&mut windows, id, read)
    };

    let changes = close(false, vec![row("1.00")], None).unwrap();
    assert!(
        !changes
            .iter()
            .any(|change| matches!(change.operation, Operation::Delete))
    );
    assert!(changes.iter().any(
        |change| matches!(&change.operation, Operation::Update { old_key: Some(old), .. } if *old == spelt("1.0"))
            && change.key == spelt("1.00")
    ));
    assert!(
        changes.iter().any(|change| change.key == spelt("1.0")),
        "the parked key is told"
    );

    // WHEN a row comes that the read did not see, it may be the one that was asked for
    let came = Operation::Insert(row("1.000"));
    assert_eq!(
        close(false, Vec::new(), Some(came.clone())).unwrap_err(),
        InvalidChunk::OtherSpelling
    );
    assert_eq!(
        close(true, Vec::new(), Some(came)).unwrap().len(),
        1,
        "not where keys have one spelling"
    );
    // WHEN the row that was found goes
    assert_eq!(
        close(false, vec![row("1.000")], Some(Operation::Delete)).unwrap_err(),
        InvalidChunk::OtherSpelling
    );
}

#[test]
fn a_key_that_was_asked_for_and_is_absent_is_deleted_unless_the_stream_brought_it() {
    let ask = |windows: &mut Windows| {
        close(
            windows,
            ChunkId(uuid::Uuid::nil()),
            Chunk {
                relation: relation(),
                snapshot: "5:5:".parse().unwrap(),
                rows: Vec::new(),
                purpose: Purpose::Extras(RequestedKeys {
                    keys: vec![key(1)],
                    found_by: Vec::new(),
                    spelled_alike: true,
                }),
            },
        )
    };
    let mut windows = Windows::default();
    windows.open(ChunkId(uuid::Uuid::nil()), &[TABLE]);
    let changes = ask(&mut windows).unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].operation, Operation::Delete);

    windows.open(ChunkId(uuid::Uuid::nil()), &[TABLE]);
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
