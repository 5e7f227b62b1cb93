//! Why a copy was interrupted.

use crate::agent_db::AgentError;
use crate::change::{Hold, TableName};
use crate::postgres::error::not_of_a_row;
use crate::retry::Disposition;
use crate::source::SourceError;

/// Why a copy was interrupted. Chunks that were merged before are durable.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The Site DB could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The keys of the Agent DB could not be read.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The stream ended; the copy continues in the next run.
    #[error("the replication stream ended during a copy")]
    StreamEnded,
    /// The table's columns changed; the copy continues after the table is looked up again.
    #[error("the columns of table {0} changed while it was read")]
    RelationChanged(TableName),
    /// The table was held in the meantime: it is read again when it is released.
    #[error("table {0} was held while it was read")]
    TableHeld(TableName),
}

impl CopyError {
    /// Whether trying again can help, or an operator has to repair the cause.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Source(source) => source.disposition(),
            // Only keys are read from the Agent DB, so no error can be one row's own.
            Self::Agent(source) => not_of_a_row(source.disposition()),
            Self::StreamEnded | Self::RelationChanged(_) | Self::TableHeld(_) => Disposition::Transient,
        }
    }

    /// The table whose own fault this is.
    #[must_use]
    pub fn table_fault(&self) -> Option<&TableName> {
        match self {
            Self::Source(source) => source.table_fault(),
            Self::Agent(source) => source.table_fault(),
            Self::StreamEnded | Self::RelationChanged(_) | Self::TableHeld(_) => None,
        }
    }

    /// Why that table is held; `None` if this is no table's fault.
    #[must_use]
    pub fn hold(&self) -> Option<(TableName, Hold)> {
        let hold = match self {
            Self::Source(source) => source.hold(),
            Self::Agent(source) => source.hold(),
            Self::StreamEnded | Self::RelationChanged(_) | Self::TableHeld(_) => return None,
        };
        Some((self.table_fault()?.clone(), hold))
    }

    /// The statement or setting to use, if an operator has to act.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source(source) => source.hint(),
            Self::Agent(source) => source.hint(),
            Self::StreamEnded | Self::RelationChanged(_) | Self::TableHeld(_) => None,
        }
    }
}
