//! Which keys there are, of what kind, and the environment variable of each.

use super::problem::Problem;

/// What the names of our environment variables begin with; `__` separates section and key as well.
const ENVIRONMENT_PREFIX: &str = "TWINLOG__";

/// How alike two names must be for one to be offered instead of the other: lets a few typed letters be wrong, but not a
/// whole word.
const LIKENESS: f64 = 0.7;

/// What kind of value a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    Text,
    /// The text itself, `{ file = … }` or `{ env = … }`.
    Secret,
    Integer,
    /// `true` or `false`.
    Boolean,
    Texts,
    Secrets,
    /// A list of tables with these keys.
    Tables(&'static [(&'static str, ValueKind)]),
}

impl ValueKind {
    pub(super) const fn description(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Secret => "a text, { file = \"…\" } or { env = \"…\" }",
            Self::Integer => "a whole number",
            Self::Boolean => "true or false",
            Self::Texts => "a list of texts",
            Self::Secrets => "a list of texts, { file = \"…\" } or { env = \"…\" }",
            Self::Tables(_) => "a list of tables",
        }
    }

    pub(super) const fn example(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Secret => "{ file = \"/path\" }",
            Self::Integer => "10",
            Self::Boolean => "true",
            Self::Texts => "[\"one\", \"two\"]",
            Self::Secrets => "[{ file = \"/path\" }]",
            Self::Tables(_) => "[{ key = \"text\" }, { key = \"text\" }]",
        }
    }
}

/// `[[whatsapp.accounts]]`
const ACCOUNT: &[(&str, ValueKind)] = &[
    ("phone_number_id", ValueKind::Text),
    ("waba_id", ValueKind::Text),
    ("access_token", ValueKind::Secret),
    ("messages_per_second", ValueKind::Integer),
];

/// `[[auth.tokens]]`
const TOKEN: &[(&str, ValueKind)] = &[
    ("name", ValueKind::Text),
    ("sha256", ValueKind::Text),
    ("numbers", ValueKind::Texts),
    ("automation", ValueKind::Boolean),
];

/// `[[subscribers]]`
const SUBSCRIBER: &[(&str, ValueKind)] = &[
    ("name", ValueKind::Text),
    ("url", ValueKind::Secret),
    ("secret", ValueKind::Secret),
    ("verify_token", ValueKind::Secret),
    ("fields", ValueKind::Texts),
    ("numbers", ValueKind::Texts),
    ("kinds", ValueKind::Texts),
];

/// Every key. A key without a section is a list of tables. A test compares them with `config/default.toml`.
pub(super) const KEYS: &[(&str, ValueKind)] = &[
    // A URL may hold a password.
    ("site.url", ValueKind::Secret),
    ("site.max_connections", ValueKind::Integer),
    ("agent.url", ValueKind::Secret),
    ("sync.publication", ValueKind::Text),
    ("sync.slot", ValueKind::Text),
    ("sync.tables", ValueKind::Texts),
    ("sync.shared_tables", ValueKind::Texts),
    ("sync.on_unreplicable_table", ValueKind::Text),
    ("sync.on_new_column", ValueKind::Text),
    ("sync.batch_rows", ValueKind::Integer),
    ("sync.batch_bytes", ValueKind::Integer),
    ("sync.copy_chunk_rows", ValueKind::Integer),
    ("sync.copy_workers", ValueKind::Integer),
    ("sync.retry_initial_ms", ValueKind::Integer),
    ("sync.retry_max_ms", ValueKind::Integer),
    ("sync.max_failed_rows", ValueKind::Integer),
    ("sync.reconnect_initial_ms", ValueKind::Integer),
    ("sync.reconnect_max_ms", ValueKind::Integer),
    ("sync.ready_delay_ms", ValueKind::Integer),
    ("sync.statement_limit_ms", ValueKind::Integer),
    ("sync.verify_every", ValueKind::Text),
    ("sync.verify_rows_per_second", ValueKind::Integer),
    ("sync.give_up_slot_at", ValueKind::Text),
    ("sync.on_lost_slot", ValueKind::Text),
    ("http.listen", ValueKind::Text),
    ("http.max_connections", ValueKind::Integer),
    ("http.max_connections_per_address", ValueKind::Integer),
    ("http.max_body_bytes", ValueKind::Integer),
    ("http.max_media_bytes", ValueKind::Integer),
    ("http.public_url", ValueKind::Text),
    ("http.send_wait_ms", ValueKind::Integer),
    ("http.cors_origins", ValueKind::Texts),
    ("admin.listen", ValueKind::Text),
    ("whatsapp.graph_url", ValueKind::Text),
    ("whatsapp.media_hosts", ValueKind::Texts),
    ("whatsapp.api_version", ValueKind::Text),
    ("whatsapp.app_secrets", ValueKind::Secrets),
    ("whatsapp.verify_token", ValueKind::Secret),
    ("whatsapp.send_timeout_ms", ValueKind::Integer),
    ("whatsapp.max_attempts", ValueKind::Integer),
    ("whatsapp.retry_initial_ms", ValueKind::Integer),
    ("whatsapp.retry_max_ms", ValueKind::Integer),
    ("whatsapp.hold_probe_ms", ValueKind::Integer),
    ("whatsapp.takeover_minutes", ValueKind::Integer),
    ("whatsapp.ask_history_after_ms", ValueKind::Integer),
    ("whatsapp.accounts", ValueKind::Tables(ACCOUNT)),
    ("auth.jwt_secret", ValueKind::Secret),
    ("auth.jwt_keys", ValueKind::Text),
    ("auth.jwt_audience", ValueKind::Text),
    ("auth.jwt_roles", ValueKind::Texts),
    ("auth.jwt_numbers", ValueKind::Text),
    ("auth.jwt_numbers_claim", ValueKind::Text),
    ("auth.jwt_users", ValueKind::Text),
    ("auth.tokens", ValueKind::Tables(TOKEN)),
    ("events.keep_hours", ValueKind::Integer),
    ("events.max_listeners", ValueKind::Integer),
    ("events.heartbeat_ms", ValueKind::Integer),
    ("socket_io.ping_interval_ms", ValueKind::Integer),
    ("socket_io.ping_timeout_ms", ValueKind::Integer),
    ("socket_io.connect_timeout_ms", ValueKind::Integer),
    ("socket_io.max_bytes", ValueKind::Integer),
    ("subscribers", ValueKind::Tables(SUBSCRIBER)),
    ("retention.processed_webhooks_months", ValueKind::Integer),
    ("retention.failed_webhooks_months", ValueKind::Integer),
    ("retention.undelivered_days", ValueKind::Integer),
    ("log.format", ValueKind::Text),
    ("log.filter", ValueKind::Text),
];

