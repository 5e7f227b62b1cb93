//! `twinlog.checkpoint`: up to which position the Agent DB has everything, whose positions these are, and whether a gap is
//! possible.

use time::OffsetDateTime;
use tokio_postgres::{Client, Row, Statement};

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::lsn::Lsn;

/// Which log a position belongs to: positions of another cluster, timeline or database mean nothing (pitfall P3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The cluster's identifier, as `IDENTIFY_SYSTEM` prints it.
    pub system_identifier: String,
    /// Its timeline.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
    /// The database's OID, by which one that was dropped and made again under the same name is told; `None`: not known, as
    /// earlier versions did not keep it.
    pub database_oid: Option<u32>,
    /// The replication slot.
    pub slot: String,
    /// The publication that is read through it.
    pub publication: String,
}

impl SourceIdentity {
    /// The Site DB, whatever is read of it.
    #[must_use]
    pub fn site(&self) -> String {
        format!("{} of {}", self.database, self.system_identifier)
    }
}

/// The position up to which every effect is in the Agent DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log to which the position belongs.
    pub identity: SourceIdentity,
    /// The end of the last source transaction whose effects are all here (never a commit's start: pitfall P7).
    pub end_lsn: Lsn,
    /// When that transaction was committed, by the source's clock.
    pub source_commit_at: Option<OffsetDateTime>,
}

impl Checkpoint {
    /// A position without a transaction of its own, such as where a slot begins.
    #[must_use]
    pub fn at(identity: &SourceIdentity, end_lsn: Lsn) -> Self {
        Self {
            identity: identity.clone(),
            end_lsn,
            source_commit_at: None,
        }
    }
}

/// The checkpoint as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// The position and its identity.
    pub checkpoint: Checkpoint,
    /// Why rows may be missing, until a full resync is done; `None` is healthy.
    pub gap: Option<Gap>,
    /// When it was written, by the Agent DB's clock.
    pub updated_at: OffsetDateTime,
}

/// Rows may be missing, until a full resync is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What happened, for operators.
    pub reason: String,
    /// When it was first noticed, by the Agent DB's clock.
    pub since: OffsetDateTime,
}

/// The columns of [`StoredCheckpoint`].
const COLUMNS: &str = "slot, publication, system_identifier, timeline, database, database_oid, end_lsn, source_commit_at, \
                       gap_reason, gap_since, updated_at";

/// An idle stream's position has no commit of its own: that of the last transaction stays.
const SAVE: &str = "
INSERT INTO twinlog.checkpoint AS c (slot, publication, system_identifier, timeline, database, end_lsn, source_commit_at, database_oid)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (slot) DO UPDATE SET publication = EXCLUDED.publication, system_identifier = EXCLUDED.system_identifier,
    timeline = EXCLUDED.timeline, database = EXCLUDED.database, database_oid = EXCLUDED.database_oid, end_lsn = EXCLUDED.end_lsn,
    source_commit_at = CASE WHEN c.system_identifier OPERATOR(pg_catalog.=) EXCLUDED.system_identifier
        THEN coalesce(EXCLUDED.source_commit_at, c.source_commit_at) ELSE EXCLUDED.source_commit_at END,
    updated_at = pg_catalog.clock_timestamp()";

/// Writes the checkpoint, in whatever transaction is open.
pub(in crate::agent_db) async fn save(
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
                &checkpoint.end_lsn,
                &checkpoint.source_commit_at,
                &identity.database_oid,
            ],
        )
        .await
}

impl StoredCheckpoint {
    fn from_row(row: &Row) -> Result<Self, AgentError> {
        let unreadable = || AgentError::Unreadable { what: "the checkpoint" };
        let updated_at: OffsetDateTime = row.get("updated_at");
        Ok(Self {
            checkpoint: Checkpoint {
                identity: SourceIdentity {
                    publication: row.get("publication"),
                    system_identifier: row.get("system_identifier"),
                    timeline: u32::try_from(row.get::<_, i32>("timeline")).map_err(|_| unreadable())?,
                    database: row.get("database"),
                    database_oid: row.get("database_oid"),
                    slot: row.get("slot"),
                },
                end_lsn: row.get("end_lsn"),
                source_commit_at: row.get("source_commit_at"),
            },
            gap: row.get::<_, Option<String>>("gap_reason").map(|reason| Gap {
                reason,
                since: row.get::<_, Option<OffsetDateTime>>("gap_since").unwrap_or(updated_at),
            }),
            updated_at,
        })
    }
}

