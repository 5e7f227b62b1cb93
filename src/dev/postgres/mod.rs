//! Throwaway Postgres clusters: found or downloaded, started in a temporary folder, removed at the end.
//!
//! ```text
//! find ──(nothing there)──→ download
//!   └──→ cluster ──→ workspace (folder, lock, user, watchdog)
//! ```
//!
//! The hard part is to leave nothing behind, however this process ends:
//!
//! - dropped, returned early, panicked, Ctrl-C: [`Cluster`]'s `Drop` stops the server and removes the folder;
//! - `std::process::exit`, a `static` that is never dropped, `kill -9`: the watchdog, a small shell, reads from a pipe of this
//!   process; when the pipe ends, it stops the server and removes the folder;
//! - the watchdog was killed as well: the next start removes the folders whose lock is free.
//!
//! It leaves Twinlog's tables and migrations alone.

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
