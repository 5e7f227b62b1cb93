//! What people ask for with `twinlog resync`: started, followed and ended through `twinlog.commands`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tracing::info;

use crate::agent_db::{Command, Control, TableRecord, TableRecords, TableState};
use crate::change::TableName;
use crate::source::SourceTable;

use super::error::SyncError;
use super::status::sync_status::SyncStatus;
use super::stream::requests::StreamRequests;
use super::tables::life::TableEvent;

/// What a command's progress says of a table that was read for it.
const FINISHED: &str = "streaming";

/// Serves the open commands. Holds nothing: all of a command's state is in its row.
pub(super) struct ResyncCommands {
    pub(super) tables: Arc<BTreeMap<TableName, SourceTable>>,
    pub(super) requests: StreamRequests,
    pub(super) status: Arc<SyncStatus>,
}

impl ResyncCommands {
    /// Moves every open command on, given the tables' committed states and the tables that are being copied.
    pub(super) async fn serve(
        &self,
        control: &Control,
        records: &TableRecords,
        running: &HashSet<TableName>,
    ) -> Result<(), SyncError> {
        // Tables that an earlier command waits for. Commands are served in order, or two of them would take a table from
        // each other for ever.
        let mut claimed: HashSet<TableName> = HashSet::new();
        for command in control.open_commands().await? {
            let wanted = match self.wanted(&command) {
                Ok(wanted) => wanted,
                Err(error) => {
                    control.finish_command(command.id, Err(&error)).await?;
                    continue;
                }
            };
            let mut all_finished = true;
            let mut shown = Vec::new();
            for record in records.values().filter(|record| wanted.contains(&record.table)) {
                let finished = is_finished(&command, record);
                all_finished &= finished;
                shown.push(progress_of(&command, record, finished));
                // A table that is being copied now is read again afterwards: what was asked for is a whole new read.
                let free = !claimed.contains(&record.table) && !running.contains(&record.table);
                if !finished && record.command_id != Some(command.id) && record.state == TableState::Streaming && free {
                    let event = TableEvent::ResyncAsked {
                        command: command.id,
                        condition: condition(&command),
                    };
                    // A state that does not take it has changed meanwhile: it is looked at again.
                    let _ = self.requests.table(&record.table, event).await?;
                }
                if !finished {
                    claimed.insert(record.table.clone());
                }
            }
            if all_finished && is_of_all(&command) {
                self.requests.clear_gap().await?;
                self.status.set_gap(None);
            }
            control
                .command_progress(command.id, &json!({ "tables": shown }))
                .await?;
            if all_finished {
                info!(command = command.id, "resync done");
                control.finish_command(command.id, Ok(())).await?;
            }
        }
        Ok(())
    }

    /// The tables that a command means.
    fn wanted(&self, command: &Command) -> Result<HashSet<TableName>, String> {
        if names_all(command) {
            return Ok(self.tables.keys().cloned().collect());
        }
        let names: Vec<&str> = command
            .arguments
            .get("tables")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
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

/// Whether a command is a `resync --all` without a condition: after it, nothing of the Site DB is missing.
pub(super) fn is_of_all(command: &Command) -> bool {
    command.kind == "resync" && names_all(command) && condition(command).is_none()
}

fn names_all(command: &Command) -> bool {
    command.arguments.get("all").and_then(Value::as_bool) == Some(true)
}

fn condition(command: &Command) -> Option<String> {
    command
        .arguments
        .get("where")
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// Whether a table was read for a command. It stays so, whatever reads the table next.
fn is_finished(command: &Command, record: &TableRecord) -> bool {
    let is_ours = record.command_id == Some(command.id);
    shown(command, &record.table).is_some_and(|shown| shown["state"] == FINISHED)
        || (is_ours && record.state == TableState::Streaming)
}

/// A table in a command's progress.
fn progress_of(command: &Command, record: &TableRecord, finished: bool) -> Value {
    let is_ours = record.command_id == Some(command.id);
    let state = match (finished, is_ours) {
        (true, _) => FINISHED,
        (false, true) => record.state.as_str(),
        (false, false) => "waiting",
    };
    let rows = if is_ours {
        record.rows_copied
    } else {
        shown(command, &record.table)
            .and_then(|shown| shown["rows"].as_i64())
            .unwrap_or(0)
    };
    json!({
        "table": record.table.to_string(),
        "state": state,
        "rows": rows,
        "estimated": record.rows_estimated,
    })
}

/// What a command's progress says of a table.
fn shown<'a>(command: &'a Command, table: &TableName) -> Option<&'a Value> {
    let name = table.to_string();
    let tables = command.progress.get("tables")?.as_array()?;
    tables.iter().find(|shown| shown["table"] == *name)
}
