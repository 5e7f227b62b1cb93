//! Serves the commands that `twinlog resync` writes into `twinlog.commands`: starts them, updates their progress, ends
//! them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use time::OffsetDateTime;
use tracing::info;

use crate::agent_db::{
    Command, CommandKind, Control, Resync, ResyncArguments, ResyncProgress, ResyncedState, ResyncedTable, TableRecord,
    TableRecords, TableState,
};
use crate::change::TableName;
use crate::metrics;
use crate::postgres::{Condition, ConditionError};
use crate::source::SourceTable;

use super::error::SyncError;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// Serves the open commands. Has no state of its own: all of a command's state is in its row, so it survives a restart.
pub(super) struct ResyncCommands {
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) requests: StreamRequests,
    pub(super) status: Arc<SyncStatus>,
}

impl ResyncCommands {
    /// Does the next step of every open command. `records`: the tables' committed states; `running`: the tables that
    /// are being copied.
    pub(super) async fn serve(
        &self,
        control: &Control,
        records: &TableRecords,
        running: &HashSet<TableName>,
    ) -> Result<(), SyncError> {
        // Tables that an earlier command still waits for. Without this, two commands for the same table would restart
        // its copy in turn, for ever.
        let mut claimed: HashSet<TableName> = HashSet::new();
        for command in control.open_commands().await? {
            let served = match command.kind {
                Ok(CommandKind::Resync(resync)) => {
                    self.serve_resync(control, records, running, &mut claimed, command.id, resync)
                        .await?
                }
                // Served by `verify`.
                Ok(CommandKind::Verify(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = served {
                control.finish_command(command.id, Err(&error)).await?;
            }
        }
        Ok(())
    }

    /// Does the next step of one command.
    ///
    /// # Errors
    /// The inner error: the command can never succeed, and ends with this text.
    async fn serve_resync(
        &self,
        control: &Control,
        records: &TableRecords,
        running: &HashSet<TableName>,
        claimed: &mut HashSet<TableName>,
        command: i64,
        mut resync: Resync,
    ) -> Result<Result<(), String>, SyncError> {
        let wanted = named(&self.tables, resync.arguments.all, &resync.arguments.tables).and_then(|wanted| {
            self.check_condition(&wanted, resync.arguments.condition.as_deref())
                .map_err(|error| format!("{error}: {}", error.hint()))?;
            Ok(wanted)
        });
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => return Ok(Err(error)),
        };
        let copied = control.copied_rows().await?;
        let mut all_finished = true;
        let mut shown = Vec::new();
        for record in records.values().filter(|record| wanted.contains(&record.table)) {
            let copied = copied.get(&record.table).copied().unwrap_or(0);
            let mut table = progress_of(command, &resync.progress, record, copied);
            let finished = table.state == ResyncedState::Streaming;
            all_finished &= finished;
            // A copy that is already running does not count, since it began before the command: wait for its end, then
            // read the table again.
            let free = !claimed.contains(&record.table) && !running.contains(&record.table);
            if !finished && record.command_id != Some(command) && record.state == TableState::Streaming && free {
                let event = TableEvent::ResyncAsked {
                    command,
                    condition: resync.arguments.condition.clone(),
                };
                // If the state has changed meanwhile and does not accept the event, the next step sees the new state.
                let _ = self.requests.table(&record.table, event).await?;
                table.copied_before = Some(copied);
            }
            if !finished {
                claimed.insert(record.table.clone());
            }
            shown.push(table);
        }
        let is_complete = resync.arguments.is_complete();
        resync.progress.tables = shown;
        control.command_progress(command, &CommandKind::Resync(resync)).await?;
        if all_finished && is_complete {
            let gap = control.visible_checkpoint().await?.and_then(|stored| stored.gap);
            // The command ends in the same transaction.
            if self.requests.clear_gap(command).await? {
                self.status.set_gap(None);
                match gap {
                    Some(gap) => {
                        let took = (OffsetDateTime::now_utc() - gap.since).as_seconds_f64().max(0.0);
                        metrics::set_gap_recovery(took);
                        info!(
                            command,
                            seconds = took,
                            reason = %gap.reason,
                            "resync done: the gap is closed"
                        );
                    }
                    None => info!(command, "resync done"),
                }
            }
        } else if all_finished {
            info!(command, "resync done");
            control.finish_command(command, Ok(())).await?;
        }
        Ok(Ok(()))
    }

    /// Whether the condition is one for each of the tables. (Whoever wrote the command may not have checked it.)
    fn check_condition(&self, tables: &HashSet<TableName>, condition: Option<&str>) -> Result<(), ConditionError> {
        let Some(condition) = condition else { return Ok(()) };
        let condition: Condition = condition.parse()?;
        for table in tables.iter().filter_map(|table| self.tables.get(table)) {
            table.condition(&condition)?;
        }
        Ok(())
    }
}

/// The tables that a command names, of those that are synchronised.
pub(super) fn named(
    tables: &BTreeMap<TableName, SourceTable>,
    all: bool,
    names: &[String],
) -> Result<HashSet<TableName>, String> {
    if all {
        return Ok(tables.keys().cloned().collect());
    }
    if names.is_empty() {
        return Err("the command names no table: name at least one, or use --all".to_owned());
    }
    names
        .iter()
        .map(|name| {
            // A name without a schema means the schema public.
            let full = if name.contains('.') {
                name.clone()
            } else {
                format!("public.{name}")
            };
            tables
                .keys()
                .find(|table| table.to_string() == full)
                .cloned()
                .ok_or_else(|| format!("table {full} is not synchronised: see twinlog status"))
        })
        .collect()
}

/// Asks for a complete resync, unless somebody has.
pub(super) async fn ask_for_all(control: &Control) -> Result<(), SyncError> {
    let is_asked = control
        .open_commands()
        .await?
        .into_iter()
        .any(|command| complete_resync(command).is_some());
    if !is_asked {
        let all = ResyncArguments {
            all: true,
            ..ResyncArguments::default()
        };
        let command = control.request(&CommandKind::resync(all)).await?;
        info!(
            command,
            "the slot is lost: every table is read again, as sync.on_lost_slot says"
        );
    }
    Ok(())
}

/// The id and the content of the command if it is a complete resync (`--all` without a condition), after which no row
/// of the Site DB can be missing.
pub(super) fn complete_resync(command: Command) -> Option<(i64, Resync)> {
    let CommandKind::Resync(resync) = command.kind.ok()? else {
        return None;
    };
    resync.arguments.is_complete().then_some((command.id, resync))
}

/// A table in a command's progress. Once it is read for this command it counts as done, even if a later command reads
/// it again. `copied`: rows that copies have changed in the table so far.
fn progress_of(command: i64, before: &ResyncProgress, record: &TableRecord, copied: i64) -> ResyncedTable {
    let before = before.table(&record.table);
    let is_ours = record.command_id == Some(command);
    let is_finished = before.is_some_and(|before| before.state == ResyncedState::Streaming)
        || (is_ours && record.state == TableState::Streaming);
    let copied_before = before.and_then(|before| before.copied_before);
    let changed = before.and_then(|before| before.changed);
    ResyncedTable {
        changed: if is_finished {
            changed.or(copied_before.map(|before| copied - before))
        } else {
            None
        },
        // A first copy that is under way, or a resync after a gap, began no earlier than the command is first seen.
        copied_before: copied_before.or(Some(copied)),
        table: record.table.to_string(),
        state: match record.state {
            _ if is_finished => ResyncedState::Streaming,
            TableState::New if is_ours => ResyncedState::New,
            TableState::Copying if is_ours => ResyncedState::Copying,
            TableState::Resyncing if is_ours => ResyncedState::Resyncing,
            _ => ResyncedState::Waiting,
        },
        rows: if is_ours {
            record.rows_copied
        } else {
            before.map_or(0, |before| before.rows)
        },
        estimated: record.rows_estimated,
    }
}
