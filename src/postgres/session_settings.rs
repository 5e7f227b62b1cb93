//! The lists of settings that sessions pin, whatever the role, the database or the server says.
//!
//! A value travels from the Site DB to the Agent DB as text (pitfall P28): printed by the replication connection or by a
//! copy's session, parsed by the Agent DB's. All of them must print and parse alike, so all of them take [`PINNED`], and
//! the server half's sessions as well. What only one kind of session needs stands in a list of its own.
//!
//! # What triggers, checks and defaults of the Agent DB see
//!
//! They run in the session that writes, and must work as they do for any application that connects with the same role: so
//! that session ([`SessionKind::Writing`]) keeps the role's own `search_path` and `row_security`, and everything that is
//! not listed here. What they see pinned is what decides how values are read ([`PINNED`]: `TimeZone` is UTC, `DateStyle`
//! is ISO; a function that wants another one names it with `SET TimeZone = …`), and the time-outs. `lock_timeout` is 3 s.
//! `session_replication_role` is `replica` where the role may set it: then only triggers that are enabled as ALWAYS or
//! REPLICA fire. What they set themselves ends with their table's statement ([`pin_again`]).
//!
//! # What is not pinned, and why
//!
//! `default_transaction_read_only`: an operator who sets it wants no writes. `synchronous_commit` is only ever raised: a
//! commit that counts must be on disk. `xmlbinary`, `lc_numeric`, `lc_time`, `default_text_search_config` and the like
//! change functions, and no type's input or output.

/// A setting's name and value.
pub type Setting = (&'static str, &'static str);

/// What decides how values are printed and parsed. Taken by every session with either database.
pub const PINNED: &[Setting] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    // With `off`, the word NULL in an array is a text.
    ("array_nulls", "on"),
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("quote_all_identifiers", "off"),
];

/// Names within values (`regclass`) and types are printed with their schema, and names in our statements mean what they
/// mean in `pg_catalog`. Not for sessions whose statements fire triggers: see [`SessionKind`].
pub const SEARCH_PATH: Setting = ("search_path", "pg_catalog");

/// What a plain session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// It reads rows, or reads and writes the daemon's own tables.
    Reading,
    /// It writes rows, and fires what the Agent DB has on them. Every statement of it must name its objects, operators and
    /// types with their schemas: the search path is the role's.
    Writing,
}

/// In addition, for reading sessions: names as in [`SEARCH_PATH`]; Postgres raises an error where row-level security would
/// hide rows (pitfall P31); `= NULL` in a condition means what the standard says.
const READING: &[Setting] = &[SEARCH_PATH, ("row_security", "off"), ("transform_null_equals", "off")];

/// In addition, for plain sessions of either kind:
/// - no time-out of the server's ends a session that waits for work, and an error does not end it either;
/// - a lock is not waited for longer than 30 s;
/// - a dead peer is noticed after about 30 s on the server's end too (so that a dead daemon's lock is free by then);
/// - a transaction sees what was committed before each of its statements;
/// - an index never returns only some of the rows;
/// - values are put neither into notices nor, with an error, into the server's log;
/// - statements are not compiled: a catalog query of ours is estimated at more than `jit_above_cost`, runs for 5 ms and was
///   compiled for 140 ms, at each start and each look.
const PLAIN: &[Setting] = &[
    ("statement_timeout", "0"),
    ("transaction_timeout", "0"),
    ("lock_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("exit_on_error", "off"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "4"),
    ("tcp_user_timeout", "30s"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("gin_fuzzy_search_limit", "0"),
    ("client_min_messages", "error"),
    ("log_parameter_max_length_on_error", "0"),
    ("jit", "off"),
];

/// In addition, for the replication connection. The time-outs are off, since a stream is often idle. Warnings are on,
/// because from 18 on one of them says that changes are left out (the publication does not exist at that point).
pub const REPLICATION: &[Setting] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("client_min_messages", "warning"),
];

/// The statements that pin a plain session's settings.
pub(super) fn statements(kind: SessionKind) -> String {
    let of_kind = match kind {
        SessionKind::Reading => READING,
        SessionKind::Writing => &[],
    };
    format!("{}; {SYNCHRONOUS}", pin(PINNED.iter().chain(PLAIN).chain(of_kind)))
}

/// The statement that pins again what a trigger of the Agent DB may have set in the session that writes: how values are read,
/// whether triggers fire (where the session `is_replica`), whether a commit waits for the disk, and how long statements run.
/// Only what has another value is set. Also within a transaction: what is set last is kept with its commit.
#[must_use]
pub fn pin_again(is_replica: bool) -> String {
    let replica: &[Setting] = if is_replica {
        &[("session_replication_role", "replica")]
    } else {
        &[]
    };
    let values: Vec<String> = (PINNED.iter().chain(replica).chain(&[("statement_timeout", "0")]))
        .map(|(name, value)| format!("('{name}', '{value}')"))
        .collect();
    format!(
        "SELECT pg_catalog.set_config(v.name, v.value, false) FROM (VALUES {}) AS v(name, value) \
         WHERE pg_catalog.current_setting(v.name, true) OPERATOR(pg_catalog.<>) v.value; {SYNCHRONOUS}",
        values.join(", ")
    )
}

/// A commit that counts is on disk.
const SYNCHRONOUS: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
    WHERE pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off'";

/// The statement that pins [`PINNED`] alone.
#[must_use]
pub fn pin_values() -> String {
    pin(PINNED.iter())
}

/// Sets what the server knows (`transaction_timeout` came with 17).
fn pin<'a>(settings: impl Iterator<Item = &'a Setting>) -> String {
    let values: Vec<String> = settings.map(|(name, value)| format!("('{name}', '{value}')")).collect();
    // Not by a join with `pg_settings`: that prints all 350 settings, 2 ms for each session.
    format!(
        "SELECT pg_catalog.set_config(v.name, v.value, false) FROM (VALUES {}) AS v(name, value) \
         WHERE pg_catalog.current_setting(v.name, true) IS NOT NULL",
        values.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_setting_is_pinned_once_and_needs_no_quoting() {
        for list in [[PLAIN, READING].concat(), [REPLICATION, &[SEARCH_PATH]].concat()] {
            let mut names = BTreeSet::new();
            for (name, value) in PINNED.iter().chain(&list) {
                assert!(names.insert(name.to_lowercase()), "{name} twice");
                assert!(!name.contains('\'') && !value.contains('\''), "{name}");
            }
        }
    }
}
