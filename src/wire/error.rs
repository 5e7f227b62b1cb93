//! What goes wrong on the replication connection, what it means for the work, and what to do.

use std::io;
use std::time::Duration;

use postgres_protocol::escape::escape_identifier;

use crate::postgres::tls::{self, TlsError};
use crate::postgres::{self};
use crate::retry::Disposition;

/// What the connection was doing when the server sent an error: the same SQLSTATE means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting and logging in.
    Login,
    /// A statement or a replication command.
    Query,
    /// `START_REPLICATION`, before the first byte of the stream.
    Start,
    /// The stream.
    Stream,
}

/// An error that the server sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct ServerError {
    /// The error's code.
    pub sqlstate: String,
    /// What the server says, in its language.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
    /// The server's function that raised it: in no language, so good to tell causes of one code apart.
    pub routine: Option<String>,
    /// What the connection was doing.
    pub phase: Phase,
    /// The role of the connection.
    pub user: String,
    /// The database of the connection.
    pub database: String,
}

/// A server's error by what it means to replication, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerFault {
    /// The password is wrong.
    WrongPassword,
    /// `pg_hba.conf` lets this role, database or address not in, or the role does not exist.
    NotAdmitted,
    /// The login came through another certificate than the server's own: somebody stands between.
    Intercepted,
    /// The role may not replicate.
    NoReplicationRight,
    /// The database does not exist.
    DatabaseMissing,
    /// All of `max_wal_senders` or `max_connections` are taken.
    NoFreeConnection,
    /// `wal_level` is not `logical`.
    WalLevel,
    /// The slot does not exist.
    SlotMissing,
    /// The slot exists already.
    SlotExists,
    /// Another connection uses the slot.
    SlotActive,
    /// The slot cannot be used any more: its log is gone. (Also a slot that is of another database or physical.)
    SlotInvalidated,
    /// All of `max_replication_slots` are taken.
    NoFreeSlot,
    /// A publication does not exist, or did not at the position that is being decoded.
    PublicationMissing,
    /// A lock or an open transaction held the command up for longer than its limit.
    LockTimeout,
}

