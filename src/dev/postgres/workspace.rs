//! The temporary folder of one cluster: its owner, its lock, and the watchdog that removes it when this process cannot.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, User, geteuid};
use rand::Rng;

/// The beginning of the folders' names. Short, because the path of a Unix socket may have 107 bytes.
const PREFIX: &str = "twinlog-pg-";

/// The file that is locked as long as this process lives.
const LOCK: &str = "owner.lock";

/// Reads process ids from its standard input; the last line is the process that runs now (empty: none). The input ends when
/// this process has ended: then it stops that process's group and removes the folder.
///
/// SIGQUIT is Postgres's immediate shutdown, which ends its children and frees its shared memory. The whole group gets it,
/// because initdb waits for its child. (Postgres's children have their own groups.) After 50 × 0.1 s it is killed: Postgres
/// itself gives its children 5 s.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
child=
while read -r line; do child=$line; done
if [ -n "$child" ]; then
    kill -s QUIT -- "-$child" 2>/dev/null
    n=0
    while kill -0 "$child" 2>/dev/null && [ "$n" -lt 50 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    kill -s KILL -- "-$child" 2>/dev/null
fi
rm -rf -- "$1"
"#;

/// A folder that is removed when this is dropped, or when this process ends.
#[derive(Debug)]
pub(super) struct Workspace {
    path: PathBuf,
    account: Option<Account>,
    /// Held and never read: the lock ends with this process.
    _lock: File,
    watchdog: Child,
    pipe: Option<ChildStdin>,
}

/// The user that the server runs as if this process is root, because Postgres refuses to run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Workspace {
    /// Creates a folder in this one (without it: the one for temporary files) and its watchdog, and removes folders that dead processes left.
    pub(super) fn create(folder: Option<&Path>) -> io::Result<Self> {
        let account = account()?;
        let parent = parent(folder, account);
        sweep(&parent, account);
        let path = parent.join(format!("{PREFIX}{:08x}", rand::rng().random::<u32>()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("make the folder {}: {error}", path.display())))?;
        match Self::set_up(path.clone(), account) {
            Ok(workspace) => Ok(workspace),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    fn set_up(path: PathBuf, account: Option<Account>) -> io::Result<Self> {
        // The sweep looks only at folders that have the file, so it must be locked before it gets that name.
        let lock = File::create_new(path.join("lock"))?;
        lock.try_lock()?;
        std::fs::rename(path.join("lock"), path.join(LOCK))?;
        // From here on the account's other processes could put links into the folder: as root, nothing is written there.
        if let Some(Account { uid, gid }) = account {
            chown(&path, Some(uid), Some(gid))?;
        }
        let mut watchdog = command(Path::new("sh"), account)
            .args(["-c", WATCHDOG, "twinlog-watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = watchdog.stdin.take();
        Ok(Self {
            path,
            account,
            _lock: lock,
            watchdog,
            pipe,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A program that will run in this folder, as the right user, and in its own process group, so that a Ctrl-C in the
    /// terminal reaches this process only.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = command(program, self.account);
        command.current_dir(&self.path).stdin(Stdio::null());
        command
    }

    /// Starts a program of [`Self::command`] and tells the watchdog.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let child = command.spawn()?;
        self.tell_watchdog(&child.id().to_string());
        Ok(child)
    }

    /// Tells the watchdog that no program runs any more, so that it never stops another process with a reused id.
    pub(super) fn nothing_runs(&self) {
        self.tell_watchdog("");
    }

    /// Writes a file that only the server's user may read.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        // By a process of that user: it owns the folder, and root would follow a link that it has put there, into a file
        // that is none of its own.
        let mut writer = command(Path::new("sh"), self.account)
            .args(["-c", "umask 077; cat > \"$1\"", "twinlog-write"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let written = writer.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(contents));
        let status = writer.wait()?;
        written?;
        if status.success() {
            Ok(path)
        } else {
            Err(io::Error::other(format!("{} could not be written", path.display())))
        }
    }

    fn tell_watchdog(&self, line: &str) {
        // If the watchdog was killed, the work goes on, and the next sweep removes the folder.
        if let Some(mut pipe) = self.pipe.as_ref() {
            let _ = writeln!(pipe, "{line}");
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        drop(self.pipe.take());
        let _ = self.watchdog.wait();
    }
}

fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).env("LC_ALL", "C");
    // PGDATA, PGPORT and the like are about another server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(Account { uid, gid }) = account {
        // `uid` also drops root's supplementary groups.
        command.uid(uid).gid(gid);
    }
    command
}

fn account() -> io::Result<Option<Account>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).map_err(io::Error::from)? {
            return Ok(Some(Account {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }));
        }
    }
    Err(io::Error::other(
        "Postgres does not run as root, and there is neither a user postgres nor a user nobody",
    ))
}

