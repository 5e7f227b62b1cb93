//! What an operator can do about an error: the statement to paste, if there is one.

use super::AgentError;
use super::missing_column::{MissingColumn, Refuses, add_columns};
use super::refusal_hint::{refusal_hint, row_security_hint, rows_locked_hint, unlogged_hint};
use crate::postgres::quote_identifier as quote;

impl AgentError {
    /// What an operator can do, as a statement if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Session(source) => return source.hint(),
            Self::KeyEncoding { table } => format!(
                "on the database whose encoding is SQL_ASCII: correct the keys of {} that are not UTF-8",
                table.quoted()
            ),
            Self::Refused {
                action,
                table,
                refusal,
                role,
            } => return refusal_hint(action, table.as_ref(), &refusal.sqlstate, role.as_deref()),
            Self::TableRefused {
                action,
                table,
                refusal,
                role,
            } => return refusal_hint(action, Some(table), &refusal.sqlstate, role.as_deref()),
            Self::RowsSwallowed { table } => format!(
                "in the Agent DB: ALTER TABLE {} DISABLE TRIGGER …; for the trigger that returns NULL",
                table.quoted()
            ),
            Self::RowSecurity { role, .. } => row_security_hint(role),
            Self::Unlogged { table } => unlogged_hint(table),
            Self::Busy { .. } => {
                "nothing to do: this daemon is the standby, and takes over when the other one ends".to_owned()
            }
            Self::TableMissing { table } => format!(
                "create it as in the Site DB: pg_dump --schema-only --no-owner --table='{}' SITE_URL | psql AGENT_URL",
                // For a shell, an apostrophe stands outside of the apostrophes.
                table.quoted().replace('\'', r"'\''")
            ),
            Self::NotATable { table, without } => match without {
                Some(without) => format!("make it a table, or leave it out: sync.tables = {without}"),
                None => format!(
                    "make it a table, or leave it out: add {:?} at the end of sync.tables",
                    format!("!{}", table.pattern())
                ),
            },
            Self::Claimed { claim, .. } => claim.hint(),
            Self::PartOf { table, whole } => format!(
                "in the Agent DB, as in the Site DB: ALTER TABLE {} DETACH PARTITION {};",
                whole.quoted(),
                table.quoted()
            ),
            Self::SharedWithoutKey { table } => format!(
                "on both sides: ALTER TABLE {} ADD PRIMARY KEY (…); or take it out of sync.shared_tables",
                table.quoted()
            ),
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
            Self::ColumnMissing { table, columns, types } => {
                let Some(add) = add_columns(columns) else {
                    return Some(
                        "add them as the Site DB has them: the statement is here within seconds (or let the daemon do it: \
                         sync.on_new_column = \"add\")"
                            .to_owned(),
                    );
                };
                let add = format!("ALTER TABLE {} {add};", table.quoted());
                match types.as_deref() {
                    None if columns.iter().any(MissingColumn::is_of_users_type) => {
                        format!("in the Agent DB: {add} (if it lacks the type, what creates it is here within seconds)")
                    }
                    None | Some([]) => {
                        format!("in the Agent DB: {add} (or let the daemon do it: sync.on_new_column = \"add\")")
                    }
                    Some(types) => format!("in the Agent DB: {}; {add}", types.join("; ")),
                }
            }
            Self::NotPermitted { table, role, rights } => {
                let schema = if rights.contains(&"USAGE") {
                    format!("GRANT USAGE ON SCHEMA {} TO {}; ", quote(&table.schema), quote(role))
                } else {
                    String::new()
                };
                format!(
                    "in the Agent DB, as the owner: {schema}GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {} TO {};",
                    table.quoted(),
                    quote(role)
                )
            }
            Self::ObjectsNotPermitted { role, objects, .. } => {
                let grant = |object: &String| format!("GRANT {object} TO {};", quote(role));
                let grants: Vec<String> = objects.iter().map(grant).collect();
                format!("in the Agent DB, as the owner: {}", grants.join(" "))
            }
            Self::Rules { table, rules } => {
                let drop = |rule: &String| format!("DROP RULE {} ON {};", quote(rule), table.quoted());
                let drops: Vec<String> = rules.iter().map(drop).collect();
                format!("in the Agent DB: {}", drops.join(" "))
            }
            Self::RowsLocked { table, .. } => rows_locked_hint(table),
            Self::CannotPark { .. } => {
                "correct the row in the Site DB, or use an Agent DB in UTF8: its encoding lacks a character".to_owned()
            }
            Self::ColumnGenerated { table, column } => format!(
                "in the Agent DB: ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION;",
                table.quoted(),
                quote(column)
            ),
            Self::ColumnUnfilled {
                table,
                column,
                refuses: Refuses::Domain,
            } => format!(
                "its type is a domain that is NOT NULL; in the Agent DB: ALTER TABLE {} ALTER COLUMN {} SET DEFAULT …; (or publish the \
                 column)",
                table.quoted(),
                quote(column)
            ),
            Self::ColumnUnfilled {
                table,
                column,
                refuses: Refuses::Key,
            } => format!(
                "it is in a key of the table: publish the column in the Site DB; or in the Agent DB: ALTER TABLE {} ALTER COLUMN {} SET \
                 DEFAULT …;",
                table.quoted(),
                quote(column)
            ),
            Self::ColumnUnfilled { table, column, .. } => format!(
                "in the Agent DB: ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL; (or SET DEFAULT, or publish the column)",
                table.quoted(),
                quote(column)
            ),
            Self::TypeDiffers {
                table, column, site, ..
            }
            | Self::KeyMerges {
                table, column, site, ..
            } => format!(
                "in the Agent DB: ALTER TABLE {} ALTER COLUMN {} TYPE {site};",
                table.quoted(),
                quote(column)
            ),
            Self::NoIndexOnIdentity { table, columns } => format!(
                "in the Agent DB: CREATE UNIQUE INDEX ON {} ({});",
                table.quoted(),
                columns.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
            ),
            Self::IdentityIncomplete { table, partitions, .. } => {
                let own = [table.quoted()];
                let tables = if partitions.is_empty() { &own[..] } else { partitions };
                let full = |name: &String| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
                let statements: Vec<String> = tables.iter().map(full).collect();
                format!(
                    "on the Site DB: {} (or USING INDEX …, a unique index of columns that are sent)",
                    statements.join(" ")
                )
            }
            Self::TooSlow { table: Some(table), .. } => format!(
                "look at what its triggers and checks wait for: SELECT tgname, tgfoid::regprocedure FROM pg_trigger WHERE tgrelid = \
                 {}::regclass AND NOT tgisinternal; or raise sync.statement_limit_ms",
                crate::postgres::quote_literal(&table.regclass())
            ),
            Self::TooManyFailed { table, .. } => {
                format!(
                    "find the common cause with: twinlog failed list {table}; repair it, or raise sync.max_failed_rows"
                )
            }
            Self::Backwards { .. } | Self::AnotherSource => {
                "the Site DB or the Agent DB was replaced or restored from a backup: run twinlog resync --all"
                    .to_owned()
            }
            Self::Unreadable { .. } => {
                "the schema twinlog was changed by hand or by another version: use the version of the daemon".to_owned()
            }
            Self::Condition(error) => error.hint().to_owned(),
            Self::KeyChanged { .. }
            | Self::TableChanged { .. }
            | Self::TooSlow { table: None, .. }
            | Self::Aborted
            | Self::Internal(_) => return None,
        })
    }
}
