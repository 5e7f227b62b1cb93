//! The table `twinlog.commands` of the Agent DB: what an operator asks a running daemon to do (the command line writes the
//! row, `replication` serves it), and how far it is.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;

use super::control::{Control, failed};
use super::verifications::{Verify, VerifyArguments, VerifyProgress};
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// What people can ask for. Another kind needs another variant here and no migration: the database takes any kind, and
/// the daemon refuses those that it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandKind {
    /// Tables are read again.
    Resync(Resync),
    /// Tables are compared in both databases.
    Verify(Verify),
}

/// A `resync`: what was asked, and how far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resync {
    /// Written once, by who asks.
    pub arguments: ResyncArguments,
    /// Written by the daemon; empty until it begins.
    pub progress: ResyncProgress,
}

/// Which rows a `resync` reads again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResyncArguments {
    /// Those of every table that is synchronised; `tables` does not count then.
    pub all: bool,
    /// Those of these tables: `schema.table`, or a table of `public`, unquoted.
    pub tables: Vec<String>,
    /// Only those for which this SQL condition holds in the Site DB.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The Site DB that is meant, see [`SourceIdentity::site`]; `None` if who asked could not reach it.
    ///
    /// [`SourceIdentity::site`]: super::checkpoint::SourceIdentity::site
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

impl ResyncArguments {
    /// Whether every row of every table is read: after it, no row of the Site DB is missing.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.all && self.condition.is_none()
    }
}

/// How far a `resync` is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResyncProgress {
    /// The tables that are, or will be, read for it.
    pub tables: Vec<ResyncedTable>,
}

impl ResyncProgress {
    /// What it says of a table.
    #[must_use]
    pub fn table(&self, table: &TableName) -> Option<&ResyncedTable> {
        let name = table.to_string();
        self.tables.iter().find(|shown| shown.table == name)
    }

    /// Rows changed in the Agent DB, over all tables; `None` if that is not known of one.
    #[must_use]
    pub fn changed(&self) -> Option<i64> {
        self.tables.iter().map(|table| table.changed).sum()
    }

    /// Rows read so far, over all tables.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

/// One table of a `resync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncedTable {
    /// `schema.table`, unquoted.
    pub table: String,
    /// How far the table is, for this command.
    pub state: ResyncedState,
    /// Rows read for this command so far.
    pub rows: i64,
    /// Rows that were written or deleted for it in the Agent DB; `None` while it is not finished, or where that is not known.
    #[serde(default)]
    pub changed: Option<i64>,
    /// What the accounting had counted as copied for the table when the reading began.
    #[serde(default)]
    pub copied_before: Option<i64>,
    /// Rows that the table has, by the statistics of the Site DB.
    pub estimated: Option<i64>,
}

/// What is done with a table of a `resync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResyncedState {
    /// It is busy with another copy or an earlier command, or held.
    Waiting,
    /// It is read for the first time, which has not begun.
    New,
    /// It is being read for the first time.
    Copying,
    /// It is being read again.
    Resyncing,
    /// It was read, and stays so for this command whatever reads the table next.
    Streaming,
}

/// Why a command can't be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It was written by a newer version.
    #[error("this daemon does not know the command {kind:?}; upgrade it")]
    Unknown {
        /// As it stands in the column `kind`.
        kind: String,
    },
    /// It was written by hand, or by another version. (The parser's error may quote the arguments.)
    #[error("the arguments of the command {kind} are not readable; write it with the twinlog of the daemon's version")]
    Arguments {
        /// Of which command.
        kind: &'static str,
    },
    /// It was written by hand, by another version, or is too long.
    #[error("the progress of the command {kind} is not readable; ask for it again, for fewer tables at a time")]
    Progress {
        /// Of which command.
        kind: &'static str,
    },
}

/// The name of [`CommandKind::Resync`].
const RESYNC: &str = "resync";

/// The name of [`CommandKind::Verify`].
const VERIFY: &str = "verify";

