//! The built binary as a child process: starts it, reads its output, ends it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::ready;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config_file::ConfigFile;
use super::wait::{SOON, eventually};

/// The output of a process, printed without escapes.
struct Said(String);

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it said:\n{}", self.0)
    }
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

    /// Starts it with these variables in addition to this process's environment.
    pub(crate) fn start_with(config: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary())
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

    /// The most memory that it has taken so far, in MB (`VmHWM`); `None` where there is no `/proc`.
    pub(crate) fn peak_mb(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib >> 10)
    }

    /// Everything it has printed so far: the lines of both streams.
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

    /// Sends any signal: SIGSTOP makes it hang, SIGCONT lets it continue.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end; then [`Self::output`] is complete.
    ///
    /// # Panics
    /// If it still runs at the deadline, with what it printed.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let status = eventually("twinlog ends", deadline, || {
            let status = self.child.try_wait().unwrap();
            ready(status.ok_or_else(|| Said(self.output())))
        })
        .await;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        status
    }

    /// Waits until it has printed `text`; it may have ended since. (A state may be visible elsewhere before its log line.)
    ///
    /// # Panics
    /// If it has not within [`SOON`], with its output.
    pub(crate) async fn says(&self, text: &str) {
        eventually(&format!("twinlog says {text:?}"), SOON, || ready(self.has_said(text))).await;
    }

    /// Waits until it has printed something that contains `text`.
    ///
    /// # Panics
    /// If it has not at the deadline, or has ended, with what it printed.
    pub(crate) async fn wait_for_output(&mut self, text: &str, deadline: Duration) {
        eventually(&format!("twinlog says {text:?}"), deadline, || {
            // First the end, then the output: it is complete once the readers have finished.
            let ended = !self.is_running() && self.readers.iter().all(std::thread::JoinHandle::is_finished);
            let said = self.has_said(text);
            if let (true, Err(said)) = (ended, &said) {
                panic!("twinlog has ended and did not say {text:?}: {said:?}");
            }
            ready(said)
        })
        .await;
    }

    fn has_said(&self, text: &str) -> Result<(), Said> {
        let output = self.output();
        if output.contains(text) {
            Ok(())
        } else {
            Err(Said(output))
        }
    }
}

/// The binary to test: `TWINLOG_TEST_BINARY`, as to measure a release build, or the one that was built for the tests.
fn binary() -> OsString {
    std::env::var_os("TWINLOG_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_twinlog").into())
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
