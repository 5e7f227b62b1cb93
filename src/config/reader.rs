//! Typed values out of the merged layers. A getter that finds a problem notes it and gives `None`, so that the others are
//! looked at as well.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::value::{Dict, Value};
use secrecy::{ExposeSecret, SecretString};

use super::load::{Problem, variable_of};

/// A secret's file may be this long: a certificate chain would fit, `/dev/zero` is found out.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

pub(super) struct Reader<'a> {
    figment: &'a Figment,
    environment: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(figment: &'a Figment, environment: &'a BTreeMap<String, String>, problems: Vec<Problem>) -> Self {
        Self {
            figment,
            environment,
            problems,
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes a problem; says where the value came from if that is not the file, which one looks at anyway.
    pub(super) fn problem(&mut self, key: &str, what: impl Display, remedy: impl Display) {
        // One item of a list comes from where the list comes from.
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
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.figment.find_value(key).ok()
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.value(key);
        self.text_of(key, value)
    }

    pub(super) fn text_of(&mut self, key: &str, value: Option<Value>) -> Option<String> {
        match value {
            Some(Value::String(_, text)) if !text.trim().is_empty() => Some(text),
            Some(Value::String(..)) => self.wrong(key, "is empty", "give it a value, or take it out"),
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

    pub(super) fn integer<T: TryFrom<i128>>(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<T> {
        let value = self.value(key);
        self.integer_of(key, value, range)
    }

    pub(super) fn integer_of<T: TryFrom<i128>>(
        &mut self,
        key: &str,
        value: Option<Value>,
        range: RangeInclusive<i64>,
    ) -> Option<T> {
        let remedy = format!("set it to a whole number from {} to {}", range.start(), range.end());
        let Some(value) = value else {
            return self.wrong(key, "is missing", remedy);
        };
        let Some(number) = value.to_i128() else {
            return self.wrong(key, "must be a whole number", remedy);
        };
        let within = i128::from(*range.start()) <= number && number <= i128::from(*range.end());
        match T::try_from(number) {
            Ok(value) if within => Some(value),
            _ => self.wrong(key, format!("{number} is out of range"), remedy),
        }
    }

    pub(super) fn milliseconds(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<Duration> {
        self.integer(key, range).map(Duration::from_millis)
    }

    /// A first and a longest wait.
    pub(super) fn waits(&mut self, initial: &str, longest: &str) -> Option<(Duration, Duration)> {
        // From a millisecond (less would be a busy loop) to a day (more is never).
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
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<Value>> {
        match self.value(key) {
            None => Some(Vec::new()),
            Some(Value::Array(_, values)) => Some(values),
            Some(_) => self.wrong(key, "must be a list", "write it in square brackets: [\"one\", \"two\"]"),
        }
    }

    /// A list of tables (`[[key]]`), each under its place; what is not a table is noted and `None`.
    pub(super) fn tables(&mut self, key: &str) -> Option<Vec<(String, Option<Dict>)>> {
        let values = self.list(key)?.into_iter().enumerate();
        let tables = values.map(|(index, value)| {
            let place = format!("{key}[{index}]");
            let dict = match value {
                Value::Dict(_, dict) => Some(dict),
                _ => self.wrong(&place, "must be a table", format!("write [[{key}]] and its keys below")),
            };
            (place, dict)
        });
        Some(tables.collect())
    }

    /// A secret: a text, `{ file = … }` or `{ env = … }`. Missing gives `None` without a problem.
    pub(super) fn secret_of(&mut self, key: &str, value: Option<Value>) -> Option<SecretString> {
        let secret = match value? {
            Value::String(_, text) => SecretString::from(text),
            Value::Dict(_, dict) => self.secret_elsewhere(key, &dict)?,
            _ => {
                return self.wrong(
                    key,
                    "must be a text, { file = \"…\" } or { env = \"…\" }",
                    "write it in quotes",
                );
            }
        };
        if secret.expose_secret().trim().is_empty() {
            return self.wrong(key, "is empty", "give it a value, or take it out");
        }
        Some(secret)
    }

    fn secret_elsewhere(&mut self, key: &str, dict: &Dict) -> Option<SecretString> {
        let one = (dict.len() == 1).then(|| dict.iter().next()).flatten();
        match one {
            Some((name, Value::String(_, path))) if name == "file" => match read_secret(Path::new(path)) {
                Ok(text) => Some(SecretString::from(text)),
                Err(error) => self.wrong(
                    key,
                    format!("the file {path:?} cannot be read: {error}"),
                    "put the secret there, readable for this user (systemd: LoadCredential=)",
                ),
            },
            Some((name, Value::String(_, variable))) if name == "env" => match self.environment.get(variable) {
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
                "give one of file and env, a text",
            ),
        }
    }

    /// Notes a problem and gives nothing: the end of a getter.
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
    // An editor and `echo` end a file with a newline that is no part of the secret.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