impl CommandKind {
    /// A `resync` that has not begun.
    #[must_use]
    pub fn resync(arguments: ResyncArguments) -> Self {
        Self::Resync(Resync {
            arguments,
            progress: ResyncProgress::default(),
        })
    }

    /// A `verify` that has not begun.
    #[must_use]
    pub fn verify(arguments: VerifyArguments) -> Self {
        Self::Verify(Verify {
            arguments,
            progress: VerifyProgress::default(),
        })
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Resync(_) => RESYNC,
            Self::Verify(_) => VERIFY,
        }
    }

    /// Reads what a command's columns hold. The progress of a resync only adds to what is known: where it is not readable, it is
    /// empty. That of a verify is its result.
    fn parse(kind: &str, arguments: Value, progress: Value) -> Result<Self, CommandError> {
        match kind {
            RESYNC => Ok(Self::Resync(Resync {
                arguments: serde_json::from_value(arguments).map_err(|_| CommandError::Arguments { kind: RESYNC })?,
                progress: serde_json::from_value(progress).unwrap_or_default(),
            })),
            VERIFY => Ok(Self::Verify(Verify {
                arguments: serde_json::from_value(arguments).map_err(|_| CommandError::Arguments { kind: VERIFY })?,
                progress: serde_json::from_value(progress).map_err(|_| CommandError::Progress { kind: VERIFY })?,
            })),
            other => Err(CommandError::Unknown { kind: other.to_owned() }),
        }
    }

    fn arguments(&self) -> Result<Value, AgentError> {
        match self {
            Self::Resync(resync) => to_json(&resync.arguments),
            Self::Verify(verify) => to_json(&verify.arguments),
        }
    }

    fn progress(&self) -> Result<Value, AgentError> {
        match self {
            Self::Resync(resync) => to_json(&resync.progress),
            Self::Verify(verify) => to_json(&verify.progress),
        }
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, AgentError> {
    serde_json::to_value(value).map_err(|error| AgentError::Internal(format!("a command as JSON: {error}")))
}

/// Something that a person asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its number, by which it is followed.
    pub id: i64,
    /// What was asked, and how far it is.
    pub kind: Result<CommandKind, CommandError>,
    /// Whether it is served.
    pub state: CommandState,
    /// Why it failed.
    pub error: Option<String>,
}

/// Whether a command is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
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

/// Most commands that are served at a time; the others wait.
const MOST_OPEN: u32 = 100;

/// The columns of [`Command`].
///
/// Whoever may write commands must not be able to fill the daemon's memory, so what is too long is not read.
const COLUMNS: &str = "id, pg_catalog.left(kind, 100) AS kind, state, pg_catalog.left(error, 10000) AS error,
    CASE WHEN pg_catalog.octet_length(arguments::text) <= 65536 THEN arguments ELSE 'null' END AS arguments,
    CASE WHEN pg_catalog.octet_length(progress::text) <= 4194304 THEN progress ELSE 'null' END AS progress";

impl Command {
    fn from_row(row: &Row) -> Result<Self, AgentError> {
        Ok(Self {
            id: row.get("id"),
            kind: CommandKind::parse(row.get("kind"), row.get("arguments"), row.get("progress")),
            state: row
                .get::<_, &str>("state")
                .parse()
                .map_err(|_| AgentError::Unreadable { what: "a command" })?,
            error: row.get("error"),
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
                &format!(
                    "SELECT {COLUMNS} FROM twinlog.commands
                     WHERE slot = $1 AND state IN ('requested', 'running') ORDER BY id LIMIT {MOST_OPEN}"
                ),
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
    pub async fn request(&self, command: &CommandKind) -> Result<i64, AgentError> {
        let row = self
            .client
            .query_one(
                "WITH command AS (
                     INSERT INTO twinlog.commands (slot, kind, arguments) VALUES ($1, $2, $3) RETURNING id
                 ) SELECT id, pg_catalog.pg_notify('twinlog', '') IS NULL AS notified FROM command",
                &[&self.slot, &command.name(), &command.arguments()?],
            )
            .await
            .map_err(failed("write the command"))?;
        Ok(row.get("id"))
    }

    /// One command, whatever its state; `None` where there is no such number.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn command(&self, id: i64) -> Result<Option<Command>, AgentError> {
        let row = self
            .client
            .query_opt(
                &format!("SELECT {COLUMNS} FROM twinlog.commands WHERE slot = $1 AND id = $2"),
                &[&self.slot, &id],
            )
            .await
            .map_err(failed("read the command"))?;
        row.as_ref().map(Command::from_row).transpose()
    }

    /// Writes how far a command is; it counts as running from now on. Returns whether it is still wanted: nobody has ended it.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn command_progress(&self, id: i64, command: &CommandKind) -> Result<bool, AgentError> {
        let changed = self
            .client
            .execute(
                "UPDATE twinlog.commands SET state = 'running', progress = $3, started_at = coalesce(started_at, now())
                 WHERE slot = $1 AND id = $2 AND state IN ('requested', 'running')",
                &[&self.slot, &id, &self.encoding.document(command.progress()?)],
            )
            .await
            .map_err(failed("report a command's progress"))?;
        Ok(changed > 0)
    }

