//! Errors of the stream itself: it breaks the protocol, or leaves out what applying a row needs.

use crate::change::{Hold, HoldCause, TableName};
use crate::lsn::Lsn;
use crate::pgoutput;
use crate::postgres::error::explain;

/// The stream broke the protocol, or lacks what applying a row needs.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It sent bytes that are not a valid `pgoutput` message.
    #[error("decode the replication stream")]
    Decode(#[from] pgoutput::DecodeError),
    /// It sent a message that is not allowed at this place.
    #[error("the replication stream sent {what} {place}")]
    Order {
        /// The message, for example `COMMIT`.
        what: &'static str,
        /// `inside of a transaction` or `outside of a transaction`.
        place: &'static str,
    },
    /// BEGIN and COMMIT of a transaction disagree.
    #[error("the replication stream announced a transaction's commit at {begun}, but committed it at {committed}")]
    CommitMismatch {
        /// The commit's position, as BEGIN announced it.
        begun: Lsn,
        /// The commit's position, as COMMIT says it.
        committed: Lsn,
    },
    /// It sent a change of a relation (this OID) without describing the relation before.
    #[error("the replication stream sent a change of relation {0}, which it never described")]
    UnknownRelation(u32),
    /// It sent a row without its primary key (pitfall P22).
    #[error("a row of table {0} came without its primary key")]
    Unidentifiable(TableName),
}

impl StreamError {
    /// The table whose own fault this is.
    #[must_use]
    pub const fn table_fault(&self) -> Option<&TableName> {
        match self {
            Self::Unidentifiable(table) => Some(table),
            _ => None,
        }
    }

    /// Why that table is held.
    pub(super) fn hold(&self) -> Hold {
        Hold::new(HoldCause::Key, explain(self, self.hint()))
    }

    /// The remedy, where an operator has one.
    #[must_use]
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Unidentifiable(table) => Some(format!(
                "on the Site DB: ALTER TABLE {} REPLICA IDENTITY FULL; (and the same for each of its partitions, if it has any)",
                table.quoted()
            )),
            _ => None,
        }
    }
}
