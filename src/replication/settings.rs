//! What one pipeline is told: its two databases, its slot, its limits.
//!
//! A pipeline is one slot of one Site DB, read into one Agent DB. It knows nothing of the configuration's file, nor of
//! other pipelines: to run several, start several of these.

use std::time::Duration;

use crate::config::DatabaseUrl;

/// One pipeline.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// Its name in logs; bounded, since it is the slot's.
    pub pipeline: String,
    /// The Site DB, which is read.
    pub site: DatabaseUrl,
    /// The Agent DB, which is written.
    pub agent: DatabaseUrl,
    /// The replication slot.
    pub slot: String,
    /// The publication that is read through it; created where there is none.
    pub publication: String,
    /// Glob patterns over the unquoted `schema.table`; the last one that matches decides, and `!` takes out.
    pub tables: Vec<String>,
    /// Limits of a batch.
    pub batch: BatchLimits,
    /// How tables are copied.
    pub copies: CopySettings,
    /// How rows are parked that the Agent DB refuses.
    pub parking: ParkingSettings,
    /// First and longest wait before a stream that was interrupted is tried again.
    pub reconnect: (Duration, Duration),
}

/// A batch is handed over when it reaches one of these.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Changes.
    pub rows: usize,
    /// Bytes of their values, about.
    pub bytes: usize,
}

/// How tables are copied.
#[derive(Debug, Clone, Copy)]
pub struct CopySettings {
    /// Rows that are read between two fences.
    pub chunk_rows: u32,
    /// Tables that are copied at the same time.
    pub workers: usize,
}

/// How rows are parked that the Agent DB refuses.
#[derive(Debug, Clone, Copy)]
pub struct ParkingSettings {
    /// Parked rows of one table beyond which the table is at fault.
    pub max_rows: usize,
    /// First and longest wait before a parked row is tried again.
    pub retry: (Duration, Duration),
}
