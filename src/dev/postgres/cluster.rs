//! One throwaway server: starts on a free port, can be stopped and started again, and is removed at the end.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;

use super::download::download;
use super::error::ClusterError;
use super::find::{FindError, Installation, find};
use super::settings::Settings;
use super::workspace::Workspace;
use crate::postgres::{Client, connect_plain, quote_identifier};

/// The server's log, in the workspace.
const LOG: &str = "postgres.log";

/// The superuser of every throwaway cluster.
const USER: &str = "postgres";

/// How long a start may take, including recovery after a crash, on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a fast shutdown may take before it becomes an immediate one: it waits until the clients of all WAL senders have
/// received everything, and a client that hangs never does.
const FAST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an immediate shutdown may take before the server is killed: Postgres gives its children 5 s.
const IMMEDIATE_TIMEOUT: Duration = Duration::from_secs(6);

/// Between two checks of whether something has happened.
const POLL: Duration = Duration::from_millis(10);

/// Ports to choose from: below those that Linux (32768) and macOS (49152) use for outgoing connections, so that the port is
/// not taken while the server is down between two starts.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// As an operator stops it: sessions are ended, WAL senders finish, a checkpoint is written. Becomes [`Self::Immediate`]
    /// after 10 s.
    Fast,
    /// Without a checkpoint, as in a crash: the next start recovers.
    Immediate,
    /// `kill -9` of the postmaster.
    Kill,
}

/// A throwaway Postgres server. It is stopped and removed when dropped.
///
/// All methods take `&self`, so that it can be shared; its users must not start and stop it at the same time.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    password: String,
    port: AtomicU16,
    state: Mutex<State>,
    workspace: Workspace,
}

#[derive(Debug)]
struct State {
    server: Option<Child>,
    parameters: BTreeMap<String, String>,
}

impl Cluster {
    /// Creates a new cluster and starts it. It accepts connections when this returns.
    ///
    /// # Errors
    /// No server programs, no temporary folder, or the server does not come up.
    pub async fn start(settings: Settings) -> Result<Self, ClusterError> {
        let installation = match find(settings.bin.as_deref()) {
            Ok(installation) => installation,
            Err(FindError::Missing) => download().await.map_err(ClusterError::Download)?,
            Err(error) => return Err(ClusterError::Find(error)),
        };
        // If this future is dropped, the closure still finishes, and its result removes what it made.
        let cluster = tokio::task::spawn_blocking(move || Self::initialise(installation, settings))
            .await
            .map_err(io::Error::other)??;
        cluster.launch(true).await?;
        Ok(cluster)
    }

    fn initialise(installation: Installation, settings: Settings) -> Result<Self, ClusterError> {
        let workspace = Workspace::create(settings.folder.as_deref())?;
        let password = hex::encode(rand::rng().random::<[u8; 16]>());
        let password_file = workspace.write("password", password.as_bytes())?;
        let mut initdb = workspace.command(&installation.bin.join("initdb"));
        initdb
            .args([
                "--pgdata=data",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password_file.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = workspace.spawn(&mut initdb)?.wait_with_output()?;
        workspace.nothing_runs();
        if !output.status.success() {
            return Err(ClusterError::Initdb(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        workspace.remove("password")?;
        Ok(Self {
            installation,
            password,
            port: AtomicU16::new(0),
            state: Mutex::new(State {
                server: None,
                parameters: settings.into_parameters(),
            }),
            workspace,
        })
    }

    /// The major version of the server programs, as in 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// The folder of the server programs, and of `pg_dump`, `pgbench` and the others if the package has them.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.installation.bin
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    /// The superuser's password, over TCP (SCRAM).
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The URL of a database over TCP, as superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{USER}:{}@127.0.0.1:{}/{database}",
            self.password,
            self.port()
        )
    }

    /// The URL of a database over the Unix socket, as superuser.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        let folder = self.workspace.path().display();
        format!("postgres://{USER}@/{database}?host={folder}&port={}", self.port())
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.workspace.path().join("data")
    }

    /// The postmaster's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.lock().server.as_ref().map(Child::id)
    }

    /// Writes a file into the data folder that only the server may read, such as the key of a certificate.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_file(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.workspace.write(&format!("data/{name}"), contents).map(drop)
    }

    /// A client on a database, through the Unix socket. Its connection is driven by a task of the current runtime.
    ///
    /// # Errors
    /// The server does not run or refuses.
    pub async fn client(&self, database: &str) -> Result<Client, ClusterError> {
        Ok(connect_plain(self.workspace.path(), self.port(), USER, database, "twinlog-dev").await?)
    }

