//! Errors of the replication connection: what each means, and the remedy.

use std::io;
use std::time::Duration;

use crate::postgres::error::not_of_a_row;
use crate::postgres::sqlstate::is_row_too_large;
use crate::postgres::tls::{self, TlsError};
use crate::postgres::{self, quote_identifier};
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
    /// The error code: five characters.
    pub sqlstate: String,
    /// The primary message, in the language of the server's `lc_messages`.
    pub message: String,
    /// The server's DETAIL.
    pub detail: Option<String>,
    /// The server's HINT.
    pub hint: Option<String>,
    /// The function of the server's source that raised it: not translated, so it tells causes of one code apart.
    pub routine: Option<String>,
    /// What the connection was doing when the error came.
    pub phase: Phase,
    /// The role that the connection logged in as, for hints.
    pub user: String,
    /// The database of the connection, for hints.
    pub database: String,
}

/// The errors of a server that have a known meaning for replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerFault {
    /// The password of the URL is wrong.
    WrongPassword,
    /// `pg_hba.conf` does not admit this role, database or address, or the role does not exist.
    NotAdmitted,
    /// The client saw another certificate than the server's own: TLS ends at a machine in the middle.
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
    /// The slot cannot be used any more: the WAL that it needs is removed. (Also a physical slot, or one of another database.)
    SlotInvalidated,
    /// All of `max_replication_slots` are taken.
    NoFreeSlot,
    /// A publication does not exist, or did not at the position that is being decoded.
    PublicationMissing,
    /// The command waited for a lock or an open transaction longer than its limit.
    LockTimeout,
    /// The server can't send a row, as its message would be longer than a gigabyte.
    RowTooLarge,
    /// The server can't read its own log: it finds no table for a change, mostly after DDL ("could not map filenode").
    Undecodable,
}

/// The functions of the server in which a change of the log is decoded: an internal error of theirs is met again by every attempt.
const DECODING: [&str; 5] = [
    "ReorderBufferProcessTXN",
    // Before 14.
    "ReorderBufferCommit",
    "ReorderBufferToastReplace",
    "ReorderBufferToastAppendChunk",
    "DecodeInsert",
];

/// Why there is no replication connection, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No TCP connection or Unix socket to the server.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("no answer within {after:?} while {doing}")]
    Timeout {
        /// What the connection was doing, as in `logging in`.
        doing: &'static str,
        /// How long it waited.
        after: Duration,
    },
    /// A read or write of the socket failed.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The server closed the connection without an error message.
    #[error("the server closed the connection")]
    Closed,
    /// The server ended the stream with CommandComplete, because it is shutting down.
    #[error("the server ended the stream")]
    StreamEnded,
    /// The TLS settings cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// The handshake failed, or the server's certificate is refused.
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
    /// The URL asks for TLS, and the server has none.
    #[error("the server does not offer TLS")]
    TlsRefused,
    /// The login cannot go on without a password.
    #[error("the server asks for a password and the URL has none")]
    PasswordMissing,
    /// The server asks for a login method that is not supported.
    #[error("the server asks for {0}, which is not supported")]
    AuthMethod(&'static str),
    /// The server could not prove that it knows the password, or ended the exchange.
    #[error("the server failed the SCRAM exchange")]
    Scram(#[source] io::Error),
    /// The server sent an error message.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The server sent something that the protocol does not allow at this point.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

impl ServerError {
    /// The error's meaning for replication, if it is known.
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
            // Since 18 this is only a warning, and the server leaves the changes out of the stream.
            ("55000", Phase::Stream) if raised_by("LoadPublications") => ServerFault::PublicationMissing,
            ("55000", _) if raised_by("CheckLogicalDecodingRequirements") || raised_by("CheckSlotRequirements") => {
                ServerFault::WalLevel
            }
            ("55000", Phase::Start | Phase::Stream) => ServerFault::SlotInvalidated,
            (code, Phase::Stream) if is_row_too_large(code, &self.message) => ServerFault::RowTooLarge,
            ("XX000", Phase::Stream) if self.is_of_decoding() => ServerFault::Undecodable,
            _ => return None,
        })
    }

    fn is_of_decoding(&self) -> bool {
        // Internal errors are not translated. From 16 on it is a "filenumber".
        self.message.starts_with("could not map file")
            || self
                .routine
                .as_deref()
                .is_some_and(|routine| DECODING.contains(&routine))
    }

    /// The statement or setting that an operator can paste, if the fault is known.
    fn advice(&self) -> Option<String> {
        let (user, database) = (quote_identifier(&self.user), &self.database);
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
                "connect to the server directly: TLS ends at a proxy or another machine between (compare the certificate \
                 that it shows with the server's ssl_cert_file)"
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
                "the slot was dropped, or this is another server: changes may be missing, see twinlog status"
                    .to_owned()
            }
            ServerFault::SlotExists => "choose another name, or drop the slot if it is not needed: SELECT \
                                        pg_drop_replication_slot('…')"
                .to_owned(),
            ServerFault::SlotActive => "another connection reads the slot: SELECT pid, application_name, client_addr \
                                        FROM pg_stat_replication"
                .to_owned(),
            ServerFault::SlotInvalidated => "the server removed WAL that the slot needs (see \
                                             max_slot_wal_keep_size and, from 18 on, idle_replication_slot_timeout): \
                                             drop the slot and resync, twinlog resync --all"
                .to_owned(),
            ServerFault::NoFreeSlot => {
                "drop a slot that is not needed, or ALTER SYSTEM SET max_replication_slots = 20 and restart the server"
                    .to_owned()
            }
            ServerFault::RowTooLarge => {
                "make the row smaller, or leave its large column out of the publication".to_owned()
            }
            ServerFault::Undecodable => {
                "drop the slot, which can't be read any further, and resync: twinlog resync --all".to_owned()
            }
            ServerFault::PublicationMissing => {
                "CREATE PUBLICATION … FOR TABLE …; a slot that is older than its publication must be dropped and created again"
                    .to_owned()
            }
            ServerFault::LockTimeout => {
                "a transaction has been open for a long time: SELECT pid, xact_start, application_name, state \
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

    /// The meaning of the server's error for replication, if it is one and its meaning is known.
    #[must_use]
    pub fn fault(&self) -> Option<ServerFault> {
        match self {
            Self::Server(error) => error.fault(),
            _ => None,
        }
    }

    /// Whether a reconnect can succeed without a repair.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Io(_)
            | Self::Closed
            | Self::StreamEnded
            // A stream that was damaged on its way is whole on the next connection.
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
Self::Server(error) => not_of_a_row(postgres::disposition(&error.sqlstate)),
        }
    }

    /// The remedy, as a statement or setting if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "check host and port in the URL, listen_addresses on the server, and the firewall between them"
                    .to_owned(),
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
        assert_eq!(
            fault("XX000", Phase::Stream, Some("ReorderBufferProcessTXN")),
            Some(ServerFault::Undecodable)
        );
        assert_eq!(fault("XX000", Phase::Query, Some("ReorderBufferProcessTXN")), None);
        let mut unmapped = server("XX000", Phase::Stream, None);
        if let WireError::Server(error) = &mut unmapped {
            error.message = "could not map filenode \"base/5/16384\" to relation OID".to_owned();
        }
        assert_eq!(unmapped.fault(), Some(ServerFault::Undecodable));
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
