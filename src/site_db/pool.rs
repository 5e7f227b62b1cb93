//! Connections to the Site DB: the pool, and a transaction that other rooms can hold without knowing the driver.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Acquire, AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, SqlSafeStr};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::SiteError;
use crate::config::{DatabaseUrl, Site};
use crate::postgres::session_settings::pin_values;
use crate::postgres::{SessionError, Side, refuse_pooler, sqlx_options};

/// Connections to the Site DB, shared by everything in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(pub(super) PgPool, SharedSessions, Arc<Process>);

/// This process, as the Site DB knows it.
#[derive(Debug)]
struct Process {
    /// Set in each session; events of this process bear it.
    id: Uuid,
    /// Told after each commit that may have written events.
    committed: Notify,
}

/// Cancelled once a pooler was found that shares the server's sessions between clients.
type SharedSessions = CancellationToken;

/// A transaction, or a savepoint inside one. Dropped before [`commit`](Self::commit), it is rolled back.
///
/// READ COMMITTED, as [`locks`](super::locks) needs it: each statement sees what was committed before it.
#[derive(Debug)]
pub struct Transaction<'a>(sqlx::Transaction<'a, Postgres>, Option<Arc<Process>>);

/// How long a request waits for a connection: Meta's clients give up after 5 s at the earliest, and must hear from us
/// before that.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that was used within this time is not tested before its next use. If it broke since, the statement fails
/// as it would if the connection broke a moment later.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How long the first statement of a transaction may take, with the wait for a connection: it tests a connection that was
/// not tested. Nothing is written before it, so the caller knows that nothing is stored.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(4);

/// Settings of each connection beside those that every session pins, which override the defaults of the role and the
/// database:
/// - a statement may take 10 s: after that its caller has given up;
/// - an idle transaction is ended, because a stalled process would hold row locks that every other server waits for;
/// - a commit waits for the disk: with `off`, a crash of the Site DB could undo a `sending` after the message was sent;
/// - rows are found by indexes: a plan that was made while a table was small, and reads it all, would be kept while it grows;
/// - no plan is compiled: where there is no index to use, that setting makes the plan look so expensive that Postgres would compile
///   it, which takes longer than the statement (seconds on a busy machine);
/// - no notices, because the driver logs them and a trigger of the CRM may put a row's values into one.
const SESSION: &str = "SELECT set_config('statement_timeout', '10s', false), \
     set_config('client_min_messages', 'error', false), \
     set_config('enable_seqscan', 'off', false), \
     set_config('jit', 'off', false), \
     set_config('idle_in_transaction_session_timeout', '30s', false), \
     set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
     ELSE current_setting('synchronous_commit') END, false)";

/// How long a new connection waits to be told whether a pooler is in the way. The question goes on afterwards, and a late
/// answer closes the pool as well.
const POOLER_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks whether a pooler shares the server's sessions between clients, and cancels `shared` if one does.
async fn look_for_pooler(url: Arc<DatabaseUrl>, shared: SharedSessions) {
    let asked = tokio::spawn(async move {
        if let Err(SessionError::Pooled { .. }) = refuse_pooler(Side::Site, &url).await {
            shared.cancel();
        }
    });
    // Where it can't be asked (no connection is left for it), this connection works all the same.
    let _ = tokio::time::timeout(POOLER_TIMEOUT, asked).await;
}

impl Pool {
    /// A pool that connects at its first use, so that the server starts even if the Site DB is down. `prepared` are statements
    /// that are prepared on each new connection.
    pub(super) fn connect_with(site: &Site, prepared: fn() -> [&'static str; 3]) -> Self {
        let url = Arc::new(site.url.clone());
        let shared = SharedSessions::new();
        let found = shared.clone();
        let process = Arc::new(Process {
            id: Uuid::new_v4(),
            committed: Notify::new(),
        });
        let process_id = process.id;
        let pool = PgPoolOptions::new()
            .max_connections(site.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Idle connections are closed before a firewall drops them silently.
            .idle_timeout(Duration::from_secs(120))
            .max_lifetime(Duration::from_secs(1800))
            // The test is a round trip, which every request would pay: see `before_acquire`.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_FOR {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |connection, _| {
                let (url, found) = (Arc::clone(&url), found.clone());
                Box::pin(async move {
                    // Before anything of the session is changed.
                    look_for_pooler(url, found.clone()).await;
                    if found.is_cancelled() {
                        return Err(sqlx::Error::PoolClosed);
                    }
                    connection.execute(AssertSqlSafe(pin_values())).await?;
                    let session = format!("{SESSION}, set_config('twinlog.process', '{process_id}', false)");
                    connection.execute(AssertSqlSafe(session)).await?;
                    for statement in prepared() {
                        // Fails while the schema is not migrated: then the statement's own use says so.
                        let _ = connection.prepare(statement.into_sql_str()).await;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(sqlx_options(&site.url, "twinlog serve"));
        Self(pool, shared, process)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// No connection could be opened or became free in time, or the Site DB is silent.
    pub async fn begin(&self) -> Result<Transaction<'static>, SiteError> {
        let began = tokio::time::timeout(BEGIN_TIMEOUT, self.0.begin()).await;
        let began = began.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        Ok(Transaction(began, Some(Arc::clone(&self.2))))
    }

    /// The id of this process in the Site DB's sessions.
    #[must_use]
    pub fn process(&self) -> Uuid {
        self.2.id
    }

    /// A statement that is a transaction of its own may have written events. [`Transaction::commit`] says so itself.
    pub(super) fn committed(&self) {
        self.2.committed.notify_one();
    }

    /// Waits until this process has committed something since the last call. For one waiter.
    pub async fn next_commit(&self) {
        self.2.committed.notified().await;
    }

    /// Waits until a pooler is found that shares the server's sessions, and closes the pool for good: nothing may run on
    /// them.
    pub(super) async fn closed_for_shared_sessions(&self) {
        self.1.cancelled().await;
        // It is closed at once; who waits for the result waits for the connections that are still being opened.
        drop(self.0.close());
    }

    /// Refuses new work, and returns when all connections are closed.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

impl Transaction<'_> {
    /// Commits; of a savepoint: keeps what was done since.
    ///
    /// # Errors
    /// The Site DB refused, or did not answer: then it is not known whether it is committed.
    pub async fn commit(self) -> Result<(), SiteError> {
        self.0.commit().await?;
        if let Some(process) = self.1 {
            process.committed.notify_one();
        }
        Ok(())
    }

    /// Rolls back; of a savepoint: only what was done since.
    ///
    /// # Errors
    /// The connection broke, which rolls everything back as well.
    pub async fn rollback(self) -> Result<(), SiteError> {
        Ok(self.0.rollback().await?)
    }

    /// A savepoint: what is done on it can be rolled back alone.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn savepoint(&mut self) -> Result<Transaction<'_>, SiteError> {
        Ok(Transaction(self.0.begin().await?, None))
    }

    /// The driver's connection, to run statements on.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