    /// Whether a command is still wanted: nobody has ended it.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn is_wanted(&self, id: i64) -> Result<bool, AgentError> {
        let row = self
            .client
            .query_opt(
                "SELECT FROM twinlog.commands WHERE slot = $1 AND id = $2 AND state IN ('requested', 'running')",
                &[&self.slot, &id],
            )
            .await
            .map_err(failed("read the command"))?;
        Ok(row.is_some())
    }

    /// Ends a command, unless that was done before: well, or with what went wrong.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn finish_command(&self, id: i64, outcome: Result<(), &str>) -> Result<(), AgentError> {
        let state: &str = if outcome.is_ok() {
            CommandState::Done.into()
        } else {
            CommandState::Failed.into()
        };
        self.client
            .execute(
                "UPDATE twinlog.commands SET state = $3, error = $4, started_at = coalesce(started_at, now()),
                     finished_at = now()
                 WHERE slot = $1 AND id = $2 AND state IN ('requested', 'running')",
                &[&self.slot, &id, &state, &outcome.err()],
            )
            .await
            .map_err(failed("end a command"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resync_is_read_as_it_was_written() {
        let command = CommandKind::Resync(Resync {
            arguments: ResyncArguments {
                all: false,
                tables: vec!["public.t".to_owned()],
                condition: Some("id > 3".to_owned()),
                site: Some("crm of 7".to_owned()),
            },
            progress: ResyncProgress {
                tables: vec![ResyncedTable {
                    changed: None,
                    copied_before: None,
                    table: "public.t".to_owned(),
                    state: ResyncedState::Waiting,
                    rows: 7,
                    estimated: None,
                }],
            },
        });
        let (arguments, progress) = (command.arguments().unwrap(), command.progress().unwrap());
        assert_eq!(
            arguments,
            json!({ "all": false, "tables": ["public.t"], "where": "id > 3", "site": "crm of 7" })
        );
        assert_eq!(
            progress,
            json!({ "tables": [{
                "table": "public.t", "state": "waiting", "rows": 7,
                "changed": null, "copied_before": null, "estimated": null,
            }] })
        );
        assert_eq!(CommandKind::parse(command.name(), arguments, progress), Ok(command));
    }

    #[test]
    fn what_is_not_given_is_not_asked_and_progress_of_another_version_is_none() {
        let read = CommandKind::parse("resync", json!({ "all": true }), json!({ "tables": 7 }));
        let Ok(CommandKind::Resync(resync)) = read else {
            panic!("{read:?}");
        };
        assert!(resync.arguments.is_complete() && resync.progress.tables.is_empty());
    }

    #[test]
    fn a_command_of_another_version_is_refused_with_what_to_do() {
        let error = CommandKind::parse("rewind", json!({}), json!({})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this daemon does not know the command \"rewind\"; upgrade it"
        );
        let error = CommandKind::parse("resync", json!({ "tables": 7 }), json!({})).unwrap_err();
        assert!(matches!(error, CommandError::Arguments { .. }));
    }
}
