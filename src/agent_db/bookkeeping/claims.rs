//! `twinlog.claims`: which pipeline writes which table, so that two never write the same table unseen.
//!
//! A claim is committed, over a connection of its own, before the pipeline's first write to the table, so no rollback of
//! rows takes it back. It is about the table of the Agent DB, by its OID, and about all that the table's rows are part of:
//! a partition and its root are one. All pipelines take claims one after another (an advisory lock), and of two that do
//! not fit, the earlier one holds. Whoever shares a table says so in `sync.shared_tables`, and so must the other.

use std::fmt;
use std::sync::Arc;

use futures_util::future::try_join_all;
use time::OffsetDateTime;
use tokio_postgres::{Client, Row, Statement, Transaction};

use super::control::failed;
use super::daemon::is_silent_after;
use super::lock;
use crate::agent_db::error::{AgentError, OtherClaim, OtherDaemon};
use crate::change::TableName;
use crate::config::DatabaseUrl;
use crate::postgres::{self, Side};

/// Key of the advisory lock under which claims are taken ("clai" in ASCII); the second half is 0.
const LOCK_CLASS: i32 = 0x636C_6169;

/// Tables that are asked about at the same time: a start with many tables shall not take as many round trips.
const AT_ONCE: usize = 32;

fn is_free(claimed: &Claimed) -> bool {
    matches!(claimed, Claimed::Free)
}

/// What the configuration says about tables.
pub trait TableSettings: fmt::Debug + Send + Sync {
    /// Whether another pipeline may write the table as well (`sync.shared_tables`).
    fn is_shared(&self, table: &TableName) -> bool;

    /// The patterns of `sync.tables`, extended so that they leave the table out; as TOML.
    fn without(&self, table: &TableName) -> String;
}

/// The pipeline for which tables are claimed.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The replication slot, by which it is known.
    pub slot: String,
    /// The cluster that it reads, as `IDENTIFY_SYSTEM` prints it.
    pub system_identifier: String,
    /// The database that it reads.
    pub database: String,
    /// What its configuration says about tables.
    pub tables: Arc<dyn TableSettings>,
}

/// Who may write a table.
#[derive(Debug)]
pub(in crate::agent_db) enum Claimed {
    /// This pipeline has the claim.
    Ours,
    /// Nobody; or this pipeline, but the claim has to be renewed.
    Free,
    /// Another pipeline, and the two do not share it.
    Other(Box<OtherClaim>),
    /// This pipeline, as rows of this table, of which it is a partition.
    PartOf(TableName),
}

impl Claimed {
    /// Whether the table may be written.
    pub(in crate::agent_db) fn allowed(self, table: &TableName) -> Result<(), AgentError> {
        match self {
            Self::Ours | Self::Free => Ok(()),
            Self::Other(claim) => Err(AgentError::Claimed {
                table: table.clone(),
                claim,
            }),
            Self::PartOf(whole) => Err(AgentError::PartOf {
                table: table.clone(),
                whole,
            }),
        }
    }
}

/// The table by its name, all that its rows are part of, and all that are part of it; and the database for which OIDs hold.
const TABLE: &str = "
WITH RECURSIVE here (relation, place) AS (
    SELECT c.oid, pg_catalog.concat_ws(':', (SELECT d.oid FROM pg_catalog.pg_database d
            WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()),
        (SELECT k.oid FROM pg_catalog.pg_class k JOIN pg_catalog.pg_namespace m ON m.oid OPERATOR(pg_catalog.=) k.relnamespace
            WHERE m.nspname OPERATOR(pg_catalog.=) 'twinlog' AND k.relname OPERATOR(pg_catalog.=) 'claims'))
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE n.nspname OPERATOR(pg_catalog.=) $2 AND c.relname OPERATOR(pg_catalog.=) $3
), above (relation) AS (
    SELECT h.relation FROM here h
    UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid OPERATOR(pg_catalog.=) a.relation
), below (relation) AS (
    SELECT h.relation FROM here h
    UNION SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) b.relation
), parts (relation, schema_name, table_name) AS (
    SELECT c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text
    FROM (SELECT a.relation FROM above a UNION SELECT b.relation FROM below b) AS x
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) x.relation
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
)";

