//! The slot's lock, its checkpoint and gap, and the accounting. What every commit needs is prepared once, for one round
//! trip.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Statement};

use super::Sink;
use crate::agent_db::checkpoint::{Checkpoint, StoredCheckpoint};
use crate::agent_db::control::{CHECKPOINT_COLUMNS, stored_checkpoint};
use crate::agent_db::error::{AgentError, Holder};
use crate::agent_db::segment::Tally;
use crate::change::TableName;

/// First half of the advisory lock's key ("twin" in ASCII); the second is a hash of the slot's name.
const LOCK_CLASS: i32 = 0x7477_696E;

/// The statements of a commit.
#[derive(Debug)]
pub(super) struct Bookkeeping {
    pub checkpoint: Statement,
    pub accounting: Statement,
}

/// An idle stream's position has no commit of its own: that of the last transaction stays.
const CHECKPOINT: &str = "
INSERT INTO twinlog.checkpoint AS c (slot, publication, system_identifier, timeline, database, end_lsn, source_commit_at)
VALUES ($1, $2, $3, $4, $5, $6::text::pg_lsn, $7)
ON CONFLICT (slot) DO UPDATE SET publication = EXCLUDED.publication, system_identifier = EXCLUDED.system_identifier,
    timeline = EXCLUDED.timeline, database = EXCLUDED.database, end_lsn = EXCLUDED.end_lsn,
    source_commit_at = CASE WHEN c.system_identifier = EXCLUDED.system_identifier
        THEN coalesce(EXCLUDED.source_commit_at, c.source_commit_at) ELSE EXCLUDED.source_commit_at END,
    updated_at = clock_timestamp()";

const ACCOUNTING: &str = "
INSERT INTO twinlog.accounting AS a
    (slot, schema_name, table_name, received, applied, unchanged, superseded, filtered, parked, copied, healed)
SELECT $1, x.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) AS x
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET received = a.received + EXCLUDED.received,
    applied = a.applied + EXCLUDED.applied, unchanged = a.unchanged + EXCLUDED.unchanged,
    superseded = a.superseded + EXCLUDED.superseded, filtered = a.filtered + EXCLUDED.filtered,
    parked = a.parked + EXCLUDED.parked, copied = a.copied + EXCLUDED.copied, healed = a.healed + EXCLUDED.healed";

impl Bookkeeping {
    pub(super) async fn prepare(client: &Client) -> Result<Self, AgentError> {
        let failed = |source| AgentError::from_driver("prepare the bookkeeping", None, source);
        Ok(Self {
            checkpoint: client.prepare(CHECKPOINT).await.map_err(failed)?,
            accounting: client.prepare(ACCOUNTING).await.map_err(failed)?,
        })
    }
}

/// Writes the checkpoint, in whatever transaction is open.
pub(super) async fn write_checkpoint(
    client: &Client,
    statement: &Statement,
    checkpoint: &Checkpoint,
) -> Result<u64, tokio_postgres::Error> {
    let identity = &checkpoint.identity;
    // Timelines are counted from 1 and fit: Postgres itself keeps them in 32 bits, and nobody fails over 2^31 times.
    let timeline = i32::try_from(identity.timeline).unwrap_or(i32::MAX);
    client
        .execute(
            statement,
            &[
                &identity.slot,
                &identity.publication,
                &identity.system_identifier,
                &timeline,
                &identity.database,
                &checkpoint.end_lsn.to_string(),
                &checkpoint.source_commit_at,
            ],
        )
        .await
}

/// Tallies as columns of parameters.
#[derive(Debug, Default)]
pub(super) struct Accounting {
    schemas: Vec<String>,
    tables: Vec<String>,
    figures: [Vec<i64>; 8],
}

impl Accounting {
    pub(super) fn of(tables: &BTreeMap<TableName, Tally>) -> Self {
        let mut columns = Self::default();
        for (table, tally) in tables {
            columns.schemas.push(table.schema.to_string());
            columns.tables.push(table.name.to_string());
            let figures = [
                tally.received,
                tally.applied,
                tally.unchanged,
                tally.superseded,
                tally.filtered,
                tally.parked,
                tally.copied,
                tally.healed,
            ];
            for (column, figure) in columns.figures.iter_mut().zip(figures) {
                column.push(figure.cast_signed());
            }
        }
        columns
    }

