//! The transitions of a table's state as one pure function, [`next`].
//!
//! It decides the state after an event, and which events a state does not accept. It uses no database and no clock:
//! times and positions come with the events. The diagram of the states is in the header of `tables`.

use time::OffsetDateTime;

use crate::agent_db::{CopyPhase, PublishedChanges, TableRecord, TableState};
use crate::change::{Hold, TableName};
use crate::copy::CopyStep;
use crate::lsn::Lsn;

/// Something that happened to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::replication) enum TableEvent {
    /// The start found the table published and selected, and nothing is stored about it.
    SeenFirst,
    /// The start found the table no longer published or no longer selected. It misses changes from now on.
    LeftPublication,
    /// The Site DB's table was recreated or changed so that the copied rows cannot be used.
    ShapeOutdated,
    /// Rows may have changed in the Site DB without a word in its log.
    MayDiffer,
    /// The table was looked up, and its rows are told apart by this key.
    KeyChosen {
        /// The key, as [`TableRecord::key`] has it.
        key: String,
        /// Which changes the Site DB can publish.
        published: PublishedChanges,
        /// See [`TableRecord::notes`].
        notes: Option<String>,
        /// Whether rows of it are parked. The caller removes these entries where the key is another one than before.
        parked: bool,
    },
    /// Rows are parked under a key by which the table's rows are not told apart any more. The caller removes the entries.
    KeyOutdated,
    /// There is no checkpoint, so changes since the table's copy may be missing.
    CheckpointLost,
    /// Rows may be missing, and an operator's `resync --all` lets the stream continue: every table is read again.
    GapAccepted {
        /// The id of the `resync --all` in `twinlog.commands`.
        command: i64,
    },
    /// An operator asked for the table to be read again.
    ResyncAsked {
        /// The id of the command in `twinlog.commands`.
        command: i64,
        /// An SQL condition: read only rows of the Site DB that meet it.
        condition: Option<String>,
    },
    /// A copy begins; or continues after an interruption, which changes nothing.
    CopyStarted {
        /// When, by our clock.
        at: OffsetDateTime,
        /// The planner's estimate of the number of rows; `None` if the table was never analysed.
        estimated: Option<i64>,
    },
    /// A chunk of the copy was merged with the stream.
    ChunkMerged {
        /// The progress that it makes.
        step: CopyStep,
        /// When, by our clock.
        at: OffsetDateTime,
        /// The Site DB's position as of which the merged rows are exact.
        lsn: Lsn,
    },
    /// An attempt to copy failed and will be repeated.
    CopyWaits {
        /// What an operator has to repair first; `None` if the cause is temporary.
        reason: Option<String>,
    },
    /// A resync with a condition can never succeed, since the condition is invalid.
    CopyGivenUp,
    /// The table's changes can't be applied, while those of the other tables can.
    Held(Hold),
    /// The reason why the table was held is gone.
    Released,
}

impl TableEvent {
    /// The event's name in log lines and errors.
    pub(in crate::replication) const fn name(&self) -> &'static str {
        match self {
            Self::SeenFirst => "seen first",
            Self::LeftPublication => "left the publication",
            Self::ShapeOutdated => "shape outdated",
            Self::MayDiffer => "may differ",
            Self::KeyChosen { .. } => "key chosen",
            Self::KeyOutdated => "key outdated",
            Self::CheckpointLost => "checkpoint lost",
            Self::GapAccepted { .. } => "gap accepted",
            Self::ResyncAsked { .. } => "resync asked",
            Self::CopyStarted { .. } => "copy started",
            Self::ChunkMerged { step, .. } => match step {
                CopyStep::Chunk { .. } => "chunk done",
                CopyStep::PhaseFinished { .. } => "phase finished",
                CopyStep::Finished { .. } => "copy finished",
            },
            Self::CopyWaits { .. } => "copy waits",
            Self::CopyGivenUp => "copy given up",
            Self::Held(_) => "held",
            Self::Released => "released",
        }
    }
}

