//! Looking at single rows of the Agent DB, for people who ask what has become of one. Over a session of its own; writes nothing.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::error::AgentError;
use crate::change::TableName;
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::SessionKind;
use crate::postgres::{Side, connect, quote_identifier};

/// A session that looks.
#[derive(Debug)]
pub struct RowLook {
    client: Client,
}

/// A row as it stands.
#[derive(Debug, Clone)]
pub struct LookedAt {
    /// Columns to values, as JSON.
    pub row: serde_json::Value,
    /// When it was written last, RFC 3339, where the database keeps that (`track_commit_timestamp`).
    pub written_at: Option<String>,
}

impl RowLook {
    /// Opens the session.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl, application_name: &str) -> Result<Self, AgentError> {
        let (client, _) = connect::open(Side::Agent, url, application_name, SessionKind::Reading, None).await?;
        client
            .batch_execute("SET lock_timeout = '3s'; SET statement_timeout = '10s'")
            .await
            .map_err(|source| AgentError::from_driver("set up the session", None, source))?;
        Ok(Self { client })
    }

    /// Rows of a table of which a column of type uuid has this value, at most ten.
    ///
    /// # Errors
    /// The connection's, or the table can't be read.
    pub async fn with_uuid(&self, table: &TableName, column: &str, value: &str) -> Result<Vec<LookedAt>, AgentError> {
        let failed = |source| AgentError::from_driver("look at a row", Some(table), source);
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT pg_catalog.to_jsonb(t) AS row, t.xmin::text AS written_by FROM {} t
                     WHERE t.{} = $1::text::uuid LIMIT 10",
                    table.quoted(),
                    quote_identifier(column)
                ),
                &[&value],
            )
            .await
            .map_err(failed)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            found.push(LookedAt {
                row: row.get("row"),
                written_at: self.written_at(row.get("written_by")).await,
            });
        }
        Ok(found)
    }

    /// The row of a table with this key: columns to values, as text. `equals`: the operator that tells whether two values of a key
    /// column are equal, as [`Comparer::key_operators`](super::Comparer::key_operators) has it.
    ///
    /// # Errors
    /// The connection's, or the table can't be read.
    pub async fn with_key(
        &self,
        table: &TableName,
        columns: &[String],
        equals: &[String],
        key: &[String],
    ) -> Result<Option<LookedAt>, AgentError> {
        let failed = |source| AgentError::from_driver("look at a row", Some(table), source);
        let types = self
            .client
            .query(
                "SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) AS type
                 FROM pg_catalog.unnest($3::text[]) WITH ORDINALITY AS k(name, at)
                 JOIN pg_catalog.pg_attribute a ON a.attname = k.name AND a.attnum > 0
                 JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relname = $2
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1 ORDER BY k.at",
                &[&&*table.schema, &&*table.name, &columns],
            )
            .await
            .map_err(failed)?;
        let is_key: Vec<String> = columns
            .iter()
            .zip(equals)
            .zip(&types)
            .zip(1..)
            .map(|(((name, equals), row), number)| {
                let kind: &str = row.get("type");
                format!("t.{} {equals} ${number}::text::{kind}", quote_identifier(name))
            })
            .collect();
        let parameters: Vec<&(dyn ToSql + Sync)> = key.iter().map(|part| part as _).collect();
        let row = self
            .client
            .query_opt(
                &format!(
                    "SELECT (SELECT pg_catalog.jsonb_object_agg(e.key, e.value) FROM pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(t)) e)
                         AS row, t.xmin::text AS written_by FROM {} t WHERE {} LIMIT 1",
                    table.quoted(),
                    is_key.join(" AND ")
                ),
                &parameters,
            )
            .await
            .map_err(failed)?;
        Ok(match row {
            Some(row) => Some(LookedAt {
                row: row.get("row"),
                written_at: self.written_at(row.get("written_by")).await,
            }),
            None => None,
        })
    }

    /// When a transaction was committed, where the database keeps that. (It refuses to say it of old ones, or at all.)
    async fn written_at(&self, xid: &str) -> Option<String> {
        let row = self
            .client
            .query_opt(
                "SELECT to_json(pg_catalog.pg_xact_commit_timestamp($1::text::xid)) #>> '{}' AS at
                 WHERE pg_catalog.current_setting('track_commit_timestamp') = 'on'",
                &[&xid],
            )
            .await;
        row.ok().flatten()?.get("at")
    }
}
