//! The connection before the stream: login, queries and replication commands, one at a time.

use std::time::Duration;

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::auth;
use super::channel::Channel;
use super::codec::{self, Identity};
use super::error::{Phase, WireError};
use super::pump::{self, Reactor};
use super::slot::{SlotName, SystemIdentity};
use super::socket::{Socket, within};
use super::stream::{Feedback, FrameStream};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;
use crate::postgres::quote_identifier;
use crate::postgres::session_settings::{PINNED, REPLICATION, SEARCH_PATH};

/// Longest login. The server's own limit (`authentication_timeout`) is a minute by default.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer to a query that waits for no lock.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer to START_REPLICATION: the server reads the slot's state from disk and answers before it decodes.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest send of Terminate: the kernel takes five bytes at once, or the connection is dead.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the creation of a slot may wait for open transactions, each time as long as `lock_timeout`: once for each step
/// to a consistent snapshot (`SnapBuildFindSnapshot`).
const SLOT_LOCK_WAITS: u32 = 3;

/// The answer to CREATE_REPLICATION_SLOT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Every transaction that commits after this position is in the stream.
    pub consistent_point: Lsn,
}

/// A connection in replication mode to one database.
pub struct ReplicationConnection {
    channel: Channel,
    reactor: Reactor,
    server_version: String,
    /// The database's encoding is `SQL_ASCII`: its texts may be any bytes.
    any_bytes: bool,
    /// A query's answer was not read to its end, so that the next answer could not be told from it.
    interrupted: bool,
}

impl ReplicationConnection {
    /// Connects and logs in.
    ///
    /// `application_name` is what `pg_stat_replication` shows.
    ///
    /// # Errors
    /// The host is unreachable, TLS fails, the login is refused, or the role may not replicate.
    pub async fn connect(url: &DatabaseUrl, application_name: &str) -> Result<Self, WireError> {
        let reactor = Reactor::start().map_err(WireError::Io)?;
        let socket = Box::pin(Socket::connect(url, reactor.handle())).await?;
        let identity = Identity {
            user: url.user.clone(),
            database: url.database.clone(),
        };
        let mut channel = Channel::new(socket, identity);
        let login = Box::pin(log_in(&mut channel, url, application_name));
        let Greeting { version, encoding } = within(LOGIN_TIMEOUT, "logging in", login).await??;
        Ok(Self {
            channel,
            reactor,
            server_version: version,
            any_bytes: encoding == "SQL_ASCII",
            interrupted: false,
        })
    }

