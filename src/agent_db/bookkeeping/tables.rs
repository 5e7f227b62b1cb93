//! `twinlog.tables`: each table that is synchronised, and how far its copy is.

use time::OffsetDateTime;
use tokio_postgres::{Client, Row};

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::{Key, TableName};
use crate::lsn::Lsn;

/// What a table is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableState {
    /// Nothing is copied. Set when the daemon first sees the table.
    New,
    /// The first copy runs.
    Copying,
    /// Equal to the source but for lag.
    Streaming,
    /// Streaming, and being read again.
    Resyncing,
}

impl TableState {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Resyncing => "resyncing",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::New, Self::Copying, Self::Streaming, Self::Resyncing]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// Where in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyPhase {
    /// The source's rows, by key order.
    Rows,
    /// Rows that only the Agent DB has.
    Extras,
}

impl CopyPhase {
    /// As stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Extras => "extras",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Rows, Self::Extras]
            .into_iter()
            .find(|phase| phase.as_str() == text)
    }
}

/// A table's row in `twinlog.tables`: what it is doing and how far its copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProgress {
    /// The table.
    pub table: TableName,
    /// What it is doing.
    pub state: TableState,
    /// Where in a copy.
    pub phase: Option<CopyPhase>,
    /// The last key done in this phase.
    pub last_key: Option<Key>,
    /// Rows copied so far.
    pub rows_copied: i64,
    /// Rows that there may be.
    pub rows_estimated: Option<i64>,
    /// A resync's condition on the source's rows.
    pub condition: Option<String>,
    /// The command that asked for it.
    pub command_id: Option<i64>,
    /// Why its copy waits for a person.
    pub detail: Option<String>,
    /// When the copy began.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
    /// The source position as of which the last finished copy is right.
    pub copied_at_lsn: Option<Lsn>,
}

impl TableProgress {
    /// A table of which nothing is copied.
    #[must_use]
    pub const fn new(table: TableName) -> Self {
        Self {
            table,
            state: TableState::New,
            phase: None,
            last_key: None,
            rows_copied: 0,
            rows_estimated: None,
            condition: None,
            command_id: None,
            detail: None,
            started_at: None,
            finished_at: None,
            copied_at_lsn: None,
        }
    }
}

/// The columns of [`TableProgress`].
const COLUMNS: &str = "schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated, condition, \
                       command_id, detail, started_at, finished_at, copied_at_lsn::text";

const SAVE: &str = "
INSERT INTO twinlog.tables (slot, schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated,
    condition, command_id, detail, started_at, finished_at, copied_at_lsn)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::text::pg_lsn)
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET
    state = EXCLUDED.state, phase = EXCLUDED.phase, last_key = EXCLUDED.last_key,
    rows_copied = EXCLUDED.rows_copied, rows_estimated = EXCLUDED.rows_estimated, condition = EXCLUDED.condition,
    command_id = EXCLUDED.command_id, detail = EXCLUDED.detail, started_at = EXCLUDED.started_at,
    finished_at = EXCLUDED.finished_at, copied_at_lsn = EXCLUDED.copied_at_lsn";

/// Writes a table's row, in whatever transaction is open: a copy's progress is committed with its rows.
pub(in crate::agent_db) async fn save(client: &Client, slot: &str, progress: &TableProgress) -> Result<(), AgentError> {
    client
        .execute(
            SAVE,
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
        .map_err(failed("remember a table's state"))?;
    Ok(())
}

impl TableProgress {
    fn from_row(row: &Row) -> Result<Self, AgentError> {
        let unreadable = || AgentError::Unreadable {
            what: "a table's state",
        };
        Ok(Self {
            table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
            state: TableState::parse(row.get("state")).ok_or_else(unreadable)?,
            phase: row
                .get::<_, Option<&str>>("phase")
                .map(|text| CopyPhase::parse(text).ok_or_else(unreadable))
                .transpose()?,
            last_key: row
                .get::<_, Option<&str>>("last_key")
                .map(|text| Key::from_json(text).ok_or_else(unreadable))
                .transpose()?,
            rows_copied: row.get("rows_copied"),
            rows_estimated: row.get("rows_estimated"),
            condition: row.get("condition"),
            command_id: row.get("command_id"),
            detail: row.get("detail"),
            started_at: row.get("started_at"),
            finished_at: row.get("finished_at"),
            copied_at_lsn: row
                .get::<_, Option<&str>>("copied_at_lsn")
                .map(|text| text.parse::<Lsn>().map_err(|_| unreadable()))
                .transpose()?,
        })
    }
}

impl Control {
    /// Every table that the daemon knows, and what it is doing.
    ///
    /// # Errors
    /// The statement's or the connection's; [`AgentError::Unreadable`] where a row was written by something else.
    pub async fn tables(&self) -> Result<Vec<TableProgress>, AgentError> {
        let query = format!("SELECT {COLUMNS} FROM twinlog.tables WHERE slot = $1 ORDER BY schema_name, table_name");
        let rows = self
            .client
            .query(&query, &[&self.slot])
            .await
            .map_err(failed("read the tables' states"))?;
        rows.iter().map(TableProgress::from_row).collect()
    }

    /// Remembers what a table is doing. A copy's progress goes through the sink instead, beside its rows.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn save_table(&self, progress: &TableProgress) -> Result<(), AgentError> {
        Box::pin(save(&self.client, &self.slot, progress)).await
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
}
