//! What can go wrong with a session, with which of the two databases, and the remedy.
//!
//! Messages never hold row values: Postgres quotes them in the messages of classes 22 and 23, so those are left out.

use std::fmt;

use super::sqlstate::{disposition, is_of_its_table};
use super::tls::{self, TlsError};
use crate::change::REMEDY_FOLLOWS;
use crate::retry::Disposition;

/// Which of the two databases a session is with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The Site DB: the source that the web UI reads.
    Site,
    /// The Agent DB: the target, and the home of the daemon's own tables.
    Agent,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Site => "Site DB",
            Self::Agent => "Agent DB",
        })
    }
}

/// Why there is no session, or why it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The server can't be reached, or refused the session before it began.
    #[error("connect to the {side} at {server}")]
    Connect {
        /// The database.
        side: Side,
        /// The URL without its password.
        server: String,
        /// The server's refusal, or the network's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server was not reached, or did not answer, in time.
    #[error("connect to the {side} at {server}: no answer within {seconds} s")]
    ConnectTimeout {
        /// The database.
        side: Side,
        /// The URL without its password.
        server: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A pooler between us and the server gives the same server session to several clients.
    #[error("a connection pooler in transaction or statement mode is between us and the {side} at {server}")]
    Pooled {
        /// The database.
        side: Side,
        /// The URL without its password.
        server: String,
    },
    /// TLS can't be set up (authority file, names).
    #[error("set up TLS for the {side} at {server}")]
    Tls {
        /// The database.
        side: Side,
        /// The URL without its password.
        server: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The connection was lost, or answered with something that is not the protocol.
    #[error("connection to the {side} lost while trying to {action}")]
    Lost {
        /// The database.
        side: Side,
        /// The action that failed, as an infinitive.
        action: &'static str,
        /// The driver's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The connection has ended while nothing was asked of it.
    #[error("the connection to the {0} has ended")]
    Ended(Side),
    /// Postgres refused a statement.
    #[error("{action} in the {side}: {refusal}")]
    Refused {
        /// The database.
        side: Side,
        /// The action that failed, as an infinitive.
        action: &'static str,
        /// The server's answer.
        refusal: Box<Refusal>,
    },
}

impl SessionError {
    /// Wraps a driver's error that was met while doing something.
    #[must_use]
    pub fn new(side: Side, action: &'static str, source: tokio_postgres::Error) -> Self {
        match Refusal::of(&source) {
            Some(refusal) => Self::Refused {
                side,
                action,
                refusal: Box::new(refusal),
            },
            None => Self::Lost { side, action, source },
        }
    }

    /// Whether trying again can help. Never [`Disposition::Row`]: an error of a session is no row's fault.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            // A refused login has a SQLSTATE (no such database, wrong password); errors of the network pass.
            Self::Connect { source, .. } | Self::Lost { source, .. } => {
                Refusal::of(source).map_or(Disposition::Transient, |refusal| not_of_a_row(refusal.disposition()))
            }
            Self::ConnectTimeout { .. } | Self::Ended(_) => Disposition::Transient,
            Self::Tls { .. } | Self::Pooled { .. } => Disposition::Systemic,
            Self::Refused { refusal, .. } => not_of_a_row(refusal.disposition()),
        }
    }

    /// The remedy; a statement to paste, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { side, source, .. } => {
                let cause = std::error::Error::source(source);
                let of_certificate = cause
                    .and_then(|cause| cause.downcast_ref::<std::io::Error>())
                    .and_then(tls::refusal_hint);
                // The driver has no other sign for it.
                let of_tls = cause
                    .filter(|cause| cause.to_string() == "server does not support TLS")
                    .map(|_| tls::NOT_OFFERED.to_owned());
                let of_password = cause
                    .filter(|cause| cause.to_string() == "password missing")
                    .map(|_| PASSWORD_MISSING_HINT.to_owned());
                let of_refusal = Refusal::of(source).and_then(|refusal| session_hint(*side, &refusal.sqlstate));
                Some(
                    of_certificate
                        .or(of_tls)
                        .or(of_password)
                        .or(of_refusal)
                        .unwrap_or_else(|| UNREACHABLE_HINT.to_owned()),
                )
            }
            Self::ConnectTimeout { .. } => Some(UNREACHABLE_HINT.to_owned()),
            Self::Tls { source, .. } => Some(source.hint()),
            Self::Pooled { .. } => Some(POOLER_HINT.to_owned()),
            Self::Lost { .. } | Self::Ended(_) => None,
            Self::Refused { side, refusal, .. } => session_hint(*side, &refusal.sqlstate),
        }
    }
}

