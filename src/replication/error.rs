//! Why a run of the stream ended, whose fault it is, and what to do.

use crate::agent_db::AgentError;
use crate::copy::CopyError;
use crate::retry::Disposition;
use crate::source::SourceError;
use crate::wire::{ServerFault, SlotNameError, WireError};

use super::slot::GapReason;
use super::stream::assemble::StreamError;

/// Why a run of the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The replication connection.
    #[error("replication connection to the Site DB: {0}")]
    Wire(#[from] WireError),
    /// The Site DB could not be asked over a plain connection, or is not set up.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The Agent DB.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The stream said something that cannot be.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The Agent DB's bookkeeping could not be prepared.
    #[error(transparent)]
    Migration(#[from] crate::migrations::MigrationError),
    /// The slot's name can't be one.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// Rows may be missing, and nobody has said to go on.
    #[error("GAP: {0}; rows may be missing")]
    Gap(GapReason),
    /// The slot is another tool's.
    #[error("slot {slot} belongs to the output plugin {plugin}, not pgoutput")]
    WrongPlugin {
        /// The slot.
        slot: String,
        /// The plugin.
        plugin: String,
    },
    /// The Site DB's tables are others than at the set-up.
    #[error("table {0} of the Site DB has joined, left or changed")]
    TableChanged(crate::change::TableName),
    /// The slot serves another database.
    #[error(
        "slot {slot} belongs to database {database:?} of the Site DB's cluster, another database than site.url names"
    )]
    SlotElsewhere {
        /// The slot.
        slot: String,
        /// Its database.
        database: String,
    },
    /// The server ended the stream, as it does when it shuts down.
    #[error("the Site DB ended the stream")]
    StreamEnded,
    /// The sink's task ended without a word.
    #[error("the sink's task ended unexpectedly")]
    SinkEnded,
}

impl SyncError {
    /// What this means: reconnect, or hold and wait for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Wire(error) => match error.fault() {
                // A predecessor's connection that the server has not noticed to be dead.
                Some(ServerFault::SlotActive) => Disposition::Transient,
                _ => error.disposition(),
            },
            Self::Source(error) => error.disposition(),
            Self::Agent(error) => error.disposition(),
            Self::Copy(error) => error.disposition(),
            Self::Migration(error) => error.disposition(),
            // The set-up is done again, and finds the table.
            Self::Stream(StreamError::NewTable(_)) | Self::TableChanged(_) => Disposition::Transient,
            Self::Stream(_)
            | Self::Gap(_)
            | Self::WrongPlugin { .. }
            | Self::SlotElsewhere { .. }
            | Self::SlotName(_) => Disposition::Systemic,
            Self::StreamEnded | Self::SinkEnded => Disposition::Transient,
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
            Self::TableChanged(_) | Self::SlotName(_) | Self::StreamEnded | Self::SinkEnded => None,
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
        // The servers' words may hold line breaks; a log record may not.
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
