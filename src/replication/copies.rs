//! When to copy: new tables, copies that a restart interrupted, and what people ask for with `twinlog resync`.
//!
//! One task decides, so that a table is never copied twice at a time; the copies themselves run beside each other, a few
//! at a time. All of its state is in `twinlog.tables` and `twinlog.commands`: a restart goes on where it was.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent_db::{AgentError, Command, Control, TableProgress, TableState};
use crate::change::{Relation, TableName};
use crate::config::Config;
use crate::copy::{ChunkReader, ChunkRegistry, CopyError};
use crate::postgres::{self, Side};
use crate::retry::{Disposition, backoff};
use crate::shutdown;
use crate::source::visibility::{Visibility, wait_for_running_transactions};
use crate::source::{Source, SourceTable};

use super::error::SyncError;
use super::status::sync_status::SyncStatus;
use super::stream::stream_loop::Request;

/// How often the tables' states are read; commands come sooner, by notification.
const TICK: Duration = Duration::from_secs(1);

/// First and longest wait before a copy that failed is tried again: an attempt is one connection and one chunk, and
/// whoever has mended what it waited for looks on.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What the copies of one run share.
pub(super) struct Copies {
    pub(super) config: Arc<Config>,
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) chunks: ChunkRegistry,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) view: Arc<SyncStatus>,
    /// The slot was created in this run: transactions that ran before it have ended, and new tables need not wait.
    pub(super) fresh_slot: bool,
    pub(super) visibility: Arc<Visibility>,
}

/// Asks the pipeline how a table looks in the Agent DB.
pub(super) async fn describe(
    requests: &mpsc::Sender<Request>,
    table: &SourceTable,
) -> Result<Arc<Relation>, SyncError> {
    let (reply, answer) = oneshot::channel();
    requests
        .send(Request::Describe(table.describe(), reply))
        .await
        .map_err(|_| CopyError::StreamEnded)?;
    Ok(answer.await.map_err(|_| CopyError::StreamEnded)??)
}

