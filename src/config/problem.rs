//! What can be wrong with a configuration.

use std::path::PathBuf;

/// One wrong key or value. Never quotes a value that may be secret, nor a line of the file that may hold one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key as in `site.url`, the environment variable if that has no key, or `(file)`.
    pub key: String,
    /// The fault, as the predicate of a sentence about the key: `is missing`.
    pub what: String,
    /// What to do about it, as a command to the reader.
    pub remedy: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist, or this user may not read it.
    #[error("configuration file {path} cannot be read")]
    Unreadable {
        /// As the command line has it.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Keys or values are wrong: all of them, not only the first.
    #[error("{} problem(s) in the configuration", .0.len())]
    Invalid(Vec<Problem>),
}
