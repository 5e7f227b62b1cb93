//! What can go wrong with the Agent DB, whether trying again can help, and the statement to use.
//!
//! Messages never contain row values. Postgres quotes values in its messages of classes 22 and 23, so these are left
//! out here (they are kept in `twinlog.failed_rows`, beside the row).

mod hint;
mod hold;
mod holder;
mod missing_column;
mod other_claim;
mod refusal_hint;

pub use holder::Holder;
pub(super) use missing_column::add_columns;
pub use missing_column::{MissingColumn, Refuses};
pub use other_claim::{OtherClaim, OtherDaemon};
pub(super) use refusal_hint::TRUNCATE;

use crate::change::TableName;
use crate::lsn::Lsn;
use crate::postgres::sqlstate::is_of_its_table;
use crate::postgres::{ConditionError, Refusal, SessionError, Side};
use crate::retry::Disposition;

/// The mark by which the error of a statement is known that has found a row other than it was sent: the statement casts it
/// to a number. So the server itself refuses the row, as it does with every other fault.
pub(super) const CHANGED: &str = "twinlog: the row was not written as it was sent";

/// The message of a statement that found a row with another value in a column that is `GENERATED ALWAYS AS IDENTITY`, which can
/// only be set by deleting the row, though rows of other tables would go with it.
pub(super) const IDENTITY_STAYS: &str = "twinlog: a column that is GENERATED ALWAYS AS IDENTITY can not be set";

