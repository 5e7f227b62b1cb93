//! Whether a table can be written now, found out over a session of its own, so that looking never disturbs the writing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::apply::try_statements;
use super::bookkeeping::Pipeline;
use super::bookkeeping::claims;
use super::catalog::{self, Rights};
use super::error::AgentError;
use crate::change::{TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::postgres::session_settings::SessionKind;
use crate::postgres::sqlstate::QUERY_CANCELED;
use crate::postgres::{Side, connect, quote_identifier};

/// A session that looks, and writes nothing.
#[derive(Debug)]
pub struct TableCheck {
    client: Client,
    pipeline: Pipeline,
    /// A statement that writes rows and takes longer is cancelled.
    limit: Duration,
}

/// How long a statement waits for a lock: it is looked at again soon.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

impl TableCheck {
    /// Opens the session.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl, pipeline: Pipeline, limit: Duration) -> Result<Self, AgentError> {
        let (client, _) = connect::open(Side::Agent, url, "twinlog check", SessionKind::Writing, None).await?;
        // The same triggers and rules as for the session that writes.
        Rights::probe(&client).await?;
        client
            .batch_execute(&format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis()))
            .await
            .map_err(|source| AgentError::from_driver("set up the session", None, source))?;
        Ok(Self {
            client,
            pipeline,
            limit,
        })
    }

    /// The other slots of the pipeline's source for which tables are claimed.
    ///
    /// # Errors
    /// The connection's.
    pub async fn other_claiming_slots(&self) -> Result<Vec<String>, AgentError> {
        self.pipeline.other_slots(&self.client).await
    }

    /// Removes the claims of a slot that does not exist any more, unless its daemon runs. Returns how many there were.
    ///
    /// # Errors
    /// The connection's.
    pub async fn remove_abandoned_claims(&self, slot: &str) -> Result<u64, AgentError> {
        claims::remove_abandoned(&self.client, slot).await
    }

    /// Looks whether the table is there, fits, is no other pipeline's, is not locked and takes the statements that write
    /// it.
    ///
    /// # Errors
    /// What is wrong with the table; or the connection's error.
    pub async fn check(&self, table: &TableDescription) -> Result<(), AgentError> {
        let found = catalog::examine(&self.client, table).await;
        let target = Arc::new(found.map_err(|error| self.pipeline.named(error))?);
        if target.relation.counts_rows() && self.pipeline.tables.is_shared(&table.table) {
            return Err(AgentError::SharedWithoutKey {
                table: table.table.clone(),
            });
        }
        let claimed = self.pipeline.look(&self.client, &table.table).await?;
        claimed.allowed(&table.table)?;
        let lock = format!(
            "BEGIN; {}; LOCK TABLE {} IN ROW EXCLUSIVE MODE NOWAIT",
            self.limited(),
            table.table.quoted()
        );
        let failed = |source| AgentError::from_driver("lock a table", Some(&table.table), source);
        let tried = match self.client.batch_execute(&lock).await {
            Ok(()) => try_statements(&self.client, &target)
                .await
                .map_err(|error| self.too_slow(error)),
            Err(source) => Err(failed(source)),
        };
        self.client.batch_execute("ROLLBACK").await.map_err(failed)?;
        tried
    }

    /// Of some types, given with their schemas, and both as they are quoted, those that the database lacks, and their schemas if
    /// it lacks these.
    ///
    /// # Errors
    /// The connection's.
    pub async fn missing_types(&self, schemas: &[&str], names: &[&str]) -> Result<BTreeSet<String>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT s.name FROM pg_catalog.unnest($1::pg_catalog.text[]) AS s(name)
                 WHERE pg_catalog.to_regnamespace(s.name) IS NULL
                 UNION ALL SELECT t.name FROM pg_catalog.unnest($2::pg_catalog.text[]) AS t(name)
                 WHERE pg_catalog.to_regtype(t.name) IS NULL",
                &[&schemas, &names],
            )
            .await
            .map_err(|source| AgentError::from_driver("look types up", None, source))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Sets the limit for the open transaction. It writes nothing that is committed, so the server may see to it.
    fn limited(&self) -> String {
        format!("SET LOCAL statement_timeout = {}", self.limit.as_millis())
    }

    /// The server's word for a statement that took too long, as the fault of its table.
    fn too_slow(&self, error: AgentError) -> AgentError {
        match error {
            AgentError::Refused {
                table: Some(table),
                refusal,
                ..
            } if refusal.sqlstate == QUERY_CANCELED => AgentError::TooSlow {
                action: "a statement",
                table: Some(table),
                rows: 0,
                seconds: self.limit.as_secs(),
                waited_for: None,
            },
            other => other,
        }
    }

    /// Whether writing the table's parked rows still takes too long: tries some of those for which it did, each in a
    /// transaction that is rolled back. False if there is none.
    ///
    /// # Errors
    /// The connection's.
    pub async fn is_too_slow(&self, slot: &str, table: &TableName) -> Result<bool, AgentError> {
        let failed = |source| AgentError::from_driver("try a parked row", Some(table), source);
        let rows = self
            .client
            .query(SLOW, &[&slot, &&*table.schema, &&*table.name, &QUERY_CANCELED])
            .await
            .map_err(failed)?;
        for row in &rows {
            let (key, columns): (Vec<String>, Vec<String>) = (row.get("key_columns"), row.get("columns"));
            let statement = as_written(table, row.get("operation"), &key, &columns);
            let begin = format!("BEGIN; {}", self.limited());
            self.client.batch_execute(&begin).await.map_err(failed)?;
            let tried = async {
                self.client.execute(&statement, &[&row.get::<_, i64>("id")]).await?;
                self.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await
            }
            .await;
            self.client.batch_execute("ROLLBACK").await.map_err(failed)?;
            match tried {
                Err(source) if source.as_db_error().is_none() => return Err(failed(source)),
                Err(source) if source.code().is_some_and(|code| code.code() == QUERY_CANCELED) => return Ok(true),
                // Whatever else it is refused for, it is not slow.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Whether the database still refuses the table's parked rows: tries some of them, each in a transaction that is rolled
    /// back. False if none is parked that could be tried.
    ///
    /// # Errors
    /// The connection's.
    pub async fn refuses_parked(&self, slot: &str, table: &TableName) -> Result<bool, AgentError> {
        let failed = |source| AgentError::from_driver("try a parked row", Some(table), source);
        let rows = self
            .client
            .query(SAMPLE, &[&slot, &&*table.schema, &&*table.name])
            .await
            .map_err(failed)?;
        let mut refused = false;
        for row in &rows {
            let columns: Vec<String> = row.get("columns");
            let columns: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
            let insert = format!(
                "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
                 SELECT {columns} FROM pg_catalog.jsonb_populate_record(NULL::{table}, (
                     SELECT image FROM twinlog.failed_rows WHERE id OPERATOR(pg_catalog.=) $1)) ON CONFLICT DO NOTHING",
                table = table.quoted(),
                columns = columns.join(", "),
            );
            let begin = format!("BEGIN; {}", self.limited());
            self.client.batch_execute(&begin).await.map_err(failed)?;
            let tried = async {
                self.client.execute(&insert, &[&row.get::<_, i64>("id")]).await?;
                self.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await
            }
            .await;
            self.client.batch_execute("ROLLBACK").await.map_err(failed)?;
            match tried {
                Ok(()) => return Ok(false),
                Err(source) if source.as_db_error().is_none() => return Err(failed(source)),
                Err(_) => refused = true,
            }
        }
        Ok(refused)
    }
}

/// The newest parked rows of a table that are known as a whole.
const SAMPLE: &str = "
SELECT id, ARRAY(SELECT pg_catalog.jsonb_object_keys(image)) AS columns FROM twinlog.failed_rows
WHERE slot OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2 AND table_name OPERATOR(pg_catalog.=) $3
    AND operation OPERATOR(pg_catalog.=) 'upsert' AND image OPERATOR(pg_catalog.<>) '{}'
ORDER BY id DESC LIMIT 5";

/// Parked rows of a table that took too long, with the columns that are known of them.
const SLOW: &str = "
SELECT id, operation, ARRAY(SELECT pg_catalog.jsonb_object_keys(image)) AS columns,
    ARRAY(SELECT pg_catalog.jsonb_array_elements_text(row_key::pg_catalog.jsonb)) AS key_columns FROM twinlog.failed_rows
WHERE slot OPERATOR(pg_catalog.=) $1 AND schema_name OPERATOR(pg_catalog.=) $2 AND table_name OPERATOR(pg_catalog.=) $3
    AND reason OPERATOR(pg_catalog.=) $4 AND pg_catalog.jsonb_typeof(row_key::pg_catalog.jsonb) OPERATOR(pg_catalog.=) 'array'
ORDER BY id DESC LIMIT 2";

/// The statement that writes a parked row (`$1`: its id) as the stream's would: it fires the same triggers.
fn as_written(table: &TableName, operation: &str, key: &[String], columns: &[String]) -> String {
    let table = table.quoted();
    let list = |columns: &[&String]| {
        columns
            .iter()
            .map(|name| quote_identifier(name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let others: Vec<&String> = columns.iter().filter(|name| !key.contains(name)).collect();
    let is_key = key
        .iter()
        .map(|name| format!("t.{0} OPERATOR(pg_catalog.=) k.{0}", quote_identifier(name)))
        .collect::<Vec<_>>()
        .join(" AND ");
    let of_key = format!(
        "pg_catalog.jsonb_populate_record(NULL::{table}, (SELECT pg_catalog.jsonb_object(
             ARRAY(SELECT pg_catalog.jsonb_array_elements_text(row_key::pg_catalog.jsonb)),
             ARRAY(SELECT pg_catalog.jsonb_array_elements_text(key::pg_catalog.jsonb)))
         FROM twinlog.failed_rows WHERE id OPERATOR(pg_catalog.=) $1)) AS k"
    );
    let image = format!(
        "pg_catalog.jsonb_populate_record(NULL::{table}, (
             SELECT image FROM twinlog.failed_rows WHERE id OPERATOR(pg_catalog.=) $1)) AS r"
    );
    let set = |from: &str| {
        let set = others
            .iter()
            .map(|name| format!("{0} = {from}.{0}", quote_identifier(name)));
        set.collect::<Vec<_>>().join(", ")
    };
    match operation {
        "delete" => format!("DELETE FROM {table} AS t USING {of_key} WHERE {is_key}"),
        "partial" => format!(
            "UPDATE {table} AS t SET {} FROM {of_key}, {image} WHERE {is_key}",
            set("r")
        ),
        _ => {
            let all: Vec<&String> = columns.iter().collect();
            let update = if others.is_empty() {
                "NOTHING".to_owned()
            } else {
                format!("UPDATE SET {}", set("EXCLUDED"))
            };
            let key: Vec<&String> = key.iter().collect();
            format!(
                "INSERT INTO {table} ({all}) OVERRIDING SYSTEM VALUE SELECT {all} FROM {image} ON CONFLICT ({key}) DO {update}",
                all = list(&all),
                key = list(&key),
            )
        }
    }
}
