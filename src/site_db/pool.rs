//! Connections to the Site DB: the pool, and a transaction that other rooms can hold without knowing the driver.

use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Acquire, Executor, PgConnection, PgPool, Postgres};

use super::SiteError;
use crate::config::Site;
use crate::postgres::sqlx_options;

/// Connections to the Site DB, shared by everything in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(pub(super) PgPool);

/// A transaction, or a savepoint inside one. Dropped before [`commit`](Self::commit), it is rolled back.
///
/// READ COMMITTED, as [`locks`](super::locks) needs it: each statement sees what was committed before it.
#[derive(Debug)]
pub struct Transaction<'a>(sqlx::Transaction<'a, Postgres>);

/// How long a request waits for a connection: Meta's clients give up after 5 s at the earliest, and must hear from us
/// before that.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// What each connection is set to, whatever the role's or the database's defaults are:
/// - a statement that runs longer than 10 s is lost anyway, its caller has given up;
/// - a transaction that a stalled process leaves open would hold row locks that every other server waits for;
/// - a commit counts when it is on disk: with `off` a crash of the Site DB could take back a `sending` that was acted on;
/// - the driver logs notices, and a trigger of the CRM's own may put a row's values into one.
const SESSION: &str = "SELECT set_config('statement_timeout', '10s', false), \
     set_config('client_min_messages', 'error', false), \
     set_config('idle_in_transaction_session_timeout', '30s', false), \
     set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
     ELSE current_setting('synchronous_commit') END, false)";

impl Pool {
    /// A pool that connects when it is first used, so that a Site DB that is down does not stop the server from starting.
    #[must_use]
    pub fn connect(site: &Site) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(site.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Idle ones go before a firewall forgets them silently.
            .idle_timeout(Duration::from_secs(120))
            .max_lifetime(Duration::from_secs(1800))
            .test_before_acquire(true)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(SESSION).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(sqlx_options(&site.url, "twinlog serve"));
        Self(pool)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// No connection is to be had.
    pub async fn begin(&self) -> Result<Transaction<'static>, SiteError> {
        Ok(Transaction(self.0.begin().await?))
    }

    /// Takes no more work, and ends when all connections are closed.
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
        Ok(self.0.commit().await?)
    }

    /// Takes everything back; of a savepoint: what was done since.
    ///
    /// # Errors
    /// The connection broke, which takes everything back as well.
    pub async fn rollback(self) -> Result<(), SiteError> {
        Ok(self.0.rollback().await?)
    }

    /// A savepoint: what is done on it can be taken back alone.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn savepoint(&mut self) -> Result<Transaction<'_>, SiteError> {
        Ok(Transaction(self.0.begin().await?))
    }

    /// What the driver's statements run on.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}