/// Why work on the Agent DB failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum AgentError {
    /// The session could not be opened, or it ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Postgres refused a statement.
    #[error("{action}{}: {refusal}", .table.as_ref().map(|table| format!(" ({table})")).unwrap_or_default())]
    Refused {
        /// What was being done.
        action: &'static str,
        /// The table that the statement was for.
        table: Option<TableName>,
        /// The server's answer.
        refusal: Box<Refusal>,
        /// The role that was refused, if known.
        role: Option<Box<str>>,
    },
    /// Another daemon holds the slot's lock: stand by.
    #[error("another daemon is active for slot {slot}{}", .holder.as_ref().map(|holder| format!(": {holder}")).unwrap_or_default())]
    Busy {
        slot: String,
        /// Who holds it, if visible.
        holder: Option<Holder>,
    },
    /// The Agent DB has no such table.
    #[error("table {table} is missing in the Agent DB")]
    TableMissing { table: TableName },
    /// A key is not UTF-8, so it cannot be read and compared.
    #[error("a key of table {table} is not UTF-8")]
    KeyEncoding { table: TableName },
    /// It is a view, a foreign table or something else that can't be upserted into by key.
    #[error("{table} in the Agent DB is not a table")]
    NotATable {
        table: TableName,
        /// `sync.tables`, extended so that they leave it out, where they are known.
        without: Option<String>,
    },
    /// Another pipeline writes the table.
    #[error("table {table} of the Agent DB is written by another pipeline: {claim}")]
    Claimed {
        table: TableName,
        /// Whose it is.
        claim: Box<OtherClaim>,
    },
    /// What is written to one of the two changes the other, too.
    #[error("table {table} is a partition of {whole} in the Agent DB, and both are replicated")]
    PartOf {
        table: TableName,
        /// The table that it is a partition of.
        whole: TableName,
    },
    /// Rows without a key can't be told from those of another pipeline.
    #[error("table {table} has no key, so it can't be shared with another pipeline")]
    SharedWithoutKey { table: TableName },
    /// Rows can't be matched without a primary key.
    #[error("table {table} has no primary key in the Agent DB")]
    NoPrimaryKey {
        table: TableName,
        /// The columns that identify a row in the Site DB.
        suggested: Vec<String>,
    },
    /// `ON CONFLICT` can't use a deferrable constraint.
    #[error("the primary key of {table} is deferrable in the Agent DB")]
    DeferrablePrimaryKey {
        table: TableName,
        /// The constraint's name.
        constraint: String,
        /// Its columns.
        columns: Vec<String>,
    },
    /// The Site DB publishes columns that the Agent DB's table does not have.
    #[error("table {table} lacks column(s) {} in the Agent DB", .columns.iter().map(|column| &*column.name).collect::<Vec<_>>().join(", "))]
    ColumnMissing {
        table: TableName,
        /// The columns.
        columns: Vec<MissingColumn>,
        /// The statements that create the types which it lacks as well; `None` before the Site DB was asked for them.
        types: Option<Vec<String>>,
    },
    /// The role has no right that writing the table needs.
    #[error("the role {role} has no right to {} in table {table} of the Agent DB", .rights.join(", "))]
    NotPermitted {
        table: TableName,
        role: String,
        /// The rights that it lacks, as they stand in a GRANT.
        rights: Vec<&'static str>,
    },
    /// The role may not use something that the table's defaults, checks or indexes use.
    #[error("the role {role} lacks rights that writing table {table} of the Agent DB needs: {}", .objects.join(", "))]
    ObjectsNotPermitted {
        table: TableName,
        role: String,
        /// Each right with its object, as they stand in a GRANT.
        objects: Vec<String>,
    },
    /// Postgres refuses an INSERT with ON CONFLICT into a table that has rules for INSERT or UPDATE.
    #[error("rules of table {table} in the Agent DB keep rows from being written by their key: {}", .rules.join(", "))]
    Rules {
        table: TableName,
        /// Their names.
        rules: Vec<String>,
    },
    /// So many rows of the table are locked that they are not parked one by one.
    #[error("more than {limit} rows of table {table} are locked in the Agent DB")]
    RowsLocked {
        table: TableName,
        /// Rows that are parked for this reason at most.
        limit: u32,
    },
    /// A refused row can't be stored in `twinlog.failed_rows` either.
    #[error("a row of table {table} was refused, and can't be kept in twinlog.failed_rows: {refusal}")]
    CannotPark {
        table: TableName,
        /// The server's answer.
        refusal: Box<Refusal>,
    },
    /// A published column is generated by the Agent DB, so it cannot be written.
    #[error("column {column} of {table} is generated in the Agent DB but not in the Site DB")]
    ColumnGenerated { table: TableName, column: String },
    /// A column that the Site DB does not publish must have a value in the Agent DB.
    #[error(
        "column {column} of {table} is NOT NULL without a default in the Agent DB, and the Site DB does not publish it"
    )]
    ColumnUnfilled {
        table: TableName,
        column: String,
        /// The column itself, or its domain.
        refuses: Refuses,
    },
    /// The Agent DB has no unique index on the columns by which the Site DB identifies the row of an update or a delete.
    #[error("the Agent DB has no unique index on the replica identity ({}) of table {table}", .columns.join(", "))]
    NoIndexOnIdentity {
        table: TableName,
        /// The columns of the replica identity.
        columns: Vec<String>,
    },
    /// What changes bring of their old rows may be the same in several rows of the Site DB.
    #[error(
        "old rows of table {table} don't come with what tells them apart: {}",
        if .partitions.is_empty() {
            format!("column(s) {} of its replica identity are not sent", .unsent.join(", "))
        } else {
            format!("partition(s) {} have another replica identity than the table", .partitions.join(", "))
        }
    )]
    IdentityIncomplete {
        table: TableName,
        /// Columns of the replica identity that are not published.
        unsent: Vec<String>,
        /// Partitions that have another replica identity, quoted.
        partitions: Vec<String>,
    },
    /// Without a key, rows are known by their text, which the Agent DB's type would change.
    #[error(
        "table {table} has no key, so its rows are compared as text, but column {column} is {agent} in the Agent DB and {site} in the Site DB"
    )]
    TypeDiffers {
        table: TableName,
        column: String,
        site: String,
        agent: String,
    },
    /// Two rows of the Site DB may be one in the Agent DB.
    #[error(
        "different keys of {table} may be equal in the Agent DB, and its rows one: column {column} is {agent} there and {site} in the \
         Site DB"
    )]
    KeyMerges {
        table: TableName,
        column: String,
        site: String,
        agent: String,
    },
    /// The Agent DB's key is not the one that the table's changes were made for.
    #[error("the key of {table} was changed in the Agent DB")]
    KeyChanged { table: TableName },
    /// Row-level security would hide rows from the daemon's role.
    #[error("row-level security of {table} applies to the role {role} in the Agent DB")]
    RowSecurity { table: TableName, role: String },
    #[error("table {table} is UNLOGGED in the Agent DB: a crash of the server empties it")]
    Unlogged { table: TableName },
    /// Postgres refuses every statement of a kind for the table, whatever the row.
    #[error("{action} ({table}): {refusal}")]
    TableRefused {
        /// What was being done.
        action: &'static str,
        table: TableName,
        /// The server's answer.
        refusal: Box<Refusal>,
        /// The role that was refused, where known.
        role: Option<Box<str>>,
    },
    /// A statement wrote another number of rows than it was given: the table was changed since it was looked up.
    #[error("{table} in the Agent DB was changed while rows were written")]
    TableChanged { table: TableName },
    /// A statement wrote fewer rows than it was given, and which is not known: the table's rows have no key.
    #[error("triggers of {table} in the Agent DB do not let all rows be written")]
    RowsSwallowed { table: TableName },
    /// So many rows of a table are parked that the table, not the rows, is at fault.
    #[error("{table} has more than {limit} failed rows{}", .fingerprint.as_ref().map(|cause| format!(", most of them for one cause: {cause}")).unwrap_or_default())]
    TooManyFailed {
        table: TableName,
        /// `sync.max_failed_rows`.
        limit: usize,
        /// What most of them have in common: SQLSTATE, constraint and table.
        fingerprint: Option<String>,
    },
    /// A statement was cancelled because it took too long.
    #[error(
        "{action} of {rows} row(s) in table {} of the Agent DB took longer than {seconds} s and was cancelled{}",
        .table.as_ref().map_or("(not known)".to_owned(), ToString::to_string),
        .waited_for.as_ref().map(|event| format!("; it waited for {event} (pg_stat_activity)")).unwrap_or_default()
    )]
    TooSlow {
        /// The statement: INSERT, DELETE, …
        action: &'static str,
        /// `None`: it was about several.
        table: Option<TableName>,
        /// With how many rows it was tried.
        rows: usize,
        /// How long it took until it was cancelled.
        seconds: u64,
        /// `wait_event_type: wait_event`; `None`: it was working.
        waited_for: Option<String>,
    },
    /// A checkpoint may only move forward.
    #[error("the checkpoint would move from {from} back to {to}")]
    Backwards {
        /// The stored position.
        from: Lsn,
        /// The position that was to be stored.
        to: Lsn,
    },
    /// The stored position is of another cluster, so the two cannot be compared.
    #[error("the checkpoint belongs to another Site DB")]
    AnotherSource,
    /// An earlier call failed or was dropped half-way: the open transaction must be rolled back first.
    #[error("the open Agent DB transaction is incomplete and must be rolled back")]
    Aborted,
    /// A row of the daemon's own tables (schema `twinlog`) is invalid.
    #[error("{what} in the Agent DB is not readable")]
    Unreadable {
        /// What it is.
        what: &'static str,
    },
    /// The condition of a resync is not one for this table.
    #[error("in the Agent DB: {0}")]
    Condition(#[from] ConditionError),
    /// A bug in Twinlog, noticed before a commit.
    #[error("internal: {0}")]
    Internal(String),
}

