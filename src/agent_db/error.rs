//! What can go wrong with the Agent DB, whose fault it is, and what to paste.
//!
//! Messages never hold row values: Postgres quotes them in the messages of classes 22 and 23, so those are left out here
//! (they are kept in `twinlog.failed_rows`, beside the data that they speak of).

use crate::change::TableName;
use crate::lsn::Lsn;
use crate::postgres::error::session_hint;
use crate::postgres::{Refusal, SessionError, Side};
use crate::retry::Disposition;

/// Why the Agent DB, or a statement on the Site DB over the same driver, did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// There is no session with it, or it ended.
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
        /// The role that was refused, where known.
        role: Option<Box<str>>,
    },
    /// Another daemon holds the slot's lock: stand by.
    #[error("another daemon is active for slot {slot}{}", .holder.as_ref().map(|holder| format!(": {holder}")).unwrap_or_default())]
    Busy {
        /// The slot.
        slot: String,
        /// Who, where it is visible.
        holder: Option<Holder>,
    },
    /// The Agent DB has no such table.
    #[error("table {table} is missing in the Agent DB")]
    TableMissing {
        /// The table.
        table: TableName,
    },
    /// A key that can't be told from others.
    #[error("a key of table {table} is not UTF-8")]
    KeyEncoding {
        /// The table.
        table: TableName,
    },
    /// It is a view, a foreign table or something else that can't be upserted into by key.
    #[error("{table} in the Agent DB is not a table")]
    NotATable {
        /// The relation.
        table: TableName,
    },
    /// Rows can't be matched without a primary key.
    #[error("table {table} has no primary key in the Agent DB")]
    NoPrimaryKey {
        /// The table.
        table: TableName,
        /// The columns that identify a row in the Site DB.
        suggested: Vec<String>,
    },
    /// `ON CONFLICT` can't use a deferrable constraint.
    #[error("the primary key of {table} is deferrable in the Agent DB")]
    DeferrablePrimaryKey {
        /// The table.
        table: TableName,
        /// The constraint's name.
        constraint: String,
        /// Its columns.
        columns: Vec<String>,
    },
    /// The Site DB publishes columns that the Agent DB's table does not have.
    #[error("table {table} lacks column(s) {} in the Agent DB", .columns.join(", "))]
    ColumnMissing {
        /// The table.
        table: TableName,
        /// The columns.
        columns: Vec<String>,
    },
    /// A published column is computed by the Agent DB itself, which lets nobody write it.
    #[error("column {column} of {table} is generated in the Agent DB but not in the Site DB")]
    ColumnGenerated {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// A column that the Site DB does not publish must have a value in the Agent DB.
    #[error(
        "column {column} of {table} is NOT NULL without a default in the Agent DB, and the Site DB does not publish it"
    )]
    ColumnUnfilled {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// A column of the Agent DB's primary key is not published.
    #[error("key column {column} of {table} is not published by the Site DB")]
    KeyNotPublished {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// The Site DB's replica identity does not hold the Agent DB's primary key: updates and deletes would not say which
    /// row they mean.
    #[error("the replica identity of {table} in the Site DB does not include key column {column}")]
    IdentityWithoutKey {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// The Agent DB's primary key is not the one that the table's changes were made for.
    #[error("the primary key of {table} was changed in the Agent DB")]
    KeyChanged {
        /// The table.
        table: TableName,
    },
    /// So many rows of a table are parked that the table, not the rows, is at fault.
    #[error("{table} has more than {limit} failed rows")]
    TooManyFailed {
        /// The table.
        table: TableName,
        /// `sync.max_failed_rows`.
        limit: usize,
    },
    /// A checkpoint may only move forward.
    #[error("the checkpoint would move from {from} back to {to}")]
    Backwards {
        /// The stored position.
        from: Lsn,
        /// The position that was to be stored.
        to: Lsn,
    },
    /// The position is another cluster's than the stored one: means nothing here.
    #[error("the checkpoint belongs to another Site DB")]
    AnotherSource,
    /// An earlier call failed or was dropped half-way: the open transaction must be rolled back first.
    #[error("the open Agent DB transaction is not whole and must be rolled back")]
    Aborted,
    /// A COMMIT was sent and its answer never seen: reconnect and read the checkpoint.
    #[error("the outcome of a commit is not known")]
    CommitUnknown,
    /// A row of the daemon's own tables that we can't read.
    #[error("{what} in the Agent DB is not readable")]
    Unreadable {
        /// What it is.
        what: &'static str,
    },
    /// A bug of ours, caught before it could commit.
    #[error("internal: {0}")]
    Internal(String),
}

/// Who holds a slot's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The backend's process id in the Agent DB.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// The client's address, where the server shows it.
    pub address: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backend {} ({}", self.pid, self.application)?;
        if let Some(address) = &self.address {
            write!(f, " from {address}")?;
        }
        write!(f, ")")
    }
}

impl AgentError {
    /// Wraps a driver's error met while doing something, for one table where there is one.
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

    /// Names the role for the hint.
    #[must_use]
    pub(super) fn for_role(mut self, name: &str) -> Self {
        if let Self::Refused { role, .. } = &mut self {
            *role = Some(name.into());
        }
        self
    }

    /// Of the daemon's own rows: a refusal that elsewhere would be a row's own is nobody's but ours.
    #[must_use]
    pub(super) fn of_bookkeeping(self) -> Self {
        match self {
            Self::Refused { .. } if self.disposition() == Disposition::Row => Self::Internal(self.to_string()),
            other => other,
        }
    }

    /// Whose fault it is, and so what happens next. Never [`Disposition::Row`] from the sink: it parks those.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Session(source) => source.disposition(),
            // With a new connection, tables are resolved again.
            Self::KeyChanged { .. } => Disposition::Transient,
            Self::Busy { .. } | Self::Aborted | Self::CommitUnknown => Disposition::Transient,
            Self::Refused { refusal, .. } => refusal.disposition(),
            Self::KeyEncoding { .. }
            | Self::TableMissing { .. }
            | Self::NotATable { .. }
            | Self::NoPrimaryKey { .. }
            | Self::DeferrablePrimaryKey { .. }
            | Self::ColumnMissing { .. }
            | Self::ColumnGenerated { .. }
            | Self::ColumnUnfilled { .. }
            | Self::KeyNotPublished { .. }
            | Self::IdentityWithoutKey { .. }
            | Self::TooManyFailed { .. }
            | Self::Backwards { .. }
            | Self::AnotherSource
            | Self::Unreadable { .. }
            | Self::Internal(_) => Disposition::Systemic,
        }
    }

    /// The table that is at fault, where the error is one table's.
    #[must_use]
    pub fn table(&self) -> Option<&TableName> {
        match self {
            Self::Refused { table, .. } => table.as_ref(),
            Self::TableMissing { table }
            | Self::NotATable { table }
            | Self::NoPrimaryKey { table, .. }
            | Self::DeferrablePrimaryKey { table, .. }
            | Self::ColumnMissing { table, .. }
            | Self::ColumnGenerated { table, .. }
            | Self::ColumnUnfilled { table, .. }
            | Self::KeyNotPublished { table, .. }
            | Self::IdentityWithoutKey { table, .. }
            | Self::KeyChanged { table }
            | Self::TooManyFailed { table, .. } => Some(table),
            _ => None,
        }
    }

    /// What a person can do, with the statement to paste where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let quote = crate::postgres::quote_identifier;
        Some(match self {
            Self::Session(source) => return source.hint(),
            Self::KeyEncoding { table } => format!(
                "on the database whose encoding is SQL_ASCII: correct the keys of {} that are not UTF-8",
                table.quoted()
            ),
            Self::Refused {
                table, refusal, role, ..
            } => return refusal_hint(table.as_ref(), &refusal.sqlstate, role.as_deref()),
            Self::Busy { .. } => {
                "this daemon stands by and takes over when the other one ends; nothing to do unless it should not run"
                    .to_owned()
            }
            Self::TableMissing { table } => format!(
                "create it as in the Site DB: pg_dump --schema-only --no-owner --table='{}' SITE_URL | psql AGENT_URL",
                table.quoted()
            ),
            Self::NotATable { table } => {
                format!("leave it out of the synchronised tables (sync.tables = [\"!{table}\"]), or make it a table")
            }
            Self::NoPrimaryKey { table, suggested } => format!(
                "in the Agent DB: ALTER TABLE {} ADD PRIMARY KEY ({});",
                table.quoted(),
                if suggested.is_empty() {
                    "…".to_owned()
                } else {
                    suggested.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
                }
            ),
            Self::DeferrablePrimaryKey {
                table,
                constraint,
                columns,
            } => format!(
                "in the Agent DB: ALTER TABLE {table} DROP CONSTRAINT {}, ADD PRIMARY KEY ({});",
                quote(constraint),
                columns.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "),
                table = table.quoted(),
            ),
            Self::ColumnMissing { table, columns } => format!(
                "in the Agent DB, with the types of the Site DB: ALTER TABLE {} {};",
                table.quoted(),
                columns
                    .iter()
                    .map(|name| format!("ADD COLUMN {} …", quote(name)))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Self::ColumnGenerated { table, column } => format!(
                "in the Agent DB: ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION;",
                table.quoted(),
                quote(column)
            ),
            Self::ColumnUnfilled { table, column } => format!(
                "in the Agent DB: ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL; (or SET DEFAULT, or publish the column)",
                table.quoted(),
                quote(column)
            ),
            Self::KeyNotPublished { table, column } => format!(
                "add {} to the publication's column list for {}, or choose another primary key in the Agent DB",
                quote(column),
                table.quoted()
            ),
            Self::IdentityWithoutKey { table, .. } => {
                format!("in the Site DB: ALTER TABLE {} REPLICA IDENTITY FULL;", table.quoted())
            }
            Self::TooManyFailed { table, .. } => format!(
                "see what they have in common: twinlog failed list {table}; mend it, or raise sync.max_failed_rows"
            ),
            Self::Backwards { .. } | Self::AnotherSource => {
                "the Site DB or the Agent DB was replaced or restored from a backup: run twinlog resync --all"
                    .to_owned()
            }
            Self::Unreadable { .. } => {
                "the schema twinlog was changed by hand or by another version: run twinlog migrate agent".to_owned()
            }
            Self::KeyChanged { .. } | Self::Aborted | Self::CommitUnknown | Self::Internal(_) => return None,
        })
    }
}

