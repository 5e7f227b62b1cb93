//! `twinlog run`, `twinlog serve`, `twinlog sync`: the parts of a process put together, started, and ended in order.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::outcome::Outcome;
use super::{admin, keep_alive, pipelines, systemd};
use crate::config::{Config, Needs};
use crate::health::Health;
use crate::{http, metrics, replication, shutdown};

/// Which halves a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halves {
    /// `run`: the server and the daemon.
    Both,
    /// `serve`: the API and the webhook.
    Server,
    /// `sync`: the Site DB's changes into the Agent DB.
    Daemon,
}

impl Halves {
    pub(super) const fn needs(self) -> Needs {
        Needs {
            site: true,
            agent: self.daemon(),
            whatsapp: self.server(),
        }
    }

    pub(super) const fn server(self) -> bool {
        matches!(self, Self::Both | Self::Server)
    }

    const fn daemon(self) -> bool {
        matches!(self, Self::Both | Self::Daemon)
    }
}

/// A part of the process, which runs in a task of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
enum Part {
    Server,
    Daemon,
    /// Health and metrics.
    Admin,
}

/// How the task of a part ended.
type Ended = Result<(Part, anyhow::Result<()>), JoinError>;

/// Runs until a signal comes or a part fails.
pub(super) async fn run(config: Config, halves: Halves) -> anyhow::Result<Outcome> {
    let stop = shutdown::on_signal().context("listen for signals")?;
    keep_alive::start(tokio::runtime::Handle::current()).context("start the thread that keeps the process alive")?;
    let mut running = Running::start(Arc::new(config), halves, &stop).await?;
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
    /// The address of the public API, if this process has it.
    pub(super) http: Option<SocketAddr>,
    /// The address of health and metrics.
    pub(super) admin: SocketAddr,
    parts: JoinSet<(Part, anyhow::Result<()>)>,
    stop: CancellationToken,
    /// Stops the admin listener, which is the last to stop: probes ask for the health while the others drain.
    admin_stop: CancellationToken,
}

impl Running {
    /// Binds the listeners and starts the parts. A part that ends with an error cancels `stop`, which stops the others.
    pub(super) async fn start(config: Arc<Config>, halves: Halves, stop: &CancellationToken) -> anyhow::Result<Self> {
        let recorded = metrics::install().context("install the metrics recorder")?;
        let health = Health::default();
        let admin_listener = listen(config.admin.listen, "admin.listen").await?;
        let mut running = Self {
            http: None,
            admin: admin_listener.local_addr()?,
            parts: JoinSet::new(),
            stop: stop.clone(),
            admin_stop: CancellationToken::new(),
        };
        if halves.server() {
            let listener = listen(config.http.listen, "http.listen").await?;
            running.http = Some(listener.local_addr()?);
            let server = Box::pin(http::run_server(
                Arc::clone(&config),
                health.clone(),
                listener,
                stop.clone(),
            ));
            running.spawn(Part::Server, async move { Ok(server.await?) });
        }
        if halves.daemon() {
            let (pipeline, health, stop) = (pipelines::pipeline(&config), health.clone(), stop.clone());
            running.spawn(Part::Daemon, async move {
                Ok(Box::pin(replication::run(pipeline, &health, stop)).await?)
            });
        }
        let admin = admin::serve(admin_listener, health.clone(), recorded, running.admin_stop.clone());
        running.spawn(Part::Admin, async move {
            admin.await;
            Ok(())
        });
        tokio::spawn(systemd::supervise(health, stop.clone()));
        info!(admin = %running.admin, http = running.http.map(|address| address.to_string()), "listening");
        // A part that failed at once is reported now rather than at the end.
        if let Some(ended) = running.parts.try_join_next() {
            running.check(ended)?;
        }
        Ok(running)
    }

    fn spawn(&mut self, part: Part, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.parts.spawn(async move { (part, work.await) });
    }

    /// Waits until a part fails, or until all have ended.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        while let Some(ended) = self.parts.join_next().await {
            if let Err(error) = self.check(ended) {
                return error;
            }
        }
        anyhow::anyhow!("every part has ended")
    }

    /// Waits for the parts to end, at most [`shutdown::GRACE`]; those that are left are aborted.
    pub(super) async fn join(mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::Success;
        let deadline = tokio::time::sleep(shutdown::GRACE);
        tokio::pin!(deadline);
        // The one that is left is the admin listener.
        while self.parts.len() > 1 {
            tokio::select! {
                ended = self.parts.join_next() => {
                    if let Some(ended) = ended && let Err(error) = self.check(ended) {
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

    /// The error of a part that failed or panicked; it stops the others.
    fn check(&self, ended: Ended) -> anyhow::Result<()> {
        let error = match ended {
            Ok((_, Ok(()))) => return Ok(()),
            Ok((part, Err(error))) => error.context(format!("the {part} ended")),
            Err(panic) => anyhow::Error::new(panic).context("a part panicked"),
        };
        self.stop.cancel();
        Err(error)
    }
}

async fn listen(address: SocketAddr, key: &'static str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} ({key})"))
}