impl AgentError {
    /// Wraps a driver's error. `table`: the table that the statement was for.
    #[must_use]
    pub fn from_driver(action: &'static str, table: Option<&TableName>, source: tokio_postgres::Error) -> Self {
        match Refusal::of(&source) {
            Some(refusal) => Self::Refused {
                action,
                table: table.cloned(),
                refusal: Box::new(refusal),
                role: None,
            },
            None => SessionError::new(Side::Agent, action, source).into(),
        }
    }

    /// For statements on a whole table: a trigger's refusal there is not a row's fault.
    #[must_use]
    pub(super) fn of_whole_table(self) -> Self {
        self.into_table_refused(Refusal::may_be_of_a_row)
    }

    /// The refusal as the fault of its table, where it is one.
    fn into_table_refused(self, is_of_its_table: impl FnOnce(&Refusal) -> bool) -> Self {
        match self {
            Self::Refused {
                action,
                table: Some(table),
                refusal,
                role,
            } if is_of_its_table(&refusal) => Self::TableRefused {
                action,
                table,
                refusal,
                role,
            },
            other => other,
        }
    }

    /// Names the table of a statement that took too long, where that is not known yet.
    #[must_use]
    pub(super) fn for_table(mut self, name: &TableName) -> Self {
        if let Self::TooSlow { table, .. } = &mut self {
            table.get_or_insert_with(|| name.clone());
        }
        self
    }

    /// Names the role for the hint.
    #[must_use]
    pub(super) fn for_role(mut self, name: &str) -> Self {
        if let Self::Refused { role, .. } | Self::TableRefused { role, .. } = &mut self {
            *role = Some(name.into());
        }
        self
    }

    /// For a statement that was refused before any row was sent: if not the session's, the fault is the table's.
    #[must_use]
    pub(super) fn whatever_the_row(self) -> Self {
        self.into_table_refused(|refusal| {
            is_of_its_table(&refusal.sqlstate) || refusal.disposition() == Disposition::Row
        })
    }

