//! Measures the daemon independently of the stream: once a second it asks the Site DB where its log ends, and writes
//! metrics, health and `twinlog.daemon`.
//!
//! It also works between the runs, so that a growing delay is visible while a database is unreachable. It reads catalog
//! views only: a check that decodes WAL would overload the Site DB (pitfall P16).

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
use crate::postgres::connect::{CutLater, connect_bounded};
use crate::postgres::waits::{Wait, waits};
use crate::postgres::{self, Client, Side};
use crate::replication::settings::PipelineSettings;
use crate::replication::slot_limit::SlotLimit;
use crate::shutdown;
use crate::source::visibility::blockers;
use crate::source::{self, Sample};
use crate::timestamp::PgTimestamp;

use super::delay::Delay;
use super::forecast::Forecast;
use super::state::SyncState;
use super::sync_status::SyncStatus;

/// Interval of the measurements. An alert on five seconds of delay needs about a second; a measurement costs the Site
/// DB one small query.
const TICK: Duration = Duration::from_secs(1);

/// Time between a change of the state and its report, so that changes in quick succession give one report.
const REPORT_DELAY: Duration = Duration::from_millis(50);

/// A database that takes longer than this to answer counts as unreachable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a measurement waits for the sampled position to be applied before it counts as delay: much longer than a
/// stream that keeps up needs, much shorter than any alert's limit.
const SETTLE: Duration = Duration::from_millis(250);

/// Seconds that a session of ours waits until it is told. A lock that is held for less delays nothing that matters. The
/// writer gives a lock up after 3 s, and its table is held: who is in the way must be told before.
const WAIT_TOLD_AFTER: i64 = 2;

/// A wait that ends by a time-out of ours and begins again is one wait: so long it is told after it was last seen.
const WAIT_FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// The task that measures and reports, from the daemon's start to its end.
pub(in crate::replication) struct Monitor {
    settings: Arc<PipelineSettings>,
    status: Arc<SyncStatus>,
    health: Component,
    /// Random id of this process, to tell it from earlier daemons.
    instance: Uuid,
    started_at: OffsetDateTime,
    site: Option<(Client, CutLater)>,
    agent: Option<Control>,
    /// Asks the Agent DB who waits. Not the session of the reports, which may wait itself.
    agent_watch: Option<(Client, CutLater)>,
    delay: Delay,
    forecast: Forecast,
    limit: Arc<SlotLimit>,
    /// Whether it was read what an earlier daemon has stored.
    is_past_known: bool,
    /// When a session of ours was last seen waiting, on each side.
    waited_at: [Option<Instant>; 2],
}

