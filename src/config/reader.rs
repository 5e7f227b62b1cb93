//! Typed values out of the merged table. A getter that finds a problem notes it and returns `None`, so that the other keys
//! are read as well.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use toml::{Table, Value};

use super::keys::variable_of;
use super::problem::Problem;

/// Longest file of a secret: a certificate chain would fit, and a read of `/dev/zero` ends.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

pub(super) struct ValueReader<'a> {
    table: &'a Table,
    environment: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl<'a> ValueReader<'a> {
    pub(super) fn new(table: &'a Table, environment: &'a BTreeMap<String, String>, problems: Vec<Problem>) -> Self {
        Self {
            table,
            environment,
            problems,
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes a problem, with the name of the environment variable if the value came from one.
    pub(super) fn problem(&mut self, key: &str, what: impl Display, remedy: impl Display) {
        // An item of a list comes from the variable of the list.
        let variable = variable_of(key.split('[').next().unwrap_or(key));
        let source = if self.environment.contains_key(&variable) {
            format!(" (set by the environment variable {variable})")
        } else {
            String::new()
        };
        self.problems.push(Problem {
            key: key.to_owned(),
            what: format!("{what}{source}"),
            remedy: remedy.to_string(),
        });
    }

    /// The value of a key, if any layer has one.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        match key.split_once('.') {
            Some((section, field)) => self.table.get(section)?.get(field),
            None => self.table.get(key),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.value(key);
        self.text_of(key, value)
    }

    pub(super) fn text_of(&mut self, key: &str, value: Option<&Value>) -> Option<String> {
        match value {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
            Some(Value::String(_)) => self.wrong(key, "is empty", "give it a value, or remove it"),
            Some(_) => self.wrong(key, "must be a text", "write it in quotes"),
            None => self.wrong(key, "is missing", "set it"),
        }
    }

    /// A text that parses as `T`.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self, key: &str, what: &str, example: &str) -> Option<T> {
        let text = self.text(key)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(_) => self.wrong(
                key,
                format!("{text:?} is not {what}"),
                format!("write it as in {example:?}"),
            ),
        }
    }

    pub(super) fn integer<T: TryFrom<i64>>(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<T> {
        let value = self.value(key);
        self.integer_of(key, value, range)
    }

    pub(super) fn integer_of<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        value: Option<&Value>,
        range: RangeInclusive<i64>,
    ) -> Option<T> {
        let remedy = format!("set it to a whole number from {} to {}", range.start(), range.end());
        let Some(value) = value else {
            return self.wrong(key, "is missing", remedy);
        };
        let Some(number) = value.as_integer() else {
            return self.wrong(key, "must be a whole number", remedy);
        };
        match T::try_from(number) {
            Ok(value) if range.contains(&number) => Some(value),
            _ => self.wrong(key, format!("{number} is out of range"), remedy),
        }
    }

    pub(super) fn milliseconds(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<Duration> {
        self.integer(key, range).map(Duration::from_millis)
    }

    /// The first and the longest wait of a backoff.
    pub(super) fn waits(&mut self, initial: &str, longest: &str) -> Option<(Duration, Duration)> {
        // From a millisecond (less would be a busy loop) to a day.
        const RANGE: RangeInclusive<i64> = 1..=86_400_000;
        let (first, last) = (self.milliseconds(initial, RANGE), self.milliseconds(longest, RANGE));
        let (first, last) = (first?, last?);
        if first > last {
            return self.wrong(
                longest,
                format!("{} is less than {initial} ({})", last.as_millis(), first.as_millis()),
                format!("make it at least {initial}"),
            );
        }
        Some((first, last))
    }

    /// A list; a missing one is empty.
    pub(super) fn list(&mut self, key: &str) -> Option<&'a [Value]> {
        match self.value(key) {
            None => Some(&[]),
            Some(Value::Array(values)) => Some(values),
            Some(_) => self.wrong(key, "must be a list", "write it in square brackets: [\"one\", \"two\"]"),
        }
    }

    /// A list of tables (`[[key]]`), each with its place (`key[0]`); an item that is not a table is noted and `None`.
    pub(super) fn tables(&mut self, key: &str) -> Option<Vec<(String, Option<&'a Table>)>> {
        let values = self.list(key)?.iter().enumerate();
        let tables = values.map(|(index, value)| {
            let place = format!("{key}[{index}]");
            let table = match value {
                Value::Table(table) => Some(table),
                _ => self.wrong(&place, "must be a table", format!("write [[{key}]] and its keys below")),
            };
            (place, table)
        });
        Some(tables.collect())
    }

    /// A secret: a text, `{ file = … }` or `{ env = … }`. A missing one is `None` and no problem.
    pub(super) fn secret_of(&mut self, key: &str, value: Option<&Value>) -> Option<SecretString> {
        let secret = match value? {
            Value::String(text) => SecretString::from(text.clone()),
            Value::Table(table) => self.secret_elsewhere(key, table)?,
            _ => {
                return self.wrong(
                    key,
                    "must be a text, { file = \"…\" } or { env = \"…\" }",
                    "write it in quotes",
                );
            }
        };
        if secret.expose_secret().trim().is_empty() {
            return self.wrong(key, "is empty", "give it a value, or remove it");
        }
        Some(secret)
    }

    /// A secret in a file or in an environment variable.
    fn secret_elsewhere(&mut self, key: &str, table: &Table) -> Option<SecretString> {
        let one = (table.len() == 1).then(|| table.iter().next()).flatten();
        match one {
            Some((name, Value::String(path))) if name == "file" => match read_secret(Path::new(path)) {
                Ok(text) => Some(SecretString::from(text)),
                Err(error) => self.wrong(
                    key,
                    format!("the file {path:?} cannot be read: {error}"),
                    "put the secret there, readable by this user (systemd: LoadCredential=)",
                ),
            },
            Some((name, Value::String(variable))) if name == "env" => match self.environment.get(variable) {
                Some(text) => Some(SecretString::from(text.clone())),
                None => self.wrong(
                    key,
                    format!("the environment variable {variable:?} is not set"),
                    format!("set {variable}, or write {{ file = \"…\" }}"),
                ),
            },
            _ => self.wrong(
                key,
                "must be a text, { file = \"…\" } or { env = \"…\" }",
                "give exactly one of file and env, as a text",
            ),
        }
    }

    /// Notes a problem and returns `None`, as a getter that found one does.
    pub(super) fn wrong<T>(&mut self, key: &str, what: impl Display, remedy: impl Display) -> Option<T> {
        self.problem(key, what, remedy);
        None
    }
}

fn read_secret(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_SECRET_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(std::io::Error::other(format!(
            "it is longer than {MAX_SECRET_BYTES} bytes"
        )));
    }
    // Editors and `echo` end a file with a newline that is not part of the secret.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
