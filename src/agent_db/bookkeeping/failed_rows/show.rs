//! What `twinlog failed` does: shows which rows are parked and why, and asks the daemon to try them again now.

use tokio_postgres::Row;

use super::fingerprint::Fingerprint;
use crate::agent_db::bookkeeping::control::{Control, failed};
use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// Which parked rows are meant: all of those that match.
#[derive(Debug, Clone, Default)]
pub struct FailedFilter {
    /// Only this table's.
    pub table: Option<TableName>,
    /// Only this key's (a JSON array of texts).
    pub key: Option<String>,
    /// Only the entry with this id.
    pub id: Option<i64>,
}

impl FailedFilter {
    /// Whether single rows are named, so that it is known what becomes of them.
    pub(super) const fn names_rows(&self) -> bool {
        self.key.is_some() || self.id.is_some()
    }

    /// Schema and name of the table.
    pub(super) fn table_parts(&self) -> (Option<&str>, Option<&str>) {
        let table = self.table.as_ref();
        (table.map(|table| &*table.schema), table.map(|table| &*table.name))
    }

    /// The key as entries have it.
    pub(super) fn stored_key(&self, encoding: Encoding) -> Option<String> {
        self.key.clone().map(|key| encoding.json(key))
    }
}

/// A parked row, as it is shown.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FailedRow {
    /// The entry's id in `twinlog.failed_rows`.
    pub id: i64,
    /// Its table.
    pub table: TableName,
    /// Its key, as a JSON array of texts.
    pub key: String,
    /// The folded operation.
    pub operation: String,
    /// The SQLSTATE of the refusal, or `TW…`.
    pub reason: String,
    /// The constraint that refused it, if it was one.
    pub constraint: Option<String>,
    /// What it has in common with other parked rows: SQLSTATE, constraint (`-` for none) and table.
    pub fingerprint: String,
    /// The Agent DB's error message.
    pub message: String,
    /// Changes folded into it.
    pub changes: i64,
    /// Attempts to heal it.
    pub attempts: i32,
    /// When it was parked, RFC 3339.
    pub parked_at: String,
    /// When it is tried again, RFC 3339; `None`: not by itself, since it is discarded.
    pub next_attempt_at: Option<String>,
    /// When a person gave it up, RFC 3339: the row still differs.
    pub discarded_at: Option<String>,
}

/// The columns of [`FailedRow`].
const COLUMNS: &str =
    "id, schema_name, table_name, key, operation, reason, constraint_name, message, changes, attempts,
    to_json(parked_at) #>> '{}' AS parked_at,
    CASE WHEN discarded_at IS NULL THEN to_json(next_attempt_at) #>> '{}' END AS next_attempt_at,
    to_json(discarded_at) #>> '{}' AS discarded_at";

impl FailedRow {
    fn from_row(row: &Row) -> Self {
        let table = TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name"));
        Self {
            id: row.get("id"),
            fingerprint: Fingerprint::new(&table, row.get("reason"), row.get("constraint_name")).to_string(),
            table,
            key: row.get("key"),
            operation: row.get("operation"),
            reason: row.get("reason"),
            constraint: row.get("constraint_name"),
            message: row.get("message"),
            changes: row.get("changes"),
            attempts: row.get("attempts"),
            parked_at: row.get("parked_at"),
            next_attempt_at: row.get("next_attempt_at"),
            discarded_at: row.get("discarded_at"),
        }
    }
}

/// A parked row with all that its entry knows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FailedRowDetail {
    /// What a list shows of it.
    #[serde(flatten)]
    pub row: FailedRow,
    /// The folded image: columns to texts. Row values: not for logs.
    pub image: serde_json::Value,
    /// Where the first folded change stands in the Site DB's log.
    pub first_lsn: Option<String>,
    /// Where the last one stands.
    pub last_lsn: Option<String>,
    /// When it was tried last, RFC 3339.
    pub last_attempt_at: Option<String>,
}

/// A parked row that is to be tried again now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestedRetry {
    id: i64,
    /// The attempts that it had before.
    attempts: i32,
}

/// How many of the rows to be tried again were healed or refused so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOutcome {
    /// Rows that were applied, and are not parked any more.
    pub healed: u64,
    /// Rows that were refused once more.
    pub refused: u64,
}

/// Parameters: slot, schema, name, key, id.
pub(super) const MATCHES: &str = "slot = $1 AND ($2::text IS NULL OR (schema_name = $2 AND table_name = $3)) \
                                  AND ($4::text IS NULL OR key = $4) AND ($5::bigint IS NULL OR id = $5)";

