//! `twinlog run`, `twinlog serve`, `twinlog sync`: the parts put together as they run in production.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Global, Outcome, admin, systemd};
use crate::config::{Config, Needs};
use crate::health::Health;
use crate::{http, replication, shutdown};

/// Which halves a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halves {
    /// The send/webhook server and the daemon.
    Both,
    /// The server.
    Server,
    /// The daemon.
    Daemon,
}

impl Halves {
    const fn needs(self) -> Needs {
        Needs {
            site: true,
            agent: !matches!(self, Self::Server),
            whatsapp: !matches!(self, Self::Daemon),
        }
    }
}

/// Runs until a signal comes.
pub(super) async fn run(global: &Global, halves: Halves) -> anyhow::Result<Outcome> {
    let config = Arc::new(global.start(halves.needs())?);
    let stop = shutdown::on_signal().context("listen for signals")?;
    let mut running = Running::start(config, halves, &stop).await?;
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        error = running.failed() => Some(error),
    };
    info!("stopping");
    let outcome = running.join().await?;
    failed.map_or(Ok(outcome), Err)
}

/// The parts of a process, started and listening.
#[derive(Debug)]
pub(super) struct Running {
    /// Where the public API is, if this process has it.
    pub(super) http: Option<std::net::SocketAddr>,
    /// Where health and metrics are.
    pub(super) admin: std::net::SocketAddr,
    parts: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Stops the admin listener, last: health is asked for while the rest drains.
    admin_stop: CancellationToken,
    stop: CancellationToken,
}

impl Running {
    /// Binds the listeners and starts the parts. A part that ends with an error stops the others.
    pub(super) async fn start(config: Arc<Config>, halves: Halves, stop: &CancellationToken) -> anyhow::Result<Self> {
        let metrics = crate::metrics::install().context("install the metrics recorder")?;
        let health = Health::default();
        let admin_listener = listen(config.admin.listen, "admin.listen").await?;
        let admin = admin_listener.local_addr()?;
        let mut parts = JoinSet::new();
        let mut http = None;
        if halves != Halves::Daemon {
            let listener = listen(config.http.listen, "http.listen").await?;
            http = Some(listener.local_addr()?);
            let (config, health, stop) = (Arc::clone(&config), health.clone(), stop.clone());
            parts.spawn(async move {
                let ended = Box::pin(http::run_server(config, health, listener, stop)).await;
                ("server", ended.map_err(Into::into))
            });
        }
        if halves != Halves::Server {
            let (config, health, stop) = (Arc::clone(&config), health.clone(), stop.clone());
            parts.spawn(async move {
                (
                    "daemon",
                    Box::pin(replication::run(config, &health, stop))
                        .await
                        .map_err(Into::into),
                )
            });
        }
        let admin_stop = CancellationToken::new();
        parts.spawn({
            let (health, admin_stop) = (health.clone(), admin_stop.clone());
            async move {
                let served = admin::serve(admin_listener, health, metrics, admin_stop).await;
                ("admin", served.context("serve health and metrics"))
            }
        });
        tokio::spawn(systemd::supervise(health, stop.clone()));
        info!(admin = %admin, http = http.map(|address| address.to_string()), "listening");
        let mut running = Self {
            http,
            admin,
            parts,
            admin_stop,
            stop: stop.clone(),
        };
        // A part that can't even begin says so now rather than at the end.
        if let Some(ended) = running.parts.try_join_next() {
            running.ended(ended)?;
        }
        Ok(running)
    }

    /// Waits for all parts to end; they have to within the grace period, and are left alone after it.
    pub(super) async fn join(mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::Success;
        let deadline = tokio::time::sleep(shutdown::GRACE);
        tokio::pin!(deadline);
        // The admin listener is the last one.
        while self.parts.len() > 1 {
            tokio::select! {
                ended = self.parts.join_next() => {
                    if let Some(ended) = ended && let Err(error) = self.ended(ended) {
                        error!(error = format!("{error:#}"), "a part ended with an error");
                        outcome = Outcome::Problem;
                    }
                }
                () = &mut deadline => {
                    warn!("not everything stopped in time; what is unfinished is done again at the next start");
                    break;
                }
            }
        }
        self.admin_stop.cancel();
        self.parts.abort_all();
        Ok(outcome)
    }

    /// Whether a part has ended though nobody asked it to; then the process should end.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.parts.join_next().await {
                Some(ended) => {
                    if let Err(error) = self.ended(ended) {
                        return error;
                    }
                }
                None => return anyhow::anyhow!("every part has ended"),
            }
        }
    }

    fn ended(&self, ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Result<()> {
        match ended {
            Ok((part, Err(error))) => {
                self.stop.cancel();
                Err(error.context(format!("the {part} ended")))
            }
            Ok((_, Ok(()))) => Ok(()),
            Err(panic) => {
                self.stop.cancel();
                Err(anyhow::Error::new(panic).context("a part panicked"))
            }
        }
    }
}

async fn listen(address: std::net::SocketAddr, key: &'static str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} ({key})"))
}
