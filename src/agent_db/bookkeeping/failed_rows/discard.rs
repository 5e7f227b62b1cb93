//! Giving parked rows up. An entry that is discarded stays: its row differs from the Site DB's, and everything that counts parked
//! rows goes on to count it. But it is not tried again by itself. The next change of the row, or a person who asks for it by its
//! key, takes the decision back. The decision itself is kept in `twinlog.discards`, whatever becomes of the entry.

use tokio_postgres::Row;

use super::show::{FailedFilter, MATCHES};
use crate::agent_db::bookkeeping::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// A decision to give a parked row up.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Discard {
    /// The entry's id in `twinlog.failed_rows`, where it may be gone.
    pub failed_row: i64,
    /// Its table.
    pub table: TableName,
    /// Its key, as a JSON array of texts.
    pub key: String,
    /// What was given up: upsert, partial or delete.
    pub operation: String,
    /// The SQLSTATE of the refusal, or `TW…`.
    pub reason: String,
    /// The constraint that refused it, if it was one.
    pub constraint: Option<String>,
    /// Why, in the person's words.
    pub why: String,
    /// Who, as the command line knows it.
    pub who: String,
    /// The database's role of the session that wrote it.
    pub role: String,
    /// When, RFC 3339.
    pub at: String,
}

const COLUMNS: &str = "failed_row_id, schema_name, table_name, key, operation, reason, constraint_name, why, who, role,
    to_json(discarded_at) #>> '{}' AS discarded_at";

impl Discard {
    fn from_row(row: &Row) -> Self {
        Self {
            failed_row: row.get("failed_row_id"),
            table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
            key: row.get("key"),
            operation: row.get("operation"),
            reason: row.get("reason"),
            constraint: row.get("constraint_name"),
            why: row.get("why"),
            who: row.get("who"),
            role: row.get("role"),
            at: row.get("discarded_at"),
        }
    }
}

impl Control {
    /// Gives parked rows up, and stores who did it and why, in one statement. Those that were given up before are left as they are.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn discard_failed(
        &self,
        filter: &FailedFilter,
        who: &str,
        why: &str,
    ) -> Result<Vec<Discard>, AgentError> {
        let (schema, name) = filter.table_parts();
        let rows = self
            .client
            .query(
                &format!(
                    "WITH discarded AS (
                         UPDATE twinlog.failed_rows SET discarded_at = clock_timestamp()
                         WHERE {MATCHES} AND discarded_at IS NULL
                         RETURNING id, schema_name, table_name, key, operation, reason, constraint_name
                     ) INSERT INTO twinlog.discards (slot, failed_row_id, schema_name, table_name, key, operation, reason,
                         constraint_name, who, why)
                     SELECT $1, id, schema_name, table_name, key, operation, reason, constraint_name, $6, $7 FROM discarded
                     RETURNING {COLUMNS}"
                ),
                &[
                    &self.slot,
                    &schema,
                    &name,
                    &filter.stored_key(self.encoding),
                    &filter.id,
                    &self.encoding.shown(who),
                    &self.encoding.shown(why),
                ],
            )
            .await
            .map_err(failed("discard failed rows"))?;
        Ok(rows.iter().map(Discard::from_row).collect())
    }

    /// The decisions about rows, also about such that are not parked any more, the newest first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn discards(&self, filter: &FailedFilter, limit: u32) -> Result<Vec<Discard>, AgentError> {
        let (schema, name) = filter.table_parts();
        let matches = MATCHES.replace("OR id = $5", "OR failed_row_id = $5");
        let rows = self
            .client
            .query(
                &format!("SELECT {COLUMNS} FROM twinlog.discards WHERE {matches} ORDER BY id DESC LIMIT $6"),
                &[
                    &self.slot,
                    &schema,
                    &name,
                    &filter.stored_key(self.encoding),
                    &filter.id,
                    &i64::from(limit),
                ],
            )
            .await
            .map_err(failed("read what was discarded"))?;
        Ok(rows.iter().map(Discard::from_row).collect())
    }
}
