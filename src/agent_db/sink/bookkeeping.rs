//! The checkpoint's and the accounting's statements: prepared once, as every commit needs them in one round trip.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Statement};

use crate::agent_db::checkpoint::Checkpoint;
use crate::agent_db::error::AgentError;
use crate::agent_db::segment::Tally;
use crate::change::TableName;

#[derive(Debug)]
pub(super) struct Bookkeeping {
    pub checkpoint: Statement,
    pub accounting: Statement,
}

const CHECKPOINT: &str = "
INSERT INTO twinlog.checkpoint (slot, publication, system_identifier, timeline, database, end_lsn, source_commit_at)
VALUES ($1, $2, $3, $4, $5, $6::text::pg_lsn, $7)
ON CONFLICT (slot) DO UPDATE SET publication = EXCLUDED.publication, system_identifier = EXCLUDED.system_identifier,
    timeline = EXCLUDED.timeline, database = EXCLUDED.database, end_lsn = EXCLUDED.end_lsn,
    source_commit_at = EXCLUDED.source_commit_at, updated_at = clock_timestamp()";

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
