//! The loops: claim webhooks and process them, retry after transient errors, and count the backlog.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::batch::{self, Claim, Claims};
use super::webhook::Processed;
use super::{Inbox, failures};
use crate::health::Component;
use crate::site_db::{SiteError, accounts, merging, webhook_events};
use crate::{metrics, retry, shutdown};

/// A webhook that waits for longer than this is a gap: processing takes milliseconds.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// Bound on [`Worker::failing`].
const MAX_FAILING: usize = 1000;

/// Processes an inbox's webhooks until it is stopped.
#[derive(Debug)]
pub struct Worker {
    inbox: Inbox,
    health: Component,
    /// Webhooks that failed with a transient error (`None`: the claim itself), so that each is logged once, not at each
    /// attempt.
    failing: Mutex<HashSet<Option<Uuid>>>,
}

impl Worker {
    /// A worker for this inbox. Each process may have one.
    #[must_use]
    pub fn new(inbox: Inbox, health: Component) -> Self {
        Self {
            inbox,
            health,
            failing: Mutex::default(),
        }
    }

    /// Works until `stop`; webhooks under way are finished first.
    pub async fn run(self, stop: CancellationToken) {
        let worker = Arc::new(self);
        let tasks = TaskTracker::new();
        for _ in 0..worker.inbox.settings.concurrency.max(1) {
            let (worker, stop) = (Arc::clone(&worker), stop.clone());
            tasks.spawn(async move { worker.process(&stop).await });
        }
        let (surveyor, stop) = (Arc::clone(&worker), stop.clone());
        tasks.spawn(async move { surveyor.survey(&stop).await });
        tasks.close();
        tasks.wait().await;
    }

    async fn process(&self, stop: &CancellationToken) {
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            // Registered before the claim, so that a webhook that arrives between the two is not missed.
            let arrived = self.inbox.arrived.notified();
            let started = Instant::now();
            let mut claims = Claims::default();
            // A panic must cost one attempt of these webhooks, not the worker.
            let outcome = AssertUnwindSafe(Box::pin(batch::next(
                &self.inbox.pool,
                &self.inbox.settings.callback,
                &mut claims,
            )))
            .catch_unwind()
            .await
            .map_err(|_| "a panic".to_owned())
            .and_then(|outcome| outcome.map_err(|error| error.summary()));
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
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    self.postpone(&claims.webhooks, &reason).await;
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

    /// Delays failed webhooks, so that they do not block the others. Each is tried alone from now on.
    async fn postpone(&self, claims: &[Claim], reason: &str) {
        let attempt = (claims.iter().map(|claim| claim.attempts))
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        let first = {
            let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut insert = |webhook| failing.len() < MAX_FAILING && failing.insert(webhook);
            if claims.is_empty() {
                insert(None)
            } else {
                // Each of them, not only the first.
                claims.iter().filter(|claim| insert(Some(claim.webhook_id))).count() > 0
            }
        };
        if first {
            tracing::error!(
                severity = "CRITICAL",
                event_id = claims.first().map(|claim| claim.webhook_id.to_string()),
                webhooks = claims.len(),
                attempt,
                error = reason,
                "PERSISTENCE: webhook events are kept but cannot be processed now; they are tried again"
            );
        }
        if claims.is_empty() {
            // The claim itself failed: nothing can be processed. (Failing webhooks do not make the inbox unready.)
            self.health.not_ready(
                format!("webhook events cannot be processed: {reason}"),
                serde_json::Value::Null,
            );
            return;
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

    /// The claim succeeded, and so did these webhooks.
    fn recovered(&self, claims: &[Claim]) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_empty() {
            return;
        }
        let claimed = failing.remove(&None);
        let recovered: Vec<&Claim> = claims
            .iter()
            .filter(|claim| failing.remove(&Some(claim.webhook_id)))
            .collect();
        if claimed || !recovered.is_empty() {
            tracing::info!(
                event_id = recovered.first().map(|claim| claim.webhook_id.to_string()),
                webhooks = recovered.len(),
                "PERSISTENCE: webhook events can be processed again"
            );
        }
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
                    // Ready even with late or failed webhooks: new ones are still processed.
                    self.health
                        .ready(json!({"late": backlog.late, "failed": backlog.failed}));
                }
                Err(error) => {
                    let reason = format!("webhook events cannot be counted: {}", error.summary());
                    self.health.not_ready(reason, serde_json::Value::Null);
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
            if let Some(failures) = failures::to_json(&one.failures) {
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
