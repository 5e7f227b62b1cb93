//! A chunk: what it is read for, what was read, and why it may have to be read again.

use std::sync::Arc;

use crate::change::{Key, Relation, Row};
use crate::source::Snapshot;

use super::step::CopyStep;

/// What a chunk is read for. This decides what a key without a row means.
#[derive(Debug)]
pub enum Purpose {
    /// The next rows in key order (copy, resync): only the rows that were read count.
    Rows,
    /// Keys that only the Agent DB seems to have (copy, resync): one that finds no row is deleted there.
    Extras(RequestedKeys),
    /// Parked keys (healing): as for extras, and each key must be told what became of it under its own spelling.
    Parked(RequestedKeys),
}

impl Purpose {
    /// The keys that were asked for one by one.
    #[must_use]
    pub const fn keys(&self) -> Option<&RequestedKeys> {
        match self {
            Self::Rows => None,
            Self::Extras(keys) | Self::Parked(keys) => Some(keys),
        }
    }
}

/// Keys that were asked for one by one: those that found no row do not exist.
#[derive(Debug)]
pub struct RequestedKeys {
    /// The keys, as the Agent DB spells them.
    pub keys: Vec<Key>,
    /// For each row that was read, the position in `keys` of the key that found it. The row's own key may be spelled
    /// differently (1.0 finds 1.00).
    pub found_by: Vec<usize>,
    /// Whether equal keys of this table are always spelled alike.
    pub spelled_alike: bool,
}

/// What was read between the fences.
#[derive(Debug)]
pub struct ChunkRead {
    /// The table, with the columns as they were read.
    pub relation: Arc<Relation>,
    /// What the read saw.
    pub snapshot: Snapshot,
    /// The rows, all full.
    pub rows: Vec<Row>,
    /// What they were read for.
    pub purpose: Purpose,
}

/// A chunk that was read whole, on its way to the stream.
#[derive(Debug)]
pub struct Delivery {
    /// What was read.
    pub read: ChunkRead,
    /// How it moves the table's copy on once it is merged. `None` for parked keys: healing moves none on.
    pub step: Option<CopyStep>,
}

/// Why a chunk has to be read again. Nothing is lost by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidChunk {
    /// A transaction before the low fence was not yet visible to the read.
    UnseenBeforeFence,
    /// The stream changed more of the table between the fences than is kept in memory.
    WindowOverflow,
    /// The table's columns changed between the fences.
    RelationChanged,
    /// A row came or changed that may be one of the requested ones under another spelling of its key.
    OtherSpelling,
    /// The fences are those of an earlier run, or the reader has given the chunk up.
    Unknown,
}

impl InvalidChunk {
    /// For logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnseenBeforeFence => "a commit was in the log but not yet visible",
            Self::WindowOverflow => "the table changed too much while it was read",
            Self::RelationChanged => "the table's columns changed while it was read",
            Self::OtherSpelling => "a row changed that may be one of the requested keys in another spelling",
            Self::Unknown => "the fence is not of this run",
        }
    }
}

/// What became of a chunk: durable in the Agent DB, or to be read again.
pub type ChunkOutcome = Result<(), InvalidChunk>;
