//! A command that a daemon serves: through the one that runs, or through this process if none runs.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::pipelines;
use crate::agent_db::Control;
use crate::config::Config;
use crate::health::Health;
use crate::{replication, shutdown};

/// Whether a daemon is at work, by its own report.
pub(super) async fn daemon_runs(control: &Control) -> anyhow::Result<bool> {
    Ok(control.daemon().await?.is_some_and(|daemon| daemon.is_running()))
}

/// This process as the daemon, if there is no other.
pub(super) struct OwnDaemon {
    config: Arc<Config>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl OwnDaemon {
    /// One that does not run yet, and ends with `stop`.
    pub(super) fn new(config: Config, stop: &CancellationToken) -> Self {
        Self {
            config: Arc::new(config),
            stop: stop.child_token(),
            task: None,
        }
    }

    pub(super) const fn runs(&self) -> bool {
        self.task.is_some()
    }

    pub(super) fn start(&mut self) {
        let (pipeline, stop) = (pipelines::pipeline(&self.config), self.stop.clone());
        self.task = Some(tokio::spawn(async move {
            if let Err(error) = Box::pin(replication::run(pipeline, &Health::default(), stop)).await {
                tracing::error!(error = error.explain(), "the daemon of this command ended");
            }
        }));
    }

    pub(super) async fn end(self) {
        self.stop.cancel();
        if let Some(task) = self.task {
            // A panic in it has been reported; what it committed stays.
            let _ = tokio::time::timeout(shutdown::GRACE, task).await;
        }
    }
}
