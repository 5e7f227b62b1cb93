//! The one list of settings that every session of the daemon pins, whatever the role, the database or the server says.
//!
//! A value travels from the Site DB to the Agent DB as text (pitfall P28): printed by the replication connection or by a
//! copy's session, parsed by the Agent DB's. All of them must print and parse alike, so all of them take [`PINNED`]. What only
//! one kind of session needs stands in a list of its own.

/// A setting's name and value.
pub type Setting = (&'static str, &'static str);

/// What decides how values, names and types are printed and parsed. Taken by every session with either database.
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

/// In addition, for plain sessions: no time-out of the server's ends a session that waits for work, a lock is not waited
/// for longer than 30 s, a dead peer is noticed after about 30 s on the server's end too (so that a dead daemon's lock is
/// free by then), and Postgres raises an error where row-level security would hide rows (pitfall P31).
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

/// In addition, for the replication connection. The time-outs are off because an idle stream does its job. Warnings are on
/// because from 18 on one of them says that changes are left out (the publication does not exist at that point).
pub const REPLICATION: &[Setting] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("client_min_messages", "warning"),
];

/// The statements that pin a plain session's settings, each where the server knows it (`transaction_timeout` came with 17).
/// `synchronous_commit` is only ever raised: a commit that counts must be on disk.
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