    /// Runs IDENTIFY_SYSTEM.
    ///
    /// # Errors
    /// The connection broke, or the answer cannot be understood.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, WireError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        let mut columns = rows.into_iter().next().unwrap_or_default().into_iter().flatten();
        let mut identity = || {
            Some(SystemIdentity {
                system_identifier: columns.next()?,
                timeline: columns.next()?.parse().ok()?,
                position: columns.next()?.parse().ok()?,
                database: columns.next()?,
            })
        };
        identity().ok_or_else(|| WireError::Protocol("the answer to IDENTIFY_SYSTEM is not understood".to_owned()))
    }

    /// Runs SQL or a replication command and returns the rows of all its statements, as text.
    ///
    /// If a query is cancelled or times out, the connection cannot be used any more.
    ///
    /// # Errors
    /// The server refused it (the connection stays usable), it took longer than 30 s, or the connection broke.
    pub async fn simple_query(&mut self, query: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.query_within(query, QUERY_TIMEOUT).await
    }

    /// Creates a slot for this database with `pgoutput`.
    ///
    /// Waits until every transaction that is open now has ended, each wait no longer than `lock_timeout` (zero: no limit);
    /// `statement_timeout` does not apply to replication commands (pitfall P12). After
    /// [`ServerFault::LockTimeout`](super::ServerFault::LockTimeout) there is no slot.
    ///
    /// # Errors
    /// The slot exists, all of `max_replication_slots` are taken, `wal_level` is not `logical`, the wait was too long, or the
    /// connection broke.
    pub async fn create_slot(&mut self, slot: &SlotName, lock_timeout: Duration) -> Result<CreatedSlot, WireError> {
        self.simple_query(&format!("SET lock_timeout = {}", lock_timeout.as_millis()))
            .await?;
        let limit = if lock_timeout.is_zero() {
            Duration::MAX
        } else {
            QUERY_TIMEOUT + lock_timeout.saturating_mul(SLOT_LOCK_WAITS)
        };
        // Since 17 a standby may keep a copy of the slot, so that the stream continues after a failover. It does so if its
        // `sync_replication_slots` is on; without a standby the option costs nothing.
        let options = if major(&self.server_version) >= 17 {
            "(SNAPSHOT 'nothing', FAILOVER true)"
        } else {
            "NOEXPORT_SNAPSHOT"
        };
        let command = format!(
            "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}",
            quote_identifier(slot.as_str())
        );
        let created = self.query_within(&command, limit).await;
        let reset = self.simple_query("SET lock_timeout = 0").await;
        // If both failed, the first error is the cause.
        let rows = created?;
        reset?;
        rows.first()
            .and_then(|row| row.get(1)?.as_deref()?.parse().ok())
            .map(|consistent_point| CreatedSlot { consistent_point })
            .ok_or_else(|| WireError::Protocol("the answer to CREATE_REPLICATION_SLOT is not understood".to_owned()))
    }

    /// Drops a slot that is not in use.
    ///
    /// # Errors
    /// The slot does not exist or is in use, or the connection broke.
    pub async fn drop_slot(&mut self, slot: &SlotName) -> Result<(), WireError> {
        let command = format!("DROP_REPLICATION_SLOT {}", quote_identifier(slot.as_str()));
        self.simple_query(&command).await.map(drop)
    }

    /// Closes the connection with Terminate. A connection that is dropped instead makes the server log a broken one.
    pub async fn close(mut self) {
        frontend::terminate(self.channel.out());
        // Ignore errors: the server may have closed first.
        let _ = within(CLOSE_TIMEOUT, "closing the connection", self.channel.flush()).await;
    }

    /// Starts the stream: everything of the publications that committed after `start`, or after the slot's confirmed
    /// position if that is further (the server does so without a notice: compare the slot before). [`Lsn::INVALID`] starts
    /// at the slot's position.
    ///
    /// A publication that does not exist is an error of the stream, at the first change that needs it, and not of this call.
    ///
    /// # Errors
    /// The slot is missing, in use, or invalidated ([`WireError::fault`] tells), or the connection broke.
    pub async fn start_replication(
        self,
        slot: &SlotName,
        start: Lsn,
        publications: &[String],
    ) -> Result<(FrameStream, Feedback), WireError> {
        Box::pin(self.start_replication_as(slot, start, publications, ValueForm::Text)).await
    }

    /// As [`Self::start_replication`]; `form`: how values are sent.
    ///
    /// # Errors
    /// As [`Self::start_replication`].
    pub async fn start_replication_as(
        mut self,
        slot: &SlotName,
        start: Lsn,
        publications: &[String],
        form: ValueForm,
    ) -> Result<(FrameStream, Feedback), WireError> {
        let timeout = self.wal_sender_timeout().await?;
        if major(&self.server_version) >= 17 {
            // The server decodes each transaction inside a transaction of its own: a limit that is meant for clients would
            // end the stream at the same large one again and again. Older servers refuse the name, so it is not pinned.
            self.simple_query("SET transaction_timeout = 0").await?;
        }
        if self.any_bytes {
            // With UTF8 the server would refuse to send a text that is not UTF-8, and could never get past it. Sent as it
            // is, the Agent DB refuses that row only (pitfall P29).
            self.simple_query("SET client_encoding = 'SQL_ASCII'").await?;
        }
        let command = start_command(slot, start, publications, form);
        self.channel.phase = Phase::Start;
        frontend::query(&command, self.channel.out()).map_err(|error| codec::protocol(&error))?;
        let started = async {
            self.channel.flush().await?;
            self.channel.receive_copy_both().await
        };
        within(START_TIMEOUT, "starting the stream", started).await??;
        self.channel.phase = Phase::Stream;
        Ok(pump::start(self.reactor, self.channel, timeout))
    }

    /// How long the server waits for a status update before it ends the connection; `None`: without limit.
    async fn wal_sender_timeout(&mut self) -> Result<Option<Duration>, WireError> {
        let rows = self
            .simple_query("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")
            .await?;
        // pg_settings has it in milliseconds; SHOW would print "1min".
        let milliseconds = rows
            .first()
            .and_then(|row| row.first()?.as_deref()?.parse().ok())
            .ok_or_else(|| WireError::Protocol("the answer about wal_sender_timeout is not understood".to_owned()))?;
        Ok((milliseconds > 0).then(|| Duration::from_millis(milliseconds)))
    }

    async fn query_within(&mut self, query: &str, limit: Duration) -> Result<Vec<Vec<Option<String>>>, WireError> {
        if std::mem::replace(&mut self.interrupted, true) {
            return Err(WireError::Closed);
        }
        self.channel.phase = Phase::Query;
        let answer = async {
            frontend::query(query, self.channel.out()).map_err(|error| codec::protocol(&error))?;
            self.channel.flush().await?;
            self.channel.receive_rows().await
        };
        let rows = within(limit, "waiting for an answer", answer).await?;
        // An error that the server sent was read up to ReadyForQuery, or the server has closed the connection: then the next
        // query finds out.
        self.interrupted = !matches!(rows, Ok(_) | Err(WireError::Server(_)));
        rows
    }
}

