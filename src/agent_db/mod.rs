//! The Agent DB: writes rows, failed rows, accounting and checkpoint in one transaction.
//!
//! Its input is a [`Segment`] of [`Change`](crate::change::Change)s in stream order, its output SQL with bound values.
//! It does not know where changes come from (`replication`, `copy`), reads nothing from the Site DB, and never skips a
//! change: each is applied, folded into a newer one, or parked with the reason, and the sum is checked.
//!
//! ```text
//! apply(segment) ─→ plan: fold each key's changes, one statement per table and kind   (pure)
//!                └→ SAVEPOINT, all statements in one round trip; many new rows by COPY
//!                     ├─ a COPY was refused: back to the savepoint, once more with upserts
//!                     └─ a row was refused: back to the savepoint, replay in exact stream order,
//!                        find the refused rows by halving, park those
//! commit(checkpoint) ─→ checkpoint + accounting + COMMIT in one round trip
//! ```
//!
//! Why text and casts: a value is passed as the text that Postgres printed, and the Agent DB casts it to its own type,
//! so we cannot decode any type wrongly (pitfall P28). Why a session lock: the lock, the rows and the checkpoint use
//! the same connection, so a daemon that has lost the lock can't commit.
//!
//! | module | its job |
//! |---|---|
//! | `apply` | changes in, SQL out, one transaction |
//! | `bookkeeping` | the daemon's own tables, one file each |
//! | `catalog` | what the Agent DB's catalog says about a table |
//! | `distinct_rows` | the rows that it has of a table without a key, page by page |
//! | `difference` | where it differs from what it should hold |
//! | `table_check` | whether a table can be written now |
//! | `survey` | what `twinlog doctor` asks |
//! | `condition` | a resync's condition as SQL |
//! | `sequences` | its sequences, moved forward |
//! | `row_look` | a row as it stands, for people |
//! | `keys` | the keys that the Agent DB has of a table, page by page |
//!
//! The driver is `tokio-postgres`, for its pipelining.

mod apply;
mod bookkeeping;
mod catalog;
mod condition;
mod difference;
mod distinct_rows;
mod error;
mod keys;
mod row_look;
mod sequences;
mod survey;
mod table_check;

pub use apply::{
    Applied, Applier, ApplierSettings, Committed, Comparer, Item, PassedOver, Rehearsal, Rehearsed, Segment,
    Transaction,
};
pub use bookkeeping::{
    AgentMark, AgentMarks, BY_SCHEDULE, Checkpoint, Command, CommandError, CommandKind, CommandState, Control,
    CopyPhase, DaemonFigures, DaemonReport, DifferentRow, Discard, FailedFilter, FailedKey, FailedRow, FailedRowDetail,
    Gap, Pipeline, Proof, PublishedChanges, RequestedRetry, Resync, ResyncArguments, ResyncProgress, ResyncedState,
    ResyncedTable, RetryOutcome, ShownKey, SourceIdentity, StoredCheckpoint, StoredDaemon, SyncFigures, TableChange,
    TableMode, TableRecord, TableRecords, TableSettings, TableState, Tally, VerifiedTable, Verify, VerifyArguments,
    VerifyProgress, VerifyState,
};
pub use difference::{Comparison, Difference, DifferenceKind};
pub use distinct_rows::{AgentRows, AgentRowsPage};
pub use error::{AgentError, Holder, MissingColumn, OtherClaim, OtherDaemon, Refuses};
pub use keys::AgentKeys;
pub use row_look::{LookedAt, RowLook};
pub use survey::{AgentRights, Survey, WhatFires};
pub use table_check::TableCheck;