    /// Creates an empty database.
    ///
    /// # Errors
    /// The server does not run, or has one of that name.
    pub async fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        let client = self.client("postgres").await?;
        client
            .batch_execute(&format!("CREATE DATABASE {}", quote_identifier(name)))
            .await?;
        Ok(())
    }

    /// Changes a server parameter and waits until new sessions have it. One that needs a restart takes effect with the next
    /// [`Self::restart`].
    ///
    /// # Errors
    /// The server does not run, or refuses the value.
    pub async fn set(&self, name: &str, value: &str) -> Result<(), ClusterError> {
        let previous = self.lock().parameters.insert(name.to_owned(), value.to_owned());
        self.write_parameters()?;
        let loaded = "SELECT pg_conf_load_time()::text";
        let client = self.client("postgres").await?;
        let before: String = client.query_one(loaded, &[]).await?.get(0);
        client.batch_execute("SELECT pg_reload_conf()").await?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            // A new session has the load time of the postmaster that forked it.
            let client = self.client("postgres").await?;
            let now: String = client.query_one(loaded, &[]).await?.get(0);
            if now != before {
                // A parameter that waits for a restart is listed as an error too.
                let refused = "SELECT error FROM pg_file_settings WHERE name = $1 AND error IS NOT NULL
                    AND NOT EXISTS (SELECT FROM pg_settings WHERE pg_settings.name = $1 AND pending_restart)";
                if client.query_opt(refused, &[&name]).await?.is_none() {
                    return Ok(());
                }
                // The next start must not fail on it.
                match previous {
                    Some(previous) => self.lock().parameters.insert(name.to_owned(), previous),
                    None => self.lock().parameters.remove(name),
                };
                self.write_parameters()?;
                return Err(ClusterError::Parameter(name.to_owned(), self.log_tail()));
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Parameter(name.to_owned(), self.log_tail()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the server and keeps its data. Does nothing if it does not run.
    ///
    /// # Errors
    /// The state of its process can't be read.
    pub async fn stop(&self, how: Shutdown) -> Result<(), ClusterError> {
        for (signal, patience) in escalation(how) {
            self.signal(signal);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if !self.is_running()? {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Err(io::Error::other("the server outlived SIGKILL").into())
    }

    /// Starts the server again after [`Self::stop`], on the same port.
    ///
    /// # Errors
    /// The server does not accept connections in time.
    pub async fn start_again(&self) -> Result<(), ClusterError> {
        self.launch(false).await
    }

    /// Stops the server and starts it again on the same port.
    ///
    /// # Errors
    /// The server does not accept connections in time.
    pub async fn restart(&self, how: Shutdown) -> Result<(), ClusterError> {
        self.stop(how).await?;
        self.launch(false).await
    }

    /// The server's whole log; empty if it can't be read.
    #[must_use]
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        let _ = self
            .workspace
            .open(LOG)
            .and_then(|mut file| file.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        // Enough for about 40 lines.
        const TAIL_BYTES: u64 = 4096;
        let read = || -> io::Result<String> {
            let mut file = self.workspace.open(LOG)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(no log: {error})"))
    }

    async fn launch(&self, may_choose_port: bool) -> Result<(), ClusterError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if may_choose_port {
                self.port.store(free_port()?, Ordering::Relaxed);
            }
            self.spawn_server()?;
            let what = match self.wait_until_ready(deadline).await? {
                Readiness::Ready => return Ok(()),
                Readiness::TimedOut => "it accepts no connections",
                Readiness::Exited => "it exited",
            };
            let log = self.log_tail();
            // Another program took the port meanwhile, or children of a killed postmaster still hold its shared memory.
            let temporary = log.contains("could not bind") || log.contains("shared memory block");
            if !temporary || Instant::now() > deadline {
                self.stop(Shutdown::Immediate).await?;
                return Err(ClusterError::Start { what, log });
            }
            tokio::time::sleep(POLL * 10).await;
        }
    }

    fn spawn_server(&self) -> Result<(), ClusterError> {
        self.write_parameters()?;
        // Each start has its own log, so that the tail is about this start.
        let program = self.installation.bin.join("postgres");
        let mut postgres = self.workspace.command_with_log(&program, LOG);
        postgres
            .args(["-D", "data", "-c", "listen_addresses=127.0.0.1", "-c"])
            .arg(format!("port={}", self.port()))
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.workspace.path().display()));
        let server = self.workspace.spawn(&mut postgres)?;
        self.lock().server = Some(server);
        Ok(())
    }

    async fn wait_until_ready(&self, deadline: Instant) -> Result<Readiness, ClusterError> {
        while Instant::now() < deadline {
            if !self.is_running()? {
                return Ok(Readiness::Exited);
            }
            let probe = async {
                self.client("postgres")
                    .await?
                    .batch_execute("SELECT 1")
                    .await
                    .map_err(ClusterError::from)
            };
            if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(1), probe).await {
                return Ok(Readiness::Ready);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(Readiness::TimedOut)
    }

    /// Parameters are written into a file and not given as `-c` flags: a flag can't be changed while the server runs.
    fn write_parameters(&self) -> io::Result<()> {
        let text: String = self
            .lock()
            .parameters
            .iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        // postgresql.auto.conf is read last and may hold what a test set by ALTER SYSTEM.
        self.workspace.write("data/postgresql.conf", text.as_bytes()).map(drop)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // Not reaped yet, so the id is still that of the server, even if it has ended.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn is_running(&self) -> io::Result<bool> {
        let mut state = self.lock();
        let Some(server) = state.server.as_mut() else {
            return Ok(false);
        };
        if server.try_wait()?.is_none() {
            return Ok(true);
        }
        state.server = None;
        self.workspace.nothing_runs();
        Ok(false)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each write under the lock is one assignment, so the state is consistent after a panic in another thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The data will be removed: there is no need for a checkpoint, nor to wait for WAL senders.
        for (signal, patience) in escalation(Shutdown::Immediate) {
            self.signal(signal);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if !self.is_running().unwrap_or(false) {
                    return;
                }
                std::thread::sleep(POLL);
            }
        }
    }
}

enum Readiness {
    Ready,
    Exited,
    TimedOut,
}

fn escalation(how: Shutdown) -> impl Iterator<Item = (Signal, Duration)> {
    let from = match how {
        Shutdown::Fast => 0,
        Shutdown::Immediate => 1,
        Shutdown::Kill => 2,
    };
    [
        (Signal::SIGINT, FAST_TIMEOUT),
        (Signal::SIGQUIT, IMMEDIATE_TIMEOUT),
        (Signal::SIGKILL, IMMEDIATE_TIMEOUT),
    ]
    .into_iter()
    .skip(from)
}

fn free_port() -> io::Result<u16> {
    // If so many are in use, something else is wrong.
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no free port on 127.0.0.1"))
}
