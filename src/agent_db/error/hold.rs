//! An error as the reason why its table is held.

use super::AgentError;
use crate::change::{Hold, HoldCause};
use crate::postgres::error::explain;
use crate::postgres::sqlstate::{LOCK_NOT_AVAILABLE, NOT_PERMITTED};

impl AgentError {
    /// Why the table is held, where this is its fault (see [`AgentError::table_fault`]).
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold::new(self.cause(), explain(self, self.hint()))
    }

    fn cause(&self) -> HoldCause {
        match self {
            Self::TableMissing { .. } | Self::NotATable { .. } => HoldCause::TableMissing,
            Self::ColumnMissing { .. } => HoldCause::ColumnMissing,
            Self::Unlogged { .. } => HoldCause::Unlogged,
            Self::ColumnGenerated { .. } | Self::ColumnUnfilled { .. } | Self::TypeDiffers { .. } => {
                HoldCause::ColumnUnwritable
            }
            Self::NoPrimaryKey { .. }
            | Self::DeferrablePrimaryKey { .. }
            | Self::NoIndexOnIdentity { .. }
            | Self::IdentityIncomplete { .. }
            | Self::SharedWithoutKey { .. }
            | Self::KeyMerges { .. }
            | Self::KeyChanged { .. } => HoldCause::Key,
            Self::Claimed { .. } | Self::PartOf { .. } => HoldCause::Claimed,
            Self::NotPermitted { .. } | Self::ObjectsNotPermitted { .. } => HoldCause::Rights,
            Self::RowSecurity { .. } => HoldCause::RowSecurity,
            Self::RowsLocked { .. } => HoldCause::Locked,
            Self::TooManyFailed { .. } => HoldCause::TooManyFailed,
            Self::TooSlow { .. } => HoldCause::TooSlow,
            Self::CannotPark { .. } | Self::KeyEncoding { .. } => HoldCause::Row,
            Self::Refused { refusal, .. } | Self::TableRefused { refusal, .. } => match &*refusal.sqlstate {
                LOCK_NOT_AVAILABLE => HoldCause::Locked,
                NOT_PERMITTED => HoldCause::Rights,
                _ => HoldCause::Refused,
            },
            _ => HoldCause::Refused,
        }
    }
}
