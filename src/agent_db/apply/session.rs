//! The connection that writes, and the state of its transaction.
//!
//! BEGIN and SAVEPOINT cost no round trip of their own: they wait here until the next statement is sent. A call that fails
//! or is dropped half-way leaves the session broken, so that nothing is committed over rows that are not there.
//!
//! The search path is the role's own, for the sake of triggers, checks and defaults. So no statement of this connection
//! relies on it: objects, functions, operators and types are named with their schemas (`OPERATOR(pg_catalog.=)`; an
//! `unnest` of several arrays is syntax). A test runs them all under a path on which everything has a namesake that fails.

use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_postgres::Client;

use super::limit::StatementLimit;
use crate::agent_db::error::AgentError;
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::{self, SessionKind};
use crate::postgres::{Side, connect};

/// How long a statement waits for a lock. All tables wait meanwhile, so it is short: then the table is held, or the row
/// parked.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// The connection that writes.
#[derive(Debug)]
pub(super) struct Session {
    /// For statements that do not depend on what waits to be sent.
    pub client: Client,
    /// Cuts the connection.
    connection: AbortHandle,
    /// Ends statements that take too long.
    pub limit: StatementLimit,
    /// Whether a transaction is open, or will be with the next statement.
    in_transaction: bool,
    /// What is to be sent before the next statement: BEGIN, SAVEPOINT.
    opening: Option<&'static str>,
    /// A call has begun and not succeeded.
    broken: bool,
    /// Sent behind statements that fire triggers, which may set what later statements rely on.
    pin_again: String,
}

impl Session {
    /// Opens the connection.
    pub(super) async fn connect(
        url: &DatabaseUrl,
        application_name: &str,
        statement_limit: Duration,
    ) -> Result<Self, AgentError> {
        let (client, connection) =
            connect::open(Side::Agent, url, application_name, SessionKind::Writing, None).await?;
        let pid = client
            .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
            .await
            .map_err(|source| AgentError::from_driver("ask for the session's pid", None, source))?
            .get(0);
        Ok(Self {
            client,
            limit: StatementLimit::new(url.clone(), pid, statement_limit, connection.clone()),
            connection,
            in_transaction: false,
            opening: None,
            broken: false,
            pin_again: session_settings::pin_again(false),
        })
    }

    /// What is to be sent behind statements that fire triggers.
    pub(super) fn pin_again(&self) -> &str {
        &self.pin_again
    }

    /// Sets what a session that writes needs beyond the pinned settings. `is_replica`: its replication role is `replica`.
    pub(super) async fn configure(&mut self, is_replica: bool) -> Result<(), AgentError> {
        self.pin_again = session_settings::pin_again(is_replica);
        // A generic plan is right for statements that join an array with a table by key, and saves planning each time.
        self.client
            .batch_execute(&format!(
                "SET plan_cache_mode = force_generic_plan; SET lock_timeout = {}",
                LOCK_TIMEOUT.as_millis()
            ))
            .await
            .map_err(|source| AgentError::from_driver("set up the session for writing", None, source))?;
        // Lets the server notice during a long statement that the daemon has gone, and free the slot's lock. Not every
        // platform can (PostgreSQL 14 on macOS): there it notices after the statement.
        match self
            .client
            .batch_execute("SET client_connection_check_interval = '5s'")
            .await
        {
            Err(source) if source.as_db_error().is_none() => Err(AgentError::from_driver(
                "set client_connection_check_interval",
                None,
                source,
            )),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether a transaction is open, or will be with the next statement.
    pub(super) const fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Whether statements are still to be sent before the next one: nothing of the segment has reached the server then.
    pub(super) const fn has_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// A call begins: until [`Session::mend`], the session counts as broken.
    ///
    /// # Errors
    /// [`AgentError::Aborted`] if an earlier call has left it broken.
    pub(super) const fn begin_call(&mut self) -> Result<(), AgentError> {
        if self.broken {
            return Err(AgentError::Aborted);
        }
        self.broken = true;
        Ok(())
    }

    /// The call has succeeded, or the server has ended its transaction.
    pub(super) const fn mend(&mut self) {
        self.broken = false;
    }

    /// A statement has failed that was not part of a call, and the transaction with it.
    pub(super) const fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Whether an earlier call has left it broken.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Makes the next statement open the transaction, if none is open, and the segment's savepoint. `deferred`: deferrable
    /// constraints are checked at the segment's end.
    pub(super) const fn begin_segment(&mut self, deferred: bool) {
        if self.opening.is_some() {
            return;
        }
        self.opening = Some(if self.in_transaction {
            "RELEASE SAVEPOINT segment; SAVEPOINT segment"
        } else if deferred {
            "BEGIN; SET CONSTRAINTS ALL DEFERRED; SAVEPOINT segment"
        } else {
            "BEGIN; SAVEPOINT segment"
        });
        self.in_transaction = true;
    }

    /// What the caller has to send before the next statement; may be empty.
    pub(super) fn take_opening(&mut self) -> &'static str {
        self.opening.take().unwrap_or_default()
    }

    /// The same for a commit, which may be the transaction's only statement.
    pub(super) fn take_opening_of_commit(&mut self) -> &'static str {
        let opening = match self.opening.take() {
            Some(opening) => opening,
            None if self.in_transaction => "",
            None => "BEGIN",
        };
        self.in_transaction = true;
        opening
    }

    /// Sends what is to be sent before the next statement.
    pub(super) async fn open(&mut self) -> Result<(), AgentError> {
        match self.opening.take() {
            Some(opening) => self.command(opening).await,
            None => Ok(()),
        }
    }

    /// Runs a statement that controls the transaction: savepoints, constraints.
    pub(super) async fn command(&self, sql: &str) -> Result<(), AgentError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|source| AgentError::from_driver("steer the transaction", None, source))
    }

    /// Rolls the transaction back. If none is open, the server only warns.
    pub(super) async fn rollback(&mut self) -> Result<(), AgentError> {
        self.broken = true;
        self.opening = None;
        self.command("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// The server has committed.
    pub(super) const fn committed(&mut self) {
        self.in_transaction = false;
        self.broken = false;
    }

    /// Cuts the connection, whose answers can't be told apart any more.
    pub(super) fn cut(&self) {
        self.connection.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // During a statement, a regular end would wait for the answer, and keep the slot's lock meanwhile.
        if self.broken {
            self.connection.abort();
        }
    }
}
