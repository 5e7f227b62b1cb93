//! What people ask about the daemon's bookkeeping: its last word, the parked rows, and to try these again.

use std::time::Duration;

use super::control::{Control, DaemonReport};
use super::error::AgentError;
use crate::change::TableName;

/// The daemon's last word, and how old it is.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDaemon {
    /// What it said.
    pub report: DaemonReport,
    /// How long ago, by the Agent DB's clock.
    pub age: Duration,
}

/// Which parked rows are meant: all of those that match.
#[derive(Debug, Clone, Default)]
pub struct FailedFilter {
    /// Only this table's.
    pub table: Option<TableName>,
    /// Only this key's, as it is stored (a JSON array of texts).
    pub key: Option<String>,
}

/// A parked row, as it is shown.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FailedRow {
    /// Its number.
    pub id: i64,
    /// Its table.
    pub table: TableName,
    /// Its key, as a JSON array of texts.
    pub key: String,
    /// The folded operation.
    pub operation: String,
    /// The SQLSTATE of the refusal, or `TW…`.
    pub reason: String,
    /// The constraint that refused it.
    pub constraint: Option<String>,
    /// What the Agent DB said.
    pub message: String,
    /// Changes folded into it.
    pub changes: i64,
    /// Attempts to heal it.
    pub attempts: i32,
    /// Since when, RFC 3339.
    pub parked_at: String,
    /// When it is tried again, RFC 3339.
    pub next_attempt_at: String,
}

/// A parked row that was asked to be tried again: its number and the attempts that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    id: i64,
    attempts: i32,
}

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> AgentError {
    move |source| AgentError::from_driver(action, None, source)
}

const MATCHES: &str = "slot = $1 AND ($2::text IS NULL OR (schema_name = $2 AND table_name = $3)) \
                       AND ($4::text IS NULL OR key = $4)";

impl Control {
    /// The daemon's last word; `None` where none ever ran.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn daemon(&self) -> Result<Option<StoredDaemon>, AgentError> {
        let row = self
            .client
            .query_opt(
                "SELECT instance, hostname, pid, version, started_at, state, detail, report,
                     extract(epoch FROM clock_timestamp() - reported_at)::float8
                 FROM twinlog.daemon WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the daemon's state"))?;
        Ok(row.map(|row| StoredDaemon {
            report: DaemonReport {
                instance: row.get(0),
                hostname: row.get(1),
                pid: row.get(2),
                version: row.get(3),
                started_at: row.get(4),
                state: row.get(5),
                detail: row.get(6),
                report: row.get(7),
            },
            age: Duration::try_from_secs_f64(row.get::<_, f64>(8).max(0.0)).unwrap_or(Duration::MAX),
        }))
    }

    /// Parked rows, the oldest first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn failed_rows(&self, filter: &FailedFilter, limit: u32) -> Result<Vec<FailedRow>, AgentError> {
        let (schema, name) = parts(filter);
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT id, schema_name, table_name, key, operation, reason, constraint_name, message, changes,
                         attempts, to_json(parked_at) #>> '{{}}', to_json(next_attempt_at) #>> '{{}}'
                     FROM twinlog.failed_rows WHERE {MATCHES} ORDER BY id LIMIT $5"
                ),
                &[&self.slot, &schema, &name, &filter.key, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows"))?;
        Ok(rows
            .iter()
            .map(|row| FailedRow {
                id: row.get(0),
                table: TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)),
                key: row.get(3),
                operation: row.get(4),
                reason: row.get(5),
                constraint: row.get(6),
                message: row.get(7),
                changes: row.get(8),
                attempts: row.get(9),
                parked_at: row.get(10),
                next_attempt_at: row.get(11),
            })
            .collect())
    }

    /// Makes parked rows due now and wakes the daemon.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn retry_failed(&self, filter: &FailedFilter) -> Result<Vec<Asked>, AgentError> {
        let (schema, name) = parts(filter);
        let rows = self
            .client
            .query(
                &format!(
                    "UPDATE twinlog.failed_rows SET next_attempt_at = now() WHERE {MATCHES} RETURNING id, attempts"
                ),
                &[&self.slot, &schema, &name, &filter.key],
            )
            .await
            .map_err(failed("make the failed rows due"))?;
        self.client
            .batch_execute("NOTIFY twinlog")
            .await
            .map_err(failed("wake the daemon"))?;
        Ok(rows
            .iter()
            .map(|row| Asked {
                id: row.get(0),
                attempts: row.get(1),
            })
            .collect())
    }

    /// What became of rows that were asked for: how many are healed, and how many were refused again.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn retried(&self, asked: &[Asked]) -> Result<(u64, u64), AgentError> {
        let ids: Vec<i64> = asked.iter().map(|asked| asked.id).collect();
        let attempts: Vec<i32> = asked.iter().map(|asked| asked.attempts).collect();
        let row = self
            .client
            .query_one(
                "SELECT count(*) FILTER (WHERE f.id IS NULL), count(*) FILTER (WHERE f.attempts > asked.attempts)
                 FROM unnest($1::int8[], $2::int4[]) AS asked(id, attempts)
                 LEFT JOIN twinlog.failed_rows f ON f.id = asked.id",
                &[&ids, &attempts],
            )
            .await
            .map_err(failed("read what became of the failed rows"))?;
        let count = |index| u64::try_from(row.get::<_, i64>(index)).unwrap_or_default();
        Ok((count(0), count(1)))
    }
}

fn parts(filter: &FailedFilter) -> (Option<&str>, Option<&str>) {
    let table = filter.table.as_ref();
    (table.map(|table| &*table.schema), table.map(|table| &*table.name))
}
