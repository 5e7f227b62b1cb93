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

    /// Removes a file, as the server's user: root would remove one of its own if the folder was exchanged for a link.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        let status = command(Path::new("rm"), self.account)
            .arg("--")
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} could not be removed", path.display())))
        }
    }

    /// Opens a file that the server has written. Neither a link, nor a file of anybody else, which may be one that only root
    /// may read.
    pub(super) fn open(&self, name: &str) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(self.path.join(name))?;
        let metadata = file.metadata()?;
        let owner = self.account.map_or_else(|| geteuid().as_raw(), |account| account.uid);
        if metadata.is_file() && metadata.uid() == owner {
            Ok(file)
        } else {
            Err(io::Error::other(format!("{name} is not a file of the server's user")))
        }
    }

    /// A program of [`Self::command`] whose output goes to a new file of the folder, which its own user makes.
    pub(super) fn command_with_log(&self, program: &Path, log: &str) -> Command {
        let mut command = self.command(Path::new("sh"));
        command
            .args([
                "-c",
                "log=$1; shift; umask 077; exec \"$@\" >\"$log\" 2>&1",
                "twinlog-server",
                log,
            ])
            .arg(program)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
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
/// it (a private TMPDIR is closed), and the watchdog, which runs as that user, must be able to remove a folder from it; and no
/// other user may be able to exchange what root makes there ([`is_safe`]). And
/// the path of a Unix socket may have 107 bytes (macOS: 103).
fn parent(folder: Option<&Path>, account: Option<Account>) -> PathBuf {
    // /twinlog-pg-01234567/.s.PGSQL.31999
    const SOCKET_BYTES: usize = 36;
    let folder = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let open = folder
        .ancestors()
        .enumerate()
        .all(|(depth, path)| is_safe(path, depth == 0));
    let closed = account.is_some() && !open;
    if closed || folder.as_os_str().len() + SOCKET_BYTES > 103 {
        return PathBuf::from("/tmp");
    }
    folder
}

/// Whether the server's user can work below a folder, and nobody but root can exchange what root makes there: of the folder
/// itself (`is_parent`), everybody must be able to make and remove own files; and where others may write, the sticky bit
/// keeps them from all that is not theirs.
fn is_safe(path: &Path, is_parent: bool) -> bool {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    let needed = if is_parent { 0o003 } else { 0o001 };
    path.symlink_metadata().is_ok_and(|metadata| {
        let mode = metadata.mode();
        let is_kept = mode & OTHERS_WRITE == 0 || mode & STICKY != 0;
        metadata.is_dir() && metadata.uid() == 0 && mode & needed == needed && is_kept
    })
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
    fn root_reads_and_removes_nothing_through_a_link_and_works_in_no_folder_where_others_exchange_files() {
        if !geteuid().is_root() {
            return;
        }
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), b"of root").unwrap();
        let workspace = Workspace::create(None).unwrap();
        let log = workspace.path().join("postgres.log");
        std::os::unix::fs::symlink(secret.path(), &log).unwrap();
        assert!(workspace.open("postgres.log").is_err(), "a link");
        let mut server = workspace.command_with_log(Path::new("true"), "postgres.log");
        let status = workspace.spawn(&mut server).unwrap().wait().unwrap();
        workspace.nothing_runs();
        assert!(!status.success(), "the server's user may not write it");
        std::fs::remove_file(&log).unwrap();
        // Another file system allows no hard link.
        if std::fs::hard_link(secret.path(), &log).is_ok() {
            assert!(workspace.open("postgres.log").is_err(), "a hard link");
            std::fs::remove_file(&log).unwrap();
        }
        assert_eq!(std::fs::read(secret.path()).unwrap(), b"of root");

        let moved = workspace.path().with_extension("moved");
        std::fs::rename(workspace.path(), &moved).unwrap();
        let of_root = tempfile::tempdir().unwrap();
        std::fs::write(of_root.path().join("password"), b"of root").unwrap();
        std::os::unix::fs::symlink(of_root.path(), workspace.path()).unwrap();
        assert!(workspace.remove("password").is_err());
        drop(workspace);
        assert!(of_root.path().join("password").is_file());
        std::fs::remove_dir_all(moved).unwrap();

        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let account = Some(Account { uid: 1, gid: 1 });
        for (mode, is_taken) in [(0o1777, true), (0o777, false), (0o755, false), (0o700, false)] {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let taken = parent(Some(folder.path()), account) == folder.path();
            assert_eq!(taken, is_taken, "{mode:o}");
        }
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(
            parent(Some(&below), account),
            Path::new("/tmp"),
            "others can move its parent"
        );
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(parent(Some(&below), account), below);
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
