//! Opens a connection and pins its settings.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::store::Connection;
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::pin_values;
use crate::postgres::{SqlxAccess, finds_pooler, sqlx_access};

/// How long opening may take, with TLS, login and the settings: a dozen round trips.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of each connection beside those that every session pins, which override the defaults of the role and the
/// database:
/// - a statement may take 5 s, a little less than its caller waits: so it ends with an error and not with the connection;
/// - an idle transaction is ended, because a stalled process would hold row locks that every other server waits for; for the
///   same reason the server notices within about 30 s that this process, or the way to it, is dead;
/// - a commit waits for the disk: with `off`, a crash of the Site DB could undo a `sending` after the message was sent;
/// - rows are found by indexes: a plan that was made while a table was small, and reads it all, would be kept while it grows;
/// - no plan is compiled: where there is no index to use, that setting makes the plan look so expensive that Postgres would compile
///   it, which takes longer than the statement (seconds on a busy machine);
/// - no notices, because the driver logs them and a trigger of the CRM may put a row's values into one.
const SESSION: &str = "SELECT set_config('statement_timeout', '5s', false), \
     set_config('client_min_messages', 'error', false), \
     set_config('enable_seqscan', 'off', false), \
     set_config('jit', 'off', false), \
     set_config('idle_in_transaction_session_timeout', '10s', false), \
     set_config('tcp_keepalives_idle', '10', false), \
     set_config('tcp_keepalives_interval', '5', false), \
     set_config('tcp_keepalives_count', '4', false), \
     set_config('tcp_user_timeout', '30s', false), \
     set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
     ELSE current_setting('synchronous_commit') END, false)";

/// How long a new connection waits to be told whether a pooler is in the way. The question goes on afterwards, and a late
/// answer closes the pool as well.
const POOLER_TIMEOUT: Duration = Duration::from_secs(1);

/// How connections are opened.
#[derive(Debug)]
pub(super) struct Opening {
    url: Arc<DatabaseUrl>,
    access: Arc<SqlxAccess>,
    /// Statements that are prepared on each new connection.
    prepared: fn() -> [&'static str; 3],
    /// The process's id in the Site DB's sessions.
    process: Uuid,
    /// Cancelled once a pooler was found that shares the server's sessions between clients.
    shared_sessions: CancellationToken,
}

impl Opening {
    pub(super) fn new(
        url: &DatabaseUrl,
        prepared: fn() -> [&'static str; 3],
        process: Uuid,
        shared_sessions: CancellationToken,
    ) -> Self {
        Self {
            // The driver would write a line for each slow statement: the health report says what is slow.
            access: Arc::new(sqlx_access(url, "twinlog serve").without_statement_logging()),
            url: Arc::new(url.clone()),
            prepared,
            process,
            shared_sessions,
        }
    }

    /// How connections are made.
    pub(super) fn options(&self) -> &PgConnectOptions {
        self.access.options()
    }

    /// The error of a connection that was made with these [`options`](Self::options).
    pub(super) fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        self.access.explained(error)
    }

    /// # Errors
    /// It could not be opened within [`OPEN_TIMEOUT`].
    pub(super) async fn open(&self) -> Result<Connection, sqlx::Error> {
        timeout(OPEN_TIMEOUT, self.connect())
            .await
            .unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
    }

    async fn connect(&self) -> Result<Connection, sqlx::Error> {
        let mut driver = self.access.connect().await?;
        // Before anything of the session is changed.
        self.look_for_pooler().await;
        if self.shared_sessions.is_cancelled() {
            return Err(sqlx::Error::PoolClosed);
        }
        driver.execute(AssertSqlSafe(pin_values())).await?;
        let session = format!("{SESSION}, set_config('twinlog.process', '{}', false)", self.process);
        driver.execute(AssertSqlSafe(session)).await?;
        for statement in (self.prepared)() {
            // Fails while the schema is not migrated: then the statement's own use says so.
            let _ = driver.prepare(statement.into_sql_str()).await;
        }
        Ok(Connection::new(driver))
    }

    /// Asks whether a pooler shares the server's sessions between clients, and says so if one does.
    async fn look_for_pooler(&self) {
        let (access, url, shared) = (
            Arc::clone(&self.access),
            Arc::clone(&self.url),
            self.shared_sessions.clone(),
        );
        let asked = tokio::spawn(async move {
            if finds_pooler(&access, &url).await == Some(true) {
                shared.cancel();
            }
        });
        // Where it can't be asked (no connection is left for it), this connection works all the same.
        let _ = timeout(POOLER_TIMEOUT, asked).await;
    }
}

/// Whether the same may succeed in a moment: the server is restarting, or has no connection left.
pub(super) fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| ["57P03", "57P01", "57P02", "53300"].contains(&error.code())),
        _ => false,
    }
}
