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

use super::webhook::{self, Claim, Processed};
use super::{Inbox, failures};
use crate::health::Component;
use crate::site_db::{SiteError, accounts, webhook_events};
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
            let mut claim = None;
            // A panic must cost one attempt of one webhook, not the worker.
            let outcome = AssertUnwindSafe(Box::pin(webhook::next(
                &self.inbox.pool,
                &self.inbox.settings.callback,
                &mut claim,
            )))
            .catch_unwind()
            .await
            .map_err(|_| "a panic".to_owned())
            .and_then(|outcome| outcome.map_err(|error| error.summary()));
            match outcome {
                Ok(Some(processed)) => {
                    failures = 0;
                    self.recovered(Some(processed.webhook_id));
                    self.report(&processed, started.elapsed());
                }
                Ok(None) => {
                    failures = 0;
                    self.recovered(None);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = arrived => {}
                        () = tokio::time::sleep(self.inbox.settings.poll) => {}
                    }
                }
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    self.postpone(claim, &reason).await;
                    let wait = retry::backoff(failures, self.inbox.settings.retry_initial, self.inbox.settings.poll);
                    if !shutdown::sleep(wait, stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// Delays a failed webhook, so that it does not block the others.
    async fn postpone(&self, claim: Option<Claim>, reason: &str) {
        let attempt = claim.map_or(1, |claim| claim.attempts.saturating_add(1));
        let first = {
            let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
            failing.len() < MAX_FAILING && failing.insert(claim.map(|claim| claim.webhook_id))
        };
        if first {
            tracing::error!(
                severity = "CRITICAL",
                event_id = claim.map(|claim| claim.webhook_id.to_string()),
                attempt,
                error = reason,
                "PERSISTENCE: webhook events are kept but cannot be processed now; they are tried again"
            );
        }
        let Some(Claim { webhook_id, .. }) = claim else {
            // The claim itself failed: nothing can be processed. (One failing webhook does not make the inbox unready.)
            self.health.not_ready(
                format!("webhook events cannot be processed: {reason}"),
                serde_json::Value::Null,
            );
            return;
        };
        let attempt = u32::try_from(attempt).unwrap_or(1);
        let wait = retry::backoff(
            attempt,
            self.inbox.settings.retry_initial,
            self.inbox.settings.retry_max,
        );
        // If this fails too, the webhook stays due at once, which does no harm.
        let _ = webhook_events::retry_later(&self.inbox.pool, webhook_id, wait).await;
    }

    fn recovered(&self, webhook_id: Option<Uuid>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_empty() {
            return;
        }
        let claims = failing.remove(&None);
        if claims || (webhook_id.is_some() && failing.remove(&webhook_id)) {
            tracing::info!(
                event_id = webhook_id.map(|id| id.to_string()),
                "PERSISTENCE: webhook events can be processed again"
            );
        }
    }

    /// Counts the backlog, for the metrics and the health report.
    async fn survey(&self, stop: &CancellationToken) {
        loop {
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

    /// Logs one line for a webhook, and counts its events in the metrics.
    fn report(&self, processed: &Processed, took: Duration) {
        let count = |events: usize| u64::try_from(events).unwrap_or(u64::MAX);
        metrics::count_webhook_events("real", count(processed.real));
        metrics::count_webhook_events("protocol", count(processed.protocol));
        let pipeline = self.inbox.settings.pipeline;
        tracing::info!(
            pipeline,
            event_id = %processed.webhook_id,
            real = processed.real,
            protocol = processed.protocol,
            failed = processed.failures.len(),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "WEBHOOK: processed"
        );
        if let Some(failures) = failures::to_json(&processed.failures) {
            tracing::error!(
                severity = "CRITICAL",
                pipeline,
                event_id = %processed.webhook_id,
                failed = processed.failures.len(),
                %failures,
                "PERSISTENCE: parts of a webhook could not be stored; the event is kept and can be replayed"
            );
        }
    }
}