impl Monitor {
    /// A monitor without connections yet; it opens them when it first needs them.
    pub(in crate::replication) fn new(
        settings: Arc<PipelineSettings>,
        status: Arc<SyncStatus>,
        limit: Arc<SlotLimit>,
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
            agent_watch: None,
            delay: Delay::new(Instant::now()),
            forecast: Forecast::default(),
            limit,
            is_past_known: false,
            waited_at: [None; 2],
        }
    }

    /// Measures until it is stopped; then reports the state `stopped`.
    pub(in crate::replication) async fn run(mut self, stop: CancellationToken) {
        loop {
            Box::pin(self.tick()).await;
            let status = Arc::clone(&self.status);
            let alive = tokio::select! {
                alive = shutdown::sleep(TICK, &stop) => alive,
                // Report a new state soon, but a state that changes all the time only this often.
                () = status.changed() => shutdown::sleep(REPORT_DELAY, &stop).await,
            };
            if !alive {
                break;
            }
        }
        // The last report, for `twinlog status`. The shutdown does not depend on it, so errors are ignored.
        self.status.stopped();
        let _ = timeout(Duration::from_secs(1), self.write_report(DaemonFigures::None {})).await;
    }

    async fn tick(&mut self) {
        if !self.is_past_known {
            self.is_past_known = matches!(timeout(ANSWER_TIMEOUT, self.read_past()).await, Ok(Some(())));
        }
        let sample = self.measure().await;
        self.look_for_waits().await;
        let settled = self.status.settled_lsn();
        let delay = self
            .delay
            .measure(Instant::now(), settled, self.status.oldest_unapplied());
        metrics::set_sync_delay(delay);
        if let Some(sample) = &sample {
            if settled.is_valid() {
                metrics::set_lag_bytes(sample.end.bytes_since(settled));
            }
            if let Some(retained) = sample.retained {
                self.forecast.sample(Instant::now(), retained);
                metrics::set_slot(u64::try_from(retained).unwrap_or(0), self.headroom(sample));
                metrics::set_slot_full_in(self.full_in(sample));
                let is_held_back = self.status.may_give_up_slot() && self.limit.observe(sample);
                self.tell_held_back(is_held_back, retained).await;
            }
        }
        let figures = DaemonFigures::Measured(self.figures(sample.as_ref(), settled, delay));
        self.report_health(json!(figures), delay);
        if !matches!(timeout(ANSWER_TIMEOUT, self.write_report(figures)).await, Ok(Some(()))) {
            self.agent = None;
        }
    }

    /// Takes a sample of the Site DB; `None` if it does not answer.
    async fn measure(&mut self) -> Option<Sample> {
        let asked = Instant::now();
        let Ok(Some(sample)) = timeout(ANSWER_TIMEOUT, self.sample()).await else {
            self.site = None;
            return None;
        };
        // The server read its clock about half-way between our request and its answer.
        let half = i64::try_from(asked.elapsed().as_micros() / 2).unwrap_or(0);
        self.status
            .set_clock_offset(PgTimestamp::from_datetime(sample.clock).0 + half - PgTimestamp::now().0);
        self.delay.sample(asked, sample.end, sample.clock);
        self.wait_until_settled(sample.end).await;
        Some(sample)
    }

    /// Waits, up to [`SETTLE`], until the sampled end of the log is applied. Under steady traffic the newest change is
    /// never applied yet at the moment of the sample, but normally a millisecond later; that is no delay.
    async fn wait_until_settled(&self, end: Lsn) {
        let deadline = Instant::now() + SETTLE;
        while self.status.settled_lsn() < end && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn sample(&mut self) -> Option<Sample> {
        let site = match &mut self.site {
            Some(site) => site,
            none => {
                postgres::refuse_pooler(Side::Site, &self.settings.site).await.ok()?;
                let site = connect_bounded(Side::Site, &self.settings.site, "twinlog monitor").await;
                none.insert(site.ok()?)
            }
        };
        source::sample(&site.0, &self.settings.slot).await.ok()
    }

    /// The time until the server removes WAL that the slot needs, or the slot is given up, at the present rate.
    fn full_in(&self, sample: &Sample) -> Option<Duration> {
        self.forecast.full_in(self.headroom(sample)?)
    }

    /// Bytes until the server removes WAL that the slot needs, or the slot is over `sync.give_up_slot_at`: the smaller of both.
    fn headroom(&self, sample: &Sample) -> Option<i64> {
        let given_up = sample.retained.and_then(|kept| self.limit.headroom(kept));
        [sample.headroom, given_up].into_iter().flatten().min()
    }

    /// Tells that an open transaction holds the slot back, or that none does any more. `kept`: bytes.
    async fn tell_held_back(&self, is_held_back: bool, kept: i64) {
        let what = match &self.site {
            Some((site, _)) if is_held_back => {
                let open = timeout(ANSWER_TIMEOUT, blockers(site)).await.unwrap_or_default();
                Some(format!(
                    "the slot keeps {} MB, more than sync.give_up_slot_at, though the daemon is caught up: a transaction of the Site DB \
                     that has written is still open: end it, as the slot is given up at twice the limit; open are: {open}",
                    kept >> 20
                ))
            }
            _ => None,
        };
        self.status.set_wait("slot", what);
    }

    /// The figures in health and in `twinlog.daemon`.
    fn figures(&self, sample: Option<&Sample>, settled: Lsn, delay: Duration) -> SyncFigures {
        SyncFigures {
            delay_seconds: delay.as_secs_f64(),
            settled_at_micros: self.delay.settled_at().map(micros),
            // Where nothing is settled yet, there is nothing to compare with.
            lag_bytes: sample
                .filter(|_| settled.is_valid())
                .map(|sample| sample.end.bytes_since(settled)),
            received_lsn: self.status.received_lsn(),
            settled_lsn: settled,
            durable_lsn: self.status.durable_lsn(),
            site_reachable: sample.is_some(),
            slot_active: sample.map(|sample| sample.active),
            slot_retained_bytes: sample.and_then(|sample| sample.retained),
            slot_headroom_bytes: sample.and_then(|sample| self.headroom(sample)),
            slot_full_in_seconds: sample
                .and_then(|sample| self.full_in(sample))
                .map(|left| left.as_secs()),
            held_tables: self.status.held_tables(),
            ignored_tables: self.status.ignored(),
            failed_rows: self.status.parked().values().sum::<u64>(),
            changes_received: self.status.total().received,
        }
    }

    /// The state, and what a person should know about it: its reason, and what is waited for.
    fn state(&self) -> (SyncState, Option<String>) {
        let (state, reason) = self.status.state();
        let told: Vec<String> = reason.into_iter().chain(self.status.waits()).collect();
        (state, (!told.is_empty()).then(|| told.join("; ")))
    }

    fn report_health(&self, mut report: Value, delay: Duration) {
        let (state, reason) = self.state();
        if let Some(report) = report.as_object_mut() {
            report.insert("state".to_owned(), json!(state.as_str()));
        }
        let is_late = delay > self.settings.ready_delay && state != SyncState::Standby;
        if state.is_healthy() && is_late {
            let late = format!(
                "the Agent DB is {} s behind, more than sync.ready_delay_ms",
                delay.as_secs()
            );
            let reason = reason.map_or_else(|| late.clone(), |reason| format!("{late}: {reason}"));
            self.health.not_ready(reason, report);
        } else if state.is_healthy() {
            self.health.ready(report);
        } else {
            self.health
                .not_ready(reason.unwrap_or_else(|| state.as_str().to_owned()), report);
        }
    }

    /// Writes `twinlog.daemon`; `None` if that fails. A daemon does not write while another one has the slot's lock: the row is that
    /// one's.
    async fn write_report(&mut self, figures: DaemonFigures) -> Option<()> {
        let (state, reason) = self.state();
        if self.status.is_another_active() {
            return Some(());
        }
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
        self.agent().await?.report(&report).await.ok()
    }

    async fn agent(&mut self) -> Option<&Control> {
        let agent = match &mut self.agent {
            Some(agent) => agent,
            none => {
                let agent = Control::connect(&self.settings.agent, &self.settings.slot, "twinlog monitor").await;
                let agent = agent.ok()?;
                agent.commit_without_waiting().await.ok()?;
                none.insert(agent)
            }
        };
        Some(agent)
    }

    /// Reads where an earlier daemon has stopped, so that the first figures of this one are true, though it may not stream
    /// for a long time.
    async fn read_past(&mut self) -> Option<()> {
        let agent = self.agent().await?;
        let stored = agent.visible_checkpoint().await.ok()?;
        let daemon = agent.daemon().await.ok()?;
        let Some(stored) = stored else { return Some(()) };
        let by_report = daemon.and_then(|daemon| match daemon.report.figures {
            DaemonFigures::Measured(figures) => {
                Some(daemon.age + Duration::try_from_secs_f64(figures.delay_seconds).ok()?)
            }
            DaemonFigures::None {} => None,
        });
        // A daemon that has stopped in order has written everything that it knew of.
        let by_checkpoint = || Duration::try_from(OffsetDateTime::now_utc() - stored.updated_at).unwrap_or_default();
        if let Some(caught_up_at) = Instant::now().checked_sub(by_report.unwrap_or_else(by_checkpoint)) {
            self.delay.resume(caught_up_at);
        }
        self.status.resume_at(stored.checkpoint.end_lsn);
        Some(())
    }

    /// Our sessions in the Agent DB that wait; `None` if it does not answer.
    async fn waits_on_agent(&mut self) -> Option<Vec<Wait>> {
        // The session of the reports has refused a pooler.
        if self.agent_watch.is_none() && self.is_past_known {
            let watch = connect_bounded(Side::Agent, &self.settings.agent, "twinlog watch").await;
            self.agent_watch = Some(watch.ok()?);
        }
        match &self.agent_watch {
            Some((client, _)) => waits(client).await.ok(),
            None => Some(Vec::new()),
        }
    }

    /// Tells what our sessions wait for, and who makes them wait. A database that does not answer says nothing about the other.
    async fn look_for_waits(&mut self) {
        if let Some((site, _)) = &self.site
            && let Ok(waits) = timeout(ANSWER_TIMEOUT, waits(site)).await
        {
            self.tell_waits(0, Side::Site, &waits.unwrap_or_default());
        }
        if let Ok(waits) = timeout(ANSWER_TIMEOUT, self.waits_on_agent()).await {
            if waits.is_none() {
                self.agent_watch = None;
            }
            self.tell_waits(1, Side::Agent, &waits.unwrap_or_default());
        }
    }

    /// Tells the wait of a side that lasts longest, or that there is none any more. `index`: its place in `waited_at`.
    fn tell_waits(&mut self, index: usize, side: Side, waits: &[Wait]) {
        let Some(waited_at) = self.waited_at.get_mut(index) else {
            return;
        };
        if let Some(wait) = waits.iter().find(|wait| wait.seconds >= WAIT_TOLD_AFTER) {
            *waited_at = Some(Instant::now());
            self.status
                .set_wait(&side.to_string(), Some(format!("in the {side}, {wait}")));
        } else if waited_at.is_none_or(|at| at.elapsed() > WAIT_FORGOTTEN_AFTER) {
            *waited_at = None;
            self.status.set_wait(&side.to_string(), None);
        }
    }
}

/// Microseconds since 1970.
fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or_default()
}
