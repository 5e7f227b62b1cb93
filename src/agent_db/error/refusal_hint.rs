//! What an operator can do about a statement that Postgres refused.

use crate::change::TableName;
use crate::postgres::Side;
use crate::postgres::error::session_hint;
use crate::postgres::quote_literal;
use crate::postgres::sqlstate::LOCK_NOT_AVAILABLE;

/// What was being done when a TRUNCATE was refused.
pub(in crate::agent_db) const TRUNCATE: &str = "truncate";

/// What an operator can do about a SQLSTATE; `None` for SQLSTATEs without a special remedy.
pub(super) fn refusal_hint(
    action: &str,
    table: Option<&TableName>,
    sqlstate: &str,
    role: Option<&str>,
) -> Option<String> {
    let role = role.map_or_else(|| "the daemon's role".to_owned(), crate::postgres::quote_identifier);
    let of_table = table.map_or_else(|| "ALL TABLES IN SCHEMA twinlog".to_owned(), TableName::quoted);
    Some(match sqlstate {
        "42501" => format!(
            "in the Agent DB, as the owner: GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {of_table} TO {role};"
        ),
        "42P01" | "3F000" if table.is_none() => {
            "no daemon has worked on this database yet: start twinlog sync, which makes the tables that it needs (schema twinlog)"
                .to_owned()
        }
        LOCK_NOT_AVAILABLE if table.is_some() => format!(
            // A prepared transaction has no pid: it is known by its id, on which it holds a lock as well.
            "end the transaction of the Agent DB that has locked the table: SELECT l.pid, l.mode, p.gid FROM pg_locks l LEFT JOIN \
             pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid' AND x.granted LEFT JOIN \
             pg_prepared_xacts p ON p.transaction = x.transactionid WHERE l.granted AND l.relation = {}::regclass;",
            quote_literal(&of_table)
        ),
        LOCK_NOT_AVAILABLE => {
            "end the session of the Agent DB that has locked a table of the schema twinlog: SELECT l.pid, l.relation::regclass FROM \
             pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND \
             c.relnamespace = 'twinlog'::regnamespace;"
                .to_owned()
        }
        "42P01" | "42703" | "42804" | "42P10" => {
            "the table was changed in the Agent DB: make it match the Site DB's".to_owned()
        }
        "0A000" if action == TRUNCATE => {
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