impl Control {
    /// How many rows are parked, by table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn failed_counts(&self) -> Result<Vec<(TableName, u64)>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, count(*) AS failed_rows FROM twinlog.failed_rows WHERE slot = $1
                 GROUP BY schema_name, table_name ORDER BY schema_name, table_name",
                &[&self.slot],
            )
            .await
            .map_err(failed("count the failed rows"))?;
        Ok(rows
            .iter()
            .map(|row| {
                (
                    TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
                    u64::try_from(row.get::<_, i64>("failed_rows")).unwrap_or_default(),
                )
            })
            .collect())
    }

    /// How many parked rows are discarded, over all tables.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn discarded_count(&self) -> Result<u64, AgentError> {
        let row = self
            .client
            .query_one(
                "SELECT count(*) AS discarded FROM twinlog.failed_rows WHERE slot = $1 AND discarded_at IS NOT NULL",
                &[&self.slot],
            )
            .await
            .map_err(failed("count the discarded rows"))?;
        Ok(u64::try_from(row.get::<_, i64>("discarded")).unwrap_or_default())
    }

    /// Parked rows, the oldest first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn failed_rows(&self, filter: &FailedFilter, limit: u32) -> Result<Vec<FailedRow>, AgentError> {
        let (schema, name) = filter.table_parts();
        let key = filter.stored_key(self.encoding);
        let rows = self
            .client
            .query(
                &format!("SELECT {COLUMNS} FROM twinlog.failed_rows WHERE {MATCHES} ORDER BY id LIMIT $6"),
                &[&self.slot, &schema, &name, &key, &filter.id, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows"))?;
        Ok(rows.iter().map(FailedRow::from_row).collect())
    }

    /// Parked rows with their images, the oldest first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn failed_row_details(
        &self,
        filter: &FailedFilter,
        limit: u32,
    ) -> Result<Vec<FailedRowDetail>, AgentError> {
        let (schema, name) = filter.table_parts();
        let key = filter.stored_key(self.encoding);
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT {COLUMNS}, image, first_lsn::text AS first_lsn, last_lsn::text AS last_lsn,
                         to_json(last_attempt_at) #>> '{{}}' AS last_attempt_at
                     FROM twinlog.failed_rows WHERE {MATCHES} ORDER BY id LIMIT $6"
                ),
                &[&self.slot, &schema, &name, &key, &filter.id, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows"))?;
        Ok(rows
            .iter()
            .map(|row| FailedRowDetail {
                row: FailedRow::from_row(row),
                image: row.get("image"),
                first_lsn: row.get("first_lsn"),
                last_lsn: row.get("last_lsn"),
                last_attempt_at: row.get("last_attempt_at"),
            })
            .collect())
    }

    /// Makes parked rows due now and wakes the daemon. Rows that are discarded are meant only where rows are named: then the
    /// decision is taken back.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn retry_failed(&self, filter: &FailedFilter) -> Result<Vec<RequestedRetry>, AgentError> {
        let (schema, name) = filter.table_parts();
        let key = filter.stored_key(self.encoding);
        let rows = self
            .client
            .query(
                &format!(
                    "UPDATE twinlog.failed_rows SET next_attempt_at = now(), discarded_at = NULL
                     WHERE {MATCHES} AND (discarded_at IS NULL OR $6) RETURNING id, attempts"
                ),
                &[&self.slot, &schema, &name, &key, &filter.id, &filter.names_rows()],
            )
            .await
            .map_err(failed("make the failed rows due"))?;
        self.client
            .batch_execute("NOTIFY twinlog")
            .await
            .map_err(failed("wake the daemon"))?;
        Ok(rows
            .iter()
            .map(|row| RequestedRetry {
                id: row.get("id"),
                attempts: row.get("attempts"),
            })
            .collect())
    }

    /// What became of rows since [`Control::retry_failed`].
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn retry_outcome(&self, requested: &[RequestedRetry]) -> Result<RetryOutcome, AgentError> {
        let ids: Vec<i64> = requested.iter().map(|row| row.id).collect();
        let attempts: Vec<i32> = requested.iter().map(|row| row.attempts).collect();
        let row = self
            .client
            .query_one(
                "SELECT count(*) FILTER (WHERE f.id IS NULL) AS healed,
                     count(*) FILTER (WHERE f.attempts > requested.attempts) AS refused
                 FROM unnest($1::int8[], $2::int4[]) AS requested(id, attempts)
                 LEFT JOIN twinlog.failed_rows f ON f.id = requested.id",
                &[&ids, &attempts],
            )
            .await
            .map_err(failed("read what became of the failed rows"))?;
        let count = |column| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
        Ok(RetryOutcome {
            healed: count("healed"),
            refused: count("refused"),
        })
    }
}
