//! The rules of the map in `src/lib.rs`: which module may name which, where each database driver may be used, no circles
//! inside a folder, metric names in one place, a header and a limited length for each file.

mod circles;
mod sources;
mod tables;
mod tests;

use std::collections::BTreeSet;

use twinlog::metrics::{Kind, Metric};

pub(crate) use sources::rust_files;
use sources::{named_modules, sources, uses_crate};

/// Small modules that every module may use.
const SHARED: &[&str] = &[
    "config",
    "failpoint",
    "group_commit",
    "health",
    "lsn",
    "metrics",
    "retry",
    "shutdown",
    "timestamp",
];

/// Beside [`SHARED`], which modules each module may name. One that is not here may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    // Composition names everything; nothing names composition.
    (
        "cli",
        &[
            "agent_db",
            "change",
            "copy",
            "dev",
            "doctor",
            "http",
            "inbox",
            "migrations",
            "outbox",
            "pgoutput",
            "postgres",
            "realtime",
            "replication",
            "site_db",
            "provider",
            "wire",
        ],
    ),
    // Asks everything, as `cli` does, and nothing but `cli` names it.
    (
        "doctor",
        &[
            "agent_db",
            "change",
            "migrations",
            "postgres",
            "provider",
            "replication",
            "site_db",
            "source",
        ],
    ),
    // The server's half.
    (
        "http",
        &["inbox", "outbox", "realtime", "site_db", "provider", "subscribers"],
    ),
    // Webhooks are handed on as they are stored.
    ("subscribers", &["site_db", "provider"]),
    ("inbox", &["realtime", "site_db", "provider"]),
    // What is committed is told to those who wait.
    ("outbox", &["realtime", "site_db", "provider"]),
    ("realtime", &["site_db", "provider"]),
    ("site_db", &["postgres", "provider"]),
    ("provider", &[]),
    // The daemon's half.
    (
        "replication",
        &[
            "agent_db",
            "change",
            "copy",
            "migrations",
            "pgoutput",
            "postgres",
            "source",
            "wire",
        ],
    ),
    ("copy", &["agent_db", "change", "postgres", "source"]),
    ("source", &["change", "postgres"]),
    ("agent_db", &["change", "postgres"]),
    ("change", &[]),
    ("pgoutput", &["change"]),
    ("wire", &["postgres"]),
    // Both.
    ("dev", &["postgres", "provider"]),
    ("migrations", &["postgres"]),
    ("postgres", &["change"]),
    // Shared modules never name the halves. Metrics have a table's name as a label.
    ("metrics", &["change"]),
    ("config", &[]),
    ("failpoint", &[]),
    ("group_commit", &[]),
    ("health", &[]),
    ("lsn", &[]),
    ("retry", &[]),
    ("shutdown", &[]),
    ("timestamp", &[]),
];

/// Which modules may name a crate that speaks to the outside.
const DRIVERS: &[(&str, &[&str])] = &[
    ("tokio_postgres", &["postgres", "source", "agent_db"]),
    ("sqlx", &["postgres", "site_db", "migrations"]),
    // `change` and `postgres` quote identifiers with it.
    ("postgres_protocol", &["wire", "change", "postgres"]),
    ("axum", &["http", "realtime", "dev", "cli"]),
    // `http` reads the public keys of JSON Web Tokens; `subscribers` delivers; `doctor` tries addresses.
    ("reqwest", &["provider", "http", "subscribers", "dev", "cli", "doctor"]),
];

/// A longer file should be two files.
const MAX_LINES: usize = 500;

