//! Why a run of the stream ended, whose fault it is, and what to do.

use crate::agent_db::AgentError;
use crate::copy::CopyError;
use crate::retry::Disposition;
use crate::source::SourceError;
use crate::wire::{ServerFault, SlotNameError, WireError};

use super::slot::GapReason;
use super::stream_error::StreamError;
use super::tables::life::TransitionError;

/// Why a run of the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The replication connection failed.
    #[error("replication connection to the Site DB: {0}")]
    Wire(#[from] WireError),
    /// The Site DB could not be asked over a plain connection, or lacks what a stream needs.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The Agent DB failed, or refused something that is not a row's own fault.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A table could not be copied, or parked rows not be read.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The stream said something that cannot be.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The schema `twinlog` of the Agent DB could not be migrated.
    #[error(transparent)]
    Migration(#[from] crate::migrations::MigrationError),
    /// The slot's name can't be one.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// Rows may be missing, and no full resync was asked for.
    #[error("GAP: {0}; rows may be missing")]
    Gap(GapReason),
    /// The slot is another tool's.
    #[error("slot {slot} belongs to the output plugin {plugin}, not pgoutput")]
    WrongPlugin {
        /// `sync.slot`.
        slot: String,
        /// Its output plugin; `physical` where it has none.
        plugin: String,
    },
    /// The Site DB's tables are others than at the start; the next start finds them.
    #[error("table {0} of the Site DB was added, left the publication or changed: the stream starts again with it")]
    TableChanged(crate::change::TableName),
    /// The slot serves another database.
    #[error(
        "slot {slot} belongs to database {database:?} of the Site DB's cluster, another database than site.url names"
    )]
    SlotElsewhere {
        /// `sync.slot`.
        slot: String,
        /// The database that it decodes.
        database: String,
    },
    /// A start found a table in a state that can't be.
    #[error(transparent)]
    Table(#[from] TransitionError),
    /// The server ended the stream, as it does when it shuts down.
    #[error("the Site DB ended the stream")]
    StreamEnded,
    /// The task that writes to the Agent DB ended without an error of its own.
    #[error("the task that writes to the Agent DB ended unexpectedly")]
    ApplyEnded,
}

impl SyncError {
    /// What this means: reconnect, or hold and wait for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Wire(error) => match error.fault() {
                // Mostly a predecessor's connection: the server has not noticed yet that it is dead.
                Some(ServerFault::SlotActive) => Disposition::Transient,
                _ => error.disposition(),
            },
            Self::Source(error) => error.disposition(),
            Self::Agent(error) => error.disposition(),
            Self::Copy(error) => error.disposition(),
            Self::Migration(error) => error.disposition(),
            // The next start finds the table.
            Self::Stream(StreamError::NewTable(_)) | Self::TableChanged(_) => Disposition::Transient,
            Self::Stream(_)
            | Self::Gap(_)
            | Self::WrongPlugin { .. }
            | Self::SlotElsewhere { .. }
            | Self::SlotName(_)
            | Self::Table(_) => Disposition::Systemic,
            Self::StreamEnded | Self::ApplyEnded => Disposition::Transient,
        }
    }

    /// The statement, setting or command to use.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Wire(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Agent(error) => error.hint(),
            Self::Copy(error) => error.hint(),
            Self::Stream(error) => error.hint(),
            Self::Migration(error) => error.hint(),
            Self::Gap(_) => Some(
                "if the Site DB is the right one: twinlog resync --all (it makes the Agent DB equal to the Site DB as it is now, \
                 rows that only the Agent DB has included)"
                    .to_owned(),
            ),
            Self::WrongPlugin { slot, .. } => Some(format!(
                "choose another sync.slot, or on the Site DB: SELECT pg_drop_replication_slot('{slot}');"
            )),
            Self::SlotElsewhere { database, .. } => Some(format!(
                "correct site.url (its database is not {database}), or choose another sync.slot"
            )),
            Self::TableChanged(_) | Self::SlotName(_) | Self::Table(_) | Self::StreamEnded | Self::ApplyEnded => None,
        }
    }

    /// The error with its causes and its hint, in one line for logs and health.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str(" — ");
            text.push_str(&hint);
        }
        // A server's message may hold line breaks; a log record may not.
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
