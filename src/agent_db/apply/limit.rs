//! Ends a statement of the session that writes, if it takes too long: a trigger that sleeps, or waits for another server,
//! would stop all tables.
//!
//! The daemon measures by itself, and has another session cancel the statement. A `statement_timeout` of the session would be
//! simpler, and wrong: it also ends the wait of a COMMIT for its synchronous standby, after which the commit counts without
//! being safe. So only what is passed to [`StatementLimit::within`] is ever cancelled. The cancel has arrived before the next
//! statement is sent, so it can't hit another one.
//!
//! To find the row that takes too long, its statement is tried again with fewer rows, several times. All tables wait meanwhile, so
//! once a statement of a segment was cancelled, those of it that write several rows have less time. A row alone always has the
//! whole limit: no table is held for a row that would have ended in time.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tokio_postgres::Client;

use crate::agent_db::error::AgentError;
use crate::change::TableName;
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::SessionKind;
use crate::postgres::{Side, connect, quote_literal};

/// What the slowest server writes in a second: large rows have more time.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// What the slowest server reads in a second, for statements that read a whole table.
const BYTES_READ_PER_SECOND: u64 = 20 << 20;

/// Wait before the other session is opened once more, or the statement is cancelled once more: a function may have caught it.
const AGAIN: Duration = Duration::from_secs(2);

/// The part of the limit that a statement with several rows has once another one of its segment was cancelled: they are
/// tried with a sixteenth of the rows.
const OF_SEVERAL_ROWS: u32 = 8;

/// No statement has less time than this because others were cancelled.
const SHORTEST: Duration = Duration::from_millis(250);

/// How long the other session's query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// What a statement, or several in one round trip, have to do: each of these takes time without being a fault.
pub(super) struct Work<'w> {
    /// Bytes of the rows to write; only asked for if the limit is reached.
    pub bytes: &'w (dyn Fn() -> usize + Sync),
    /// Rows to write.
    pub rows: usize,
    /// Tables that are read as a whole.
    pub scanned: Vec<&'w TableName>,
}

impl Work<'_> {
    /// Work that neither writes large values nor reads whole tables.
    pub(super) const NONE: Work<'static> = Work {
        bytes: &|| 0,
        rows: 0,
        scanned: Vec::new(),
    };
}

/// A statement was cancelled because it took too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cancelled {
    /// How long it had taken.
    pub after: Duration,
    /// What it waited for, as in `pg_stat_activity`; `None`: it was working.
    pub waited_for: Option<String>,
}

impl Cancelled {
    /// As the error of the statement.
    pub(super) fn of(&self, action: &'static str, table: Option<TableName>, rows: usize) -> AgentError {
        AgentError::TooSlow {
            action,
            table,
            rows,
            seconds: self.after.as_secs(),
            waited_for: self.waited_for.clone(),
        }
    }
}

/// The limit for the statements of one session.
#[derive(Debug)]
pub(super) struct StatementLimit {
    url: DatabaseUrl,
    /// Of the session's server process.
    pid: i32,
    limit: Duration,
    /// Whether a statement of the present segment was cancelled.
    has_cancelled: AtomicBool,
    /// Cuts the session.
    connection: AbortHandle,
}

impl StatementLimit {
    pub(super) fn new(url: DatabaseUrl, pid: i32, limit: Duration, connection: AbortHandle) -> Self {
        Self {
            url,
            pid,
            limit,
            has_cancelled: AtomicBool::new(false),
            connection,
        }
    }

    /// The statements of the next segment have the whole limit.
    pub(super) fn begin_segment(&self) {
        self.has_cancelled.store(false, Ordering::Relaxed);
    }

    /// How long a statement of the present segment may take.
    pub(super) fn allowed(&self, rows: usize) -> Duration {
        if rows > 1 && self.has_cancelled.load(Ordering::Relaxed) {
            (self.limit / OF_SEVERAL_ROWS).max(SHORTEST).min(self.limit)
        } else {
            self.limit
        }
    }

    /// `sync.statement_limit_ms`.
    pub(super) const fn limit(&self) -> Duration {
        self.limit
    }

