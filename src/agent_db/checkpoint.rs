//! How far the Agent DB has everything, and whose positions these are.

use time::OffsetDateTime;

use crate::lsn::Lsn;

/// Which log a position belongs to: positions of another cluster, timeline or database mean nothing (pitfall P3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The cluster's identifier, as `IDENTIFY_SYSTEM` prints it.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
    /// The replication slot.
    pub slot: String,
    /// The publication that is read through it.
    pub publication: String,
}

/// The position up to which every effect is in the Agent DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose position.
    pub identity: SourceIdentity,
    /// The end of the last source transaction whose effects are all here (never a commit's start: pitfall P7).
    pub end_lsn: Lsn,
    /// When that transaction was committed, by the source's clock.
    pub source_commit_at: Option<OffsetDateTime>,
}

/// The checkpoint as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// The position and its identity.
    pub checkpoint: Checkpoint,
    /// Why rows may be missing, while a hole is possible; `None` is healthy.
    pub gap: Option<Gap>,
    /// When it was written, by the Agent DB's clock.
    pub updated_at: OffsetDateTime,
}

/// A hole that is possible until a full resync says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: String,
    /// Since when, by the Agent DB's clock.
    pub since: OffsetDateTime,
}
