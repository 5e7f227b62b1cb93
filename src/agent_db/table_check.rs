//! Whether a table can be written now, found out over a session of its own, so that looking never disturbs the writing.

use tokio_postgres::Client;

use super::bookkeeping::Pipeline;
use super::bookkeeping::claims::{self, Claimed};
use super::catalog;
use super::error::AgentError;
use crate::change::{TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::postgres::{self, Side, quote_identifier};

/// A session that looks, and writes nothing.
#[derive(Debug)]
pub struct TableCheck {
    client: Client,
    pipeline: Pipeline,
}

impl TableCheck {
    /// Opens the session.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl, pipeline: Pipeline) -> Result<Self, AgentError> {
        let client = postgres::connect(Side::Agent, url, "twinlog check").await?;
        Ok(Self { client, pipeline })
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

    /// Looks whether the table is there, fits, is no other pipeline's, may be written and is not locked.
    ///
    /// # Errors
    /// What is wrong with the table; or the connection's error.
    pub async fn check(&self, table: &TableDescription) -> Result<(), AgentError> {
        let found = catalog::resolve(&self.client, table).await;
        let target = found.map_err(|error| self.pipeline.named(error))?;
        if target.relation.counts_rows() && self.pipeline.tables.is_shared(&table.table) {
            return Err(AgentError::SharedWithoutKey {
                table: table.table.clone(),
            });
        }
        if let Claimed::Other(claim) = self.pipeline.look(&self.client, &table.table).await? {
            return Err(AgentError::Claimed {
                table: table.table.clone(),
                claim,
            });
        }
        let lock = format!(
            "BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE NOWAIT; ROLLBACK",
            table.table.quoted()
        );
        let locked = self.client.batch_execute(&lock).await;
        if let Err(source) = locked {
            // The transaction is gone in any case, or the connection is.
            let _ = self.client.batch_execute("ROLLBACK").await;
            return Err(AgentError::from_driver("lock a table", Some(&table.table), source));
        }
        Ok(())
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
                     SELECT image FROM twinlog.failed_rows WHERE id = $1)) ON CONFLICT DO NOTHING",
                table = table.quoted(),
                columns = columns.join(", "),
            );
            self.client.batch_execute("BEGIN").await.map_err(failed)?;
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
SELECT id, ARRAY(SELECT jsonb_object_keys(image)) AS columns FROM twinlog.failed_rows
WHERE slot = $1 AND schema_name = $2 AND table_name = $3 AND operation = 'upsert' AND image <> '{}'
ORDER BY id DESC LIMIT 5";
