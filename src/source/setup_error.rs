//! What the Site DB lacks, each with the statement to paste.

use crate::change::TableName;
use crate::postgres::{disposition, quote_identifier};
use crate::retry::Disposition;

/// What is missing on the Site DB.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A statement failed.
    #[error("{action} on the Site DB")]
    Query {
        /// What was tried.
        action: &'static str,
        /// The server's word.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Too old.
    #[error("the Site DB runs Postgres {0}, but logical messages need 14 or later")]
    Version(String),
    /// Logical decoding is off.
    #[error("the Site DB's wal_level is {0}, not logical")]
    WalLevel(String),
    /// The role may not replicate.
    #[error("role {0} of the Site DB may not replicate")]
    NoReplicationRight(String),
    /// No table matches.
    #[error("no table of the Site DB matches sync.tables = {0:?}")]
    NoTables(Vec<String>),
    /// Rows could not be told apart.
    #[error("table {0} of the Site DB has no primary key")]
    NoPrimaryKey(TableName),
    /// The publication is missing and could not be made.
    #[error("publication {publication} does not exist in the Site DB and the role may not create it")]
    CannotCreatePublication {
        /// Its name.
        publication: String,
        /// What to run.
        statement: String,
        /// The server's word.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The publication lacks tables and could not be extended.
    #[error("publication {publication} of the Site DB lacks {} table(s) of sync.tables and the role may not add them", .tables.len())]
    CannotExtendPublication {
        /// Its name.
        publication: String,
        /// The tables.
        tables: Vec<TableName>,
        /// What to run.
        statement: String,
        /// The server's word.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The copy could not read.
    #[error("the role may not read table {0} of the Site DB")]
    CannotSelect(TableName),
    /// A pattern that can't be one.
    #[error("sync.tables has a pattern that is not a glob: {0}")]
    Pattern(#[from] globset::Error),
    /// Stopped while waiting.
    #[error("stopped while waiting for transactions of the Site DB to end")]
    Stopped,
}

impl SetupError {
    /// What this means for the work that met it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Query { source, .. } => match source.code() {
                Some(code) => match disposition(code.code()) {
                    Disposition::Row => Disposition::Systemic,
                    other => other,
                },
                None => Disposition::Transient,
            },
            Self::Stopped => Disposition::Transient,
            _ => Disposition::Systemic,
        }
    }

    /// The statement or setting to paste.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Query { .. } | Self::Stopped => None,
            Self::Version(_) => Some("upgrade the Site DB".to_owned()),
            Self::WalLevel(_) => {
                Some("on the Site DB: ALTER SYSTEM SET wal_level = logical; then restart it".to_owned())
            }
            Self::NoReplicationRight(role) => Some(format!(
                "on the Site DB: ALTER ROLE {} REPLICATION; (on RDS: GRANT rds_replication TO {0};)",
                quote_identifier(role)
            )),
            Self::NoTables(_) => Some("create the tables (twinlog migrate site) or change sync.tables".to_owned()),
            Self::NoPrimaryKey(table) => Some(format!(
                "on the Site DB: ALTER TABLE {} ADD PRIMARY KEY (…); or leave it out: sync.tables = [\"public.*\", \"!{table}\"]",
                table.quoted()
            )),
            Self::CannotCreatePublication { statement, .. } | Self::CannotExtendPublication { statement, .. } => {
                Some(format!("on the Site DB, as the tables' owner: {statement};"))
            }
            Self::CannotSelect(table) => Some(format!("on the Site DB: GRANT SELECT ON {} TO <role>;", table.quoted())),
            Self::Pattern(_) => Some("patterns look like public.* or !public.audit_*".to_owned()),
        }
    }
}

pub(super) fn failed(action: &'static str) -> impl FnOnce(tokio_postgres::Error) -> SetupError {
    move |source| SetupError::Query { action, source }
}
