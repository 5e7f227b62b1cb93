//! The configuration as its users meet it: layers, problems, secrets.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::keys::{KEYS, ValueKind, variable_of};
use super::load::parse;
use super::{Config, ConfigError, DEFAULTS, LogFormat, Needs, Problem};

const SYNC: Needs = Needs {
    site: true,
    agent: true,
    whatsapp: false,
};
const EVERYTHING: Needs = Needs {
    site: true,
    agent: true,
    whatsapp: true,
};
const NOTHING: Needs = Needs {
    site: false,
    agent: false,
    whatsapp: false,
};

const COMPLETE: &str = r#"
    site.url = "postgres://me:pw@site.example.com/crm"
    agent.url = "postgres://me:pw@agent.example.com/crm"
    whatsapp.app_secrets = ["secret"]
    whatsapp.accounts = [{ phone_number_id = "1", access_token = "token" }]
    auth.tokens = [{ name = "crm", sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" }]
"#;

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn problems(result: Result<Config, ConfigError>) -> Vec<Problem> {
    match result {
        Err(ConfigError::Invalid(problems)) => problems,
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn the_default_file_names_every_key_and_no_other() {
    let mut section = String::new();
    let mut named = Vec::new();
    for line in DEFAULTS.lines() {
        // Keys that have no default stand there as comments.
        let line = line.trim_start_matches("# ").trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.trim_start_matches('[').to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            named.push(format!("{section}.{key}"));
        }
    }
    let mut expected = Vec::new();
    for &(key, kind) in KEYS {
        match kind {
            ValueKind::Tables(columns) => expected.extend(columns.iter().map(|(column, _)| format!("{key}.{column}"))),
            _ => expected.push(key.to_owned()),
        }
    }
    named.sort();
    expected.sort();
    assert_eq!(named, expected);
}

#[test]
fn the_defaults_alone_are_enough_where_nothing_is_needed() {
    let config = parse(None, &environment(&[]), NOTHING).unwrap();
    assert_eq!((config.sync.slot.as_str(), config.sync.batch_rows), ("twinlog", 8192));
    assert_eq!(config.whatsapp.send_timeout, Duration::from_secs(10));
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.whatsapp.graph_url.as_str(), "https://graph.facebook.com/");
}

#[test]
fn what_a_command_needs_must_be_there() {
    let keys = |needs| -> Vec<String> {
        problems(parse(None, &environment(&[]), needs))
            .into_iter()
            .map(|problem| problem.key)
            .collect()
    };
    assert_eq!(keys(SYNC), ["site.url", "agent.url"]);
    assert_eq!(
        keys(EVERYTHING),
        [
            "site.url",
            "agent.url",
            "whatsapp.app_secrets",
            "whatsapp.accounts",
            "auth.tokens"
        ]
    );
    parse(Some(COMPLETE), &environment(&[]), EVERYTHING).unwrap();
}

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
    let file = format!("{COMPLETE}\n[sync]\nslot = \"from_file\"\nbatch_rows = 5\n");
    let variables = environment(&[
        ("TWINLOG__SYNC__SLOT", "from_environment"),
        ("TWINLOG__SYNC__TABLES", r#"["public.*", "!public.secret"]"#),
        ("TWINLOG__SITE__URL", "postgres://env@other.example.com/crm"),
        ("TWINLOG__HTTP__SEND_WAIT_MS", "1500"),
        // Digits stay a text, leading zeros and all.
        ("TWINLOG__WHATSAPP__VERIFY_TOKEN", "0042"),
        ("TWINLOG__WHATSAPP__APP_SECRETS", "one-secret"),
        (
            "TWINLOG__WHATSAPP__ACCOUNTS",
            r#"[{ phone_number_id = "7", access_token = { env = "T" } }]"#,
        ),
        ("T", "token-of-7"),
        ("TWINLOG_CONFIG", "not one of ours"),
    ]);
    let config = parse(Some(&file), &variables, EVERYTHING).unwrap();
    assert_eq!(config.sync.slot, "from_environment");
    assert_eq!(config.sync.batch_rows, 5);
    assert_eq!(config.sync.batch_bytes, 8_388_608);
    assert_eq!(config.sync.tables, ["public.*", "!public.secret"]);
    assert_eq!(config.site.url.user, "env");
    assert_eq!(config.http.send_wait, Duration::from_millis(1500));
    assert_eq!(config.whatsapp.verify_token.unwrap().expose_secret(), "0042");
    assert_eq!(config.whatsapp.app_secrets[0].expose_secret(), "one-secret");
    let account = &config.whatsapp.accounts[0];
    assert_eq!(
        (account.phone_number_id.as_str(), account.messages_per_second),
        ("7", 80)
    );
    assert_eq!(account.access_token.expose_secret(), "token-of-7");
}

#[test]
fn each_bad_value_is_one_problem_under_its_key() {
    let long = "x".repeat(64);
    let cases: &[(&str, &str, &str)] = &[
        ("site.url = \"mysql://me@h/d\"", "site.url", "scheme"),
        ("site.url = 5", "site.url", "must be a text"),
        ("site.url = \"\"", "site.url", "is empty"),
        (
            "site.url = { file = \"/nonexistent/url\" }",
            "site.url",
            "cannot be read",
        ),
        ("site.url = { env = \"NOT_SET\" }", "site.url", "is not set"),
        (
            "site.url = { env = \"A\", file = \"B\" }",
            "site.url",
            "must be a text, {",
        ),
        ("site.max_connections = 0", "site.max_connections", "out of range"),
        ("site.max_connections = \"10\"", "site.max_connections", "whole number"),
        ("site.max_connections = 1.5", "site.max_connections", "whole number"),
        (
            "agent.url = \"postgres://x@site.example.com/crm\"",
            "agent.url",
            "same database",
        ),
        (
            "sync.slot = \"Bad-Slot\"",
            "sync.slot",
            "not a valid name of a replication slot",
        ),
        (
            &format!("sync.slot = \"{long}\""),
            "sync.slot",
            "not a valid name of a replication slot",
        ),
        (
            &format!("sync.publication = \"{long}\""),
            "sync.publication",
            "not a valid name of a publication",
        ),
        ("sync.tables = \"public.*\"", "sync.tables", "must be a list"),
        ("sync.tables = []", "sync.tables", "selects no table"),
        ("sync.tables = [\"!public.a\"]", "sync.tables", "selects no table"),
        ("sync.tables = [\"public.[\"]", "sync.tables[0]", "not a glob pattern"),
        (
            "sync.tables = [\"public.*\", \"leads\"]",
            "sync.tables[1]",
            "has no schema",
        ),
        (
            "sync.shared_tables = [\"leads\"]",
            "sync.shared_tables[0]",
            "has no schema",
        ),
        ("sync.tables = [3]", "sync.tables[0]", "must be a text"),
        ("sync.batch_rows = -1", "sync.batch_rows", "out of range"),
        ("sync.retry_initial_ms = 0", "sync.retry_initial_ms", "out of range"),
        (
            "sync.retry_max_ms = 10",
            "sync.retry_max_ms",
            "less than sync.retry_initial_ms",
        ),
        ("http.listen = \"8080\"", "http.listen", "not an address"),
        ("admin.listen = \"0.0.0.0:8080\"", "admin.listen", "same address"),
        (
            "whatsapp.graph_url = \"graph.facebook.com\"",
            "whatsapp.graph_url",
            "not a URL",
        ),
        (
            "whatsapp.graph_url = \"ftp://graph.facebook.com\"",
            "whatsapp.graph_url",
            "must begin with",
        ),
        ("whatsapp.api_version = \"26\"", "whatsapp.api_version", "not a version"),
        ("whatsapp.app_secrets = [\"\"]", "whatsapp.app_secrets[0]", "is empty"),
        (
            "whatsapp.accounts = [{ access_token = \"t\" }]",
            "whatsapp.accounts[0].phone_number_id",
            "missing",
        ),
        (
            "whatsapp.accounts = [{ phone_number_id = \"1\" }]",
            "whatsapp.accounts[0].access_token",
            "missing",
        ),
        (
            "whatsapp.accounts = [{ phone_number_id = 1, access_token = \"t\" }]",
            "whatsapp.accounts[0].phone_number_id",
            "must be a text",
        ),
        (
            "whatsapp.accounts = [{ phone_number_id = \"+49 1\", access_token = \"t\" }]",
            "whatsapp.accounts[0].phone_number_id",
            "characters other than digits",
        ),
        (
            "whatsapp.accounts = [{ phone_number_id = \"1\", access_token = \"a b\" }]",
            "whatsapp.accounts[0].access_token",
            "HTTP header",
        ),
        (
            "whatsapp.accounts = [{ phone_number_id = \"1\", access_token = \"t\" }, { phone_number_id = \"1\", access_token = \"t\" }]",
            "whatsapp.accounts[1].phone_number_id",
            "earlier block",
        ),
        ("whatsapp.accounts = [\"1\"]", "whatsapp.accounts[0]", "must be a table"),
        (
            "auth.tokens = [{ name = \"a\", sha256 = \"abc\" }]",
            "auth.tokens[0].sha256",
            "64 hexadecimal",
        ),
        (
            "auth.tokens = [{ name = \"a\", sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\", numbers = [] }]",
            "auth.tokens[0].numbers",
            "at least one",
        ),
        (
            "auth.tokens = [{ name = \"a\", sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\", numbers = [\"1\", \"2\"] }]",
            "auth.tokens[0].numbers",
            "\"2\" is not the phone_number_id",
        ),
        (
            "auth.jwt_secret = \"s\"",
            "auth.jwt_numbers_claim",
            "which numbers a user may see",
        ),
        (
            "auth.jwt_secret = \"s\"\nauth.jwt_numbers = \"some\"",
            "auth.jwt_numbers",
            "not known",
        ),
        (
            "auth.jwt_secret = \"s\"\nauth.jwt_numbers = \"all\"\nauth.jwt_numbers_claim = \"n\"",
            "auth.jwt_numbers",
            "both set",
        ),
        (
            "http.public_url = \"whatsapp.example.com\"",
            "http.public_url",
            "base URL",
        ),
        (
            "whatsapp.media_hosts = [\"*.com/x\"]",
            "whatsapp.media_hosts",
            "not the name of a host",
        ),
        ("log.format = \"yaml\"", "log.format", "not a log format"),
        ("log.filter = \"a=b=c\"", "log.filter", "not a filter"),
        ("sync.slott = \"x\"", "sync.slott", "no such key"),
        ("sink.slot = \"x\"", "sink", "no such section"),
        ("log = \"text\"", "log", "must be a section"),
        (
            "whatsapp.accounts = [{ phone_number_id = \"1\", acces_token = \"t\", access_token = \"t\" }]",
            "whatsapp.accounts[0].acces_token",
            "no such key",
        ),
    ];
    for &(line, key, what) in cases {
        let mut table: toml::Table = COMPLETE.parse().unwrap();
        for (section, value) in line.parse::<toml::Table>().unwrap() {
            match (table.get_mut(&section), value) {
                (Some(toml::Value::Table(fields)), toml::Value::Table(more)) => fields.extend(more),
                (_, value) => drop(table.insert(section, value)),
            }
        }
        let found = problems(parse(Some(&table.to_string()), &environment(&[]), EVERYTHING));
        let first = found.first().unwrap();
        assert!(first.key == key && first.what.contains(what), "{line}: {found:?}");
        assert!(!first.remedy.is_empty());
        assert_eq!(found.len(), 1, "{line}: {found:?}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let file = "
        [site]
        url = \"mysql://x\"
        max_conections = 5
        [sync]
        slot = \"Twin Log\"
        batch_rows = 0
    ";
    let variables = environment(&[("TWINLOG__HTTP__LISTEN", "nowhere"), ("TWINLOG__SYNC__SLOTT", "x")]);
    let found = problems(parse(Some(file), &variables, SYNC));
    let keys: Vec<&str> = found.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "site.max_conections",
            "TWINLOG__SYNC__SLOTT",
            "site.url",
            "agent.url",
            "sync.slot",
            "sync.batch_rows",
            "http.listen"
        ]
    );
    assert_eq!(found[0].remedy, "did you mean site.max_connections?");
    assert_eq!(found[1].remedy, "did you mean TWINLOG__SYNC__SLOT?");
    assert!(
        found[6]
            .what
            .ends_with("(set by the environment variable TWINLOG__HTTP__LISTEN)")
    );
}

#[test]
fn a_secret_comes_from_one_layer_alone() {
    let file = COMPLETE.replace(
        "[\"secret\"]",
        "[\"secret\"]\n    whatsapp.verify_token = { file = \"/nonexistent\" }",
    );
    let variables = environment(&[("TWINLOG__WHATSAPP__VERIFY_TOKEN", "{ env = \"T\" }"), ("T", "token")]);
    let config = parse(Some(&file), &variables, EVERYTHING).unwrap();
    assert_eq!(config.whatsapp.verify_token.unwrap().expose_secret(), "token");
}

#[test]
fn a_variable_of_the_wrong_kind_says_how_it_is_written() {
    let variables = environment(&[
        ("TWINLOG__SYNC__BATCH_ROWS", "many"),
        ("TWINLOG__SYNC__TABLES", "[public.*"),
    ]);
    let found = problems(parse(None, &variables, NOTHING));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0]
            .what
            .contains("TWINLOG__SYNC__BATCH_ROWS is not a whole number")
    );
    assert!(found[1].remedy.contains(r#"TWINLOG__SYNC__TABLES='["one", "two"]'"#));
}

#[test]
fn no_problem_shows_a_secret() {
    let secret = "hunter2";
    for file in [
        format!("site.url = \"mysql://me:{secret}@h/d\""),
        format!("site.url = \"postgres://me:{secret}@h:99999/d\""),
        format!("site.url = \"{secret}"),
        format!("[site\nurl = \"{secret}\""),
        format!("whatsapp.accounts = [{{ phone_number_id = \"1\", access_token = \"{secret} x\" }}]"),
        format!("whatsapp.accounts = [{{ phone_number_id = \"1\", access_token = [\"{secret}\"] }}]"),
        format!("whatsapp.app_secrets = [[\"{secret}\"]]"),
        format!("whatsapp.verify_token = [\"{secret}\"]"),
        format!("whatsapp.verify_token = {{ text = \"{secret}\" }}"),
    ] {
        let found = problems(parse(Some(&file), &environment(&[]), EVERYTHING));
        assert!(!format!("{found:?}").contains(secret), "{file}: {found:?}");
    }
    let file = COMPLETE
        .replace("\"token\"", &format!("\"{secret}\""))
        .replace(":pw@", &format!(":{secret}@"));
    let config = parse(Some(&file), &environment(&[]), EVERYTHING).unwrap();
    assert!(!format!("{config:?}").contains(secret));
}

#[test]
fn a_slip_of_the_finger_anywhere_in_the_file_shows_no_secret() {
    let file = COMPLETE
        .replace("\"token\"", "\"hunter2\"")
        .replace("\"secret\"", "\"hunter2\"")
        .replace(":pw@", ":hunter2@");
    // Also no part of it that is long enough to be worth something.
    let shows = |result: &Result<Config, ConfigError>| {
        let text = format!("{result:?}");
        text.contains("hunter") || text.contains("unter2")
    };
    for (at, _) in file.char_indices() {
        let (before, after) = file.split_at(at);
        let slips = [
            "\"", "'", "[", "]", "{", "}", "=", "\n", ",", "#", "\\", " ", "\u{0}", "?", "/", "&", "@", ":", "%",
        ]
        .map(|slip| format!("{before}{slip}{after}"))
        .into_iter()
        .chain([format!("{before}{}", &after[1..]), before.to_owned()]);
        for slipped in slips {
            let result = parse(Some(&slipped), &environment(&[]), EVERYTHING);
            // (Without the colon before it, a password is a user: no problem.)
            assert!(result.is_ok() || !shows(&result), "{slipped}: {result:?}");
        }
    }
}

#[test]
fn a_secret_may_come_from_a_file_without_its_newline() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "postgres://me:pw@db.example.com/crm\n").unwrap();
    let text = format!("site.url = {{ file = {:?} }}", file.path());
    let needs = Needs { site: true, ..NOTHING };
    let config = parse(Some(&text), &environment(&[]), needs).unwrap();
    assert_eq!(config.site.url.database, "crm");
}

#[test]
fn a_syntax_error_names_its_line() {
    let found = problems(parse(Some("[site]\nurl = postgres://x\n"), &environment(&[]), NOTHING));
    assert!(found[0].what.starts_with("line 2: "), "{found:?}");
}

#[test]
fn the_production_example_loads() {
    let text = include_str!("../../config/production.toml");
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [
        (
            "site-url",
            "postgres://twinlog:pw@site.example.com:5432/postgres?sslmode=verify-full",
        ),
        (
            "agent-url",
            "postgres://twinlog:pw@agent.example.com:5432/postgres?sslmode=verify-full",
        ),
        ("app-secret", "a"),
        ("verify-token", "b"),
        ("whatsapp-token", "c"),
    ] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let credentials = "/run/credentials/twinlog.service";
    assert!(text.contains(credentials));
    let text = text.replace(credentials, folder.path().to_str().unwrap());
    let config = parse(Some(&text), &environment(&[]), EVERYTHING).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.agent.url.host, super::Host::Tcp("agent.example.com".to_owned()));
}

#[test]
fn every_key_has_its_variable() {
    assert_eq!(variable_of("sync.retry_max_ms"), "TWINLOG__SYNC__RETRY_MAX_MS");
}
