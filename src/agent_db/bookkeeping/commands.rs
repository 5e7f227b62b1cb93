//! `twinlog.commands`: what people ask a running daemon to do, and how far it is.

use tokio_postgres::Row;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;

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

impl Command {
    fn from_row(row: &Row) -> Result<Self, AgentError> {
        Ok(Self {
            id: row.get("id"),
            kind: row.get("kind"),
            arguments: row.get("arguments"),
            state: CommandState::parse(row.get("state")).ok_or(AgentError::Unreadable { what: "a command" })?,
            progress: row.get("progress"),
        })
    }
}

impl Control {
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
        rows.iter().map(Command::from_row).collect()
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
                 ) SELECT id, pg_catalog.pg_notify('twinlog', '') IS NULL AS notified FROM command",
                &[&self.slot, &kind, arguments],
            )
            .await
            .map_err(failed("write the command"))?;
        Ok(row.get("id"))
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
        row.as_ref()
            .map(|row| Ok((Command::from_row(row)?, row.get("error"))))
            .transpose()
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
}
