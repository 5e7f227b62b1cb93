//! The loops: claim webhooks and process them, retry after transient errors, count the backlog, and tell how the inbox stands.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::batch::{self, Claim, Claims};
use super::webhook::Processed;
use super::{Inbox, failures, retention};
use crate::health::{Component, Standing, Trouble};
use crate::site_db::webhook_events::Backlog;
use crate::site_db::{SiteError, accounts, merging, webhook_events};
use crate::{metrics, retry, shutdown};

/// A webhook that waits for longer than this is a gap: processing takes milliseconds.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// Bound on [`Worker::failing`].
const MAX_FAILING: usize = 1000;

/// The survey's round takes less: some statements, each with its time limit.
const ROUND: Duration = Duration::from_secs(25);

/// A worker that has been busy with its webhooks for longer than this is named: a batch takes milliseconds.
const BUSY: Duration = Duration::from_secs(60);

/// Processes an inbox's webhooks until it is stopped.
#[derive(Debug)]
pub struct Worker {
    inbox: Inbox,
    health: Component,
    /// Webhooks that failed with a transient error, so that each is logged once, not at each attempt.
    failing: Mutex<HashMap<Uuid, Failing>>,
    rounds: Mutex<Rounds>,
}

/// A webhook that can't be processed now.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    logged: bool,
}

/// How the workers' rounds go.
#[derive(Debug, Default)]
struct Rounds {
    /// When each worker began its present round; `None`: it waits for webhooks.
    began: Vec<Option<Instant>>,
    /// Why the last claim failed.
    claim: Option<Trouble>,
}

impl Rounds {
    /// How the workers stand.
    fn standing(&self, now: Instant) -> Standing {
        if let Some(trouble) = &self.claim {
            return Standing::NotReady(trouble.clone());
        }
        let busiest = self
            .began
            .iter()
            .flatten()
            .map(|began| now.saturating_duration_since(*began))
            .max();
        match busiest {
            Some(busy) if busy > BUSY => Standing::Degraded(Trouble::new(
                "busy",
                format!(
                    "a worker has not finished its webhooks for {} s: look for what its sessions wait for in the Site DB \
                     (pg_stat_activity)",
                    busy.as_secs()
                ),
            )),
            _ => Standing::Ready,
        }
    }
}

impl Worker {
    /// A worker for this inbox. Each process may have one.
    #[must_use]
    pub fn new(inbox: Inbox, health: Component) -> Self {
        Self {
            inbox,
            health: health.reports_every(ROUND),
            failing: Mutex::default(),
            rounds: Mutex::default(),
        }
    }

    /// Works until `stop`; webhooks under way are finished first.
    pub async fn run(self, stop: CancellationToken) {
        let worker = Arc::new(self);
        let tasks = TaskTracker::new();
        let workers = worker.inbox.settings.concurrency.max(1);
        worker.rounds().began = vec![None; workers];
        for number in 0..workers {
            let (worker, stop) = (Arc::clone(&worker), stop.clone());
            tasks.spawn(async move { worker.process(number, &stop).await });
        }
        if let Some(retention) = worker.inbox.settings.retention {
            tasks.spawn(retention::run(worker.inbox.pool.clone(), retention, stop.clone()));
        }
        let (surveyor, stop) = (Arc::clone(&worker), stop.clone());
        tasks.spawn(async move { surveyor.survey(&stop).await });
        tasks.close();
        tasks.wait().await;
    }

