//! The daemon's second connection: its bookkeeping rows, and the commands that people write for it.
//!
//! Separate from the sink's, so that a report or a command never waits for a long transaction, and so that what it
//! reads is committed. It writes no synchronised row.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::checkpoint::{Checkpoint, Gap, SourceIdentity, StoredCheckpoint};
use super::connect;
use super::error::AgentError;
use super::segment::{CopyPhase, TableProgress, TableState};
use crate::change::{Key, TableName};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;

/// The channel by which a command wakes the daemon.
const CHANNEL: &str = "twinlog";

/// A parked key that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedKey {
    /// Its table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// How often it was tried.
    pub attempts: i32,
    /// The SQLSTATE of the last refusal, or `TW…`.
    pub reason: String,
}

/// Something that a person asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Its number, by which the asker follows it.
    pub id: i64,
    /// What (`resync`).
    pub kind: String,
    /// With what.
    pub arguments: serde_json::Value,
    /// How far it is.
    pub state: CommandState,
    /// Figures for the asker.
    pub progress: serde_json::Value,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandState {
    /// Written by the command line.
    Requested,
    /// Taken by the daemon.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
}

impl CommandState {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Requested, Self::Running, Self::Done, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// The daemon's word about itself, for `twinlog status`.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonReport {
    /// This process.
    pub instance: Uuid,
    /// Its host.
    pub hostname: String,
    /// Its process id.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: OffsetDateTime,
    /// connecting, copying, streaming, held, gap, stopped.
    pub state: String,
    /// Why, where that needs a word.
    pub detail: Option<String>,
    /// Figures.
    pub report: serde_json::Value,
}

/// The daemon's second connection.
#[derive(Debug)]
pub struct Control {
    pub(super) client: Client,
    pub(super) slot: String,
    notified: Arc<Notify>,
}

const TABLE_COLUMNS: &str = "schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated, condition, \
                             command_id, detail, started_at, finished_at, copied_at_lsn::text";

/// Keys of a table that is not synchronised any more would stay due for ever, and take the place of others.
const SYNCHRONISED: &str = "EXISTS (SELECT FROM twinlog.tables t WHERE t.slot = f.slot \
                            AND t.schema_name = f.schema_name AND t.table_name = f.table_name)";

/// Upserts a row of `twinlog.tables`; shared with the sink, which writes it beside the rows.
pub(super) const SAVE_TABLE: &str = "
INSERT INTO twinlog.tables (slot, schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated,
    condition, command_id, detail, started_at, finished_at, copied_at_lsn)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::text::pg_lsn)
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET
    state = EXCLUDED.state, phase = EXCLUDED.phase, last_key = EXCLUDED.last_key,
    rows_copied = EXCLUDED.rows_copied, rows_estimated = EXCLUDED.rows_estimated, condition = EXCLUDED.condition,
    command_id = EXCLUDED.command_id, detail = EXCLUDED.detail, started_at = EXCLUDED.started_at,
    finished_at = EXCLUDED.finished_at, copied_at_lsn = EXCLUDED.copied_at_lsn";

/// Runs [`SAVE_TABLE`] on a connection.
pub(super) async fn save_table(client: &Client, slot: &str, progress: &TableProgress) -> Result<(), AgentError> {
    client
        .execute(
            SAVE_TABLE,
            &[
                &slot,
                &&*progress.table.schema,
                &&*progress.table.name,
                &progress.state.as_str(),
                &progress.phase.map(CopyPhase::as_str),
                &progress.last_key.as_ref().map(Key::to_json),
                &progress.rows_copied,
                &progress.rows_estimated,
                &progress.condition,
                &progress.command_id,
                &progress.detail,
                &progress.started_at,
                &progress.finished_at,
                &progress.copied_at_lsn.map(|lsn| lsn.to_string()),
            ],
        )
        .await
        .map_err(|source| AgentError::from_driver("remember a table's state", None, source))?;
    Ok(())
}

/// The checkpoint's columns, as [`stored_checkpoint`] reads them.
pub(super) const CHECKPOINT_COLUMNS: &str = "publication, system_identifier, timeline, database, end_lsn::text, \
                                             source_commit_at, gap_reason, gap_since, updated_at, slot";

/// Reads a row of [`CHECKPOINT_COLUMNS`].
pub(super) fn stored_checkpoint(row: &Row) -> Result<StoredCheckpoint, AgentError> {
    let unreadable = || AgentError::Unreadable { what: "the checkpoint" };
    let reason: Option<String> = row.get(6);
    let since: Option<OffsetDateTime> = row.get(7);
    let updated_at: OffsetDateTime = row.get(8);
    Ok(StoredCheckpoint {
        checkpoint: Checkpoint {
            identity: SourceIdentity {
                publication: row.get(0),
                system_identifier: row.get(1),
                timeline: u32::try_from(row.get::<_, i32>(2)).map_err(|_| unreadable())?,
                database: row.get(3),
                slot: row.get(9),
            },
            end_lsn: row.get::<_, &str>(4).parse().map_err(|_| unreadable())?,
            source_commit_at: row.get(5),
        },
        gap: reason.map(|reason| Gap {
            reason,
            since: since.unwrap_or(updated_at),
        }),
        updated_at,
    })
}

