//! Why a throwaway server does not run, and what to do about it.

use std::io;

use super::download::DownloadError;
use super::find::FindError;
use crate::postgres::DriverError;

/// Why a cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The folder that was given has no usable server programs.
    #[error("find Postgres's server programs")]
    Find(#[source] FindError),
    /// No server programs are installed, and none could be downloaded.
    #[error("no Postgres 14 or later is installed, and none could be downloaded")]
    Download(#[source] DownloadError),
    /// The temporary folder could not be created, or the watchdog or a server program not started.
    #[error("prepare a throwaway Postgres cluster")]
    Io(#[from] io::Error),
    /// `initdb` failed, with its messages.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended early, or did not accept connections in time.
    #[error("Postgres did not start ({what}); the end of its log:\n{log}")]
    Start {
        /// `it exited`, or that it accepts no connections.
        what: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// A connection or a statement failed.
    #[error("statement on the throwaway cluster")]
    Statement(#[from] DriverError),
    /// The server refused the new value of a parameter, or did not load it in time: name and log.
    #[error("the server did not load the new value of {0}; the end of its log:\n{1}")]
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
