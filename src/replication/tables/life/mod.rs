//! The transitions of a table's state as one pure function, [`next`].
//!
//! It decides what a table is doing after an event, and which events a state does not take. It knows no database and no
//! clock: times and positions come with the events. The diagram is in the module's header.

use time::OffsetDateTime;

use crate::agent_db::{CopyPhase, TableRecord, TableState};
use crate::change::{Key, TableName};
use crate::lsn::Lsn;

/// Something that happened to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::replication) enum TableEvent {
    /// The start found it published and selected, and nothing is known of it.
    SeenFirst,
    /// The start did not find it published and selected any more. When it comes back it has missed changes.
    LeftPublication,
    /// The Site DB's table has become another one: the rows that were copied do not do.
    ShapeOutdated,
    /// There is no checkpoint: nothing is known of what happened since the table was copied.
    CheckpointLost,
    /// Rows may be missing, and a person's `resync --all` lets the stream go on: every table is read again.
    GapAccepted {
        /// The `resync --all`.
        command: i64,
    },
    /// A person asked for it to be read again.
    ResyncAsked {
        /// The command, which is followed until the table is read.
        command: i64,
        /// Limits it to rows of the Site DB that meet this SQL condition.
        condition: Option<String>,
    },
    /// A copy begins; or goes on after an interruption, which changes nothing.
    CopyStarted {
        /// When, by our clock.
        at: OffsetDateTime,
        /// The planner's estimate of the rows, where it has one.
        estimated: Option<i64>,
    },
    /// A chunk was merged with the stream, and its phase goes on.
    ChunkDone {
        /// Rows that were read.
        rows: u64,
        /// The last key done; `None` leaves it where it was.
        last_key: Option<Key>,
    },
    /// The last chunk of the Site DB's rows was merged: now those that only the Agent DB has.
    PhaseFinished {
        /// Rows that were read with that chunk.
        rows: u64,
    },
    /// The last chunk was merged.
    CopyFinished {
        /// Rows that were read with it.
        rows: u64,
        /// When, by our clock.
        at: OffsetDateTime,
        /// The Site DB's position as of which the copy is right.
        lsn: Lsn,
    },
    /// An attempt to copy failed; it is tried again.
    CopyWaits {
        /// What a person has to repair first; `None` where it passes by itself.
        reason: Option<String>,
    },
    /// A resync cannot succeed as it was asked for.
    CopyGivenUp,
    /// Its changes can't be applied, and those of the other tables can.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "no fault of a single table is told from one of the database yet"
        )
    )]
    Held {
        /// The fault and its remedy.
        reason: String,
    },
    /// What held it is gone.
    Released,
}

impl TableEvent {
    /// For messages.
    pub(in crate::replication) const fn name(&self) -> &'static str {
        match self {
            Self::SeenFirst => "seen first",
            Self::LeftPublication => "left the publication",
            Self::ShapeOutdated => "shape outdated",
            Self::CheckpointLost => "checkpoint lost",
            Self::GapAccepted { .. } => "gap accepted",
            Self::ResyncAsked { .. } => "resync asked",
            Self::CopyStarted { .. } => "copy started",
            Self::ChunkDone { .. } => "chunk done",
            Self::PhaseFinished { .. } => "phase finished",
            Self::CopyFinished { .. } => "copy finished",
            Self::CopyWaits { .. } => "copy waits",
            Self::CopyGivenUp => "copy given up",
            Self::Held { .. } => "held",
            Self::Released => "released",
        }
    }
}

/// A state does not take the event. The table stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a table in state {} does not take the event \"{event}\"", .state.map_or("unknown", TableState::as_str))]
pub struct TransitionError {
    /// `None`: nothing is known of the table.
    state: Option<TableState>,
    event: &'static str,
}

/// What a table is doing after an event; `None` before the first one and after it left. Pure.
///
/// # Errors
/// The event has no meaning in this state; nothing changes.
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

        // A held table is read when it is released; then from the beginning.
        (Some(Held), TableEvent::ShapeOutdated) => TableRecord {
            finished_at: None,
            copied_at_lsn: None,
            ..record()
        },
        (Some(_), TableEvent::ShapeOutdated) => afresh(record(), New),
        (Some(Held), TableEvent::CheckpointLost) => record(),
        (Some(New), TableEvent::CheckpointLost) => record(),
        (Some(Copying), TableEvent::CheckpointLost) => afresh(record(), New),
        (Some(Streaming | Resyncing), TableEvent::CheckpointLost) => afresh(record(), Resyncing),
        (state, TableEvent::GapAccepted { command }) => {
            let again = match state {
                None | Some(New | Copying) => afresh(record(), New),
                Some(Streaming | Resyncing) => afresh(record(), Resyncing),
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
            ..afresh(record(), Resyncing)
        },
        (Some(New | Copying | Resyncing), TableEvent::CopyStarted { at, estimated }) => {
            started(record(), at, estimated)
        }
        (Some(Copying | Resyncing), TableEvent::ChunkDone { rows, last_key }) => {
            let record = chunk(record(), rows).ok_or(refused)?;
            TableRecord {
                last_key: last_key.or_else(|| record.last_key.clone()),
                ..record
            }
        }
        (Some(Copying | Resyncing), TableEvent::PhaseFinished { rows }) => {
            let record = chunk(record(), rows).ok_or(refused)?;
            if record.phase != Some(CopyPhase::Rows) {
                return Err(refused);
            }
            TableRecord {
                phase: Some(CopyPhase::Extras),
                last_key: None,
                ..record
            }
        }
        (Some(Copying | Resyncing), TableEvent::CopyFinished { rows, at, lsn }) => TableRecord {
            state: Streaming,
            phase: None,
            last_key: None,
            condition: None,
            finished_at: Some(at),
            copied_at_lsn: Some(lsn),
            ..chunk(record(), rows).ok_or(refused)?
        },
        (Some(New | Copying | Resyncing), TableEvent::CopyWaits { reason }) => TableRecord {
            detail: reason,
            ..record()
        },
        // Without a condition the table itself has to be read: nobody can give that up.
        (Some(Resyncing), TableEvent::CopyGivenUp) if record().condition.is_some() => TableRecord {
            command_id: None,
            ..afresh(record(), Streaming)
        },

        (Some(_), TableEvent::Held { reason }) => TableRecord {
            detail: Some(reason),
            ..afresh(record(), Held)
        },
        (Some(Held), TableEvent::Released) => {
            let record = record();
            let again = if record.was_copied() { Resyncing } else { New };
            afresh(record, again)
        }

        _ => return Err(refused),
    };
    Ok(Some(after))
}

/// Another state, in which nothing is read yet. The command that waits for the table still does; a condition does not
/// outlive the resync that it limited. When the table was copied whole counts until nothing of that does any more.
fn afresh(record: TableRecord, state: TableState) -> TableRecord {
    let (finished_at, copied_at_lsn) = match state {
        TableState::New | TableState::Copying => (None, None),
        TableState::Streaming | TableState::Resyncing | TableState::Held => (record.finished_at, record.copied_at_lsn),
    };
    TableRecord {
        state,
        command_id: record.command_id,
        finished_at,
        copied_at_lsn,
        ..TableRecord::new(record.table)
    }
}

/// The copy runs. One that was interrupted goes on where it was.
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
        started_at: Some(at),
        ..record
    }
}

/// Rows of the running copy were read, so it does not wait any more. `None` where none was started.
fn chunk(record: TableRecord, rows: u64) -> Option<TableRecord> {
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