/// The major version in a `server_version`; 0 if it has none.
fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// `START_REPLICATION` with its options. Names are quoted twice: as identifiers in a list, and the list as a literal.
fn start_command(slot: &SlotName, start: Lsn, publications: &[String], form: ValueForm) -> String {
    let names: Vec<_> = publications.iter().map(|name| quote_identifier(name)).collect();
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names '{}', messages 'true'{})",
        quote_identifier(slot.as_str()),
        // The replication grammar has no backslash escapes: it is enough to double the quotes.
        names.join(",").replace('\'', "''"),
        match form {
            ValueForm::Text => "",
            ValueForm::Binary => ", binary 'true'",
        },
    )
}

/// How the stream sends values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// As their types print them.
    Text,
    /// As their types send them. A `bytea` takes half of the bytes that its text takes.
    Binary,
}

/// What a server reports about itself after the login.
#[derive(Debug, Default)]
struct Greeting {
    version: String,
    encoding: String,
}

/// Startup message and login, up to the first ReadyForQuery.
async fn log_in(channel: &mut Channel, url: &DatabaseUrl, application_name: &str) -> Result<Greeting, WireError> {
    let parameters = [
        ("user", url.user.as_str()),
        ("database", url.database.as_str()),
        ("replication", "database"),
        ("application_name", application_name),
    ];
    frontend::startup_message(
        parameters
            .into_iter()
            .chain(PINNED.iter().copied())
            .chain([SEARCH_PATH])
            .chain(REPLICATION.iter().copied()),
        channel.out(),
    )
    .map_err(|error| codec::protocol(&error))?;
    channel.flush().await?;
    auth::log_in(channel, &url.user, url.password.as_ref()).await?;
    let mut greeting = Greeting::default();
    loop {
        match channel.receive().await? {
            Message::ParameterStatus(status) => {
                let name = status.name().map_err(|error| codec::protocol(&error))?;
                let value = status.value().map_err(|error| codec::protocol(&error))?;
                match name {
                    "server_version" => value.clone_into(&mut greeting.version),
                    "server_encoding" => value.clone_into(&mut greeting.encoding),
                    _ => {}
                }
            }
            Message::BackendKeyData(_) => {}
            Message::ReadyForQuery(_) => return Ok(greeting),
            _ => {
                return Err(WireError::Protocol("an unexpected message after logging in".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_version_is_known_whatever_follows_it() {
        for (text, expected) in [
            ("17.2 (Debian 17.2-1)", 17),
            ("18beta1", 18),
            ("9.6.24", 9),
            ("", 0),
            ("devel", 0),
        ] {
            assert_eq!(major(text), expected, "{text:?}");
        }
    }

    #[test]
    fn publication_names_are_quoted_as_identifiers_and_as_a_literal() {
        let slot: SlotName = "twinlog".parse().unwrap();
        let publications = ["plain".to_owned(), "it's \"odd\", really".to_owned()];
        assert_eq!(
            start_command(&slot, Lsn(0x16_B374_D848), &publications, ValueForm::Text),
            "START_REPLICATION SLOT \"twinlog\" LOGICAL 16/B374D848 (proto_version '1', publication_names \
             '\"plain\",\"it''s \"\"odd\"\", really\"', messages 'true')"
        );
    }
}