fn table_progress(row: &Row) -> Result<TableProgress, AgentError> {
    let unreadable = || AgentError::Unreadable {
        what: "a table's state",
    };
    let phase: Option<&str> = row.get(3);
    let last_key: Option<&str> = row.get(4);
    let lsn: Option<&str> = row.get(12);
    Ok(TableProgress {
        table: TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
        state: TableState::parse(row.get(2)).ok_or_else(unreadable)?,
        phase: phase
            .map(|text| CopyPhase::parse(text).ok_or_else(unreadable))
            .transpose()?,
        last_key: last_key
            .map(|text| Key::from_json(text).ok_or_else(unreadable))
            .transpose()?,
        rows_copied: row.get(5),
        rows_estimated: row.get(6),
        condition: row.get(7),
        command_id: row.get(8),
        detail: row.get(9),
        started_at: row.get(10),
        finished_at: row.get(11),
        copied_at_lsn: lsn
            .map(|text| text.parse::<Lsn>().map_err(|_| unreadable()))
            .transpose()?,
    })
}

fn command(row: &Row) -> Result<Command, AgentError> {
    Ok(Command {
        id: row.get(0),
        kind: row.get(1),
        arguments: row.get(2),
        state: CommandState::parse(row.get(3)).ok_or(AgentError::Unreadable { what: "a command" })?,
        progress: row.get(4),
    })
}

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> AgentError {
    move |source| AgentError::from_driver(action, None, source)
}

