//! Why a copy could not go on.

use crate::agent_db::AgentError;
use crate::change::TableName;
use crate::postgres::error::not_of_a_row;
use crate::retry::Disposition;
use crate::source::SourceError;

/// Why a copy could not go on. What was merged before is durable.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The Site DB could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The keys of the Agent DB could not be read.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The stream stopped; the copy resumes with it.
    #[error("the replication stream ended during a copy")]
    StreamEnded,
    /// The table's columns changed; it has to be described anew.
    #[error("the columns of table {0} changed while it was read")]
    RelationChanged(TableName),
}

impl CopyError {
    /// What this means for the copy: to be tried again, or to wait for a person.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Source(source) => source.disposition(),
            // Only keys are read there.
            Self::Agent(source) => not_of_a_row(source.disposition()),
            Self::StreamEnded | Self::RelationChanged(_) => Disposition::Transient,
        }
    }

    /// The statement or setting to use, where a person must act.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source(source) => source.hint(),
            Self::Agent(source) => source.hint(),
            Self::StreamEnded | Self::RelationChanged(_) => None,
        }
    }
}