#[test]
fn modules_name_only_those_that_the_map_lets_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        if matches!(source.module.as_str(), "lib" | "main") {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == source.module) else {
            wrong.push(format!(
                "{}: the module {} is not on the map",
                source.path.display(),
                source.module
            ));
            continue;
        };
        for named in named_modules(&source.code) {
            let is_module = ARROWS.iter().any(|(module, _)| *module == named);
            let free = named == source.module || SHARED.contains(&named.as_str()) || !is_module;
            if !free && !allowed.contains(&named.as_str()) {
                wrong.push(format!(
                    "{}: {} may not name {named}",
                    source.path.display(),
                    source.module
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_map_has_no_circle_and_the_halves_never_meet() {
    // Whatever a module can reach over the arrows.
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = open.pop() {
            let (_, next) = ARROWS.iter().find(|(name, _)| *name == module).unwrap();
            open.extend(
                next.iter()
                    .filter(|name| seen.insert(**name))
                    .map(|name| (*name).to_owned()),
            );
        }
        seen
    };
    for (module, _) in ARROWS {
        assert!(!reach(module).contains(module), "{module} reaches itself");
    }
    for (one, other) in [
        ("http", "replication"),
        ("outbox", "agent_db"),
        ("replication", "site_db"),
        ("copy", "outbox"),
    ] {
        assert!(
            !reach(one).contains(other) && !reach(other).contains(one),
            "{one} and {other} meet"
        );
    }
    for shared in SHARED {
        assert!(
            ARROWS.iter().any(|(module, _)| module == shared),
            "{shared} is not on the map"
        );
    }
}

#[test]
fn each_driver_stays_in_its_folders() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (driver, allowed) in DRIVERS {
            if uses_crate(&source.code, driver) && !allowed.contains(&source.module.as_str()) {
                wrong.push(format!(
                    "{}: {} may not use {driver}",
                    source.path.display(),
                    source.module
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_metrics_module_names_metrics() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module != "metrics") {
        for macro_name in ["counter!(", "gauge!(", "histogram!("] {
            if source.code.contains(macro_name) {
                wrong.push(format!("{}: {macro_name}", source.path.display()));
            }
        }
        for metric in twinlog::metrics::ALL {
            let name = metric.name;
            if source.code.contains(name) {
                wrong.push(format!("{}: {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_metric_is_named_once_with_its_kind_unit_and_help() {
    let mut names = BTreeSet::new();
    for Metric { name, kind, help, .. } in twinlog::metrics::ALL {
        assert!(names.insert(name), "{name} twice");
        assert!(name.starts_with("twinlog_") && !help.is_empty(), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            *kind == Kind::Counter,
            "{name}: counters and only they end in _total"
        );
    }
}

#[test]
fn every_key_of_the_configuration_is_used_by_the_work() {
    let defaults = twinlog::config::DEFAULTS;
    // A key without a default is in the file as a comment.
    let keys: BTreeSet<&str> = defaults
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(" = "))
        .map(|(key, _)| key)
        .filter(|key| {
            key.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        })
        .collect();
    assert!(keys.len() > 30, "the keys are not found: {keys:?}");
    let sources = sources();
    for key in keys {
        // A duration's field has no unit in its name.
        let field = ["_ms", "_minutes", "_hours"]
            .iter()
            .find_map(|unit| key.strip_suffix(unit))
            .unwrap_or(key);
        let used = sources
            .iter()
            .filter(|source| !matches!(source.module.as_str(), "config" | "dev"))
            .any(|source| uses_crate(&source.code, field));
        assert!(used, "nothing reads {key}");
    }
}

#[test]
fn every_file_has_a_header_and_a_limited_length() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines", source.path.display()));
        }
        let header = source.text.lines().next().unwrap_or_default();
        if !header.starts_with("//! ") || header.contains("to be written") {
            wrong.push(format!("{}: no header", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_paths_sees_through_groups() {
    let code = "use crate::{lsn::Lsn, change::{Change, X}, retry};\nlet x = crate::wire::y(); use crate::config;";
    let named: Vec<String> = named_modules(code).into_iter().collect();
    assert_eq!(named, ["change", "config", "lsn", "retry", "wire"]);
    assert!(uses_crate("sqlx::query()", "sqlx") && !uses_crate("my_sqlx::query()", "sqlx"));
}