    async fn process(&self, number: usize, stop: &CancellationToken) {
        let mut failures = 0_u32;
        let began = |at| {
            if let Some(began) = self.rounds().began.get_mut(number) {
                *began = at;
            }
        };
        while !stop.is_cancelled() {
            // Registered before the claim, so that a webhook that arrives between the two is not missed.
            let arrived = self.inbox.arrived.notified();
            let started = Instant::now();
            began(Some(started));
            let mut claims = Claims::default();
            // A panic must cost one attempt of these webhooks, not the worker.
            let outcome = AssertUnwindSafe(Box::pin(batch::next(
                &self.inbox.pool,
                &self.inbox.settings,
                &mut claims,
            )))
            .catch_unwind()
            .await
            .map_err(|_| None)
            .and_then(|outcome| outcome.map_err(Some));
            began(None);
            self.report(&claims.processed, started.elapsed());
            if claims.processed.iter().any(|one| one.doubts) {
                self.settle_identities().await;
            }
            match outcome {
                Ok(()) if !claims.webhooks.is_empty() => {
                    failures = 0;
                    self.recovered(&claims.webhooks);
                    if claims.full {
                        // The others may have found nothing before these came.
                        self.inbox.arrived.notify_one();
                    }
                }
                Ok(()) => {
                    failures = 0;
                    self.recovered(&[]);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = arrived => {}
                        () = tokio::time::sleep(self.inbox.settings.poll) => {}
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.postpone(&claims.webhooks, error.as_ref()).await;
                    let wait = retry::backoff(failures, self.inbox.settings.retry_initial, self.inbox.settings.poll);
                    if !shutdown::sleep(wait, stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// Writes what is known of people's ids and merges leads that are one person.
    async fn settle_identities(&self) {
        if let Err(error) = merging::settle_due(&self.inbox.pool).await {
            tracing::warn!(
                sqlstate = error.sqlstate(),
                hint = error.hint(),
                "leads that are one person could not be merged; it is tried again: {error}"
            );
        }
    }

    /// Delays failed webhooks, so that they do not block the others. Each is tried alone from now on. `error`: `None` after
    /// a panic.
    async fn postpone(&self, claims: &[Claim], error: Option<&SiteError>) {
        if claims.is_empty() {
            // The claim itself failed: nothing can be processed, if there is anything. The survey tells.
            let trouble = match error {
                Some(error) => error.trouble("webhook events can't be processed"),
                None => Trouble::new("panic", "webhook events can't be processed: a panic, see the log"),
            };
            self.rounds().claim = Some(trouble.clone());
            self.health.stands(Standing::NotReady(trouble), serde_json::Value::Null);
            return;
        }
        let attempt = (claims.iter().map(|claim| claim.attempts))
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        let late = self.late(claims);
        if late > 0 {
            tracing::error!(
                severity = "CRITICAL",
                event_id = claims.first().map(|claim| claim.webhook_id.to_string()),
                webhooks = late,
                attempt,
                error = error.map_or_else(|| "a panic".to_owned(), SiteError::summary),
                hint = error.and_then(SiteError::hint),
                "PERSISTENCE: webhook events are kept but cannot be processed now; they are tried again"
            );
        }
        let attempt = u32::try_from(attempt).unwrap_or(1);
        let wait = retry::backoff(
            attempt,
            self.inbox.settings.retry_initial,
            self.inbox.settings.retry_max,
        );
        // If this fails too, the webhooks stay due at once, which does no harm.
        let ids: Vec<Uuid> = claims.iter().map(|claim| claim.webhook_id).collect();
        let _ = webhook_events::retry_later(&self.inbox.pool, &ids, wait).await;
    }

    /// How many of these failed webhooks have failed for so long that a person should know, and are not logged yet. A
    /// deadlock or a lost connection passes with the next try.
    fn late(&self, claims: &[Claim]) -> usize {
        let (now, mut late) = (Instant::now(), 0);
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        for claim in claims {
            if failing.len() >= MAX_FAILING && !failing.contains_key(&claim.webhook_id) {
                continue;
            }
            let one = failing.entry(claim.webhook_id).or_insert(Failing {
                since: now,
                logged: false,
            });
            if !one.logged && now.saturating_duration_since(one.since) >= LATE_AFTER {
                one.logged = true;
                late += 1;
            }
        }
        late
    }

    /// The claim succeeded, and so did these webhooks.
    fn recovered(&self, claims: &[Claim]) {
        self.rounds().claim = None;
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_empty() {
            return;
        }
        let recovered: Vec<&Claim> = claims
            .iter()
            .filter(|claim| failing.remove(&claim.webhook_id).is_some_and(|one| one.logged))
            .collect();
        if !recovered.is_empty() {
            tracing::info!(
                event_id = recovered.first().map(|claim| claim.webhook_id.to_string()),
                webhooks = recovered.len(),
                "PERSISTENCE: webhook events can be processed again"
            );
        }
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the backlog, for the metrics and the health report.
    async fn survey(&self, stop: &CancellationToken) {
        loop {
            // What another process has left, or could not settle.
            self.settle_identities().await;
            let pool = &self.inbox.pool;
            let looked = async {
                Ok::<_, SiteError>((
                    webhook_events::backlog(pool, LATE_AFTER).await?,
                    accounts::last_real_messages(pool).await?,
                ))
            };
            match looked.await {
                Ok((backlog, numbers)) => {
                    let gap = u64::try_from(backlog.late.saturating_add(backlog.failed)).unwrap_or(0);
                    metrics::set_persistence_gap("webhook_unprocessed", gap);
                    for number in &numbers {
                        metrics::set_account_last_real_message(number.phone_number_id.as_str(), number.seconds);
                    }
                    // Late or failed webhooks do not stop new ones.
                    let detail = json!({"late": backlog.late, "failed": backlog.failed});
                    let standing = match self.rounds().standing(Instant::now()) {
                        Standing::Ready if gap > 0 => Standing::Degraded(unprocessed(backlog)),
                        standing => standing,
                    };
                    self.health.stands(standing, detail);
                }
                Err(error) => {
                    let trouble = error.trouble("webhook events can't be counted");
                    self.health.stands(Standing::NotReady(trouble), serde_json::Value::Null);
                }
            }
            if !shutdown::sleep(self.inbox.settings.survey, stop).await {
                return;
            }
        }
    }

    /// Logs one line for the webhooks of a batch, one for each that failed, and counts their events in the metrics.
    fn report(&self, processed: &[Processed], took: Duration) {
        let Some(first) = processed.first() else { return };
        let sum = |of: fn(&Processed) -> usize| processed.iter().map(of).sum::<usize>();
        let (real, protocol) = (sum(|one| one.real), sum(|one| one.protocol));
        let count = |events: usize| u64::try_from(events).unwrap_or(u64::MAX);
        metrics::count_webhook_events("real", count(real));
        metrics::count_webhook_events("protocol", count(protocol));
        let pipeline = self.inbox.settings.pipeline;
        tracing::info!(
            pipeline,
            event_id = %first.webhook_id,
            webhooks = processed.len(),
            real,
            protocol,
            failed = sum(|one| one.failures.len()),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "WEBHOOK: processed"
        );
        for one in processed {
            if let Some(failures) = failures::to_log(&one.failures) {
                tracing::error!(
                    severity = "CRITICAL",
                    pipeline,
                    event_id = %one.webhook_id,
                    failed = one.failures.len(),
                    %failures,
                    "PERSISTENCE: parts of a webhook could not be stored; the event is kept and can be replayed"
                );
            }
        }
    }
}

/// Webhooks that wait, or that could not be processed.
fn unprocessed(backlog: Backlog) -> Trouble {
    let Backlog { late, failed } = backlog;
    if failed == 0 {
        let reason = format!("{late} webhooks have waited for longer than {} s", LATE_AFTER.as_secs());
        return Trouble::new("late", reason);
    }
    let reason = format!(
        "{failed} webhooks have events that could not be stored; they are kept (webhook_events.failures says why). After a \
         fix: twinlog inbox replay --state failed"
    );
    Trouble::new("failed", reason)
}
