//! What an operator can do about a statement that Postgres refused.

use crate::change::TableName;
use crate::postgres::Side;
use crate::postgres::error::session_hint;

/// What an operator can do about a SQLSTATE; `None` for SQLSTATEs without a special remedy.
pub(super) fn refusal_hint(table: Option<&TableName>, sqlstate: &str, role: Option<&str>) -> Option<String> {
    let role = role.map_or_else(|| "the daemon's role".to_owned(), crate::postgres::quote_identifier);
    let of_table = table.map_or_else(|| "ALL TABLES IN SCHEMA twinlog".to_owned(), TableName::quoted);
    Some(match sqlstate {
        "42501" => format!(
            "in the Agent DB, as the owner: GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {of_table} TO {role}; and where \
             row-level security is on, as a superuser: ALTER ROLE {role} BYPASSRLS;"
        ),
        "42P01" | "3F000" if table.is_none() => {
            "no daemon has worked on this database yet: start twinlog sync, which makes the tables that it needs (schema twinlog)"
                .to_owned()
        }
        "55P03" if table.is_some() => {
            "end the transaction of the Agent DB that has locked the table: SELECT pid, mode FROM pg_locks WHERE granted AND \
             relation = '{table}'::regclass;"
                .replace("{table}", &of_table)
        }
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

/// The statement for a table that a crash of the server would empty.
pub(super) fn unlogged_hint(table: &TableName) -> String {
    format!(
        "in the Agent DB: ALTER TABLE {} SET LOGGED; (of a partitioned table: for each partition that is UNLOGGED)",
        table.quoted()
    )
}

/// The statement for a role to which row-level security applies.
pub(super) fn row_security_hint(role: &str) -> String {
    let role = crate::postgres::quote_identifier(role);
    format!("in the Agent DB, as a superuser: ALTER ROLE {role} BYPASSRLS;")
}