/// Why there is no replication connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The host cannot be reached.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("no answer within {after:?} while {doing}")]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// The server ended the stream in good order: it is shutting down.
    #[error("the server ended the stream")]
    StreamEnded,
    /// The TLS settings cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// The handshake failed, or the server's certificate is refused.
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
    /// The server does no TLS.
    #[error("the server does not offer TLS")]
    TlsRefused,
    /// The server asks for a password and the URL has none.
    #[error("the server asks for a password and the URL has none")]
    PasswordMissing,
    /// The server asks for a way to log in that is not spoken here.
    #[error("the server asks for {0}, which is not supported")]
    AuthMethod(&'static str),
    /// The server could not prove that it knows the password, or broke the exchange off.
    #[error("the server failed the SCRAM exchange")]
    Scram(#[source] io::Error),
    /// The server sent an error.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The server sent what the protocol does not allow here.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

impl ServerError {
    /// What the error means to replication, where that is known.
    #[must_use]
    pub fn fault(&self) -> Option<ServerFault> {
        let raised_by = |routine: &str| self.routine.as_deref() == Some(routine);
        Some(match (self.sqlstate.as_str(), self.phase) {
            ("28P01", _) => ServerFault::WrongPassword,
            ("28000", _) if raised_by("read_client_final_message") => ServerFault::Intercepted,
            ("28000", _) => ServerFault::NotAdmitted,
            ("3D000", _) => ServerFault::DatabaseMissing,
            ("42501", Phase::Login) => ServerFault::NoReplicationRight,
            ("42501", _) if raised_by("CheckSlotPermissions") || raised_by("check_permissions") => {
                ServerFault::NoReplicationRight
            }
            ("53300", _) => ServerFault::NoFreeConnection,
            ("53400", Phase::Query) => ServerFault::NoFreeSlot,
            ("55P03", _) => ServerFault::LockTimeout,
            ("55006", _) => ServerFault::SlotActive,
            ("42710", Phase::Query) => ServerFault::SlotExists,
            ("42704", Phase::Query | Phase::Start) => ServerFault::SlotMissing,
            ("42704", Phase::Stream) => ServerFault::PublicationMissing,
            // Since 18 only a warning, and the changes are left out of the stream without another word.
            ("55000", Phase::Stream) if raised_by("LoadPublications") => ServerFault::PublicationMissing,
            ("55000", _) if raised_by("CheckLogicalDecodingRequirements") || raised_by("CheckSlotRequirements") => {
                ServerFault::WalLevel
            }
            ("55000", Phase::Start | Phase::Stream) => ServerFault::SlotInvalidated,
            _ => return None,
        })
    }

    /// The statement or setting that an operator can paste.
    fn advice(&self) -> Option<String> {
        let (user, database) = (escape_identifier(&self.user), &self.database);
        Some(match self.fault()? {
            ServerFault::WrongPassword => {
                format!("correct the password in the URL, or set it: ALTER ROLE {user} PASSWORD '…'")
            }
            ServerFault::NotAdmitted => format!(
                "check that the role exists, add to the server's pg_hba.conf: hostssl {database} {} <this address> \
                 scram-sha-256, then: SELECT pg_reload_conf()",
                self.user
            ),
            ServerFault::Intercepted => {
                "connect to the server itself: a proxy that ends TLS, or somebody else, stands \
                                         between (compare its certificate with the server's ssl_cert_file)"
                    .to_owned()
            }
            ServerFault::NoReplicationRight => format!("ALTER ROLE {user} REPLICATION"),
            ServerFault::DatabaseMissing => {
                format!("correct the database in the URL: there is no {database:?} on that server")
            }
            ServerFault::NoFreeConnection => {
                "ALTER SYSTEM SET max_wal_senders = 20 (and max_connections), then restart the server".to_owned()
            }
            ServerFault::WalLevel => {
                "ALTER SYSTEM SET wal_level = 'logical' (and max_replication_slots above 0), then \
                                      restart the server"
                    .to_owned()
            }
            ServerFault::SlotMissing => {
                "the slot was dropped, or the server is another one: a hole cannot be ruled out, see twinlog status"
                    .to_owned()
            }
            ServerFault::SlotExists => "choose another name, or drop the slot if nobody needs it: SELECT \
                                        pg_drop_replication_slot('…')"
                .to_owned(),
            ServerFault::SlotActive => "another connection reads the slot: SELECT pid, application_name, client_addr \
                                        FROM pg_stat_replication"
                .to_owned(),
            ServerFault::SlotInvalidated => "the server dropped the log that the slot needed (see \
                                             max_slot_wal_keep_size and, from 18 on, idle_replication_slot_timeout): \
                                             drop the slot and resync, twinlog resync --all"
                .to_owned(),
            ServerFault::NoFreeSlot => {
                "drop a slot that nobody needs, or ALTER SYSTEM SET max_replication_slots = 20 and restart the server"
                    .to_owned()
            }
            ServerFault::PublicationMissing => {
                "CREATE PUBLICATION … FOR TABLE …; a slot that is older than its publication must be created anew"
                    .to_owned()
            }
            ServerFault::LockTimeout => {
                "a transaction is open for long: SELECT pid, xact_start, application_name, state \
                                         FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start"
                    .to_owned()
            }
        })
    }
}

impl WireError {
    /// The server's SQLSTATE, if it sent one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }

    /// What a server's error means to replication, where that is known.
    #[must_use]
    pub fn fault(&self) -> Option<ServerFault> {
        match self {
            Self::Server(error) => error.fault(),
            _ => None,
        }
    }

    /// Whether connecting again can help by itself.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Io(_)
            | Self::Closed
            | Self::StreamEnded
            // A stream that was cut or mangled on its way is whole again on the next connection.
            | Self::Protocol(_) => Disposition::Transient,
            Self::TlsHandshake(source) => {
                if tls::refusal_hint(source).is_some() {
                    Disposition::Systemic
                } else {
                    Disposition::Transient
                }
            }
            Self::Tls(_) | Self::TlsRefused | Self::PasswordMissing | Self::AuthMethod(_) | Self::Scram(_) => {
                Disposition::Systemic
            }
            // A connection has no row of its own to blame.
            Self::Server(error) => match postgres::disposition(&error.sqlstate) {
                Disposition::Row => Disposition::Systemic,
                other => other,
            },
        }
    }

    /// What an operator can do, as a statement or setting where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "check host and port in the URL, listen_addresses on the server, and the firewall between".to_owned(),
            ),
            Self::Timeout { .. } => Some("check the network and the load of the server".to_owned()),
            Self::Tls(error) => Some(error.hint()),
            Self::TlsHandshake(source) => tls::refusal_hint(source),
            Self::TlsRefused => Some(tls::NOT_OFFERED.to_owned()),
            Self::PasswordMissing => Some("write it into the URL: postgres://USER:PASSWORD@HOST/DATABASE".to_owned()),
            Self::AuthMethod(_) => Some("use scram-sha-256 for this role in the server's pg_hba.conf".to_owned()),
            Self::Scram(_) => {
                Some("check that the URL names the right server: this one does not know the password".to_owned())
            }
            Self::Server(error) => error.advice().or_else(|| error.hint.clone()),
            Self::Io(_) | Self::Closed | Self::StreamEnded | Self::Protocol(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, phase: Phase, routine: Option<&str>) -> WireError {
        WireError::Server(Box::new(ServerError {
            sqlstate: sqlstate.to_owned(),
            message: "m".to_owned(),
            detail: None,
            hint: None,
            routine: routine.map(str::to_owned),
            phase,
            user: "me".to_owned(),
            database: "crm".to_owned(),
        }))
    }

    #[test]
    fn one_code_means_different_things_in_different_phases() {
        let fault = |code, phase, routine| server(code, phase, routine).fault();
        assert_eq!(fault("42704", Phase::Start, None), Some(ServerFault::SlotMissing));
        assert_eq!(
            fault("42704", Phase::Stream, None),
            Some(ServerFault::PublicationMissing)
        );
        assert_eq!(
            fault("55000", Phase::Start, Some("CreateDecodingContext")),
            Some(ServerFault::SlotInvalidated)
        );
        assert_eq!(
            fault("55000", Phase::Stream, Some("LoadPublications")),
            Some(ServerFault::PublicationMissing)
        );
        assert_eq!(
            fault("55000", Phase::Start, Some("CheckLogicalDecodingRequirements")),
            Some(ServerFault::WalLevel)
        );
        assert_eq!(
            fault("42501", Phase::Login, None),
            Some(ServerFault::NoReplicationRight)
        );
        assert_eq!(fault("XX000", Phase::Stream, None), None);
    }

    #[test]
    fn what_a_person_must_change_is_not_retried_for_ever() {
        for (error, expected) in [
            (server("28P01", Phase::Login, None), Disposition::Systemic),
            (server("3D000", Phase::Login, None), Disposition::Systemic),
            (server("42704", Phase::Start, None), Disposition::Systemic),
            (server("55000", Phase::Start, None), Disposition::Systemic),
            (server("22P02", Phase::Stream, None), Disposition::Systemic),
            (server("55006", Phase::Start, None), Disposition::Transient),
            (server("57P01", Phase::Stream, None), Disposition::Transient),
            (server("57P03", Phase::Login, None), Disposition::Transient),
            (server("53300", Phase::Login, None), Disposition::Transient),
            (WireError::Closed, Disposition::Transient),
            (WireError::PasswordMissing, Disposition::Systemic),
            (WireError::TlsRefused, Disposition::Systemic),
        ] {
            assert_eq!(error.disposition(), expected, "{error}");
        }
    }

    #[test]
    fn a_hint_can_be_pasted() {
        assert_eq!(
            server("42501", Phase::Login, None).hint().as_deref(),
            Some("ALTER ROLE \"me\" REPLICATION")
        );
        assert!(
            WireError::TlsRefused
                .hint()
                .is_some_and(|hint| hint.contains("ssl = on"))
        );
    }
}
