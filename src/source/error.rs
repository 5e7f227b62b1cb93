//! Why a query to the Site DB failed, or what the Site DB lacks; each with the statement to use.

use crate::change::{Hold, HoldCause, TableName};
use crate::lsn::ParseLsnError;
use crate::postgres::error::explain;
use crate::postgres::sqlstate::{LOCK_NOT_AVAILABLE, NOT_PERMITTED, is_row_too_large};
use crate::postgres::{ConditionError, Refusal, SessionError, Side, quote_identifier};
use crate::retry::Disposition;

use super::snapshot::ParseSnapshotError;

/// Why a query to the Site DB failed, or what the Site DB lacks.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no session, it ended, or a statement was refused.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The Site DB's answer is not a snapshot.
    #[error("read a snapshot from the Site DB")]
    Snapshot(#[from] ParseSnapshotError),
    /// The Site DB's answer is not a WAL position.
    #[error("read a position of the Site DB's log")]
    Position(#[from] ParseLsnError),
    /// A key is not UTF-8, so it cannot be read and compared.
    #[error("a key of table {0} of the Site DB is not UTF-8")]
    KeyEncoding(TableName),
    /// The server can't build the text of a row, which would be longer than a gigabyte.
    #[error(
        "a row of table {0} of the Site DB is too large: its text has more than 1 GB (a bytea takes twice its size)"
    )]
    RowTooLarge(TableName),
    /// The Site DB's answer has more bytes than any catalog has.
    #[error("the Site DB's answer to the query to {0} is longer than the catalog of any database")]
    AnswerTooLong(&'static str),
    /// The Site DB's answer lacks this.
    #[error("the Site DB's answer lacks {0}")]
    Incomplete(&'static str),
    /// The server has this version, which is too old: pgoutput sends logical messages since 14.
    #[error("the Site DB runs Postgres {0}, but logical messages need 14 or later")]
    Version(String),
    /// Logical decoding is off: `wal_level` has this value.
    #[error("the Site DB's wal_level is {0}, not logical")]
    WalLevel(String),
    /// The role of `site.url` has no right to use replication.
    #[error("role {0} of the Site DB may not replicate")]
    NoReplicationRight(String),
    /// No table matches these patterns of `sync.tables`.
    #[error("no table of the Site DB matches sync.tables = {0:?}")]
    NoTables(Vec<String>),
    /// Every selected table has a fault of its own: these, with their remedies.
    #[error("no table of the Site DB can be replicated: {0}")]
    NoTableReplicable(String),
    /// The publication is missing and the role has no right to create it.
    #[error("publication {publication} does not exist in the Site DB and the role may not create it: {refusal}")]
    CannotCreatePublication {
        /// `sync.publication`.
        publication: String,
        /// What the owner of the tables has to run.
        statement: String,
        /// The server's answer.
        refusal: Box<Refusal>,
    },
    /// Another table has its name now: the catalog watch will notice.
    #[error("table {0} of the Site DB is another one by now")]
    Replaced(TableName),
    /// A pattern of `sync.tables` is not a valid glob.
    #[error("sync.tables has an invalid pattern: {0}")]
    Pattern(#[from] globset::Error),
    /// The condition of a resync is not one for this table.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// The daemon was stopped while it waited.
    #[error("stopped while waiting for transactions of the Site DB to end")]
    Stopped,
}

impl SourceError {
    /// Whether trying again can help. Never [`Disposition::Row`]: reading writes no row, so an error that looks like a
    /// row's own means a damaged table or a wrong condition.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Session(source) => source.disposition(),
            Self::Stopped | Self::Replaced(_) => Disposition::Transient,
            Self::Snapshot(_)
            | Self::Position(_)
            | Self::KeyEncoding(_)
            | Self::Incomplete(_)
            | Self::AnswerTooLong(_)
            | Self::Version(_)
            | Self::WalLevel(_)
            | Self::NoReplicationRight(_)
            | Self::NoTables(_)
            | Self::NoTableReplicable(_)
            | Self::CannotCreatePublication { .. }
            | Self::Pattern(_)
            | Self::RowTooLarge(_)
            | Self::Condition(_) => Disposition::Systemic,
        }
    }

    /// Whether the server could not read a value as its type, or something else was one row's own.
    pub(super) fn is_of_a_value(&self) -> bool {
        matches!(self, Self::Session(SessionError::Refused { refusal, .. }) if refusal.disposition() == Disposition::Row)
    }

    /// The error of reading a row of this table: names it, where the row is more than the server can print.
    pub(super) fn of_row(self, table: &TableName) -> Self {
        match &self {
            Self::Session(SessionError::Refused { refusal, .. })
                if is_row_too_large(&refusal.sqlstate, &refusal.message) =>
            {
                Self::RowTooLarge(table.clone())
            }
            _ => self,
        }
    }

    /// Whether the role lacks a right.
    #[must_use]
    pub fn is_of_rights(&self) -> bool {
        matches!(self, Self::Session(SessionError::Refused { refusal, .. }) if refusal.sqlstate == NOT_PERMITTED)
    }

    /// The table whose own fault this is.
    #[must_use]
    pub const fn table_fault(&self) -> Option<&TableName> {
        match self {
            Self::KeyEncoding(table) | Self::RowTooLarge(table) => Some(table),
            _ => None,
        }
    }

    /// Why the table is held, where this is its fault.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold::new(HoldCause::Row, explain(self, self.hint()))
    }

    /// Whether a lock was waited for in vain.
    #[must_use]
    pub fn is_of_lock(&self) -> bool {
        matches!(self, Self::Session(SessionError::Refused { refusal, .. }) if refusal.sqlstate == LOCK_NOT_AVAILABLE)
    }

    /// The statement or setting to use, if an operator has to act.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Session(_) if self.is_of_rights() => {
                "on the Site DB, grant the role the right to read the table (the table's own reason will name the statement)".to_owned()
            }
            Self::Session(source) => return source.hint(),
            Self::KeyEncoding(table) => format!(
                "on the Site DB, whose encoding is SQL_ASCII: correct the keys of {} that are not UTF-8",
                table.quoted()
            ),
            Self::RowTooLarge(table) => format!(
                "on the Site DB, make the value smaller (find it by pg_column_size), or leave its column out: \
                 ALTER PUBLICATION … SET TABLE {} (the other columns)",
                table.quoted()
            ),
            Self::Version(_) => "upgrade the Site DB".to_owned(),
            Self::WalLevel(_) => "on the Site DB: ALTER SYSTEM SET wal_level = logical; then restart it".to_owned(),
            Self::NoReplicationRight(role) => format!(
                "on the Site DB: ALTER ROLE {} REPLICATION; (on RDS: GRANT rds_replication TO {0};)",
                quote_identifier(role)
            ),
            Self::NoTables(_) => "create the tables (twinlog migrate site) or change sync.tables".to_owned(),
            Self::CannotCreatePublication { statement, .. } => {
                format!("on the Site DB, as the tables' owner: {statement};")
            }
            Self::Pattern(_) => "patterns look like public.* or !public.audit_*".to_owned(),
            Self::Condition(error) => error.hint().to_owned(),
            // The remedies are in the message.
            Self::NoTableReplicable(_)
            | Self::Snapshot(_)
            | Self::Position(_)
            | Self::Incomplete(_)
            | Self::AnswerTooLong(_)
            | Self::Replaced(_)
            | Self::Stopped => return None,
        })
    }
}

