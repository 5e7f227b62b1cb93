//! Reports to the Site DB every few seconds how this server's parts stand, so that `twinlog status` shows it from any
//! machine.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::health::Health;
use crate::shutdown;
use crate::site_db::{Pool, servers};

/// How often to report, if nothing changes.
const EVERY: Duration = Duration::from_secs(5);
/// How often to look whether something has changed.
const LOOK: Duration = Duration::from_millis(500);
/// A part, whether it is ready, and its trouble.
type Shown = (String, bool, Option<&'static str>);

/// How long the last word may take.
const LAST: Duration = Duration::from_secs(1);

/// Runs until the stop.
pub(super) async fn run(health: Health, pool: Pool, stop: CancellationToken) {
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let hostname = hostname.unwrap_or_else(|_| "unknown".to_owned());
    let id = Uuid::new_v4();
    let mut last: Option<(Instant, Vec<Shown>)> = None;
    loop {
        let report = health.report();
        let shown: Vec<Shown> = (report.iter())
            .map(|(name, status)| (name.clone(), status.ready, status.trouble))
            .collect();
        let is_news = last
            .as_ref()
            .is_none_or(|(at, before)| at.elapsed() >= EVERY || *before != shown);
        if is_news {
            let report = servers::ServerReport {
                id,
                hostname: &hostname,
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION"),
                components: json!(report),
            };
            // If it fails, the Site DB's own component says why, and the last report grows old.
            let reported = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                reported = servers::report(&pool, &report) => reported,
            };
            match reported {
                Ok(()) => last = Some((Instant::now(), shown)),
                Err(error) => tracing::debug!("the server's report was not stored: {error}"),
            }
        }
        if !shutdown::sleep(LOOK, &stop).await {
            break;
        }
    }
    // Without it, the report grows old.
    let _ = timeout(LAST, servers::stopped(&pool, id)).await;
}