/// An error with its causes and its hint, in one line for logs and health.
#[must_use]
pub fn explain(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let (next, is_last) = match server_message(error) {
            Some(message) => (message, true),
            None => (error.to_string(), false),
        };
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source().filter(|_| !is_last);
    }
    if let Some(hint) = hint {
        text.push_str(REMEDY_FOLLOWS);
        text.push_str(&hint);
    }
    // A server's message may contain line breaks; a log record must be one line.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The server's own words, without those that the drivers add ("db error", "at line 842" of the server's sources).
fn server_message(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let (message, code) = if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
        let error = error.as_db_error()?;
        (error.message(), error.code().code().into())
    } else {
        let error = error.downcast_ref::<sqlx::Error>()?.as_database_error()?;
        (error.message(), error.code().unwrap_or_default())
    };
    Some(format!("{message} (SQLSTATE {code})"))
}

/// For statements that write no row: an error that looks like a row's own needs an operator.
#[must_use]
pub fn not_of_a_row(disposition: Disposition) -> Disposition {
    match disposition {
        Disposition::Row => Disposition::Systemic,
        other => other,
    }
}

/// The remedy for a pooler that shares server sessions.
pub const POOLER_HINT: &str =
    "use the server's own port, or a pool in session mode (PgBouncer: pool_mode = session; Supabase: port 5432)";

/// What to check if no server answers.
pub const UNREACHABLE_HINT: &str =
    "check the URL, that the server runs and that it accepts this client (pg_hba.conf, firewall)";

/// What to do if the server asks for a password.
const PASSWORD_MISSING_HINT: &str =
    "the server asks for a password and the URL has none: postgres://USER:PASSWORD@HOST/DATABASE";

/// The remedy for a SQLSTATE that concerns the session or the server, independent of the statement.
#[must_use]
pub fn session_hint(side: Side, sqlstate: &str) -> Option<String> {
    Some(match sqlstate {
        "53100" => format!("the {side}'s disk is full: free space; work goes on by itself"),
        "53300" => format!(
            "in the {side}, raise max_connections (or the CONNECTION LIMIT of the role or database), or end sessions that are not needed"
        ),
        "28000" | "28P01" => "check role and password in the URL".to_owned(),
        "3D000" => "check the database's name in the URL".to_owned(),
        "25006" => format!(
            "the {side} takes no writes: it is a standby (then point the URL at the primary), or default_transaction_read_only is on"
        ),
        _ => return None,
    })
}

/// Who has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaisedBy {
    /// The server, about the statement, the table, the row, or itself.
    Server,
    /// The server, about something that a function did: a trigger, a check, a default.
    WithinFunction,
    /// A function's own code, which may choose any SQLSTATE. Says nothing about the server.
    FunctionCode,
}

/// The server's own functions by which code of a function raises an error, or hands on that of another server. Unlike
/// messages and contexts, these names are in no language.
const RAISERS: &[&str] = &[
    "exec_stmt_raise",
    "exec_stmt_assert",
    "PLy_elog_impl",
    "throw_tcl_error",
    "dblink_res_error",
    "pgfdw_report_error",
];

impl RaisedBy {
    fn of(error: &tokio_postgres::error::DbError) -> Self {
        use tokio_postgres::error::Severity;
        if matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) {
            // It has ended the session.
            return Self::Server;
        }
        match (error.routine(), error.where_()) {
            (Some(routine), _) if RAISERS.contains(&routine) => Self::FunctionCode,
            (_, Some(_)) => Self::WithinFunction,
            (_, None) => Self::Server,
        }
    }
}

/// A server's refusal of a statement, without row values when displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its SQLSTATE.
    pub sqlstate: String,
    /// The server's primary message. In classes 22 and 23 it may quote a value: never log it then.
    pub message: String,
    /// The constraint that refused.
    pub constraint: Option<String>,
    /// The column that refused.
    pub column: Option<String>,
    /// Who has refused.
    pub raised_by: RaisedBy,
}

impl Refusal {
    /// The refusal in a driver's error; `None` if the server did not answer.
    #[must_use]
    pub fn of(error: &tokio_postgres::Error) -> Option<Self> {
        error.as_db_error().map(|db| Self {
            sqlstate: db.code().code().to_owned(),
            message: beginning(db.message()),
            constraint: db.constraint().map(beginning),
            column: db.column().map(beginning),
            raised_by: RaisedBy::of(db),
        })
    }