/// The earliest claim of another pipeline that excludes ours, and whether ours is there as it should be.
const LOOK: &str = "
SELECT EXISTS (SELECT FROM twinlog.claims o WHERE o.slot OPERATOR(pg_catalog.=) $1
        AND o.schema_name OPERATOR(pg_catalog.=) $2 AND o.table_name OPERATOR(pg_catalog.=) $3
        AND o.relation OPERATOR(pg_catalog.=) h.relation AND o.place OPERATOR(pg_catalog.=) h.place
        AND o.shared OPERATOR(pg_catalog.=) $4) AS is_ours, w.*, x.*
FROM here h LEFT JOIN LATERAL (
    SELECT k.schema_name AS whole_schema, k.table_name AS whole_name FROM twinlog.claims k
    JOIN above a ON a.relation OPERATOR(pg_catalog.=) k.relation AND a.relation OPERATOR(pg_catalog.<>) h.relation
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) h.relation AND c.relispartition
    WHERE k.slot OPERATOR(pg_catalog.=) $1 AND k.place OPERATOR(pg_catalog.=) h.place
    ORDER BY 1, 2 LIMIT 1) AS w ON true
LEFT JOIN LATERAL (
    SELECT k.slot, k.system_identifier, k.database, k.schema_name, k.table_name, k.shared, k.claimed_at,
        d.hostname, d.state,
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) d.reported_at) AS age_seconds
    FROM twinlog.claims k
    JOIN parts p ON CASE WHEN k.place OPERATOR(pg_catalog.=) h.place THEN k.relation OPERATOR(pg_catalog.=) p.relation
        ELSE k.schema_name OPERATOR(pg_catalog.=) p.schema_name AND k.table_name OPERATOR(pg_catalog.=) p.table_name END
    LEFT JOIN twinlog.daemon d ON d.slot OPERATOR(pg_catalog.=) k.slot
    WHERE k.slot OPERATOR(pg_catalog.<>) $1 AND NOT (k.shared AND $4)
      AND NOT EXISTS (SELECT FROM twinlog.claims o WHERE o.slot OPERATOR(pg_catalog.=) $1
        AND o.schema_name OPERATOR(pg_catalog.=) $2 AND o.table_name OPERATOR(pg_catalog.=) $3
        AND (o.relation OPERATOR(pg_catalog.=) h.relation OR o.place OPERATOR(pg_catalog.<>) h.place)
        AND (o.claimed_at OPERATOR(pg_catalog.<) k.claimed_at
            OR (o.claimed_at OPERATOR(pg_catalog.=) k.claimed_at AND o.slot OPERATOR(pg_catalog.<) k.slot)))
    ORDER BY k.claimed_at, k.slot LIMIT 1) AS x ON true";

/// A claim of the same table keeps its time.
const TAKE: &str = "
INSERT INTO twinlog.claims AS k (slot, schema_name, table_name, relation, place, shared, system_identifier, database)
SELECT $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text, h.relation, h.place, $4::boolean,
    $5::pg_catalog.text, $6::pg_catalog.text FROM here h
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET relation = EXCLUDED.relation, place = EXCLUDED.place,
    shared = EXCLUDED.shared, claimed_at = CASE WHEN k.relation OPERATOR(pg_catalog.=) EXCLUDED.relation
        OR k.place OPERATOR(pg_catalog.<>) EXCLUDED.place THEN k.claimed_at ELSE EXCLUDED.claimed_at END";

impl Pipeline {
    /// Adds to an error of a table what the configuration says about it.
    pub(in crate::agent_db) fn named(&self, mut error: AgentError) -> AgentError {
        if let AgentError::NotATable { table, without } = &mut error {
            *without = Some(self.tables.without(table));
        }
        error
    }

