//! `twinlog.tables`: each table that is synchronised, what it is doing, and how far its copy is.
//!
//! The daemon writes these rows over the connection that writes the business rows (a copy's progress in the same
//! transaction as its rows), and everybody reads them over [`Control`].

use std::collections::BTreeMap;

use time::OffsetDateTime;
use tokio_postgres::{Client, Row};

use super::claims;
use super::control::{Control, failed};
use super::encoding::Encoding;
use crate::agent_db::error::AgentError;
use crate::change::{HoldCause, Key, TableName};
use crate::lsn::Lsn;

/// What a table is doing. `replication::tables` says which state follows on which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum TableState {
    /// Nothing is copied.
    New,
    /// The first copy runs.
    Copying,
    /// Equal to the Site DB's table but for lag.
    Streaming,
    /// Streaming, and being read again.
    Resyncing,
    /// Something is wrong with this table alone: its changes are not applied until that is gone. The reason is in
    /// [`TableRecord::detail`].
    Held,
}

impl TableState {
    /// As stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether the first copy is unfinished, so that rows may be missing in the Agent DB.
    #[must_use]
    pub const fn is_first_copy(self) -> bool {
        matches!(self, Self::New | Self::Copying)
    }

    /// Whether a copy is due or runs.
    #[must_use]
    pub const fn is_unfinished(self) -> bool {
        matches!(self, Self::New | Self::Copying | Self::Resyncing)
    }
}

/// How a table's changes are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableMode {
    /// The Agent DB has every row: a partial update whose row is missing is parked.
    Complete,
    /// A copy is bringing rows that the Agent DB may lack: a partial update whose row is missing is superseded by the chunk
    /// that will bring the row.
    LacksRows,
    /// Changes are counted and passed over.
    Held,
}

/// Where in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum CopyPhase {
    /// The source's rows, by key order.
    Rows,
    /// Rows that only the Agent DB has.
    Extras,
}

impl CopyPhase {
    /// As stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Which changes of a table its Site DB can publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum PublishedChanges {
    /// Whatever happens to its rows.
    #[default]
    All,
    /// Inserts alone: it has no replica identity, so the Site DB refuses updates and deletes.
    Inserts,
}

impl PublishedChanges {
    /// As stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A table's row in `twinlog.tables`: what it is doing and how far its copy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRecord {
    /// The table.
    pub table: TableName,
    /// What it is doing.
    pub state: TableState,
    /// Where in a copy; `None` while none has begun.
    pub phase: Option<CopyPhase>,
    /// By what its rows are told apart, as [`Relation::key_text`](crate::change::Relation::key_text) has it; `None` while that
    /// is not known.
    pub key: Option<String>,
    /// Which changes the Site DB can publish.
    pub published: PublishedChanges,
    /// What the Agent DB's table can't have as the Site DB has it, for people to see.
    pub notes: Option<Box<str>>,
    /// The last key done in this phase; `None` before the first chunk.
    pub last_key: Option<Key>,
    /// Rows of the Site DB that the running copy, or the last one, has read.
    pub rows_copied: i64,
    /// The planner's estimate of how many there are, where it has one.
    pub rows_estimated: Option<i64>,
    /// A resync's SQL condition on the Site DB's rows.
    pub condition: Option<String>,
    /// The command that asked for the running copy, or the last one.
    pub command_id: Option<i64>,
    /// Why the table, or its copy, is held, and what to do.
    pub detail: Option<String>,
    /// The kind of fault for which the table is held; `None` if it is not held.
    pub cause: Option<HoldCause>,
    /// When the running copy, or the last one, began, by our clock; one with a condition does not count.
    pub started_at: Option<OffsetDateTime>,
    /// When the last whole copy ended, by our clock; `None` where nothing is copied whole.
    pub finished_at: Option<OffsetDateTime>,
    /// The Site DB's position as of which that copy is right; `None` where changes were passed over since.
    pub copied_at_lsn: Option<Lsn>,
}

/// What is to be written about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// This is its row now.
    Saved(TableRecord),
    /// It is not synchronised any more: it has no row.
    Forgotten(TableName),
}

impl TableChange {
    /// The table that it is about.
    #[must_use]
    pub const fn table(&self) -> &TableName {
        match self {
            Self::Saved(record) => &record.table,
            Self::Forgotten(table) => table,
        }
    }
}

/// The rows of all tables, by name.
pub type TableRecords = BTreeMap<TableName, TableRecord>;

impl TableRecord {
    /// A table of which nothing is copied.
    #[must_use]
    pub const fn new(table: TableName) -> Self {
        Self {
            table,
            state: TableState::New,
            phase: None,
            key: None,
            published: PublishedChanges::All,
            notes: None,
            last_key: None,
            rows_copied: 0,
            rows_estimated: None,
            condition: None,
            command_id: None,
            detail: None,
            cause: None,
            started_at: None,
            finished_at: None,
            copied_at_lsn: None,
        }
    }

    /// How the table's changes are treated in this state.
    #[must_use]
    pub const fn mode(&self) -> TableMode {
        match self.state {
            TableState::Held => TableMode::Held,
            TableState::New | TableState::Copying => TableMode::LacksRows,
            // The copied rows are right as of no position: changes were passed over since.
            TableState::Resyncing if self.copied_at_lsn.is_none() => TableMode::LacksRows,
            TableState::Resyncing | TableState::Streaming => TableMode::Complete,
        }
    }

    /// Whether every row was copied once, so that only changes since then can be missing.
    #[must_use]
    pub const fn was_copied(&self) -> bool {
        self.finished_at.is_some()
    }
}

