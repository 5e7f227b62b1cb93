//! What is wrong with the stream itself: it breaks the protocol, or leaves out what applying a row needs.

use crate::change::TableName;
use crate::lsn::Lsn;
use crate::pgoutput;

/// What is wrong with the stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It sent something that is not a message of the protocol.
    #[error("decode the replication stream")]
    Decode(#[from] pgoutput::DecodeError),
    /// It sent a message that can't come here.
    #[error("the replication stream sent {what} {place}")]
    Order {
        /// The message's name.
        what: &'static str,
        /// Inside or outside of a transaction.
        place: &'static str,
    },
    /// BEGIN and COMMIT of a transaction disagree.
    #[error("the replication stream began a transaction that commits at {begun} and committed it at {committed}")]
    CommitMismatch {
        /// The commit's position, as BEGIN announced it.
        begun: Lsn,
        /// The commit's position, as COMMIT says it.
        committed: Lsn,
    },
    /// It sent a change of a relation, by this OID, that it never described.
    #[error("the replication stream changed relation {0}, which it never described")]
    UnknownRelation(u32),
    /// A table that `sync.tables` selects was published after the start. The next start finds it.
    #[error("table {0} has joined the publication: the stream starts again with it")]
    NewTable(TableName),
    /// It sent a row without its primary key (pitfall P22).
    #[error("a row of table {0} came without its primary key")]
    Unidentifiable(TableName),
}

impl StreamError {
    /// What to do about it.
    #[must_use]
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Unidentifiable(table) => Some(format!(
                "on the Site DB: ALTER TABLE {} REPLICA IDENTITY FULL;",
                table.quoted()
            )),
            _ => None,
        }
    }
}