/// The folder for temporary files, or `/tmp` if the server could not work there. As root, another user must be able to enter
/// it (a private TMPDIR is closed), and the watchdog, which runs as that user, must be able to remove a folder from it. And
/// the path of a Unix socket may have 107 bytes (macOS: 103).
fn parent(folder: Option<&Path>, account: Option<Account>) -> PathBuf {
    // /twinlog-pg-01234567/.s.PGSQL.31999
    const SOCKET_BYTES: usize = 36;
    let folder = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let allows = |path: &Path, bits: u32| path.metadata().is_ok_and(|metadata| metadata.mode() & bits == bits);
    let open = allows(&folder, 0o003) && folder.ancestors().all(|path| allows(path, 0o001));
    let closed = account.is_some() && !open;
    if closed || folder.as_os_str().len() + SOCKET_BYTES > 103 {
        return PathBuf::from("/tmp");
    }
    folder
}

/// Removes folders whose process has ended and whose watchdog was killed too. A server that still runs in one ends by itself:
/// a postmaster checks its lock file once a minute.
fn sweep(parent: &Path, account: Option<Account>) {
    let ours = account.map_or_else(|| geteuid().as_raw(), |account| account.uid);
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let owned = |uid: u32| uid == ours || Uid::from_raw(uid) == geteuid();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX)
            || !path
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.is_dir() && owned(metadata.uid()))
        {
            continue;
        }
        // Neither a link nor a pipe without a writer, for which opening would wait.
        let lock = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path.join(LOCK));
        let Ok(lock) = lock else {
            continue;
        };
        if lock.try_lock().is_ok() {
            tracing::debug!(folder = %path.display(), "removing the cluster of a dead process");
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_dropped_workspace_leaves_nothing() {
        let workspace = Workspace::create(None).unwrap();
        let path = workspace.path().to_owned();
        workspace.write("file", b"x").unwrap();
        assert!(path.join("file").is_file());
        drop(workspace);
        assert!(!path.exists());
    }

    #[test]
    fn root_writes_through_no_link_that_the_servers_user_has_put_there() {
        if !geteuid().is_root() {
            return;
        }
        let secret = tempfile::tempdir().unwrap();
        std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let target = secret.path().join("target");
        std::fs::write(&target, b"of root").unwrap();
        let workspace = Workspace::create(None).unwrap();
        std::os::unix::fs::symlink(&target, workspace.path().join("password")).unwrap();

        assert!(workspace.write("password", b"x").is_err());

        assert_eq!(std::fs::read(&target).unwrap(), b"of root");
        assert_eq!(target.metadata().unwrap().uid(), 0);
    }

    #[test]
    fn the_sweep_removes_only_folders_of_dead_processes() {
        let living = Workspace::create(None).unwrap();
        let dead = living
            .path()
            .parent()
            .unwrap()
            .join(format!("{PREFIX}{:08x}", rand::rng().random::<u32>()));
        std::fs::create_dir(&dead).unwrap();
        let unfinished = living.path().with_extension("unfinished");
        std::fs::create_dir(&unfinished).unwrap();
        File::create(dead.join(LOCK)).unwrap();

        let other = Workspace::create(None).unwrap();

        assert!(!dead.exists());
        assert!(living.path().exists() && other.path().exists());
        assert!(unfinished.exists(), "one that is being made has no lock file yet");
        std::fs::remove_dir(unfinished).unwrap();
    }
}
