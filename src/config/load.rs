//! Reading and checking the configuration, with every problem reported at once.

use std::path::{Path, PathBuf};

use super::{Config, Needs};

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
pub fn load(_file: Option<&Path>, _needs: Needs) -> Result<Config, ConfigError> {
    Err(ConfigError::Invalid(Vec::new()))
}