impl Copies {
    /// Decides and copies until it is stopped.
    pub(super) async fn run(self, control: Control, stop: &CancellationToken) -> Result<(), SyncError> {
        let copies = Arc::new(self);
        let permits = Arc::new(Semaphore::new(copies.config.sync.copy_workers));
        let mut running: HashSet<TableName> = HashSet::new();
        let mut tasks: JoinSet<TableName> = JoinSet::new();
        loop {
            let progress = control.tables().await?;
            copies.serve_commands(&control, &progress, &running).await?;
            let progress = control.tables().await?;
            let unfinished = progress.iter().filter(|table| {
                matches!(
                    table.state,
                    TableState::New | TableState::Copying | TableState::Resyncing
                )
            });
            let (mut copying, mut held) = (false, None);
            for table in unfinished {
                copying |= table.state != TableState::Resyncing;
                if let (None, Some(reason)) = (&held, &table.detail) {
                    held = Some(format!("the copy of table {} is held: {reason}", table.table));
                }
                let Some(source) = copies.tables.get(&table.table) else {
                    continue;
                };
                if running.insert(table.table.clone()) {
                    let (copies, permits) = (Arc::clone(&copies), Arc::clone(&permits));
                    let (source, table, stop) = (source.clone(), table.clone(), stop.clone());
                    tasks.spawn(async move {
                        let name = table.table.clone();
                        if let Ok(_permit) = permits.acquire().await {
                            Box::pin(copies.until_copied(&source, table, &stop)).await;
                        }
                        name
                    });
                }
            }
            copies.view.set_flowing(copying, held);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Ok(table) = ended {
                        running.remove(&table);
                    } else {
                        // A panic in a copy: the run ends, and the next one goes on where the copy was.
                        return Err(CopyError::StreamEnded.into());
                    }
                }
                () = control.notified() => if control.is_closed() {
                    return Err(AgentError::Aborted.into());
                },
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Copies one table, however often it takes.
    async fn until_copied(&self, source: &SourceTable, mut progress: TableProgress, stop: &CancellationToken) {
        let mut attempt = 0;
        loop {
            let error = match Box::pin(self.copy(source, progress.clone(), stop)).await {
                Ok(()) => return,
                Err(SyncError::Copy(CopyError::StreamEnded)) => return,
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return;
            }
            attempt += 1;
            let reason = error.explain();
            // A condition that a database does not take is its author's fault: he waits for the word.
            if progress.condition.is_some()
                && error.disposition() != Disposition::Transient
                && self.give_up(&progress, &reason).await.is_ok()
            {
                warn!(table = %source.table, %reason, "resync with a condition given up");
                return;
            }
            let mut detail = None;
            match error.disposition() {
                Disposition::Transient => {
                    info!(table = %source.table, attempt, %reason, "copy interrupted, tried again")
                }
                _ => {
                    warn!(table = %source.table, attempt, %reason, "copy held until somebody acts, tried again");
                    detail = Some(reason);
                }
            }
            // Where the copy is now, and why it waits, for people to see; the next chunk takes the word away.
            if let Ok(control) = Control::connect(&self.config.agent.url, &self.config.sync.slot, "twinlog copy").await
                && let Ok(tables) = control.tables().await
                && let Some(now) = tables.into_iter().find(|table| table.table == source.table)
            {
                progress = TableProgress { detail: None, ..now };
                let shown = TableProgress {
                    detail,
                    ..progress.clone()
                };
                // Only for show: the copy's own writes go through the sink.
                let _ = control.save_table(&shown).await;
            }
            if !shutdown::sleep(backoff(attempt, RETRY.0, RETRY.1), stop).await {
                return;
            }
        }
    }

    /// Ends a resync that cannot succeed as it was asked for. What it has mended stays; the table goes on streaming.
    async fn give_up(&self, progress: &TableProgress, reason: &str) -> Result<(), AgentError> {
        let control = Control::connect(&self.config.agent.url, &self.config.sync.slot, "twinlog copy").await?;
        if let Some(command) = progress.command_id {
            control.finish_command(command, Err(reason)).await?;
        }
        let mut now = TableProgress::new(progress.table.clone());
        now.state = TableState::Streaming;
        Box::pin(control.save_table(&now)).await
    }

    async fn copy(
        &self,
        table: &SourceTable,
        mut progress: TableProgress,
        stop: &CancellationToken,
    ) -> Result<(), SyncError> {
        let source = Source::connect(&self.config.site.url).await?;
        let agent = postgres::connect(Side::Agent, &self.config.agent.url, "twinlog copy")
            .await
            .map_err(AgentError::from)?;
        if progress.state == TableState::New {
            if !self.fresh_slot {
                let why = "the copy of a new table waits for older transactions of the Site DB to end";
                wait_for_running_transactions(source.client(), stop, why).await?;
            }
            progress.state = TableState::Copying;
        }
        let first = progress.state == TableState::Copying;
        self.visibility.wait(source.client(), stop).await?;
        let relation = describe(&self.requests, table).await?;
        info!(table = %table.table, state = progress.state.as_str(), "copy begins");
        let reader = ChunkReader {
            chunks: &self.chunks,
            source: &source,
            table,
            relation: &relation,
        };
        Box::pin(reader.copy(progress, &agent, self.config.sync.copy_chunk_rows)).await?;
        if first {
            let done = Request::Copying(table.table.clone(), false);
            self.requests.send(done).await.map_err(|_| CopyError::StreamEnded)?;
        }
        Ok(())
    }

    /// Starts, follows and ends what people asked for.
    async fn serve_commands(
        &self,
        control: &Control,
        progress: &[TableProgress],
        running: &HashSet<TableName>,
    ) -> Result<(), SyncError> {
        // Tables that an earlier command waits for: whoever came first is served first, or two commands would take them
        // from each other for ever.
        let mut claimed: HashSet<&TableName> = HashSet::new();
        for command in control.open_commands().await? {
            let wanted = match self.wanted(&command) {
                Ok(wanted) => wanted,
                Err(error) => {
                    control.finish_command(command.id, Err(&error)).await?;
                    continue;
                }
            };
            let condition = command
                .arguments
                .get("where")
                .and_then(|text| text.as_str())
                .map(str::to_owned);
            let mut done = true;
            let mut shown = Vec::new();
            for table in progress.iter().filter(|table| wanted.contains(&table.table)) {
                let ours = table.command_id == Some(command.id);
                let finished = has_finished(&command, &table.table) || (ours && table.state == TableState::Streaming);
                done &= finished;
                shown.push(serde_json::json!({
                    "table": table.table.to_string(),
                    "state": if finished { FINISHED } else if ours { table.state.as_str() } else { "waiting" },
                    "rows": if ours { table.rows_copied } else { rows_before(&command, &table.table) },
                    "estimated": table.rows_estimated,
                }));
                // A table that is being copied now is read again afterwards: what was asked for is a whole new read.
                let free = !claimed.contains(&table.table) && !running.contains(&table.table);
                if !finished && !ours && table.state == TableState::Streaming && free {
                    let mut next = TableProgress::new(table.table.clone());
                    next.state = TableState::Resyncing;
                    next.command_id = Some(command.id);
                    next.condition.clone_from(&condition);
                    control.save_table(&next).await?;
                }
                if !finished {
                    claimed.insert(&table.table);
                }
            }
            if done {
                info!(command = command.id, "resync done");
                if command.arguments.get("all").and_then(serde_json::Value::as_bool) == Some(true)
                    && condition.is_none()
                {
                    self.clear_gap().await?;
                }
                control
                    .command_progress(command.id, &serde_json::json!({ "tables": shown }))
                    .await?;
                control.finish_command(command.id, Ok(())).await?;
            } else {
                control
                    .command_progress(command.id, &serde_json::json!({ "tables": shown }))
                    .await?;
            }
        }
        Ok(())
    }

    async fn clear_gap(&self) -> Result<(), SyncError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::ClearGap(reply))
            .await
            .map_err(|_| CopyError::StreamEnded)?;
        answer.await.map_err(|_| CopyError::StreamEnded)??;
        self.view.set_gap(None);
        Ok(())
    }

    /// The tables that a command means.
    fn wanted(&self, command: &Command) -> Result<HashSet<TableName>, String> {
        if command.arguments.get("all").and_then(serde_json::Value::as_bool) == Some(true) {
            return Ok(self.tables.keys().cloned().collect());
        }
        let names: Vec<&str> = command
            .arguments
            .get("tables")
            .and_then(serde_json::Value::as_array)
            .map(|names| names.iter().filter_map(serde_json::Value::as_str).collect())
            .unwrap_or_default();
        if names.is_empty() {
            return Err("the command names no table".to_owned());
        }
        names
            .into_iter()
            .map(|name| {
                // Without a schema, public is meant, as in SQL.
                let full = if name.contains('.') {
                    name.to_owned()
                } else {
                    format!("public.{name}")
                };
                self.tables
                    .keys()
                    .find(|table| table.to_string() == full)
                    .cloned()
                    .ok_or_else(|| format!("table {full} is not synchronised: see twinlog status"))
            })
            .collect()
    }
}

/// The word in a command's progress for a table that was read for it.
const FINISHED: &str = "streaming";

/// What a command's progress says of a table: what was read for it stays read, whoever reads the table next.
fn shown<'a>(command: &'a Command, table: &TableName) -> Option<&'a serde_json::Value> {
    let name = table.to_string();
    let tables = command.progress.get("tables")?.as_array()?;
    tables.iter().find(|shown| shown["table"] == *name)
}

fn has_finished(command: &Command, table: &TableName) -> bool {
    shown(command, table).is_some_and(|shown| shown["state"] == FINISHED)
}

fn rows_before(command: &Command, table: &TableName) -> i64 {
    shown(command, table)
        .and_then(|shown| shown["rows"].as_i64())
        .unwrap_or(0)
}