/// The table's state does not accept the event. The table stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a table in state {} does not accept the event \"{event}\"", .state.map_or("unknown", TableState::as_str))]
pub struct TransitionError {
    /// `None` if nothing is stored about the table.
    state: Option<TableState>,
    event: &'static str,
}

/// The table's record after an event. `None`, as input and as result: the table is not synchronised. Pure.
///
/// # Errors
/// The event makes no sense in this state; nothing changes.
pub(in crate::replication) fn next(
    table: &TableName,
    before: Option<&TableRecord>,
    event: TableEvent,
) -> Result<Option<TableRecord>, TransitionError> {
    use TableState::{Copying, Held, New, Resyncing, Streaming};
    let state = before.map(|record| record.state);
    let refused = TransitionError {
        state,
        event: event.name(),
    };
    let record = || before.cloned().unwrap_or_else(|| TableRecord::new(table.clone()));
    let after = match (state, event) {
        (None, TableEvent::SeenFirst) => TableRecord::new(table.clone()),
        (Some(_), TableEvent::LeftPublication) => return Ok(None),

        // A held table stays held. Without these two fields it counts as never copied: its release starts a first copy.
        (Some(Held), TableEvent::ShapeOutdated) => TableRecord {
            finished_at: None,
            copied_at_lsn: None,
            ..record()
        },
        (Some(_), TableEvent::ShapeOutdated) => reset(record(), New),
        (
            Some(_),
            TableEvent::KeyChosen {
                key,
                published,
                notes,
                parked,
            },
        ) => {
            let record = TableRecord {
                published,
                notes: notes.map(String::into_boxed_str),
                ..record()
            };
            with_key(record, key, parked)
        }
        (Some(_), TableEvent::KeyOutdated) => read_again(record()),
        (Some(Held), TableEvent::CheckpointLost | TableEvent::MayDiffer) => record(),
        (Some(New), TableEvent::CheckpointLost | TableEvent::MayDiffer) => record(),
        (Some(Copying), TableEvent::CheckpointLost | TableEvent::MayDiffer) => reset(record(), New),
        (Some(Streaming | Resyncing), TableEvent::CheckpointLost | TableEvent::MayDiffer) => reset(record(), Resyncing),
        (state, TableEvent::GapAccepted { command }) => {
            let again = match state {
                None | Some(New | Copying) => reset(record(), New),
                Some(Streaming | Resyncing) => reset(record(), Resyncing),
                Some(Held) => record(),
            };
            TableRecord {
                command_id: Some(command),
                ..again
            }
        }

        (Some(Streaming), TableEvent::ResyncAsked { command, condition }) => TableRecord {
            command_id: Some(command),
            condition,
            ..reset(record(), Resyncing)
        },
        (Some(New | Copying | Resyncing), TableEvent::CopyStarted { at, estimated }) => {
            started(record(), at, estimated)
        }
        (Some(Copying | Resyncing), TableEvent::ChunkMerged { step, at, lsn }) => {
            merged(record(), step, at, lsn).ok_or(refused)?
        }
        (Some(New | Copying | Resyncing), TableEvent::CopyWaits { reason }) => TableRecord {
            detail: reason,
            ..record()
        },
        // A resync without a condition is never given up: the table would stay wrong.
        (Some(Resyncing), TableEvent::CopyGivenUp) if record().condition.is_some() => TableRecord {
            command_id: None,
            ..reset(record(), Streaming)
        },

        (_, TableEvent::Held(Hold { cause, reason })) => TableRecord {
            detail: Some(reason),
            cause: Some(cause),
            // Changes are passed over from now on.
            copied_at_lsn: None,
            ..reset(record(), Held)
        },
        (Some(Held), TableEvent::Released) => {
            let record = record();
            let again = if record.was_copied() { Resyncing } else { New };
            reset(record, again)
        }

        _ => return Err(refused),
    };
    Ok(Some(after))
}

