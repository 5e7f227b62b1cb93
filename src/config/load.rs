//! Reading and checking the configuration, with every problem reported at once.
//!
//! ```text
//! config/default.toml ─→ the file ─→ TWINLOG__SECTION__KEY ─→ unknown keys ─→ each section ─→ Config or all problems
//!        └──────────── figment merges, key by key ────────────┘    (schema)      (sections)
//! ```
//!
//! A problem never quotes a value that may be secret, nor a line of the file that may hold one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};

use super::reader::Reader;
use super::schema::{self, Kind};
use super::{Config, Needs, sections};

/// The defaults and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// What the names of our environment variables begin with; `__` separates section and key as well.
const ENVIRONMENT_PREFIX: &str = "TWINLOG__";

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, as in `site.url`.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Keys or values are wrong: all of them.
    #[error("{} problem(s) in the configuration", .0.len())]
    Invalid(Vec<Problem>),
}

/// Loads the configuration: the compiled-in defaults, then the file, then the environment.
///
/// # Errors
/// The file is unreadable, or anything in the result is wrong.
pub fn load(file: Option<&Path>, needs: Needs) -> Result<Config, ConfigError> {
    let text = match file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?),
        None => None,
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    parse(text.as_deref(), &environment, needs)
}

/// [`load`] from given texts: pure but for the files that secrets name.
pub(super) fn parse(
    file: Option<&str>,
    environment: &BTreeMap<String, String>,
    needs: Needs,
) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let mut figment = Figment::from(Toml::string(DEFAULTS));
    if let Some(text) = file {
        match text.parse::<toml::Table>() {
            Ok(table) => {
                schema::find_unknown(&table, &mut problems);
                figment = figment.merge(Serialized::defaults(table));
            }
            // Nothing after a syntax error can be trusted: what looks missing may stand behind it.
            Err(error) => return Err(ConfigError::Invalid(vec![syntax_problem(text, &error)])),
        }
    }
    let overrides = environment_table(environment, &mut problems);
    figment = figment.merge(Serialized::defaults(overrides));

    let mut reader = Reader::new(&figment, environment, problems);
    let config = sections::read(&mut reader, needs);
    let problems = reader.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid(problems)),
    }
}

/// The name of the environment variable that sets a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let place = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or_else(String::new, |before| {
            format!("line {}: ", before.matches('\n').count() + 1)
        });
    Problem {
        key: "(file)".to_owned(),
        // The message alone: the error's full text shows the line, and the line may hold a secret.
        what: format!("{place}{}", error.message().trim().replace('\n', ", ")),
        remedy: "mend the TOML there; texts stand in quotes".to_owned(),
    }
}

/// Our variables as a table. A text is taken as it stands (a token of digits stays a text); lists and tables are TOML.
fn environment_table(environment: &BTreeMap<String, String>, problems: &mut Vec<Problem>) -> toml::Table {
    let mut root = toml::Table::new();
    for (name, raw) in environment {
        let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        let key = path.to_ascii_lowercase().replace("__", ".");
        let Some(kind) = schema::kind_of(&key) else {
            problems.push(schema::unknown(name, &key, variable_of));
            continue;
        };
        let toml_value = || {
            let table = format!("value = {raw}").parse::<toml::Table>().ok()?;
            (table.len() == 1).then(|| table.get("value").cloned()).flatten()
        };
        let text = || toml::Value::String(raw.clone());
        let value = match kind {
            Kind::Text => Some(text()),
            Kind::Secret if raw.trim_start().starts_with('{') => toml_value(),
            Kind::Secret => Some(text()),
            Kind::Integer => raw.trim().parse::<i64>().ok().map(toml::Value::Integer),
            Kind::Texts | Kind::Secrets if !raw.trim_start().starts_with('[') => Some(toml::Value::Array(vec![text()])),
            Kind::Texts | Kind::Secrets | Kind::Tables(_) => toml_value(),
        };
        let Some(value) = value else {
            problems.push(Problem {
                key,
                what: format!("the environment variable {name} is not {}", kind.description()),
                remedy: format!("set it as in {name}='{}'", kind.example()),
            });
            continue;
        };
        if let Some((section, field)) = key.split_once('.') {
            let section = root.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = section.as_table_mut() {
                section.insert(field.to_owned(), value);
            }
        }
    }
    root
}