/// The columns of [`TableRecord`].
const COLUMNS: &str = "schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated, condition, \
                       command_id, detail, started_at, finished_at, copied_at_lsn, row_key, published_changes, notes, \
                       hold_cause";

const SAVE: &str = "
INSERT INTO twinlog.tables AS t (slot, schema_name, table_name, state, phase, last_key, rows_copied, rows_estimated,
    condition, command_id, detail, started_at, finished_at, copied_at_lsn, row_key, published_changes, notes,
    hold_cause)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET
    state = EXCLUDED.state, phase = EXCLUDED.phase, last_key = EXCLUDED.last_key,
    rows_copied = EXCLUDED.rows_copied, rows_estimated = EXCLUDED.rows_estimated, condition = EXCLUDED.condition,
    command_id = EXCLUDED.command_id, detail = EXCLUDED.detail, started_at = EXCLUDED.started_at,
    finished_at = EXCLUDED.finished_at, copied_at_lsn = EXCLUDED.copied_at_lsn,
    row_key = EXCLUDED.row_key, published_changes = EXCLUDED.published_changes, notes = EXCLUDED.notes,
    hold_cause = EXCLUDED.hold_cause,
    held_as_of = CASE WHEN EXCLUDED.state OPERATOR(pg_catalog.<>) 'held' THEN NULL
        WHEN t.state OPERATOR(pg_catalog.=) 'held' THEN t.held_as_of
        WHEN t.state OPERATOR(pg_catalog.=) 'streaming' THEN twinlog.applied_as_of(EXCLUDED.slot) END";

async fn save(client: &Client, encoding: Encoding, slot: &str, record: &TableRecord) -> Result<(), AgentError> {
    client
        .execute(
            SAVE,
            &[
                &slot,
                &&*record.table.schema,
                &&*record.table.name,
                &record.state.as_str(),
                &record.phase.map(CopyPhase::as_str),
                &record.last_key.as_ref().map(|key| encoding.json(key.to_json())),
                &record.rows_copied,
                &record.rows_estimated,
                &record.condition.as_deref().map(|condition| encoding.shown(condition)),
                &record.command_id,
                &record.detail.as_deref().map(|detail| encoding.shown(detail)),
                &record.started_at,
                &record.finished_at,
                &record.copied_at_lsn,
                &record.key,
                &record.published.as_str(),
                &record.notes.as_deref().map(|notes| encoding.shown(notes)),
                &record.cause.map(HoldCause::as_str),
            ],
        )
        .await
        .map_err(failed("remember a table's state"))?;
    Ok(())
}

/// Deletes the row of a table that is not synchronised any more.
async fn forget(client: &Client, slot: &str, table: &TableName) -> Result<(), AgentError> {
    client
        .execute(
            "DELETE FROM twinlog.tables WHERE slot OPERATOR(pg_catalog.=) $1
                 AND schema_name OPERATOR(pg_catalog.=) $2 AND table_name OPERATOR(pg_catalog.=) $3",
            &[&slot, &&*table.schema, &&*table.name],
        )
        .await
        .map_err(failed("forget a table"))?;
    Ok(())
}

/// Writes a change, in whatever transaction is open: a copy's progress is committed with its rows.
pub(in crate::agent_db) async fn write(
    client: &Client,
    encoding: Encoding,
    slot: &str,
    change: &TableChange,
) -> Result<(), AgentError> {
    match change {
        TableChange::Saved(record) => Box::pin(save(client, encoding, slot, record)).await,
        TableChange::Forgotten(table) => {
            claims::give_back(client, slot, table).await?;
            forget(client, slot, table).await
        }
    }
}

impl TableRecord {
    fn from_row(row: &Row) -> Result<Self, AgentError> {
        let unreadable = || AgentError::Unreadable {
            what: "a table's state",
        };
        Ok(Self {
            table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
            state: row.get::<_, &str>("state").parse().map_err(|_| unreadable())?,
            phase: row
                .get::<_, Option<&str>>("phase")
                .map(|text| text.parse().map_err(|_| unreadable()))
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
            key: row.get("row_key"),
            published: row
                .get::<_, &str>("published_changes")
                .parse()
                .map_err(|_| unreadable())?,
            notes: row.get("notes"),
            copied_at_lsn: row.get("copied_at_lsn"),
            // A word of a later version is not known.
            cause: row
                .get::<_, Option<&str>>("hold_cause")
                .map(|cause| cause.parse().unwrap_or(HoldCause::Unknown)),
        })
    }
}

impl Control {
    /// Every table that the daemon knows, and what it is doing.
    ///
    /// # Errors
    /// The statement's or the connection's; [`AgentError::Unreadable`] where a row was written by something else.
    pub async fn tables(&self) -> Result<Vec<TableRecord>, AgentError> {
        let query = format!("SELECT {COLUMNS} FROM twinlog.tables WHERE slot = $1 ORDER BY schema_name, table_name");
        let rows = self
            .client
            .query(&query, &[&self.slot])
            .await
            .map_err(failed("read the tables' states"))?;
        rows.iter().map(TableRecord::from_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_that_the_database_allows_can_be_read() {
        for text in ["new", "copying", "streaming", "resyncing", "held"] {
            assert_eq!(text.parse::<TableState>().unwrap().as_str(), text);
        }
        for text in ["rows", "extras"] {
            assert_eq!(text.parse::<CopyPhase>().unwrap().as_str(), text);
        }
        assert!("gone".parse::<TableState>().is_err());
    }
}
