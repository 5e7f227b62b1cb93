//! Why a throwaway server does not run, and what to do about it.

use std::io;

use super::download::DownloadError;
use super::find::FindError;

/// Why a cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The folder that was asked for is not usable.
    #[error("find Postgres's server programs")]
    Find(#[source] FindError),
    /// None is installed and none could be downloaded.
    #[error("no Postgres 14 or later is installed, and none could be downloaded")]
    Download(#[source] DownloadError),
    /// The temporary folder, its watchdog, or a program could not be made.
    #[error("prepare a throwaway Postgres cluster")]
    Io(#[from] io::Error),
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended, or did not accept connections in time.
    #[error("Postgres did not start ({what}); the end of its log:\n{log}")]
    Start {
        /// What happened.
        what: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// A statement on it failed.
    #[error("statement on the throwaway cluster")]
    Statement(#[from] tokio_postgres::Error),
    /// A changed parameter was not taken over.
    #[error("the server has not taken over the new value of {0}; the end of its log:\n{1}")]
    Parameter(String, String),
}

impl ClusterError {
    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Find(_) => Some("set TWINLOG_PG_BIN to the folder of initdb and postgres, version 14 or later"),
            Self::Download(_) => Some(
                "install Postgres (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; \
                 macOS: brew install postgresql@17), or set TWINLOG_PG_BIN to the folder of initdb and postgres",
            ),
            Self::Io(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
                Some("set TMPDIR to a folder where this user may write")
            }
            _ => None,
        }
    }
}
