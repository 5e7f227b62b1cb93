//! The layers of the configuration, merged into one table: defaults, file, environment.
//!
//! A layer replaces whole keys. So a secret that the file has as `{ file = … }` and the environment as `{ env = … }` comes
//! from the environment alone.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::keys::{self, ValueKind};
use super::problem::Problem;

/// The defaults, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Section → key → value, out of all layers. Keys that do not exist are noted.
///
/// # Errors
/// The file is not TOML.
pub(super) fn merge(
    file: Option<&str>,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Result<Table, Problem> {
    let mut merged = table(DEFAULTS)?;
    if let Some(text) = file {
        let layer = table(text)?;
        keys::find_unknown(&layer, problems);
        lay_over(&mut merged, layer);
    }
    lay_over(&mut merged, of_environment(environment, problems));
    Ok(merged)
}

fn table(text: &str) -> Result<Table, Problem> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or_else(String::new, |before| {
            format!("line {}: ", before.matches('\n').count() + 1)
        });
        Problem {
            key: "(file)".to_owned(),
            // The message alone: the error's full text shows the line, and the line may hold a secret.
            what: format!("{line}{}", error.message().trim().replace('\n', ", ")),
            remedy: "correct the TOML there; a text needs quotes".to_owned(),
        }
    })
}

fn lay_over(merged: &mut Table, layer: Table) {
    for (section, value) in layer {
        match value {
            // A key without a section, which is a list.
            value if keys::kind_of(&section).is_some() => drop(merged.insert(section, value)),
            Value::Table(fields) => {
                let below = merged.entry(section).or_insert_with(|| Table::new().into());
                if let Value::Table(below) = below {
                    below.extend(fields);
                }
            }
            // A section that is no table was reported as an unknown key.
            _ => {}
        }
    }
}

fn of_environment(environment: &BTreeMap<String, String>, problems: &mut Vec<Problem>) -> Table {
    let mut layer = Table::new();
    for (name, raw) in environment {
        let Some(key) = keys::key_of_variable(name) else {
            continue;
        };
        let Some(kind) = keys::kind_of(&key) else {
            problems.push(keys::unknown(name, &key, keys::variable_of));
            continue;
        };
        match value_of(kind, raw) {
            Some(value) => match key.split_once('.') {
                Some((section, field)) => {
                    let section = layer.entry(section).or_insert_with(|| Table::new().into());
                    if let Value::Table(section) = section {
                        section.insert(field.to_owned(), value);
                    }
                }
                None => drop(layer.insert(key, value)),
            },
            None => problems.push(Problem {
                key,
                what: format!("the environment variable {name} is not {}", kind.description()),
                remedy: format!("set it as in {name}='{}'", kind.example()),
            }),
        }
    }
    layer
}

/// The value of a variable. A text is taken as it is (a token of digits stays a text); lists and tables are TOML.
fn value_of(kind: ValueKind, raw: &str) -> Option<Value> {
    let text = || Value::String(raw.to_owned());
    match kind {
        ValueKind::Text => Some(text()),
        ValueKind::Secret if !raw.trim_start().starts_with('{') => Some(text()),
        ValueKind::Texts | ValueKind::Secrets if !raw.trim_start().starts_with('[') => Some(Value::Array(vec![text()])),
        ValueKind::Integer => raw.trim().parse().ok().map(Value::Integer),
        ValueKind::Boolean => raw.trim().parse().ok().map(Value::Boolean),
        ValueKind::Secret | ValueKind::Texts | ValueKind::Secrets | ValueKind::Tables(_) => {
            let mut table = format!("value = {raw}").parse::<Table>().ok()?;
            (table.len() == 1).then(|| table.remove("value")).flatten()
        }
    }
}
