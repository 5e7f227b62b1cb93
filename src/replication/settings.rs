//! The settings of one pipeline: its two databases, its slot, its limits.
//!
//! A pipeline is one slot of one Site DB, read into one Agent DB. It does not know the configuration file or other
//! pipelines: to run several, build several of these.

use std::time::Duration;

use crate::config::{DatabaseUrl, OnLostSlot, OnNewColumn, OnUnreplicableTable};

/// The settings of one pipeline; from the sections `sync`, `site` and `agent` of the configuration.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    /// The pipeline's name in logs: the slot's name, so the number of values is bounded.
    pub pipeline: String,
    /// The Site DB, which is read.
    pub site: DatabaseUrl,
    /// The Agent DB, which is written.
    pub agent: DatabaseUrl,
    /// The replication slot on the Site DB; created if it does not exist.
    pub slot: String,
    /// The publication that is read through the slot; created if it does not exist.
    pub publication: String,
    /// Glob patterns over the unquoted `schema.table`; the last pattern that matches decides, and `!` excludes.
    pub tables: Vec<String>,
    /// Patterns for those of them that another pipeline may write as well.
    pub shared_tables: Vec<String>,
    /// What happens with a selected table that can't be replicated.
    pub on_unreplicable_table: OnUnreplicableTable,
    /// What happens with a column that the Agent DB lacks.
    pub on_new_column: OnNewColumn,
    /// The size at which a batch is applied without waiting for more.
    pub batch: BatchLimits,
    /// Chunk size and parallelism of the copies.
    pub copies: CopySettings,
    /// Limit and retry times of rows that the Agent DB refuses.
    pub parking: ParkingSettings,
    /// First and longest wait before a stream that was interrupted is tried again.
    pub reconnect: (Duration, Duration),
    /// The delay beyond which the daemon is not ready.
    pub ready_delay: Duration,
    /// A statement of the Agent DB that takes longer is cancelled, and its table held.
    pub statement_limit: Duration,
    /// Verifying by a schedule.
    pub verification: VerificationSettings,
    /// When the slot is given up, and what follows.
    pub lost_slot: LostSlotSettings,
}

/// A slot that is given up, or lost in another way.
#[derive(Debug, Clone, Copy)]
pub struct LostSlotSettings {
    /// Bytes of WAL at which the daemon gives the slot up; `None`: never.
    pub give_up_at: Option<u64>,
    /// What happens when the slot is lost.
    pub then: OnLostSlot,
}

/// A batch is handed to the Agent DB when it reaches one of these limits.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Number of row changes.
    pub rows: usize,
    /// Approximate memory of these changes, in bytes.
    pub bytes: usize,
}

/// How tables are copied.
#[derive(Debug, Clone, Copy)]
pub struct CopySettings {
    /// Rows that are read in one chunk, between its two fences.
    pub chunk_rows: u32,
    /// Tables that are copied at the same time.
    pub workers: usize,
}

/// What happens with rows that the Agent DB refuses: they are parked in `twinlog.failed_rows`.
#[derive(Debug, Clone, Copy)]
pub struct ParkingSettings {
    /// Most parked rows of one table; one more is treated as a fault of the whole table, and holds the stream.
    pub max_rows: usize,
    /// First and longest wait before a parked row is tried again.
    pub retry: (Duration, Duration),
}

/// How tables are verified by a schedule.
#[derive(Debug, Clone, Copy)]
pub struct VerificationSettings {
    /// How often; `None`: never.
    pub every: Option<Duration>,
    /// Rows that are compared in a second.
    pub rows_per_second: u32,
}