    /// For the statement that parks a table's rows: a value that `twinlog.failed_rows` refuses is that table's.
    #[must_use]
    pub(super) fn of_parking(self, table: &TableName) -> Self {
        match self {
            Self::Refused { refusal, .. } if refusal.disposition() == Disposition::Row => Self::CannotPark {
                table: table.clone(),
                refusal,
            },
            other => other,
        }
    }

    /// For statements on the daemon's own tables: a refusal there is never the fault of a synchronised row.
    #[must_use]
    pub(super) fn of_bookkeeping(self) -> Self {
        match self {
            Self::Refused { .. } if self.disposition() == Disposition::Row => Self::Internal(self.to_string()),
            other => other,
        }
    }

    /// Whether one row may be at fault, though the SQLSTATE does not say so (see [`Refusal::may_be_of_a_row`]).
    #[must_use]
    pub(super) fn may_be_of_a_row(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.may_be_of_a_row(),
            Self::TooSlow { .. } => true,
            _ => false,
        }
    }

    /// Whether to try again, park a row, or hold. The applier parks rows itself and never returns [`Disposition::Row`].
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Session(source) => source.disposition(),
            // With a new connection, tables are resolved again.
            Self::KeyChanged { .. }
            | Self::TableChanged { .. }
            | Self::Busy { .. }
            | Self::Aborted
            | Self::TooSlow { .. } => Disposition::Transient,
            Self::Refused { refusal, .. } => refusal.disposition(),
            Self::KeyEncoding { .. }
            | Self::TableMissing { .. }
            | Self::NotATable { .. }
            | Self::Claimed { .. }
            | Self::PartOf { .. }
            | Self::SharedWithoutKey { .. }
            | Self::NoPrimaryKey { .. }
            | Self::DeferrablePrimaryKey { .. }
            | Self::ColumnMissing { .. }
            | Self::NotPermitted { .. }
            | Self::ObjectsNotPermitted { .. }
            | Self::Rules { .. }
            | Self::RowSecurity { .. }
            | Self::Unlogged { .. }
            | Self::RowsLocked { .. }
            | Self::CannotPark { .. }
            | Self::ColumnGenerated { .. }
            | Self::ColumnUnfilled { .. }
            | Self::NoIndexOnIdentity { .. }
            | Self::IdentityIncomplete { .. }
            | Self::TableRefused { .. }
            | Self::RowsSwallowed { .. }
            | Self::TypeDiffers { .. }
            | Self::KeyMerges { .. }
            | Self::TooManyFailed { .. }
            | Self::Backwards { .. }
            | Self::AnotherSource
            | Self::Unreadable { .. }
            | Self::Condition(_)
            | Self::Internal(_) => Disposition::Systemic,
        }
    }

    /// The table whose own fault this is, and not one of its rows: it can be held, and the other tables go on.
    #[must_use]
    pub fn table_fault(&self) -> Option<&TableName> {
        match self {
            Self::Refused { refusal, .. } if !is_of_its_table(&refusal.sqlstate) => None,
            _ => self.table(),
        }
    }

    /// The table that is concerned, if it is one.
    #[must_use]
    pub fn table(&self) -> Option<&TableName> {
        match self {
            Self::Refused { table, .. } | Self::TooSlow { table, .. } => table.as_ref(),
            Self::TableMissing { table }
            | Self::NotATable { table, .. }
            | Self::Claimed { table, .. }
            | Self::PartOf { table, .. }
            | Self::SharedWithoutKey { table }
            | Self::NoPrimaryKey { table, .. }
            | Self::DeferrablePrimaryKey { table, .. }
            | Self::ColumnMissing { table, .. }
            | Self::NotPermitted { table, .. }
            | Self::ObjectsNotPermitted { table, .. }
            | Self::Rules { table, .. }
            | Self::RowSecurity { table, .. }
            | Self::Unlogged { table }
            | Self::RowsLocked { table, .. }
            | Self::CannotPark { table, .. }
            | Self::ColumnGenerated { table, .. }
            | Self::ColumnUnfilled { table, .. }
            | Self::NoIndexOnIdentity { table, .. }
            | Self::IdentityIncomplete { table, .. }
            | Self::TypeDiffers { table, .. }
            | Self::KeyMerges { table, .. }
            | Self::KeyEncoding { table }
            | Self::KeyChanged { table }
            | Self::TableChanged { table }
            | Self::RowsSwallowed { table }
            | Self::TableRefused { table, .. }
            | Self::TooManyFailed { table, .. } => Some(table),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
