//! Where Postgres's server programs are on this machine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Environment variable with the folder of `initdb` and `postgres`. If it is set, no other folder is searched.
pub const BIN_VARIABLE: &str = "TWINLOG_PG_BIN";

/// The oldest supported major version: 14 is the oldest that the Postgres project maintains (until 2026-11), and the first
/// whose `initdb` has `--no-instructions`.
pub const OLDEST_MAJOR: u32 = 14;

/// Folders with one subfolder a version, each holding `bin`: Debian and Ubuntu, the PGDG's RPMs, Postgres.app.
const VERSION_FOLDERS: &[&str] = &[
    "/usr/lib/postgresql",
    "/usr/pgsql",
    "/Applications/Postgres.app/Contents/Versions",
];

/// Homebrew's folders of formulas, among them `postgresql@15` and the like.
const HOMEBREW_FOLDERS: &[&str] = &["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"];

/// Postgres's server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The folder that holds `initdb` and `postgres`.
    pub bin: PathBuf,
    /// The major version, as in 15.
    pub major: u32,
}

/// Why there are no server programs to use.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The folder that was given has no usable server programs.
    #[error("{} holds no usable Postgres {OLDEST_MAJOR} or later: {what}", bin.display())]
    Unusable {
        /// As it was given.
        bin: PathBuf,
        /// What it lacks.
        what: String,
    },
    /// No folder was given, and no server programs were found.
    #[error("no Postgres {OLDEST_MAJOR} or later is installed (looked in PATH, pg_config, and the usual folders)")]
    Missing,
}

/// Finds the server programs: in `bin` if that is given, else where [`BIN_VARIABLE`] says, else the newest version among
/// `pg_config`, `PATH` and the usual folders of packages.
///
/// # Errors
/// The given folder is not usable; or none was given, and nothing was found.
pub fn find(bin: Option<&Path>) -> Result<Installation, FindError> {
    let asked = bin.map(Path::to_owned).or_else(|| {
        std::env::var_os(BIN_VARIABLE)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    });
    if let Some(bin) = asked {
        return inspect(&bin).map_err(|what| FindError::Unusable { bin, what });
    }
    let mut seen = HashSet::new();
    let mut best: Option<Installation> = None;
    for bin in candidates() {
        // Links such as /usr/bin/postgres lead to a folder that is a candidate as well.
        let Ok(real) = bin.join("postgres").canonicalize() else {
            continue;
        };
        if !seen.insert(real) {
            continue;
        }
        if let Ok(found) = inspect(&bin)
            && best.as_ref().is_none_or(|best| found.major > best.major)
        {
            best = Some(found);
        }
    }
    best.ok_or(FindError::Missing)
}

/// Folders that may hold the programs, the more likely ones first.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output()
        && output.status.success()
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    if let Some(path) = std::env::var_os("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    for parent in VERSION_FOLDERS {
        folders.extend(children(Path::new(parent)).map(|version| version.join("bin")));
    }
    // The RPMs' folders are /usr/pgsql-15.
    folders.extend(
        children(Path::new("/usr"))
            .filter(|path| name_starts_with(path, "pgsql-"))
            .map(|version| version.join("bin")),
    );
    for parent in HOMEBREW_FOLDERS {
        folders.extend(
            children(Path::new(parent))
                .filter(|path| name_starts_with(path, "postgresql"))
                .map(|formula| formula.join("bin")),
        );
    }
    folders.retain(|folder| folder.is_absolute());
    folders
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

fn name_starts_with(path: &Path, prefix: &str) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(prefix))
}

/// The installation in a folder, or what it lacks.
pub(super) fn inspect(bin: &Path) -> Result<Installation, String> {
    for program in ["initdb", "postgres"] {
        if !bin.join(program).is_file() {
            return Err(format!("it has no {program}"));
        }
    }
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("postgres does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = major_version(&text).ok_or_else(|| format!("postgres --version says {:?}", text.trim()))?;
    if major < OLDEST_MAJOR {
        return Err(format!("it is version {major}"));
    }
    Ok(Installation {
        bin: bin.to_owned(),
        major,
    })
}

/// 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-1)` and 18 from `postgres (PostgreSQL) 18beta1`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-1)\n"),
            Some(15)
        );
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("postgres"), None);
        assert_eq!(major_version("postgres (PostgreSQL) devel"), None);
    }

    #[test]
    fn a_folder_that_was_asked_for_is_never_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("it has no initdb"), "{error}");
    }
}
