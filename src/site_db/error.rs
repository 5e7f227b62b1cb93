//! What can go wrong on the Site DB: the error of this module, its disposition, and what an operator can do about it.

use std::borrow::Cow;

use crate::health::{self, Trouble};
use crate::postgres::error::POOLER_HINT;
use crate::postgres::{DEADLOCK, QUERY_CANCELED, disposition};
use crate::retry::Disposition;

/// What to do about a schema that is not as it should be.
const MIGRATE: &str = "run: twinlog migrate site; if it says that all is up to date, something was renamed or dropped: twinlog status \
                       names it";

/// A statement on the Site DB did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// No connection could be had, or it broke.
    #[error("the Site DB can't be reached")]
    Unreachable(#[source] sqlx::Error),
    /// It did not answer in time. If a statement was on its way, it may have been executed.
    #[error("the Site DB did not answer in time")]
    Silent,
    /// Postgres refused the statement.
    #[error("the Site DB refused a statement (SQLSTATE {sqlstate})")]
    Refused {
        /// Its SQLSTATE; empty if it gave none.
        sqlstate: String,
        /// Postgres's own words; may quote values, so it goes into no log line.
        #[source]
        source: sqlx::Error,
    },
    /// A pooler gives the same server session to several clients: settings of ours would reach them.
    #[error("a connection pooler in transaction or statement mode is between us and the Site DB")]
    Pooled,
    /// The schema lacks something that this version needs.
    #[error("{what}")]
    Missing {
        /// What, as a sentence.
        what: String,
        /// The statement or command that puts it right.
        remedy: String,
    },
    /// A row is not of the shape that this version expects.
    #[error("the Site DB's tables are not as this version expects them")]
    Shape(#[source] sqlx::Error),
    /// A value can't be written to the Site DB at all; the statement was not sent.
    #[error("a value has no database form")]
    Value(#[source] sqlx::Error),
    /// A contact has no id, so its lead can be neither found nor created.
    #[error("a contact without an id")]
    Anonymous,
    /// A row could be neither found nor inserted, several times in a row.
    #[error("another program deletes rows of {0} as fast as they are written")]
    Vanished(&'static str),
    /// Leads were merged while the transaction waited for their locks: it has other leads to lock, and may hold locks already
    /// that come after these. Nothing is stored; it may begin again at once.
    #[error("leads were merged while their locks were waited for")]
    Merged,
    /// The task that asked ended, because the process is stopping.
    #[error("the process is stopping")]
    Stopped,
}

impl From<sqlx::Error> for SiteError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => Self::Refused {
                sqlstate: database.code().unwrap_or(Cow::Borrowed("")).into_owned(),
                source: error,
            },
            sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::RowNotFound => Self::Shape(error),
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Self::Value(error),
            sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Unreachable(error),
        }
    }
}

impl SiteError {
    /// The caller's own time limit passed before the Site DB answered.
    #[must_use]
    pub const fn timed_out() -> Self {
        Self::Silent
    }

