//! The built binary as a child process: configured, watched, killed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Databases, SOON, eventually};

/// A configuration file for the binary, removed when dropped.
pub(crate) struct ConfigFile {
    folder: tempfile::TempDir,
    /// Where its public listener will be on 127.0.0.1.
    pub(crate) http_port: u16,
    /// Where its admin listener will be on 127.0.0.1.
    pub(crate) admin_port: u16,
}

impl ConfigFile {
    /// For a test's two databases: slot and publication are named as the Site DB is, since slots belong to the whole
    /// cluster. `more` is TOML that is appended, whole sections.
    pub(crate) fn new(db: &Databases, more: &str) -> Self {
        Self::with_urls(&db.site.url, &db.agent.url, &db.site.name, more)
    }

    /// The same with URLs of your own, such as through a proxy.
    pub(crate) fn with_urls(site: &str, agent: &str, slot: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (http_port, admin_port) = (free_port(), free_port());
        let mut sections = toml::Table::new();
        let mut set = |section: &str, key: &str, value: toml::Value| {
            let section = sections.entry(section).or_insert_with(|| toml::Table::new().into());
            section.as_table_mut().unwrap().entry(key).or_insert(value);
        };
        set("site", "url", site.into());
        set("agent", "url", agent.into());
        set("sync", "slot", slot.into());
        set("sync", "publication", slot.into());
        set("http", "listen", format!("127.0.0.1:{http_port}").into());
        set("admin", "listen", format!("127.0.0.1:{admin_port}").into());
        // What the test says goes over what the harness says, key by key.
        for (section, value) in more.parse::<toml::Table>().unwrap() {
            match (sections.get_mut(&section), value) {
                (Some(toml::Value::Table(ours)), toml::Value::Table(theirs)) => ours.extend(theirs),
                (_, value) => {
                    sections.insert(section, value);
                }
            }
        }
        std::fs::write(folder.path().join("twinlog.toml"), sections.to_string()).unwrap();
        Self {
            folder,
            http_port,
            admin_port,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("twinlog.toml")
    }

    /// The URL of a path on the public listener.
    pub(crate) fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http_port)
    }

    /// The URL of a path on the admin listener.
    pub(crate) fn admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin_port)
    }
}

/// A free port that no other test of this run was given.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    // Below the ports that outgoing connections get, or a connection of another test could take it before the binary does.
    let port = (0..1000)
        .map(|_| rand::random_range(10_000..15_000))
        .find(|port| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .unwrap();
    given.insert(port);
    port
}

/// A running `twinlog`. Killed when dropped; its output is shown if the test fails.
pub(crate) struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts `twinlog ARGUMENTS` with that configuration. `failpoints` is the `FAILPOINTS` variable, as in
    /// `agent.before_commit=return(abort)`.
    pub(crate) fn start(config: &ConfigFile, arguments: &[&str], failpoints: &str) -> Self {
        Self::start_with(&config.path(), arguments, &[("FAILPOINTS", failpoints)])
    }

    /// Starts it with an environment of your own on top of this process's.
    pub(crate) fn start_with(config: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .args(arguments)
            .env("TWINLOG_CONFIG", config)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            collect(child.stdout.take().unwrap(), &output),
            collect(child.stderr.take().unwrap(), &output),
        ];
        Self { child, output, readers }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far, both streams by the line.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as systemd sends it.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Any signal: SIGSTOP and SIGCONT make it hang and go on.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end; then [`Self::output`] is complete.
    ///
    /// # Panics
    /// If it still runs at the deadline, with what it printed.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                for reader in self.readers.drain(..) {
                    let _ = reader.join();
                }
                return status;
            }
            assert!(
                Instant::now() < end,
                "twinlog still runs after {deadline:?}; it said:\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it has said `text`, be it its last word: a state may be seen elsewhere before the line is here.
    ///
    /// # Panics
    /// If it has not within [`SOON`], with what it said.
    pub(crate) async fn says(&self, text: &str) {
        eventually(&format!("twinlog says {text:?}"), SOON, || async {
            let output = self.output();
            if output.contains(text) { Ok(()) } else { Err(output) }
        })
        .await;
    }

    /// Waits until it has printed something that contains `text`.
    ///
    /// # Panics
    /// If it has not at the deadline, or has ended, with what it printed.
    pub(crate) async fn wait_for_output(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        while !self.output().contains(text) {
            let (running, late) = (self.is_running(), Instant::now() >= end);
            // Its last words may still be on their way through the reader.
            assert!(
                !late && (running || !self.readers.iter().all(std::thread::JoinHandle::is_finished)),
                "twinlog has not said {text:?} (running: {running}); it said:\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- twinlog said:\n{}---", self.output());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, output: &Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let _ = writeln!(output.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
        }
    })
}
