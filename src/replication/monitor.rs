//! Measuring the daemon from outside of the stream: once a second it asks the Site DB where its log ends, and tells
//! metrics, health and `twinlog.daemon`.
//!
//! It outlives the runs, so that lag grows in sight while nothing can be reached. Catalog views only: a health check that
//! decodes would melt the source (pitfall P16).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent_db::{Control, DaemonReport};
use crate::config::Config;
use crate::health::Component;
use crate::lsn::Lsn;
use crate::metrics;
use crate::postgres::{self, Client, Side};
use crate::shutdown;
use crate::source::{self, Sample};
use crate::timestamp::PgTimestamp;

use super::status::delay::Delay;
use super::status::state::SyncState;
use super::status::sync_status::SyncStatus;

/// How often. A second is what the alert on five seconds of delay needs, and costs the source one trivial query.
const TICK: Duration = Duration::from_secs(1);

/// Between a change of the state and the word of it: others that follow at once are told with it.
const NEWS: Duration = Duration::from_millis(50);

/// How long a database may take to answer before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a sample may take to be applied before the delay counts from it: far below what anybody is alarmed by, far
/// above what a stream that keeps up needs.
const SETTLE: Duration = Duration::from_millis(250);

/// See the module's header.
pub(super) struct Monitor {
    config: Arc<Config>,
    view: Arc<SyncStatus>,
    health: Component,
    instance: Uuid,
    started_at: OffsetDateTime,
    site: Option<Client>,
    agent: Option<Control>,
    delay: Delay,
}

impl Monitor {
    /// Measures for this view.
    pub(super) fn new(config: Arc<Config>, view: Arc<SyncStatus>, health: Component) -> Self {
        Self {
            config,
            view,
            health,
            instance: Uuid::new_v4(),
            started_at: OffsetDateTime::now_utc(),
            site: None,
            agent: None,
            delay: Delay::new(Instant::now()),
        }
    }

    /// Measures until it is stopped; then says that the daemon has stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            Box::pin(self.tick()).await;
            let view = Arc::clone(&self.view);
            let alive = tokio::select! {
                alive = shutdown::sleep(TICK, &stop) => alive,
                // A new state is told at once; one that changes all the time, not more often than this.
                () = view.changed() => shutdown::sleep(NEWS, &stop).await,
            };
            if !alive {
                break;
            }
        }
        // The last word, for `status`: nobody waits for it.
        self.view.set_state(SyncState::Stopped, None);
        let _ = timeout(Duration::from_secs(1), self.report(json!({}))).await;
    }

    async fn tick(&mut self) {
        let asked = Instant::now();
        let sample = match timeout(PATIENCE, self.sample()).await {
            Ok(Some(sample)) => Some(sample),
            _ => {
                self.site = None;
                None
            }
        };
        if let Some(sample) = &sample {
            // The answer's clock was read about half-way between asking and hearing.
            let half = i64::try_from(asked.elapsed().as_micros() / 2).unwrap_or(0);
            self.view
                .set_clock_offset(PgTimestamp::from_datetime(sample.clock).0 + half - PgTimestamp::now().0);
            self.delay.sample(asked, sample.end);
        }
        if let Some(sample) = &sample {
            self.let_settle(sample.end).await;
        }
        let (durable, settled) = (self.view.durable_lsn(), self.view.settled_lsn());
        let delay = self
            .delay
            .measure(Instant::now(), settled, self.view.oldest_unapplied());
        metrics::set_sync_delay(delay);
        let lag_bytes = sample.as_ref().map(|sample| sample.end.bytes_since(settled));
        if let Some(sample) = &sample {
            metrics::set_lag_bytes(sample.end.bytes_since(settled));
            if let Some(retained) = sample.retained {
                metrics::set_slot(u64::try_from(retained).unwrap_or(0), sample.headroom);
            }
        }
        let (state, detail) = self.view.state();
        metrics::set_sync_state(state.as_str(), &SyncState::ALL);
        let parked = self.view.parked();
        let total = self.view.total();
        let report = json!({
            "delay_seconds": delay.as_secs_f64(),
            "lag_bytes": lag_bytes,
            "received_lsn": self.view.received_lsn(),
            "settled_lsn": settled,
            "durable_lsn": durable,
            "site_reachable": sample.is_some(),
            "slot_active": sample.as_ref().map(|sample| sample.active),
            "slot_retained_bytes": sample.as_ref().and_then(|sample| sample.retained),
            "slot_headroom_bytes": sample.as_ref().and_then(|sample| sample.headroom),
            "failed_rows": parked.values().sum::<u64>(),
            "changes_received": total.received,
        });
        let mut shown = report.clone();
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("state".to_owned(), json!(state.as_str()));
        }
        if state.is_healthy() {
            self.health.ready(shown);
        } else {
            self.health
                .not_ready(detail.unwrap_or_else(|| state.as_str().to_owned()), shown);
        }
        if !matches!(timeout(PATIENCE, self.report(report)).await, Ok(Some(()))) {
            self.agent = None;
        }
    }

    /// Gives a change that is on its way the moment that it takes: what was the end of the log when we asked is normally
    /// applied a millisecond later, and under steady traffic the very newest change never is at any moment.
    async fn let_settle(&self, end: Lsn) {
        let deadline = Instant::now() + SETTLE;
        while self.view.settled_lsn() < end && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Asks the Site DB; `None` where it can't be asked.
    async fn sample(&mut self) -> Option<Sample> {
        let site = match &mut self.site {
            Some(site) => site,
            none => none.insert(
                postgres::connect(Side::Site, &self.config.site.url, "twinlog monitor")
                    .await
                    .ok()?,
            ),
        };
        source::sample(site, &self.config.sync.slot).await.ok()
    }

    /// Writes `twinlog.daemon`; `None` where that can't be done. One that stands by leaves the active one's word alone.
    async fn report(&mut self, report: serde_json::Value) -> Option<()> {
        let (state, detail) = self.view.state();
        if state == SyncState::Standby {
            return Some(());
        }
        let agent = match &mut self.agent {
            Some(agent) => agent,
            none => none.insert(
                Control::connect(&self.config.agent.url, &self.config.sync.slot, "twinlog monitor")
                    .await
                    .ok()?,
            ),
        };
        let word = DaemonReport {
            instance: self.instance,
            hostname: nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_default(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            state: state.as_str().to_owned(),
            detail,
            report,
        };
        agent.report(&word).await.ok()
    }
}