pub(super) fn kind_of(key: &str) -> Option<ValueKind> {
    KEYS.iter().find(|(known, _)| *known == key).map(|&(_, kind)| kind)
}

/// The name of the environment variable that sets a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// The key that an environment variable sets, whether it exists or not; `None` if the variable is not one of ours.
pub(super) fn key_of_variable(name: &str) -> Option<String> {
    let path = name.strip_prefix(ENVIRONMENT_PREFIX)?;
    Some(path.to_ascii_lowercase().replace("__", "."))
}

/// Notes every key of a file that does not exist.
pub(super) fn find_unknown(file: &toml::Table, problems: &mut Vec<Problem>) {
    for (section, value) in file {
        if let Some(ValueKind::Tables(columns)) = kind_of(section) {
            for (index, table) in value.as_array().into_iter().flatten().enumerate() {
                find_unknown_columns(section, index, table, columns, problems);
            }
            continue;
        }
        let prefix = format!("{section}.");
        if !KEYS.iter().any(|(key, _)| key.starts_with(&prefix)) {
            problems.push(unknown_section(section));
            continue;
        }
        let Some(fields) = value.as_table() else {
            problems.push(Problem {
                key: section.clone(),
                what: "must be a section".to_owned(),
                remedy: format!("write [{section}] and its keys below"),
            });
            continue;
        };
        for (field, value) in fields {
            let key = format!("{prefix}{field}");
            match kind_of(&key) {
                None => problems.push(unknown(&key, &key, str::to_owned)),
                Some(ValueKind::Tables(columns)) => {
                    for (index, table) in value.as_array().into_iter().flatten().enumerate() {
                        find_unknown_columns(&key, index, table, columns, problems);
                    }
                }
                Some(_) => {}
            }
        }
    }
}

fn find_unknown_columns(
    key: &str,
    index: usize,
    table: &toml::Value,
    columns: &[(&str, ValueKind)],
    problems: &mut Vec<Problem>,
) {
    for name in table.as_table().into_iter().flat_map(toml::Table::keys) {
        if columns.iter().all(|(column, _)| column != name) {
            problems.push(Problem {
                key: format!("{key}[{index}].{name}"),
                what: "there is no such key".to_owned(),
                remedy: remedy(closest(name, columns.iter().map(|&(column, _)| column))),
            });
        }
    }
}

/// The problem with a key (or variable, as `name`) that does not exist; `show` says how a known key is written there.
pub(super) fn unknown(name: &str, key: &str, show: impl Fn(&str) -> String) -> Problem {
    Problem {
        key: name.to_owned(),
        what: "there is no such key".to_owned(),
        remedy: remedy(closest(key, KEYS.iter().map(|&(known, _)| known)).map(|known| show(&known))),
    }
}

fn unknown_section(section: &str) -> Problem {
    let sections = KEYS
        .iter()
        .map(|(key, _)| key.split_once('.').map_or(*key, |(section, _)| section));
    Problem {
        key: section.to_owned(),
        what: "there is no such section".to_owned(),
        remedy: remedy(closest(section, sections).map(|known| format!("[{known}]"))),
    }
}

fn remedy(meant: Option<String>) -> String {
    meant.map_or_else(
        || "remove it; config/default.toml lists every key".to_owned(),
        |meant| format!("did you mean {meant}?"),
    )
}

/// The name that was probably meant.
fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|&(likeness, _)| likeness >= LIKENESS)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate.to_owned())
}
