//! The server as a process: started, ready, and what it and the database's processes have used.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Sub;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use twinlog::dev::postgres::Cluster;

use super::clients::Client;
use super::meta::{NUMBER, SECRET};

/// The API token of the load's clients.
pub(crate) const TOKEN: &str = "bench-token";

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `twinlog serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// The public listener.
    pub(crate) http: SocketAddr,
    _config: TempDir,
}

impl Server {
    /// Starts it, and returns when it is ready.
    pub(crate) async fn start(site: &str, connections: u32, graph: &str) -> Result<Self> {
        let (http, admin) = (free_address()?, free_address()?);
        let config = tempfile::tempdir()?;
        let file = config.path().join("twinlog.toml");
        let sha256 = hex::encode(Sha256::digest(TOKEN));
        std::fs::write(
            &file,
            format!(
                "[site]\nurl = \"{site}\"\nmax_connections = {connections}\n[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\"\n\
                 [whatsapp]\ngraph_url = \"{graph}\"\napp_secrets = [\"{SECRET}\"]\nverify_token = \"v\"\n\
                 [[whatsapp.accounts]]\nphone_number_id = \"{NUMBER}\"\naccess_token = \"simulator-token\"\nmessages_per_second = 1000\n\
                 [[auth.tokens]]\nname = \"bench\"\nsha256 = \"{sha256}\"\n"
            ),
        )?;
        // The log costs what it costs in production; nobody reads it here.
        let child = Command::new(env!("CARGO_BIN_EXE_twinlog"))
            .arg("--config")
            .arg(&file)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start twinlog")?;
        let server = Self {
            child,
            http,
            _config: config,
        };
        let deadline = Instant::now() + PATIENCE;
        while ready(admin).await.unwrap_or(0) != 200 {
            ensure!(Instant::now() < deadline, "the server is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// The largest resident memory so far.
    pub(crate) fn peak_mb(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .context("VmHWM")?
            .parse()?;
        Ok(kb / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ready(admin: SocketAddr) -> Result<u16> {
    let request = b"GET /readyz HTTP/1.1\r\nhost: bench\r\n\r\n";
    Client::connect(admin).await?.send(request).await
}

/// Free at the moment.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// CPU seconds.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) server: f64,
    /// Of all processes of the cluster.
    pub(crate) database: f64,
}

impl Spent {
    pub(crate) fn so_far(server: &Server, cluster: &Cluster) -> Result<Self> {
        let stats = stats()?;
        let of_tree = |root: u32| -> f64 {
            let below = |pid: u32| {
                std::iter::successors(Some(pid), |pid| {
                    stats.get(pid).map(|stat| stat.parent).filter(|&pid| pid > 1)
                })
                .any(|pid| pid == root)
            };
            stats
                .iter()
                .filter(|&(&pid, _)| below(pid))
                .map(|(_, stat)| stat.seconds)
                .sum()
        };
        Ok(Self {
            server: of_tree(server.child.id()),
            database: cluster.pid().map_or(f64::NAN, of_tree),
        })
    }
}

impl Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            server: self.server - before.server,
            database: self.database - before.database,
        }
    }
}

/// A process, by the kernel's account.
struct Stat {
    parent: u32,
    /// CPU time of its own and of its ended children.
    seconds: f64,
}

/// All processes of this machine (Linux).
fn stats() -> Result<HashMap<u32, Stat>> {
    /// `/proc/PID/stat` counts in these.
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut stats = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<f64> = rest
            .split_whitespace()
            .skip(1)
            .map(|text| text.parse().unwrap_or(0.0))
            .collect();
        let ticks = |range: std::ops::Range<usize>| fields.get(range).map_or(0.0, |fields| fields.iter().sum());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a process id")]
        let parent = fields.first().map_or(0, |pid| *pid as u32);
        stats.insert(
            pid,
            Stat {
                parent,
                seconds: ticks(10..14) / TICKS_PER_SECOND,
            },
        );
    }
    Ok(stats)
}
