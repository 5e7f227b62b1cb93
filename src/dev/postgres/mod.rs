//! Throwaway Postgres clusters: found or downloaded, started in a temporary folder, gone without a trace.
//!
//! ```text
//! find ──(nothing there)──→ download
//!   └──→ cluster ──→ workspace (folder, lock, user, watchdog)
//! ```
//!
//! The hard part is not to start a server but to leave nothing behind, whatever happens to us:
//!
//! - dropped, returned early, panicked, Ctrl-C: [`Cluster`]'s `Drop` stops the server and removes the folder;
//! - `std::process::exit`, a `static` that is never dropped, `kill -9`: a small shell, the watchdog, holds the other end
//!   of a pipe; when we are gone it reads the end of the file, stops the server and removes the folder;
//! - the watchdog was killed as well: the next start sweeps folders whose lock nobody holds.
//!
//! This module knows nothing of Twinlog's tables and migrations.

mod cluster;
mod download;
mod error;
mod find;
mod settings;
mod workspace;

pub use cluster::{Cluster, Shutdown};
pub use download::DownloadError;
pub use error::ClusterError;
pub use find::{BIN_VARIABLE, FindError, Installation, OLDEST_MAJOR, find};
pub use settings::Settings;
