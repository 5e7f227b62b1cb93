//! From the file and the environment to a [`Config`].

use std::collections::BTreeMap;
use std::path::Path;

use super::layers;
use super::problem::ConfigError;
use super::reader::ValueReader;
use super::sections::{self, Config, Needs};

/// Loads the configuration: the compiled-in defaults, then the file, then the environment.
///
/// # Errors
/// The file is unreadable, or anything in the result is wrong.
pub fn load(file: Option<&Path>, needs: Needs) -> Result<Config, ConfigError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })
    };
    let text = file.map(read).transpose()?;
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    parse(text.as_deref(), &environment, needs)
}

/// [`load`] from given texts: pure, except that it reads the files that secrets name.
pub(super) fn parse(
    file: Option<&str>,
    environment: &BTreeMap<String, String>,
    needs: Needs,
) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let table = layers::merge(file, environment, &mut problems)
        // After a syntax error nothing else can be judged: what looks missing may stand behind it.
        .map_err(|syntax| ConfigError::Invalid(vec![syntax]))?;
    let mut reader = ValueReader::new(&table, environment, problems);
    let config = sections::read(&mut reader, needs);
    let problems = reader.into_problems();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid(problems)),
    }
}