impl Control {
    /// Opens the connection and listens for commands.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl, slot: &str, application_name: &str) -> Result<Self, AgentError> {
        let notified = Arc::new(Notify::new());
        let (client, _) = connect::open(url, application_name, Some(Arc::clone(&notified))).await?;
        client
            .batch_execute(&format!("LISTEN {CHANNEL}"))
            .await
            .map_err(failed("listen for commands"))?;
        Ok(Self {
            client,
            slot: slot.to_owned(),
            notified,
        })
    }

    /// Waits until somebody notifies the daemon (`NOTIFY twinlog`) or the connection ends. A notification that came while
    /// nobody waited is not lost. Can be dropped and called again. Returns at once on a connection that has ended, so look
    /// at [`Control::is_closed`].
    pub async fn notified(&self) {
        if !self.is_closed() {
            self.notified.notified().await;
        }
    }

    /// Whether the connection has ended: open another one.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Parked keys of tables that are synchronised and whose time has come, the longest waiting first, at most `limit`.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn due_failed_rows(&self, limit: u32) -> Result<Vec<FailedKey>, AgentError> {
        let rows = self
            .client
            .query(
                &format!(
                    "SELECT schema_name, table_name, key, attempts, reason FROM twinlog.failed_rows f
                     WHERE slot = $1 AND next_attempt_at <= now() AND {SYNCHRONISED}
                     ORDER BY next_attempt_at, id LIMIT $2"
                ),
                &[&self.slot, &i64::from(limit)],
            )
            .await
            .map_err(failed("read the failed rows that are due"))?;
        rows.iter()
            .map(|row| {
                Ok(FailedKey {
                    table: TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
                    key: Key::from_json(row.get(2)).ok_or(AgentError::Unreadable {
                        what: "a failed row's key",
                    })?,
                    attempts: row.get(3),
                    reason: row.get(4),
                })
            })
            .collect()
    }

    /// How long until the next parked key is due: `None` where nothing is parked, zero where one is due already.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn next_failed_row_due(&self) -> Result<Option<std::time::Duration>, AgentError> {
        let row = self
            .client
            .query_one(
                &format!(
                    "SELECT extract(epoch FROM min(next_attempt_at) - now())::float8 FROM twinlog.failed_rows f
                     WHERE slot = $1 AND {SYNCHRONISED}"
                ),
                &[&self.slot],
            )
            .await
            .map_err(failed("read when a failed row is due"))?;
        Ok(row.get::<_, Option<f64>>(0).map(|seconds| {
            std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(std::time::Duration::MAX)
        }))
    }

    /// How many rows are parked, by table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn failed_counts(&self) -> Result<Vec<(TableName, u64)>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, count(*) FROM twinlog.failed_rows WHERE slot = $1
                 GROUP BY 1, 2 ORDER BY 1, 2",
                &[&self.slot],
            )
            .await
            .map_err(failed("count the failed rows"))?;
        Ok(rows
            .iter()
            .map(|row| {
                (
                    TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
                    u64::try_from(row.get::<_, i64>(2)).unwrap_or_default(),
                )
            })
            .collect())
    }

    /// Every table that the daemon knows, and what it is doing.
    ///
    /// # Errors
    /// The statement's or the connection's; [`AgentError::Unreadable`] where a row was written by something else.
    pub async fn tables(&self) -> Result<Vec<TableProgress>, AgentError> {
        let query = format!("SELECT {TABLE_COLUMNS} FROM twinlog.tables WHERE slot = $1 ORDER BY 1, 2");
        let rows = self
            .client
            .query(&query, &[&self.slot])
            .await
            .map_err(failed("read the tables' states"))?;
        rows.iter().map(table_progress).collect()
    }

    /// Remembers what a table is doing. A copy's progress goes through the sink instead, beside its rows.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn save_table(&self, progress: &TableProgress) -> Result<(), AgentError> {
        Box::pin(save_table(&self.client, &self.slot, progress)).await
    }

    /// Forgets a table that is not synchronised any more.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn forget_table(&self, table: &TableName) -> Result<(), AgentError> {
        self.client
            .execute(
                "DELETE FROM twinlog.tables WHERE slot = $1 AND schema_name = $2 AND table_name = $3",
                &[&self.slot, &&*table.schema, &&*table.name],
            )
            .await
            .map_err(failed("forget a table"))?;
        Ok(())
    }

    /// The committed checkpoint as it is visible now, durable or not: to show, never to acknowledge.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn visible_checkpoint(&self) -> Result<Option<StoredCheckpoint>, AgentError> {
        let query = format!("SELECT {CHECKPOINT_COLUMNS} FROM twinlog.checkpoint WHERE slot = $1");
        let row = self
            .client
            .query_opt(&query, &[&self.slot])
            .await
            .map_err(failed("read the checkpoint"))?;
        row.as_ref().map(stored_checkpoint).transpose()
    }

    /// Commands that are not ended, in order: those left running by a daemon before this one come first.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn open_commands(&self) -> Result<Vec<Command>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT id, kind, arguments, state, progress FROM twinlog.commands
                 WHERE slot = $1 AND state IN ('requested', 'running') ORDER BY id",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the commands"))?;
        rows.iter().map(command).collect()
    }

    /// Writes a command for the daemon and wakes it; returns its number.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn request(&self, kind: &str, arguments: &serde_json::Value) -> Result<i64, AgentError> {
        let row = self
            .client
            .query_one(
                "WITH command AS (
                     INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ($1, $2, $3) RETURNING id
                 ) SELECT id, pg_catalog.pg_notify('twinlog', '') IS NULL FROM command",
                &[&self.slot, &kind, arguments],
            )
            .await
            .map_err(failed("write the command"))?;
        Ok(row.get(0))
    }

    /// One command, whatever its state, with its error; `None` where there is no such number.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn command(&self, id: i64) -> Result<Option<(Command, Option<String>)>, AgentError> {
        let row = self
            .client
            .query_opt(
                "SELECT id, kind, arguments, state, progress, error FROM twinlog.commands WHERE slot = $1 AND id = $2",
                &[&self.slot, &id],
            )
            .await
            .map_err(failed("read the command"))?;
        row.as_ref().map(|row| Ok((command(row)?, row.get(5)))).transpose()
    }

    /// Says how far a command is; it counts as running from now on.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn command_progress(&self, id: i64, progress: &serde_json::Value) -> Result<(), AgentError> {
        self.client
            .execute(
                "UPDATE twinlog.commands SET state = 'running', progress = $3, started_at = coalesce(started_at, now())
                 WHERE slot = $1 AND id = $2 AND state IN ('requested', 'running')",
                &[&self.slot, &id, progress],
            )
            .await
            .map_err(failed("report a command's progress"))?;
        Ok(())
    }

    /// Ends a command: well, or with what went wrong.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn finish_command(&self, id: i64, outcome: Result<(), &str>) -> Result<(), AgentError> {
        let state = if outcome.is_ok() {
            CommandState::Done
        } else {
            CommandState::Failed
        };
        self.client
            .execute(
                "UPDATE twinlog.commands SET state = $3, error = $4, started_at = coalesce(started_at, now()),
                     finished_at = now()
                 WHERE slot = $1 AND id = $2",
                &[&self.slot, &id, &state.as_str(), &outcome.err()],
            )
            .await
            .map_err(failed("end a command"))?;
        Ok(())
    }

    /// Writes the daemon's word about itself.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn report(&self, report: &DaemonReport) -> Result<(), AgentError> {
        self.client
            .execute(
                "INSERT INTO twinlog.daemon
                     (slot, instance, hostname, pid, version, started_at, reported_at, state, detail, report)
                 VALUES ($1, $2, $3, $4, $5, $6, now(), $7, $8, $9)
                 ON CONFLICT (slot) DO UPDATE SET instance = EXCLUDED.instance, hostname = EXCLUDED.hostname,
                     pid = EXCLUDED.pid, version = EXCLUDED.version, started_at = EXCLUDED.started_at,
                     reported_at = EXCLUDED.reported_at, state = EXCLUDED.state, detail = EXCLUDED.detail,
                     report = EXCLUDED.report",
                &[
                    &self.slot,
                    &report.instance,
                    &report.hostname,
                    &report.pid,
                    &report.version,
                    &report.started_at,
                    &report.state,
                    &report.detail,
                    &report.report,
                ],
            )
            .await
            .map_err(failed("report the daemon's state"))?;
        Ok(())
    }
}