/// Prepares [`save`], which every commit needs.
pub(in crate::agent_db) async fn prepare(client: &Client) -> Result<Statement, AgentError> {
    client.prepare(SAVE).await.map_err(failed("prepare the bookkeeping"))
}

/// Reads the checkpoint with a synchronous commit, so that it is durable when this returns. Not within a transaction.
pub(in crate::agent_db) async fn make_durable(
    client: &Client,
    slot: &str,
) -> Result<Option<StoredCheckpoint>, AgentError> {
    // `updated_at` stays: it says up to when the Agent DB had everything, whatever is tried since.
    // The session's synchronous_commit is never off (see `connect`), so this returns after the flush.
    let sql =
        format!("UPDATE twinlog.checkpoint SET slot = slot WHERE slot OPERATOR(pg_catalog.=) $1 RETURNING {COLUMNS}");
    let row = client
        .query_opt(&sql, &[&slot])
        .await
        .map_err(failed("read the checkpoint"))?;
    row.as_ref().map(StoredCheckpoint::from_row).transpose()
}

/// Remembers that rows may be missing. The first reason stays until [`clear_gap`].
pub(in crate::agent_db) async fn set_gap(client: &Client, slot: &str, reason: &str) -> Result<(), AgentError> {
    client
        .execute(
            "UPDATE twinlog.checkpoint SET gap_reason = $2, gap_since = pg_catalog.clock_timestamp()
             WHERE slot OPERATOR(pg_catalog.=) $1 AND gap_reason IS NULL",
            &[&slot, &reason],
        )
        .await
        .map_err(failed("remember a gap"))?;
    Ok(())
}

/// Removes the stored gap and ends the full resync that proves that no row is missing, both or neither: one statement, in
/// whatever transaction is open. It looks itself whether every table is read, so that no memory of a daemon, and no crash
/// between two statements, can say so falsely. Returns whether it was done.
pub(in crate::agent_db) async fn clear_gap(client: &Client, slot: &str, command: i64) -> Result<bool, AgentError> {
    let ended = client
        .execute(
            "WITH ended AS (
                 UPDATE twinlog.commands SET state = 'done', started_at = coalesce(started_at, pg_catalog.now()),
                     finished_at = pg_catalog.now()
                 WHERE slot OPERATOR(pg_catalog.=) $1 AND id OPERATOR(pg_catalog.=) $2
                   AND (state OPERATOR(pg_catalog.=) 'requested' OR state OPERATOR(pg_catalog.=) 'running')
                   AND NOT EXISTS (SELECT FROM twinlog.tables t WHERE t.slot OPERATOR(pg_catalog.=) $1
                       AND (t.state OPERATOR(pg_catalog.=) 'new' OR t.state OPERATOR(pg_catalog.=) 'copying'
                           OR (t.state OPERATOR(pg_catalog.=) 'resyncing' AND t.command_id OPERATOR(pg_catalog.=) $2)))
                 RETURNING slot
             )
             UPDATE twinlog.checkpoint c SET gap_reason = NULL, gap_since = NULL FROM ended
             WHERE c.slot OPERATOR(pg_catalog.=) ended.slot",
            &[&slot, &command],
        )
        .await
        .map_err(failed("clear a gap"))?;
    Ok(ended > 0)
}

impl Control {
    /// The committed checkpoint as it is visible now, durable or not: to show, never to acknowledge.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn visible_checkpoint(&self) -> Result<Option<StoredCheckpoint>, AgentError> {
        let query = format!("SELECT {COLUMNS} FROM twinlog.checkpoint WHERE slot = $1");
        let row = self
            .client
            .query_opt(&query, &[&self.slot])
            .await
            .map_err(failed("read the checkpoint"))?;
        row.as_ref().map(StoredCheckpoint::from_row).transpose()
    }
}