    /// Looks who may write a table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub(in crate::agent_db) async fn look(&self, client: &Client, table: &TableName) -> Result<Claimed, AgentError> {
        let shared = self.tables.is_shared(table);
        let row = client
            .query_opt(
                &format!("{TABLE}{LOOK}"),
                &[&self.slot, &&*table.schema, &&*table.name, &shared],
            )
            .await
            .map_err(failed("look who may write a table"))?;
        let Some(row) = row else {
            // There is no such table, and nothing to claim.
            return Ok(Claimed::Free);
        };
        if row.get::<_, Option<&str>>("slot").is_some() {
            return Ok(Claimed::Other(Box::new(self.other(table, shared, &row))));
        }
        if let Some(schema) = row.get::<_, Option<&str>>("whole_schema") {
            return Ok(Claimed::PartOf(TableName::new(
                schema,
                row.get::<_, &str>("whole_name"),
            )));
        }
        Ok(if row.get("is_ours") {
            Claimed::Ours
        } else {
            Claimed::Free
        })
    }

    fn other(&self, table: &TableName, shared_here: bool, row: &Row) -> OtherClaim {
        let daemon = row.get::<_, Option<String>>("hostname").map(|hostname| OtherDaemon {
            hostname,
            is_running: row.get::<_, &str>("state") != "stopped" && !is_silent_after(row.get("age_seconds")),
        });
        OtherClaim {
            slot: row.get("slot"),
            system_identifier: row.get("system_identifier"),
            database: row.get("database"),
            table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
            claimed_at: row.get::<_, OffsetDateTime>("claimed_at"),
            is_shared_there: row.get("shared"),
            is_shared_here: shared_here,
            daemon,
            without: self.tables.without(table),
        }
    }

    /// Claims tables that are free, so that it is committed when this returns. Says of each whose it is.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub(in crate::agent_db) async fn claim(
        &self,
        client: &Client,
        url: &DatabaseUrl,
        tables: &[TableName],
    ) -> Result<Vec<Claimed>, AgentError> {
        let mut claimed = self.look_at_all(client, tables).await?;
        let free: Vec<TableName> = (tables.iter().zip(&claimed))
            .filter(|(_, claimed)| is_free(claimed))
            .map(|(table, _)| table.clone())
            .collect();
        if free.is_empty() {
            return Ok(claimed);
        }
        let taken = self.take(url, &free).await?;
        for (place, taken) in claimed.iter_mut().filter(|claimed| is_free(claimed)).zip(taken) {
            *place = taken;
        }
        Ok(claimed)
    }

    /// [`Self::look`] at many tables, several at the same time.
    async fn look_at_all(&self, client: &Client, tables: &[TableName]) -> Result<Vec<Claimed>, AgentError> {
        let mut claimed = Vec::with_capacity(tables.len());
        for some in tables.chunks(AT_ONCE) {
            claimed.extend(try_join_all(some.iter().map(|table| self.look(client, table))).await?);
        }
        Ok(claimed)
    }

    /// Claims tables over a connection of its own, which no rollback of rows undoes.
    async fn take(&self, url: &DatabaseUrl, tables: &[TableName]) -> Result<Vec<Claimed>, AgentError> {
        let mut client = postgres::connect(Side::Agent, url, "twinlog claim").await?;
        let wrap = failed("claim a table");
        let transaction = client.transaction().await.map_err(&wrap)?;
        transaction
            .execute("SELECT pg_catalog.pg_advisory_xact_lock($1, 0)", &[&LOCK_CLASS])
            .await
            .map_err(&wrap)?;
        // Statements of their own, which see what the lock's last owner has committed.
        let claimed = self.look_at_all(transaction.client(), tables).await?;
        let statement = transaction.prepare(&format!("{TABLE}{TAKE}")).await.map_err(&wrap)?;
        let ours: Vec<&TableName> = (tables.iter().zip(&claimed))
            .filter(|(_, claimed)| is_free(claimed))
            .map(|(table, _)| table)
            .collect();
        for some in ours.chunks(AT_ONCE) {
            let taking = some.iter().map(|table| self.insert(&transaction, &statement, table));
            try_join_all(taking).await.map_err(&wrap)?;
        }
        transaction.commit().await.map_err(&wrap)?;
        Ok(claimed)
    }

    async fn insert(
        &self,
        transaction: &Transaction<'_>,
        statement: &Statement,
        table: &TableName,
    ) -> Result<u64, tokio_postgres::Error> {
        let shared = self.tables.is_shared(table);
        transaction
            .execute(
                statement,
                &[
                    &self.slot,
                    &&*table.schema,
                    &&*table.name,
                    &shared,
                    &self.system_identifier,
                    &self.database,
                ],
            )
            .await
    }

    /// The other slots of the same source for which something is claimed.
    pub(in crate::agent_db) async fn other_slots(&self, client: &Client) -> Result<Vec<String>, AgentError> {
        let rows = client
            .query(
                "SELECT DISTINCT k.slot FROM twinlog.claims k WHERE k.slot OPERATOR(pg_catalog.<>) $1
                     AND k.system_identifier OPERATOR(pg_catalog.=) $2 AND k.database OPERATOR(pg_catalog.=) $3",
                &[&self.slot, &self.system_identifier, &self.database],
            )
            .await
            .map_err(failed("look for claims"))?;
        Ok(rows.iter().map(|row| row.get("slot")).collect())
    }

    /// Keeps only the claims of these tables, and says what this pipeline reads now.
    pub(in crate::agent_db) async fn settle<'t>(
        &self,
        client: &Client,
        tables: impl Iterator<Item = &'t TableName>,
    ) -> Result<(), AgentError> {
        let (schemas, names): (Vec<&str>, Vec<&str>) = tables.map(|table| (&*table.schema, &*table.name)).unzip();
        client
            .execute(
                "DELETE FROM twinlog.claims k WHERE k.slot OPERATOR(pg_catalog.=) $1
                     AND NOT EXISTS (SELECT FROM unnest($2::pg_catalog.text[], $3::pg_catalog.text[]) AS x(s, t)
                         WHERE x.s OPERATOR(pg_catalog.=) k.schema_name AND x.t OPERATOR(pg_catalog.=) k.table_name)",
                &[&self.slot, &schemas, &names],
            )
            .await
            .map_err(failed("give claims back"))?;
        client
            .execute(
                "UPDATE twinlog.claims SET system_identifier = $2, database = $3 WHERE slot OPERATOR(pg_catalog.=) $1
                     AND (system_identifier OPERATOR(pg_catalog.<>) $2 OR database OPERATOR(pg_catalog.<>) $3)",
                &[&self.slot, &self.system_identifier, &self.database],
            )
            .await
            .map_err(failed("renew claims"))?;
        Ok(())
    }
}

/// Removes the claims of a slot that does not exist any more, unless its daemon runs: that may be about to create it. Returns
/// how many there were.
pub(in crate::agent_db) async fn remove_abandoned(client: &Client, slot: &str) -> Result<u64, AgentError> {
    client
        .execute(
            &format!(
                "WITH free AS MATERIALIZED (SELECT {} AS is_free)
                 DELETE FROM twinlog.claims k USING free f WHERE f.is_free AND k.slot OPERATOR(pg_catalog.=) $2",
                lock::TRY_IN_TRANSACTION
            ),
            &[&lock::CLASS, &slot],
        )
        .await
        .map_err(failed("take claims over"))
}

/// Gives one claim back, in whatever transaction is open.
pub(in crate::agent_db) async fn give_back(client: &Client, slot: &str, table: &TableName) -> Result<(), AgentError> {
    client
        .execute(
            "DELETE FROM twinlog.claims WHERE slot OPERATOR(pg_catalog.=) $1
                 AND schema_name OPERATOR(pg_catalog.=) $2 AND table_name OPERATOR(pg_catalog.=) $3",
            &[&slot, &&*table.schema, &&*table.name],
        )
        .await
        .map_err(failed("give a claim back"))?;
    Ok(())
}
