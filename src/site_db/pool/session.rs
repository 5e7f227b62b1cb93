//! A connection in use: each statement has a time limit, and a connection is used again only if nothing is left running on
//! it.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::postgres::{PgDatabaseError, PgQueryResult, PgRow, PgSeverity, PgStatement, PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, Describe, Either, Execute, Executor, PgConnection, SqlStr};
use tokio::time::timeout;

use super::Sessions;
use super::store::{Connection, Place};

/// How long a statement may take. A little more than the server's own limit (`statement_timeout`), which leaves the
/// connection whole: this one is for a server that does not answer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(6);

type Future<'e, T> = std::pin::Pin<Box<dyn std::future::Future<Output = T> + Send + 'e>>;

/// See the module. Dropped, the connection goes back to its pool; in a transaction, it is rolled back first; in
/// mid-statement, or after an error of the connection, it is closed instead.
#[derive(Debug)]
pub(in crate::site_db) struct Session {
    /// `None` only while it is dropped.
    connection: Option<Connection>,
    /// `None` only while it is dropped.
    place: Option<Place>,
    /// A statement began and has not ended; or the connection broke.
    unfit: bool,
    /// 0: no transaction is open; 1: one is; beyond that, so many savepoints.
    depth: u32,
    /// A savepoint that is to be rolled back before the next statement.
    undo: Option<u32>,
}

impl Session {
    pub(super) const fn new(connection: Connection, place: Place) -> Self {
        Self {
            connection: Some(connection),
            place: Some(place),
            unfit: false,
            depth: 0,
            undo: None,
        }
    }

    /// Begins a transaction, or a savepoint in it. Returns how deep it is.
    pub(super) async fn begin(&mut self) -> Result<u32, sqlx::Error> {
        let depth = self.depth + 1;
        if depth == 1 {
            self.execute("BEGIN").await?;
        } else {
            self.execute(AssertSqlSafe(format!("SAVEPOINT twinlog_{depth}")))
                .await?;
        }
        self.depth = depth;
        Ok(depth)
    }

    /// Keeps what was done since [`begin`](Self::begin) returned `depth`.
    pub(super) async fn commit(&mut self, depth: u32) -> Result<(), sqlx::Error> {
        if depth == 1 {
            self.execute("COMMIT").await?;
        } else {
            self.execute(AssertSqlSafe(format!("RELEASE SAVEPOINT twinlog_{depth}")))
                .await?;
        }
        self.depth = depth.saturating_sub(1);
        Ok(())
    }

    /// Undoes what was done since [`begin`](Self::begin) returned `depth`.
    pub(super) async fn rollback(&mut self, depth: u32) -> Result<(), sqlx::Error> {
        if depth == 1 {
            self.undo = None;
            self.execute("ROLLBACK").await?;
        } else {
            self.execute(AssertSqlSafe(format!("ROLLBACK TO SAVEPOINT twinlog_{depth}")))
                .await?;
        }
        self.depth = depth.saturating_sub(1);
        Ok(())
    }

    /// The same for a savepoint, before the next statement.
    pub(super) fn rollback_later(&mut self, depth: u32) {
        self.undo = Some(self.undo.map_or(depth, |undo| undo.min(depth)));
        self.depth = depth.saturating_sub(1);
    }

    /// The connection, for one statement. Until [`ended`](Self::ended) says otherwise, it is not fit for another use.
    async fn start(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let broken = || sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        if self.unfit {
            return Err(broken());
        }
        self.unfit = true;
        let connection = &mut self.connection.as_mut().ok_or_else(broken)?.driver;
        if let Some(depth) = self.undo.take() {
            connection
                .execute(AssertSqlSafe(format!("ROLLBACK TO SAVEPOINT twinlog_{depth}")))
                .await
                .map_err(|_| broken())?;
        }
        Ok(connection)
    }

    /// A statement has ended, or its time is over.
    fn ended<T>(
        &mut self,
        result: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let result = result.unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
        self.unfit = result.as_ref().is_err_and(breaks);
        result
    }
}

/// Whether nothing can run on the connection after this error.
fn breaks(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error
            .try_downcast_ref::<PgDatabaseError>()
            .is_none_or(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)),
        // Found before anything was sent.
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => false,
        _ => true,
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(connection), Some(place)) = (self.connection.take(), self.place.take()) else {
            return;
        };
        if self.unfit {
            place.store.dropped();
        } else if self.depth == 0 {
            place.store.put(connection);
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let mut session = Self::new(connection, place);
            runtime.spawn(async move {
                // Without success it is unfit, and is closed.
                let _ = session.execute("ROLLBACK").await;
            });
        }
    }
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    /// Reads all rows before the first one is given out: so the time limit is for the whole statement.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let all = async move {
            let run = async { self.start().await?.fetch_many(query).try_collect::<Vec<_>>().await };
            let result = timeout(STATEMENT_TIMEOUT, run).await;
            match self.ended(result) {
                Ok(steps) => steps.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(all).flat_map(stream::iter).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> Future<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let result = timeout(STATEMENT_TIMEOUT, async {
                self.start().await?.fetch_optional(query).await
            })
            .await;
            self.ended(result)
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> Future<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let run = async { self.start().await?.prepare_with(sql, parameters).await };
            let result = timeout(STATEMENT_TIMEOUT, run).await;
            self.ended(result)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> Future<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let result = timeout(STATEMENT_TIMEOUT, async { self.start().await?.describe(sql).await }).await;
            self.ended(result)
        })
    }
}

impl<'c> Executor<'c> for &'c Sessions {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sessions = self.clone();
        let all = async move {
            let steps: Vec<_> = match sessions.acquire().await {
                Ok(mut session) => session.fetch_many(query).collect().await,
                Err(error) => vec![Err(error)],
            };
            steps
        };
        stream::once(all).flat_map(stream::iter).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> Future<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sessions = self.clone();
        Box::pin(async move { sessions.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> Future<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let sessions = self.clone();
        Box::pin(async move { sessions.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> Future<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        let sessions = self.clone();
        Box::pin(async move { sessions.acquire().await?.describe(sql).await })
    }
}