/// Makes the error of a statement on the Site DB. `action`: what the statement was for, as in `read a chunk`.
pub(super) fn failed(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> SourceError {
    move |source| SessionError::new(Side::Site, action, source).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sqlstate: &str) -> SourceError {
        SourceError::Session(SessionError::Refused {
            side: Side::Site,
            action: "read a chunk",
            refusal: Box::new(Refusal {
                sqlstate: sqlstate.to_owned(),
                message: "the server's words with a 'value'".to_owned(),
                constraint: None,
                column: None,
                raised_by: crate::postgres::RaisedBy::Server,
            }),
        })
    }

    #[test]
    fn hints_speak_of_the_site_db() {
        for sqlstate in ["42501", "53100", "53300"] {
            let hint = refused(sqlstate).hint().unwrap();
            assert!(
                hint.contains("Site DB") && !hint.contains("Agent DB"),
                "{sqlstate}: {hint}"
            );
        }
        assert!(refused("42501").to_string().contains("Site DB"));
    }

    #[test]
    fn reading_never_blames_a_row_and_never_shows_its_values() {
        let error = refused("22P02");
        assert_eq!(error.disposition(), Disposition::Systemic);
        assert!(!error.to_string().contains("value"), "{error}");
        assert_eq!(refused("57014").disposition(), Disposition::Transient);
    }
}