    /// Whose fault it is: the one table in [`crate::postgres`].
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unreachable(_) | Self::Silent | Self::Merged | Self::Stopped => Disposition::Transient,
            Self::Refused { sqlstate, .. } => disposition(sqlstate),
            Self::Missing { .. } | Self::Shape(_) | Self::Vanished(_) | Self::Pooled => Disposition::Systemic,
            Self::Value(_) | Self::Anonymous => Disposition::Row,
        }
    }

    /// Whether the transaction was ended because it waited for others in a circle: nothing is stored, and it may be tried again
    /// at once.
    #[must_use]
    pub fn is_deadlock(&self) -> bool {
        self.sqlstate() == DEADLOCK
    }

    /// Whether a commit, or a statement that is its own transaction, may have been done although it brought this error: the
    /// answer was lost, or could not be read.
    #[must_use]
    pub fn leaves_commit_in_doubt(&self) -> bool {
        match self {
            Self::Unreachable(error) => !matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed),
            Self::Silent | Self::Shape(_) | Self::Stopped => true,
            // The session was ended, by the server, by a pooler, or by our own limit on answers.
            Self::Refused { sqlstate, .. } => {
                matches!(sqlstate.get(..2), None | Some("08" | "57")) && sqlstate != QUERY_CANCELED
                    || sqlstate == "40003"
                    || sqlstate == "53400"
            }
            Self::Pooled
            | Self::Missing { .. }
            | Self::Value(_)
            | Self::Anonymous
            | Self::Vanished(_)
            | Self::Merged => false,
        }
    }

    /// The SQLSTATE, where Postgres answered.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        match self {
            Self::Refused { sqlstate, .. } => sqlstate,
            _ => "",
        }
    }

    /// The name of the unique index or constraint that a row violated, if that is the error.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        self.database()?.constraint()
    }

    /// What happened, for a log line or a failure that is kept: names of tables and constraints, never a value.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Refused { sqlstate, .. } => {
                let table = self.database().and_then(|database| database.table());
                match (table, self.constraint()) {
                    (Some(table), Some(constraint)) => {
                        format!("SQLSTATE {sqlstate}, table {table}, constraint {constraint}")
                    }
                    (Some(table), None) => format!("SQLSTATE {sqlstate}, table {table}"),
                    _ => format!("SQLSTATE {sqlstate}"),
                }
            }
            Self::Unreachable(sqlx::Error::PoolTimedOut) => "no connection to the Site DB was free in time".to_owned(),
            Self::Unreachable(sqlx::Error::PoolClosed) => "the connections to the Site DB are closed".to_owned(),
            Self::Unreachable(sqlx::Error::Io(error)) => {
                format!("the connection to the Site DB broke ({})", error.kind())
            }
            other => other.to_string(),
        }
    }

    /// The same for the health report of a component that needs the Site DB for `what`.
    #[must_use]
    pub fn trouble(&self, what: &str) -> Trouble {
        let kind = match self.disposition() {
            Disposition::Transient => health::SITE_DB,
            Disposition::Systemic | Disposition::Row => health::STATEMENT,
        };
        let hint = self.hint().unwrap_or("see the Site DB's log");
        Trouble::new(kind, format!("{what}: {} ({hint})", self.summary()))
    }

    fn database(&self) -> Option<&dyn sqlx::error::DatabaseError> {
        match self {
            Self::Refused {
                source: sqlx::Error::Database(database),
                ..
            } => Some(database.as_ref()),
            _ => None,
        }
    }

    /// What a person can do about it; `None` if nothing needs to be done by hand.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Missing { remedy, .. } => Some(remedy),
            Self::Unreachable(sqlx::Error::PoolTimedOut) => Some(
                "all connections are in use: look for what is slow in pg_stat_activity, or raise [site] max_connections",
            ),
            Self::Unreachable(_) => Some("check that Postgres runs, and [site] url"),
            Self::Silent => {
                Some("check that the Site DB's host and the network to it answer, and what its sessions wait for")
            }
            Self::Pooled => Some(POOLER_HINT),
            Self::Shape(_) => Some(MIGRATE),
            Self::Value(_) | Self::Anonymous | Self::Vanished(_) | Self::Merged | Self::Stopped => None,
            Self::Refused { sqlstate, .. } => match sqlstate.as_str() {
                "42P01" | "42703" | "3F000" => Some(MIGRATE),
                "42501" => Some(
                    "GRANT USAGE ON SCHEMA public, twinlog TO <role>; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN \
                     SCHEMA public, twinlog TO <role>; with row-level security the role also needs BYPASSRLS or a policy",
                ),
                "53100" => Some("the Site DB's disk is full: make room"),
                "53300" => Some("raise max_connections on the Site DB or lower [site] max_connections"),
                "53400" => Some(
                    "the Site DB has reached a limit of its own, or its answers are longer than Twinlog takes (128 MB)",
                ),
                "25006" => Some("[site] url leads to a read-only standby: point it to the primary"),
                "28P01" | "28000" => Some("the role or password in [site] url is not right"),
                "3D000" => Some("the database in [site] url does not exist"),
                _ => None,
            },
        }
    }
}
