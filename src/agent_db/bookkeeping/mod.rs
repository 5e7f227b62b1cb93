//! The daemon's own rows in the Agent DB, schema `twinlog`: one file for each table, with its types, its SQL and the
//! mapping of its rows.
//!
//! Knows no table of the business and decides nothing: when something is written, and in which transaction, is said by
//! `apply` (beside the rows) and by `replication` (over [`Control`]).
//!
//! | file | table |
//! |---|---|
//! | `checkpoint` | `checkpoint`: the position that is reached, and the gap |
//! | `tables` | `tables`: what each table is doing, and how far its copy is |
//! | `shapes` | `tables`, columns `source_…`: what the table was when its copy began |
//! | `failed_rows` | `failed_rows`: the rows that were refused |
//! | `accounting` | `accounting`: what became of the changes |
//! | `claims` | `claims`: which pipeline writes which table |
//! | `commands` | `commands`: what people asked for |
//! | `proofs` | `proofs`: what verifying has found of each table |
//! | `verifications` | what a command to verify asks for and has found |
//! | `daemon` | `daemon`: the daemon's last report |
//! | `lock` | none: the advisory lock that one daemon holds |
//! | `agent_marks` | none: whether tables were changed in the Agent DB |
//! | `encoding` | none: texts that the database can hold |
//! | `control` | none: the connection for all that is not written beside rows |

pub(super) mod accounting;
mod agent_marks;
pub(super) mod checkpoint;
pub(super) mod claims;
mod commands;
mod control;
mod daemon;
pub(super) mod encoding;
pub(super) mod failed_rows;
pub(super) mod lock;
mod proofs;
pub(super) mod shapes;
pub(super) mod tables;
mod verifications;

pub use accounting::Tally;
pub use agent_marks::{AgentMark, AgentMarks};
pub use checkpoint::{Checkpoint, Gap, SourceIdentity, StoredCheckpoint};
pub use claims::{Pipeline, TableSettings};
pub use commands::{
    Command, CommandError, CommandKind, CommandState, Resync, ResyncArguments, ResyncProgress, ResyncedState,
    ResyncedTable,
};
pub use control::Control;
pub use daemon::{DaemonFigures, DaemonReport, StoredDaemon, SyncFigures};
pub use failed_rows::{Discard, FailedFilter, FailedKey, FailedRow, FailedRowDetail, RequestedRetry, RetryOutcome};
pub use proofs::{BY_SCHEDULE, Proof};
pub use tables::{CopyPhase, PublishedChanges, TableChange, TableMode, TableRecord, TableRecords, TableState};
pub use verifications::{DifferentRow, ShownKey, VerifiedTable, Verify, VerifyArguments, VerifyProgress, VerifyState};