    /// Waits for the session's answers. If they take longer than the limit, the running statement is cancelled: then the
    /// answers are errors, unless the statement has ended by itself meanwhile.
    pub(super) async fn within<T>(&self, work: &Work<'_>, answers: impl Future<Output = T>) -> (T, Option<Cancelled>) {
        let (began, allowed) = (Instant::now(), self.allowed(work.rows));
        let mut answers = pin!(answers);
        if let Ok(answers) = tokio::time::timeout(allowed, &mut answers).await {
            return (answers, None);
        }
        let more = Duration::from_secs((work.bytes)() as u64 / BYTES_PER_SECOND);
        if let Ok(answers) = tokio::time::timeout(more, &mut answers).await {
            return (answers, None);
        }
        // Without an answer there is nothing to cancel by: then it is waited for as if there were no limit.
        let client = tokio::select! {
            biased;
            answers = &mut answers => return (answers, None),
            client = self.another_session() => client,
        };
        if !work.scanned.is_empty() {
            let more = scan_time(&client, &work.scanned).await;
            let left = (allowed + more).saturating_sub(began.elapsed());
            if let Ok(answers) = tokio::time::timeout(left, &mut answers).await {
                return (answers, None);
            }
        }
        let mut cancelled = None;
        loop {
            match self.cancel(&client, began).await {
                Ok(Some(now)) => {
                    self.has_cancelled.store(true, Ordering::Relaxed);
                    cancelled = Some(now);
                }
                Ok(None) => {}
                // Whether and when it is cancelled is not known.
                Err(NotKnown) => self.connection.abort(),
            }
            if let Ok(answers) = tokio::time::timeout(AGAIN, &mut answers).await {
                return (answers, cancelled);
            }
        }
    }

    async fn another_session(&self) -> Client {
        loop {
            let opened = connect::open(Side::Agent, &self.url, "twinlog check", SessionKind::Reading, None).await;
            match opened {
                Ok((client, _)) => return client,
                Err(error) => {
                    tracing::debug!(%error, "a statement takes long, and no session could be opened to cancel it");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Cancels the statement that the session runs now; `None` if it runs none.
    async fn cancel(&self, client: &Client, began: Instant) -> Result<Option<Cancelled>, NotKnown> {
        let rows = tokio::time::timeout(QUERY_TIMEOUT, client.query(CANCEL, &[&self.pid]))
            .await
            .map_err(|_| NotKnown)?
            .map_err(|_| NotKnown)?;
        Ok(rows.first().map(|row| Cancelled {
            after: began.elapsed(),
            waited_for: row.get("waited_for"),
        }))
    }
}

/// It is not known whether a statement was cancelled.
struct NotKnown;

const CANCEL: &str = "
SELECT a.wait_event_type || ': ' || a.wait_event AS waited_for, pg_catalog.pg_cancel_backend(a.pid)
FROM pg_catalog.pg_stat_activity a WHERE a.pid = $1 AND a.state = 'active'";

/// How long reading these tables may take. Of what can't be asked, nothing.
async fn scan_time(client: &Client, tables: &[&TableName]) -> Duration {
    let names: Vec<String> = tables.iter().map(|table| quote_literal(&table.regclass())).collect();
    let sizes = format!(
        "WITH RECURSIVE t (oid) AS (SELECT unnest(ARRAY[{}]::pg_catalog.regclass[])::pg_catalog.oid \
         UNION SELECT i.inhrelid FROM t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid) \
         SELECT coalesce(sum(pg_catalog.pg_table_size(t.oid::pg_catalog.regclass)), 0)::bigint FROM t",
        names.join(", ")
    );
    // The size of a table that is locked is waited for: the session has to cancel a statement soon.
    let asked = async {
        client.batch_execute("SET lock_timeout = 1000").await?;
        client.query_one(&sizes, &[]).await
    };
    let bytes = match tokio::time::timeout(QUERY_TIMEOUT, asked).await {
        Ok(Ok(row)) => row.get::<_, i64>(0).unsigned_abs(),
        Ok(Err(_)) | Err(_) => 0,
    };
    Duration::from_secs(bytes / BYTES_READ_PER_SECOND)
}
