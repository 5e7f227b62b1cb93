//! Measuring the daemon from outside of the stream: once a second it asks the Site DB where its log ends, and tells
//! metrics, health and `twinlog.daemon`.
//!
//! It outlives the runs, so that lag grows in sight while nothing can be reached. Catalog views only: a health check that
//! decodes would melt the source (pitfall P16).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent_db::{Control, DaemonFigures, DaemonReport, SyncFigures};
use crate::health::Component;
use crate::lsn::Lsn;
use crate::metrics;
use crate::postgres::{self, Client, Side};
use crate::replication::settings::PipelineSettings;
use crate::shutdown;
use crate::source::{self, Sample};
use crate::timestamp::PgTimestamp;

use super::delay::Delay;
use super::state::SyncState;
use super::sync_status::SyncStatus;

/// How often. A second is what the alert on five seconds of delay needs, and costs the source one trivial query.
const TICK: Duration = Duration::from_secs(1);

/// Between a change of the state and the report of it: others that follow at once are reported with it.
const NEWS: Duration = Duration::from_millis(50);

/// How long a database may take to answer before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a sample may take to be applied before the delay counts from it: far below what anybody is alarmed by, far
/// above what a stream that keeps up needs.
const SETTLE: Duration = Duration::from_millis(250);

/// See the module's header.
pub(in crate::replication) struct Monitor {
    settings: Arc<PipelineSettings>,
    status: Arc<SyncStatus>,
    health: Component,
    /// This process, told from its predecessors.
    instance: Uuid,
    started_at: OffsetDateTime,
    site: Option<Client>,
    agent: Option<Control>,
    delay: Delay,
}

impl Monitor {
    /// Measures for this status.
    pub(in crate::replication) fn new(
        settings: Arc<PipelineSettings>,
        status: Arc<SyncStatus>,
        health: Component,
    ) -> Self {
        Self {
            settings,
            status,
            health,
            instance: Uuid::new_v4(),
            started_at: OffsetDateTime::now_utc(),
            site: None,
            agent: None,
            delay: Delay::new(Instant::now()),
        }
    }

    /// Measures until it is stopped; then says that the daemon has stopped.
    pub(in crate::replication) async fn run(mut self, stop: CancellationToken) {
        loop {
            Box::pin(self.tick()).await;
            let status = Arc::clone(&self.status);
            let alive = tokio::select! {
                alive = shutdown::sleep(TICK, &stop) => alive,
                // A new state is reported at once; one that changes all the time, not more often than this.
                () = status.changed() => shutdown::sleep(NEWS, &stop).await,
            };
            if !alive {
                break;
            }
        }
        // The last report, for `twinlog status`. Nothing waits for it.
        self.status.stopped();
        let _ = timeout(Duration::from_secs(1), self.write_report(DaemonFigures::None {})).await;
    }

    async fn tick(&mut self) {
        let sample = self.measure().await;
        let settled = self.status.settled_lsn();
        let delay = self
            .delay
            .measure(Instant::now(), settled, self.status.oldest_unapplied());
        metrics::set_sync_delay(delay);
        if let Some(sample) = &sample {
            metrics::set_lag_bytes(sample.end.bytes_since(settled));
            if let Some(retained) = sample.retained {
                metrics::set_slot(u64::try_from(retained).unwrap_or(0), sample.headroom);
            }
        }
        let figures = DaemonFigures::Measured(self.figures(sample.as_ref(), settled, delay));
        self.tell_health(json!(figures));
        if !matches!(timeout(PATIENCE, self.write_report(figures)).await, Ok(Some(()))) {
            self.agent = None;
        }
    }

    /// Takes a sample of the Site DB; `None` where it can't be asked.
    async fn measure(&mut self) -> Option<Sample> {
        let asked = Instant::now();
        let Ok(Some(sample)) = timeout(PATIENCE, self.sample()).await else {
            self.site = None;
            return None;
        };
        // The answer's clock was read about half-way between asking and hearing.
        let half = i64::try_from(asked.elapsed().as_micros() / 2).unwrap_or(0);
        self.status
            .set_clock_offset(PgTimestamp::from_datetime(sample.clock).0 + half - PgTimestamp::now().0);
        self.delay.sample(asked, sample.end);
        self.let_settle(sample.end).await;
        Some(sample)
    }

    /// Gives a change that is on its way the moment that it takes: what was the end of the log when we asked is normally
    /// applied a millisecond later, and under steady traffic the very newest change never is at any moment.
    async fn let_settle(&self, end: Lsn) {
        let deadline = Instant::now() + SETTLE;
        while self.status.settled_lsn() < end && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn sample(&mut self) -> Option<Sample> {
        let site = match &mut self.site {
            Some(site) => site,
            none => none.insert(
                postgres::connect(Side::Site, &self.settings.site, "twinlog monitor")
                    .await
                    .ok()?,
            ),
        };
        source::sample(site, &self.settings.slot).await.ok()
    }

    /// The figures, for health and for `twinlog.daemon`.
    fn figures(&self, sample: Option<&Sample>, settled: Lsn, delay: Duration) -> SyncFigures {
        SyncFigures {
            delay_seconds: delay.as_secs_f64(),
            lag_bytes: sample.map(|sample| sample.end.bytes_since(settled)),
            received_lsn: self.status.received_lsn(),
            settled_lsn: settled,
            durable_lsn: self.status.durable_lsn(),
            site_reachable: sample.is_some(),
            slot_active: sample.map(|sample| sample.active),
            slot_retained_bytes: sample.and_then(|sample| sample.retained),
            slot_headroom_bytes: sample.and_then(|sample| sample.headroom),
            failed_rows: self.status.parked().values().sum::<u64>(),
            changes_received: self.status.total().received,
        }
    }

    fn tell_health(&self, mut report: Value) {
        let (state, reason) = self.status.state();
        if let Some(report) = report.as_object_mut() {
            report.insert("state".to_owned(), json!(state.as_str()));
        }
        if state.is_healthy() {
            self.health.ready(report);
        } else {
            self.health
                .not_ready(reason.unwrap_or_else(|| state.as_str().to_owned()), report);
        }
    }

    /// Writes `twinlog.daemon`; `None` where that can't be done. One that stands by leaves the active one's report alone.
    async fn write_report(&mut self, figures: DaemonFigures) -> Option<()> {
        let (state, reason) = self.status.state();
        if state == SyncState::Standby {
            return Some(());
        }
        let agent = match &mut self.agent {
            Some(agent) => agent,
            none => none.insert(
                Control::connect(&self.settings.agent, &self.settings.slot, "twinlog monitor")
                    .await
                    .ok()?,
            ),
        };
        let report = DaemonReport {
            instance: self.instance,
            hostname: nix::unistd::gethostname()
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_default(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            state: state.as_str().to_owned(),
            detail: reason,
            figures,
        };
        agent.report(&report).await.ok()
    }
}