    /// Adds to the table's totals, in whatever transaction is open.
    pub(super) async fn add(
        &self,
        client: &Client,
        statement: &Statement,
        slot: &str,
    ) -> Result<u64, tokio_postgres::Error> {
        let [
            received,
            applied,
            unchanged,
            superseded,
            filtered,
            parked,
            copied,
            healed,
        ] = &self.figures;
        client
            .execute(
                statement,
                &[
                    &slot,
                    &self.schemas,
                    &self.tables,
                    received,
                    applied,
                    unchanged,
                    superseded,
                    filtered,
                    parked,
                    copied,
                    healed,
                ],
            )
            .await
    }
}

impl Sink {
    /// The checkpoint, made durable before it is returned; `None` before the first. Not within a transaction. A predecessor's commit may be visible
    /// and not yet flushed: a synchronous commit of our own flushes everything before it too (pitfall P43).
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn durable_checkpoint(&mut self) -> Result<Option<StoredCheckpoint>, AgentError> {
        self.usable()?;
        if self.in_transaction {
            return Err(AgentError::Internal(
                "the checkpoint was asked for within a transaction".to_owned(),
            ));
        }
        // The session's synchronous_commit is never off (see `connect`), so this returns after the flush.
        let sql = format!(
            "UPDATE twinlog.checkpoint SET updated_at = clock_timestamp() WHERE slot = $1 RETURNING {CHECKPOINT_COLUMNS}"
        );
        let row = self
            .client
            .query_opt(&sql, &[&self.slot])
            .await
            .map_err(|source| AgentError::from_driver("read the checkpoint", None, source))?;
        let stored = row.as_ref().map(stored_checkpoint).transpose()?;
        self.checkpoint = stored.as_ref().map(|stored| stored.checkpoint.clone());
        Ok(stored)
    }

    /// Writes the slot's first checkpoint, or replaces one of another identity or a later position, after somebody
    /// decided that this is right. A gap that is set stays set. Durable when it returns.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn initialise_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), AgentError> {
        self.usable()?;
        write_checkpoint(&self.client, &self.bookkeeping.checkpoint, checkpoint)
            .await
            .map_err(|source| AgentError::from_driver("write the checkpoint", None, source))?;
        self.checkpoint = Some(checkpoint.clone());
        Ok(())
    }

    /// Remembers that rows may be missing. The first reason stays until [`Sink::clear_gap`]. Within a transaction, both
    /// become true with its commit.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn set_gap(&mut self, reason: &str) -> Result<(), AgentError> {
        self.usable()?;
        self.client
            .execute(
                "UPDATE twinlog.checkpoint SET gap_reason = $2, gap_since = clock_timestamp()
                 WHERE slot = $1 AND gap_reason IS NULL",
                &[&self.slot, &reason],
            )
            .await
            .map_err(|source| AgentError::from_driver("remember a gap", None, source))?;
        Ok(())
    }

    /// A full resync has shown that nothing is missing.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn clear_gap(&mut self) -> Result<(), AgentError> {
        self.usable()?;
        self.client
            .execute(
                "UPDATE twinlog.checkpoint SET gap_reason = NULL, gap_since = NULL WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(|source| AgentError::from_driver("clear a gap", None, source))?;
        Ok(())
    }
}

/// Takes the slot's lock, or says who has it.
pub(super) async fn lock(client: &Client, slot: &str) -> Result<(), AgentError> {
    let failed = |source| AgentError::from_driver("take the slot's lock", None, source);
    let locked: bool = client
        .query_one(
            "SELECT pg_catalog.pg_try_advisory_lock($1, pg_catalog.hashtext($2))",
            &[&LOCK_CLASS, &slot],
        )
        .await
        .map_err(failed)?
        .get(0);
    if locked {
        return Ok(());
    }
    let holder = client
        .query_opt(
            "SELECT l.pid, coalesce(a.application_name, ''), a.client_addr::text
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
               AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
               AND l.classid::int8 = $1::int4::int8 AND l.objid = pg_catalog.hashtext($2)::bit(32)::int8::oid
             LIMIT 1",
            &[&LOCK_CLASS, &slot],
        )
        .await
        .map_err(failed)?
        .map(|row| Holder {
            pid: row.get(0),
            application: row.get(1),
            address: row.get(2),
        });
    Err(AgentError::Busy {
        slot: slot.to_owned(),
        holder,
    })
}