/// What a person can do about a SQLSTATE, for those that need one.
fn refusal_hint(table: Option<&TableName>, sqlstate: &str, role: Option<&str>) -> Option<String> {
    let role = role.map_or_else(|| "the daemon's role".to_owned(), crate::postgres::quote_identifier);
    let of_table = table.map_or_else(|| "ALL TABLES IN SCHEMA twinlog".to_owned(), TableName::quoted);
    Some(match sqlstate {
        "42501" => format!(
            "in the Agent DB, as the owner: GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {of_table} TO {role}; and where \
             row-level security is on, as a superuser: ALTER ROLE {role} BYPASSRLS;"
        ),
        "42P01" | "3F000" if table.is_none() => "run: twinlog migrate agent".to_owned(),
        "42P01" | "42703" | "42804" | "42P10" => {
            "the table was changed in the Agent DB: make it match the Site DB's".to_owned()
        }
        "0A000" if table.is_some() => {
            "a table that is not synchronised refers to a truncated one in the Agent DB: drop that foreign key"
                .to_owned()
        }
        _ => return session_hint(Side::Agent, sqlstate),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sqlstate: &str, message: &str) -> AgentError {
        AgentError::Refused {
            action: "write rows",
            table: Some(TableName::new("public", "leads")),
            refusal: Box::new(Refusal {
                sqlstate: sqlstate.into(),
                message: message.into(),
                constraint: Some("leads_wa_id_key".into()),
                column: None,
            }),
            role: Some("crm daemon".into()),
        }
    }

    #[test]
    fn a_row_error_never_shows_the_servers_message() {
        let text = refused("22P02", "invalid input syntax for type integer: \"secret\"").to_string();
        assert!(!text.contains("secret"), "{text}");
        assert!(
            text.contains("22P02") && text.contains("leads_wa_id_key") && text.contains("public.leads"),
            "{text}"
        );
    }

    #[test]
    fn a_systemic_error_says_what_the_server_said_and_what_to_paste() {
        let error = refused("42501", "permission denied for table leads");
        assert_eq!(error.disposition(), Disposition::Systemic);
        assert!(error.to_string().contains("permission denied for table leads"));
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains(r#"ON "public"."leads" TO "crm daemon";"#))
        );
    }
}
