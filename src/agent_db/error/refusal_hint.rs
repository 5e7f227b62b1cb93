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
    let rights = "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON";
    Some(match (sqlstate, table) {
        ("42501", Some(table)) => {
            format!("in the Agent DB, as the owner: {rights} {} TO {role};", table.quoted())
        }
        ("42501", None) => format!(
            "in the Agent DB, as the owner: GRANT USAGE ON SCHEMA twinlog TO {role}; {rights} ALL TABLES IN SCHEMA twinlog TO {role};"
        ),
        ("42P01" | "3F000", None) => {
            "if no daemon has worked on this database yet: start twinlog sync, which makes the tables that it needs (schema twinlog); \
             if one of them was dropped, drop the others too, in the Agent DB: DROP TABLE IF EXISTS twinlog.accounting, \
             twinlog.checkpoint, twinlog.claims, twinlog.commands, twinlog.daemon, twinlog.failed_rows, twinlog.tables, \
             twinlog._sqlx_migrations; the daemon makes them anew, and reads every table again"
                .to_owned()
        }
        (LOCK_NOT_AVAILABLE, Some(table)) => table_locked_hint(table),
        (LOCK_NOT_AVAILABLE, None) => {
            "end the session of the Agent DB that has locked a table of the schema twinlog: SELECT l.pid, l.relation::regclass FROM \
             pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND \
             c.relnamespace = 'twinlog'::regnamespace;"
                .to_owned()
        }
        ("42P01" | "42703" | "42804" | "42P10", _) => {
            "the table was changed in the Agent DB: make it match the Site DB's".to_owned()
        }
        ("0A000", _) if action == TRUNCATE => {
            "a table that is not synchronised refers to a truncated one in the Agent DB: drop that foreign key"
                .to_owned()
        }
        _ => return session_hint(Side::Agent, sqlstate),
    })
}

/// Locks with who holds them. A prepared transaction has no pid: it is known by its id, on which it holds a lock as well.
const LOCKS: &str = "FROM pg_locks l LEFT JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction AND \
    x.locktype = 'transactionid' AND x.granted LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid \
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.granted AND \
    l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Locks that keep rows of a table from being written.
const STRONG: &str = "l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";

/// A lock of the table, or of a partition of it. Not by `pg_partition_tree`, which would wait for the lock as well.
fn is_of(table: &TableName) -> String {
    let table = quote_literal(&table.regclass());
    format!(
        "l.relation IN (WITH RECURSIVE t (oid) AS (SELECT {table}::regclass::oid UNION ALL SELECT i.inhrelid FROM t JOIN \
         pg_inherits i ON i.inhparent = t.oid) SELECT oid FROM t)"
    )
}

/// Finds who has locked a table, or a partition of it.
fn table_locked_hint(table: &TableName) -> String {
    format!(
        "end the transaction of the Agent DB that has locked the table: SELECT l.pid, a.application_name, l.relation::regclass, l.mode, \
         p.gid {LOCKS} AND {STRONG} AND {};",
        is_of(table)
    )
}

/// Finds who may have locked rows of a table, or what its triggers wait for: another table, or an advisory lock.
pub(super) fn rows_locked_hint(table: &TableName) -> String {
    format!(
        "end the transaction or the session of the Agent DB that holds the lock, which is one of these: SELECT l.pid, \
         a.application_name, l.locktype, l.relation::regclass, l.mode, p.gid {LOCKS} AND \
         coalesce(a.application_name, '') NOT LIKE 'twinlog %' AND (l.locktype = 'advisory' OR {STRONG} OR \
         (l.mode IN ('RowShareLock', 'RowExclusiveLock') AND {}));",
        is_of(table)
    )
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