    /// What it means: its SQLSTATE's meaning, unless a function chose that.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self.raised_by {
            RaisedBy::FunctionCode => Disposition::Row,
            RaisedBy::Server | RaisedBy::WithinFunction => disposition(&self.sqlstate),
        }
    }

    /// Whether one row may be at fault, though its SQLSTATE does not say so. To be found out: then the same statement is
    /// accepted for other rows, and for none.
    #[must_use]
    pub fn may_be_of_a_row(&self) -> bool {
        match self.disposition() {
            Disposition::Row => true,
            Disposition::Systemic if self.sqlstate.starts_with("XX") => {
                self.sqlstate == "XX000" && self.raised_by == RaisedBy::WithinFunction
            }
            Disposition::Systemic => is_of_its_table(&self.sqlstate),
            // Another server's connection, that of a function (dblink).
            Disposition::Transient => self.sqlstate.starts_with("08") && self.raised_by == RaisedBy::WithinFunction,
        }
    }
}

/// Longest text of an error that is kept: a function may raise any, and it goes into states and tables of ours.
const MAX_TEXT: usize = 2048;

/// A text of the server, cut if it is long.
fn beginning(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    match text.get(..end) {
        Some(beginning) if end < text.len() => format!("{beginning}… ({} bytes)", text.len()),
        _ => text.to_owned(),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.disposition() {
            Disposition::Row => {
                write!(f, "a row was refused")?;
                if let Some(constraint) = &self.constraint {
                    write!(f, " by constraint {constraint}")?;
                }
                if let Some(column) = &self.column {
                    write!(f, " for column {column}")?;
                }
                write!(f, " (SQLSTATE {})", self.sqlstate)
            }
            Disposition::Transient | Disposition::Systemic => {
                write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(side: Side, sqlstate: &str) -> SessionError {
        SessionError::Refused {
            side,
            action: "read a chunk",
            refusal: Box::new(Refusal {
                sqlstate: sqlstate.to_owned(),
                message: "the server's words".to_owned(),
                constraint: None,
                column: None,
                raised_by: RaisedBy::Server,
            }),
        }
    }

    #[test]
    fn a_long_text_of_the_server_is_cut() {
        assert_eq!(beginning("é"), "é");
        let long = "é".repeat(5000);
        let cut = beginning(&long);
        assert!(cut.len() < MAX_TEXT + 30 && cut.ends_with("… (10000 bytes)"), "{cut}");
    }

    #[test]
    fn errors_and_hints_name_the_side_of_the_session() {
        for (side, own, other) in [
            (Side::Site, "Site DB", "Agent DB"),
            (Side::Agent, "Agent DB", "Site DB"),
        ] {
            for sqlstate in ["53100", "53300"] {
                let error = refused(side, sqlstate);
                let text = format!("{error} {}", error.hint().unwrap());
                assert!(text.contains(own) && !text.contains(other), "{text}");
            }
            let error = SessionError::ConnectTimeout {
                side,
                server: "postgres://db.example.com/crm".to_owned(),
                seconds: 15,
            };
            assert!(error.to_string().contains(own), "{error}");
        }
    }

    #[test]
    fn a_functions_code_blames_its_row_whatever_it_calls_the_error() {
        let refusal = |sqlstate: &str, raised_by| Refusal {
            sqlstate: sqlstate.to_owned(),
            message: "the function's words".to_owned(),
            constraint: None,
            column: None,
            raised_by,
        };
        for sqlstate in ["P0002", "PT409", "57P01", "40001", "58030", "XX001", "53100"] {
            let refusal = refusal(sqlstate, RaisedBy::FunctionCode);
            assert_eq!(refusal.disposition(), Disposition::Row, "{sqlstate}");
            assert!(!refusal.to_string().contains("words"), "{sqlstate}");
        }
        for (sqlstate, raised_by, expected) in [
            ("42P01", RaisedBy::WithinFunction, true),
            ("42P01", RaisedBy::Server, true),
            ("P0003", RaisedBy::WithinFunction, true),
            ("08001", RaisedBy::WithinFunction, true),
            ("08006", RaisedBy::Server, false),
            ("40P01", RaisedBy::WithinFunction, false),
            ("53100", RaisedBy::WithinFunction, false),
            ("25006", RaisedBy::Server, false),
            ("XX000", RaisedBy::Server, false),
            ("XX000", RaisedBy::WithinFunction, true),
            ("XX001", RaisedBy::WithinFunction, false),
        ] {
            assert_eq!(refusal(sqlstate, raised_by).may_be_of_a_row(), expected, "{sqlstate}");
        }
    }

    #[test]
    fn a_session_has_no_row_to_blame() {
        for sqlstate in ["22P02", "23505", "44000"] {
            assert_eq!(refused(Side::Agent, sqlstate).disposition(), Disposition::Systemic);
        }
        assert_eq!(refused(Side::Site, "57P01").disposition(), Disposition::Transient);
    }
}
