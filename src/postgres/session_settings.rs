//! The one list of settings that every session of the daemon pins, against the defaults of role, database and server.
//!
//! A value travels from the Site DB to the Agent DB as text (pitfall P28): printed by the replication connection or by a
//! copy's session, parsed by the Agent DB's. They must print and parse alike, so all of them set [`PINNED`]. What only
//! one kind of session needs is in a list of its own.

/// A setting's name and value.
pub type Setting = (&'static str, &'static str);

/// The settings that decide how values, names and types are printed and parsed. Set by every session with either database.
///
/// A `search_path` of `pg_catalog` alone makes names within values (`regclass`) come with their schema.
pub const PINNED: &[Setting] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    ("search_path", "pg_catalog"),
];

/// In addition, for plain sessions: no time-out of the server ends a session that waits for work; a statement waits for a
/// lock for at most 30 s; the server too notices a dead peer after about 30 s, and frees its lock; and Postgres raises an
/// error instead of hiding rows by row-level security (pitfall P31).
pub(super) const PLAIN: &[Setting] = &[
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("transaction_timeout", "0"),
    ("lock_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "4"),
    ("tcp_user_timeout", "30s"),
];

/// In addition, for the replication connection. The time-outs are off, since a stream is often idle. Warnings are on,
/// because from 18 on one of them says that changes are left out (the publication does not exist at that point).
pub const REPLICATION: &[Setting] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("client_min_messages", "warning"),
];

/// The statements that pin a plain session's settings, if the server knows them (`transaction_timeout` is new in 17).
/// `synchronous_commit` is turned on if it is off, since a commit must be on disk; a stricter value stays.
pub(super) fn statements() -> String {
    let values: Vec<String> = PINNED
        .iter()
        .chain(PLAIN)
        .map(|(name, value)| format!("('{name}', '{value}')"))
        .collect();
    format!(
        "SELECT pg_catalog.set_config(s.name, v.value, false) FROM (VALUES {}) AS v(name, value) \
         JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) = pg_catalog.lower(v.name); \
         SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
         WHERE pg_catalog.current_setting('synchronous_commit') = 'off'",
        values.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_setting_is_pinned_once_and_needs_no_quoting() {
        for list in [PLAIN, REPLICATION] {
            let mut names = BTreeSet::new();
            for (name, value) in PINNED.iter().chain(list) {
                assert!(names.insert(name.to_lowercase()), "{name} twice");
                assert!(!name.contains('\'') && !value.contains('\''), "{name}");
            }
        }
    }
}
