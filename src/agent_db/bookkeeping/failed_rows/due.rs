//! Which parked keys are due to be tried again, and when the next one will be.

use std::time::Duration;

use super::row_values;
use super::show::{FailedFilter, MATCHES};
use crate::agent_db::bookkeeping::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::{Key, Row, TableName};

/// A parked key that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedKey {
    /// Its table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// By what the table's rows were told apart, as [`Relation::key_text`](crate::change::Relation::key_text) has it; `None`
    /// for an entry of a version that did not remember it.
    pub row_key: Option<String>,
    /// The row's values, where rows are counted: the key is a digest then.
    pub row: Option<Row>,
    /// How often it was tried.
    pub attempts: i32,
    /// The SQLSTATE of the last refusal, or `TW…`.
    pub reason: String,
}

/// Keys of a table that is not synchronised any more, or that is held, would stay due, and take the place of others. So would those
/// that a person has given up.
const TRIED: &str = "f.discarded_at IS NULL AND EXISTS (SELECT FROM twinlog.tables t WHERE t.slot = f.slot \
                            AND t.schema_name = f.schema_name AND t.table_name = f.table_name AND t.state <> 'held')";

/// Reasons that may be other rows' fault: foreign keys, unique and exclusion constraints, rows whose base is missing.
const WAITING: &str = "'23001', '23503', '23505', '23P01', 'TW001', 'TW002'";

const LINKED: &str = "
WITH parked AS (SELECT DISTINCT schema_name, table_name FROM twinlog.failed_rows WHERE slot = $1)
SELECT cn.nspname AS child_schema, c.relname AS child, pn.nspname AS parent_schema, p.relname AS parent
FROM pg_catalog.pg_constraint f
JOIN pg_catalog.pg_class c ON c.oid = f.conrelid
JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
WHERE f.contype = 'f' AND f.conrelid <> f.confrelid
    AND (cn.nspname, c.relname) IN (SELECT schema_name, table_name FROM parked)
    AND (pn.nspname, p.relname) IN (SELECT schema_name, table_name FROM parked)";

fn failed_key(row: &tokio_postgres::Row) -> Result<FailedKey, AgentError> {
    Ok(FailedKey {
        table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
        key: Key::from_json(row.get("key")).ok_or(AgentError::Unreadable {
            what: "a failed row's key",
        })?,
        row_key: row.get("row_key"),
        row: row
            .get::<_, Option<&str>>("row_values")
            .map(|values| {
                row_values::from_json(values).ok_or(AgentError::Unreadable {
                    what: "a failed row's values",
                })
            })
            .transpose()?,
        attempts: row.get("attempts"),
        reason: row.get("reason"),
    })
}

impl Control {
    /// Parked keys of tables that are synchronised and whose time has come, the longest waiting first, at most `limit`.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn due_failed_rows(&self, limit: u32) -> Result<Vec<FailedKey>, AgentError> {
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT schema_name, table_name, key, row_key, row_values, attempts, reason FROM twinlog.failed_rows f
                     WHERE slot = $1 AND next_attempt_at <= now() AND {TRIED}
                     ORDER BY next_attempt_at, id LIMIT $2"
                ),
                &[&self.slot, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows that are due"))?;
        rows.iter().map(failed_key).collect()
    }

    /// Parked keys of some tables that are not due, but may only wait for other rows, at most `limit`, those first whose last
    /// attempt was longest ago.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn waiting_failed_rows(&self, tables: &[TableName], limit: u32) -> Result<Vec<FailedKey>, AgentError> {
        let schemas: Vec<&str> = tables.iter().map(|table| &*table.schema).collect();
        let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT schema_name, table_name, key, row_key, row_values, attempts, reason FROM twinlog.failed_rows f
                     WHERE slot = $1 AND next_attempt_at > now() AND discarded_at IS NULL AND reason IN ({WAITING})
                       AND (schema_name, table_name) IN (SELECT s, t FROM unnest($2::text[], $3::text[]) AS x(s, t))
                     ORDER BY last_attempt_at NULLS FIRST, id LIMIT $4"
                ),
                &[&self.slot, &schemas, &names, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows that wait"))?;
        rows.iter().map(failed_key).collect()
    }

    /// Parked keys that match, the oldest first. Those that are discarded are meant only where rows are named.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn parked_keys(&self, filter: &FailedFilter, limit: u32) -> Result<Vec<FailedKey>, AgentError> {
        let (schema, name) = filter.table_parts();
        let key = filter.stored_key(self.encoding);
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT schema_name, table_name, key, row_key, row_values, attempts, reason FROM twinlog.failed_rows f
                     WHERE {MATCHES} AND (discarded_at IS NULL OR $6) ORDER BY id LIMIT $7"
                ),
                &[&self.slot, &schema, &name, &key, &filter.id, &filter.names_rows(), &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows"))?;
        rows.iter().map(failed_key).collect()
    }

    /// Parked keys of some tables that are not discarded, those first whose last attempt was longest ago.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn tried_failed_rows(&self, tables: &[TableName], limit: u32) -> Result<Vec<FailedKey>, AgentError> {
        let schemas: Vec<&str> = tables.iter().map(|table| &*table.schema).collect();
        let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, key, row_key, row_values, attempts, reason FROM twinlog.failed_rows f
                 WHERE slot = $1 AND discarded_at IS NULL
                   AND (schema_name, table_name) IN (SELECT s, t FROM unnest($2::text[], $3::text[]) AS x(s, t))
                 ORDER BY last_attempt_at NULLS FIRST, id LIMIT $4",
                &[&self.slot, &schemas, &names, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows"))?;
        rows.iter().map(failed_key).collect()
    }

    /// The tables with parked rows that a foreign key connects, as pairs.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn linked_failed_tables(&self) -> Result<Vec<(TableName, TableName)>, AgentError> {
        let rows = self
            .client
            .query(LINKED, &[&self.slot])
            .await
            .map_err(failed("read the foreign keys of failed rows"))?;
        let name = |row: &tokio_postgres::Row, schema: &str, table: &str| {
            TableName::new(row.get::<_, &str>(schema), row.get::<_, &str>(table))
        };
        Ok(rows
            .iter()
            .map(|row| (name(row, "child_schema", "child"), name(row, "parent_schema", "parent")))
            .collect())
    }

    /// How long until the next parked key is due: `None` where nothing is parked, zero where one is due already.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn next_failed_row_due(&self) -> Result<Option<Duration>, AgentError> {
        let row = self
            .client
            .query_one(
                &format!(
                    "SELECT extract(epoch FROM min(next_attempt_at) - now())::float8 AS seconds
                     FROM twinlog.failed_rows f
                     WHERE slot = $1 AND {TRIED}"
                ),
                &[&self.slot],
            )
            .await
            .map_err(failed("read when a failed row is due"))?;
        Ok(row
            .get::<_, Option<f64>>("seconds")
            .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
    }
}
