//! A chunk: what it is read for, what was read, and why it may have to be read again.

use std::sync::Arc;

use crate::agent_db::{AgentError, AgentKeys, Comparison};
use crate::change::{Change, Key, Relation, Row};
use crate::source::Snapshot;

use super::step::CopyStep;

/// What a chunk is read for. This decides what a key without a row means.
#[derive(Debug)]
pub enum Purpose {
    /// The next rows in key order (copy, resync): only the rows that were read count.
    Rows,
    /// Keys that only the Agent DB seems to have (copy, resync): if a key finds no row, its row is deleted there.
    Extras(RequestedKeys),
    /// Parked keys (healing): as for extras. In addition the result must have a change under the requested spelling of
    /// each key, since the parked entry has that spelling; and what the stream did between the fences is part of the
    /// result, since the stream's changes to a parked key are not written but folded into its entry.
    Parked(RequestedKeys),
    /// Keys whose rows are compared with the Agent DB's (verify): as for parked keys, so that the result says what the Agent DB
    /// must hold of each key, but every key has its row's own spelling.
    Compared(RequestedKeys),
    /// Rows that are counted and compared: as for counts.
    ComparedCounts(Vec<u64>),
    /// Rows that are counted to be written, for whatever reason: for each row that was read, how many rows equal it (none for one that
    /// was asked for and is not there).
    Counts(Vec<u64>),
}

/// What a read asks for, where it does not follow the order of the keys.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// The rows that have these keys of the Agent DB, which says which of its keys are one.
    Keys(&'a AgentKeys<'a>, &'a [Key]),
    /// The number of rows that equal each of these.
    Rows(&'a [Row]),
}

impl Purpose {
    /// The requested keys, if the chunk was read by key.
    #[must_use]
    pub const fn keys(&self) -> Option<&RequestedKeys> {
        match self {
            Self::Rows | Self::Counts(_) | Self::ComparedCounts(_) => None,
            Self::Extras(keys) | Self::Parked(keys) | Self::Compared(keys) => Some(keys),
        }
    }

    /// Whether the result is compared with what the Agent DB holds, and not written.
    #[must_use]
    pub const fn compares(&self) -> bool {
        matches!(self, Self::Compared(_) | Self::ComparedCounts(_))
    }
}

/// The keys of a read by key: a key that found no row does not exist in the Site DB.
#[derive(Debug)]
pub struct RequestedKeys {
    /// The keys, in the Agent DB's spelling.
    pub keys: Vec<Key>,
    /// For each row that was read, the position in `keys` of the key that found it. The row's own key may be spelled
    /// differently (1.0 finds 1.00).
    pub found_by: Vec<usize>,
    /// Whether keys that are equal in the Site DB always have the same spelling, those of the Agent DB included.
    pub spelled_alike: bool,
}

/// What was read between the fences.
#[derive(Debug)]
pub struct Chunk {
    /// The table, with the columns as they were read.
    pub relation: Arc<Relation>,
    /// The snapshot of the read: tells which transactions it saw.
    pub snapshot: Snapshot,
    /// The rows; every column has a value.
    pub rows: Vec<Row>,
    /// The purpose of the read.
    pub purpose: Purpose,
}

/// A chunk that was read completely, on its way to the stream.
#[derive(Debug)]
pub struct Delivery {
    /// The rows and how they were read: of one table, or, for parked keys, of several tables under one snapshot.
    pub reads: Vec<Chunk>,
    /// The progress of the table's copy once the chunk is merged. `None` for parked keys, which belong to no copy.
    pub step: Option<CopyStep>,
}

/// A chunk merged with the stream's changes between its fences. It takes effect at the high fence.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Rows and deleted keys.
    pub changes: Vec<Change>,
    /// Rows that replace those with another spelling of their key, after `changes`.
    pub respelled: Vec<Change>,
}

/// Why a chunk has to be read again. Nothing is lost: its rows were not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidChunk {
    /// A transaction before the low fence was not yet visible to the read.
    UnseenBeforeFence,
    /// The stream changed more of the table between the fences than is kept in memory.
    WindowOverflow,
    /// The table was truncated between the fences.
    Truncated,
    /// The table's columns changed between the fences.
    RelationChanged,
    /// A row was inserted or changed that may be a requested one with another spelling of its key.
    OtherSpelling,
    /// The table is held: its copy ends, and begins anew when the table is released.
    TableHeld,
    /// A row changed of which the stream has only some columns, and the read has none.
    PartlyKnown,
    /// The fences are of an earlier run, or the reader has withdrawn the chunk.
    Unknown,
}

impl InvalidChunk {
    /// The reason in words, for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnseenBeforeFence => "a commit was in the log but not yet visible",
            Self::WindowOverflow => "the table changed too much while it was read",
            Self::Truncated => "the table was truncated while it was read",
            Self::RelationChanged => "the table's columns changed while it was read",
            Self::OtherSpelling => "a row changed whose key may be a requested one in another spelling",
            Self::TableHeld => "the table is held",
            Self::PartlyKnown => "a row changed of which only some columns are known",
            Self::Unknown => "the fence is of an earlier run",
        }
    }
}

/// What became of a valid chunk.
#[derive(Debug)]
pub enum ChunkResult {
    /// Its rows are durable in the Agent DB.
    Durable,
    /// Its rows were compared with the Agent DB's, or could not be.
    Compared(Result<Comparison, AgentError>),
}

/// The result for a chunk's reader; or the chunk has to be read again.
pub type ChunkOutcome = Result<ChunkResult, InvalidChunk>;