/// The record with another key. The table is read again where something was remembered by the old one; and where rows were,
/// or are, counted, as a key that the Site DB had no more may have made one row of several.
fn with_key(record: TableRecord, key: String, parked: bool) -> TableRecord {
    let counts = |key: &str| key.starts_with('{');
    let (is_other, means_more) = match &record.key {
        None => (false, false),
        Some(known) => (*known != key, counts(known) || counts(&key)),
    };
    let in_copy = record.phase.is_some();
    let record = TableRecord {
        key: Some(key),
        ..record
    };
    if is_other && (parked || in_copy || means_more) {
        read_again(record)
    } else {
        record
    }
}

/// The record of a table that has to be read from the beginning.
fn read_again(record: TableRecord) -> TableRecord {
    match record.state {
        TableState::New | TableState::Copying => reset(record, TableState::New),
        TableState::Streaming | TableState::Resyncing => reset(record, TableState::Resyncing),
        // Its release reads it again.
        TableState::Held => record,
    }
}

/// The record in another state, with the progress of any copy and its condition removed. The command that waits for the
/// table stays. The times and the position of the last complete copy stay as long as its rows can still be used.
fn reset(record: TableRecord, state: TableState) -> TableRecord {
    let (started_at, finished_at, copied_at_lsn) = match state {
        TableState::New | TableState::Copying => (None, None, None),
        TableState::Streaming | TableState::Resyncing | TableState::Held => {
            (record.started_at, record.finished_at, record.copied_at_lsn)
        }
    };
    TableRecord {
        state,
        command_id: record.command_id,
        started_at,
        finished_at,
        copied_at_lsn,
        key: record.key,
        published: record.published,
        notes: record.notes,
        ..TableRecord::new(record.table)
    }
}

/// The record while a copy runs. An interrupted copy keeps its progress.
fn started(record: TableRecord, at: OffsetDateTime, estimated: Option<i64>) -> TableRecord {
    let state = match record.state {
        TableState::New => TableState::Copying,
        other => other,
    };
    if record.phase.is_some() {
        return record;
    }
    TableRecord {
        state,
        phase: Some(CopyPhase::Rows),
        rows_estimated: estimated,
        started_at: if record.condition.is_some() {
            record.started_at
        } else {
            Some(at)
        },
        ..record
    }
}

/// The record after a chunk of the running copy was merged. `None` if the copy's phase has no such chunk.
fn merged(record: TableRecord, step: CopyStep, at: OffsetDateTime, lsn: Lsn) -> Option<TableRecord> {
    Some(match step {
        CopyStep::Chunk { rows, last_key } => {
            let record = add_rows(record, rows)?;
            TableRecord {
                last_key: last_key.or_else(|| record.last_key.clone()),
                ..record
            }
        }
        CopyStep::PhaseFinished { rows } => {
            let record = add_rows(record, rows)?;
            if record.phase != Some(CopyPhase::Rows) {
                return None;
            }
            TableRecord {
                phase: Some(CopyPhase::Extras),
                last_key: None,
                ..record
            }
        }
        CopyStep::Finished { rows } => {
            // What was read by a condition says nothing of the other rows.
            let (finished_at, copied_at_lsn) = match record.condition {
                Some(_) => (record.finished_at, record.copied_at_lsn),
                None => (Some(at), Some(lsn)),
            };
            TableRecord {
                state: TableState::Streaming,
                phase: None,
                last_key: None,
                condition: None,
                finished_at,
                copied_at_lsn,
                ..add_rows(record, rows)?
            }
        }
    })
}

/// The record after the running copy has read more rows; a reason to wait is gone. `None` if no copy was started.
fn add_rows(record: TableRecord, rows: u64) -> Option<TableRecord> {
    record.phase?;
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    Some(TableRecord {
        rows_copied: record.rows_copied.saturating_add(rows),
        detail: None,
        ..record
    })
}

#[cfg(test)]
mod tests;
