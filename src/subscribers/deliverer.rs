//! One subscriber: the server that has its lease loads the oldest webhooks that wait, delivers them, and records what became of them.
//!
//! A round: keep the lease, shake hands if need be, begin to record and load, start what may go, report. Between two rounds it waits for
//! a delivery to end, a webhook to arrive, or the next one to be due. Recording and loading go on beside the deliveries
//! (`exchange`), so that a place is taken again as soon as it is free. What was delivered and is not recorded yet is delivered again by
//! whoever comes after a crash.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchange, Exchanged, Loaded, Outcome, Unrecorded, entry};
use super::given_up;
use super::noted::Noted;
use super::queue::Queue;
use super::receiver::{Receiver, ReceiverSetupError, Refused};
use super::standing::standing;
use crate::config::Subscriber;
use crate::health::{Component, Standing};
use crate::metrics;
use crate::provider::cloud::handed_on::Selection;
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::deliveries::{Failed, Key};
use crate::site_db::subscribers;
use crate::site_db::{Pool, SiteError};

/// How long the right to deliver lasts, and how often it is renewed: after a crash another server delivers as soon.
const LEASE: Duration = Duration::from_secs(20);
/// See [`LEASE`].
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often a server asks for the lease that another one has.
const STANDBY: Duration = Duration::from_secs(2);
/// A delivery may take so long beyond the lease; so none is started in its last seconds.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// How often to look for webhooks that other servers received.
const POLL: Duration = Duration::from_millis(500);
/// How long the statements of a round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest wait after an error of the Site DB.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// First and longest wait between two handshakes that fail.
const HANDSHAKE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is reported how the deliveries go.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often old webhooks are given up.
const GIVE_UP_EVERY: Duration = Duration::from_secs(60);

/// Delivers to one subscriber.
pub(super) struct Deliverer {
    pool: Pool,
    name: String,
    selection: Selection,
    receiver: Arc<Receiver>,
    give_up_after: Duration,
    arrivals: watch::Receiver<()>,
    component: Component,
    queue: Queue,
    under_way: JoinSet<(Key, Result<(), Refused>)>,
    unrecorded: Unrecorded,
    /// At most one.
    exchange: JoinSet<Exchanged>,
    /// Why the last exchange failed.
    exchange_error: Option<SiteError>,
    /// Errors of the Site DB without a success between them.
    failures: u32,
    lease: Option<Lease>,
    /// Told once that webhooks are kept for the subscriber.
    noted: Option<Noted>,
    /// How often the handshake has failed, and when it is tried again.
    handshake: (u32, Instant),
    /// Whether there may be more to load.
    more: bool,
    looked: Instant,
    /// Up to where what came late was looked for, and when.
    swept: (Option<Key>, Instant),
    reported: Option<Instant>,
    gave_up: Instant,
    delivered: bool,
    problem: Option<String>,
}

/// The right to deliver.
struct Lease {
    renew_at: Instant,
    until: Instant,
    /// Whether the subscriber has answered the handshake.
    verified: bool,
}

impl Deliverer {
    pub(super) fn new(
        pool: Pool,
        subscriber: &Subscriber,
        give_up_after: Duration,
        arrivals: watch::Receiver<()>,
        noted: Noted,
        component: Component,
    ) -> Result<Self, ReceiverSetupError> {
        let now = Instant::now();
        let kinds = subscriber.kinds.as_ref();
        Ok(Self {
            pool,
            name: subscriber.name.clone(),
            selection: Selection {
                fields: subscriber.fields.clone(),
                numbers: subscriber.numbers.clone(),
                kinds: kinds.map(|kinds| kinds.iter().filter_map(|kind| kind.parse().ok()).collect()),
            },
            receiver: Arc::new(Receiver::new(subscriber)?),
            give_up_after,
            arrivals,
            component,
            queue: Queue::default(),
            under_way: JoinSet::new(),
            unrecorded: Unrecorded::default(),
            exchange: JoinSet::new(),
            exchange_error: None,
            failures: 0,
            lease: None,
            noted: Some(noted),
            handshake: (0, now),
            more: true,
            looked: now,
            swept: (None, now),
            reported: None,
            gave_up: now,
            delivered: false,
            problem: None,
        })
    }

    /// Runs until the stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let round = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                round = timeout(ROUND_TIMEOUT, self.round()) => round,
            };
            let wake = match round.unwrap_or(Err(SiteError::timed_out())) {
                Ok(wake) => {
                    if self.exchange.is_empty() {
                        self.failures = 0;
                    }
                    wake
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    let trouble = error.trouble("webhooks are handed on later");
                    self.component.stands(Standing::Degraded(trouble), json!(null));
                    let wait = backoff(self.failures, RETRY.0, RETRY.1);
                    if !shutdown::sleep(wait, &stop).await {
                        break;
                    }
                    continue;
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.under_way.join_next() => self.ended(ended.ok()),
                Some(exchanged) = self.exchange.join_next() => self.exchanged(exchanged.ok()),
                changed = self.arrivals.changed(), if self.lease.is_some() => match changed {
                    Ok(()) => self.more = true,
                    // The inbox is gone: the process is stopping.
                    Err(_) => break,
                },
                () = sleep_until(wake) => {}
            }
            while let Some(ended) = self.under_way.try_join_next() {
                self.ended(ended.ok());
            }
        }
        self.end().await;
    }

    /// Waits for what is under way, records it, and gives up the lease.
    async fn end(&mut self) {
        let ending = async {
            while let Some(ended) = self.under_way.join_next().await {
                self.ended(ended.ok());
            }
            self.exchange_ends().await;
        };
        // What takes longer is delivered again.
        let _ = timeout(shutdown::GRACE / 2, ending).await;
        if self.lease.is_some() {
            let recording = async {
                self.unrecorded.record(&self.pool, &self.name).await?;
                subscribers::give_up(&self.pool, &self.name, self.pool.process()).await
            };
            // Otherwise the lease ends by itself.
            let _ = timeout(shutdown::GRACE / 4, recording).await;
        }
    }

    /// One round; when the next one is due at the latest.
    async fn round(&mut self) -> Result<Instant, SiteError> {
        if !self.keep_lease().await? {
            self.component.ready(json!({"delivered_by": "another server"}));
            return Ok(Instant::now() + STANDBY);
        }
        if let Some(error) = self.exchange_error.take() {
            return Err(error);
        }
        let verified = self.shaken().await?;
        self.begin_exchange(verified);
        if verified {
            self.start();
        }
        self.give_up_old().await?;
        self.report().await?;
        let renew_at = self.lease.as_ref().map_or_else(Instant::now, |lease| lease.renew_at);
        let idle = if self.more { Instant::now() } else { self.looked + POLL };
        let idle = if self.is_verified() && self.queue.has_room() && self.exchange.is_empty() {
            idle
        } else {
            renew_at
        };
        let due = self.queue.next_due().filter(|_| self.is_verified()).unwrap_or(renew_at);
        // Whatever is due now and was not started waits for another one to end.
        let soon = Instant::now() + Duration::from_millis(5);
        Ok(renew_at.min(idle).min(due).max(soon))
    }

    fn is_verified(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.verified)
    }

    /// Whether this server has the lease.
    async fn keep_lease(&mut self) -> Result<bool, SiteError> {
        let now = Instant::now();
        if self.lease.as_ref().is_some_and(|lease| now < lease.renew_at) {
            return Ok(true);
        }
        let take = async || subscribers::take(&self.pool, &self.name, self.pool.process(), LEASE).await;
        let mut taken = take().await?;
        if taken.is_none() && self.lease.is_none() {
            // It may be new here.
            subscribers::note(&self.pool, &self.name).await?;
            taken = take().await?;
        }
        if let Some(noted) = self.noted.take() {
            noted.one();
        }
        let Some(leased) = taken else {
            if self.lease.is_some() {
                // What is under way may be delivered twice.
                self.under_way.shutdown().await;
                self.exchange_ends().await;
                self.unrecorded.record(&self.pool, &self.name).await?;
                self.lease = None;
                self.queue = Queue::default();
                metrics::set_subscriber(&self.name, 0, 0.0);
            }
            return Ok(false);
        };
        self.more |= self.lease.is_none();
        self.lease = Some(Lease {
            renew_at: now + RENEW_EVERY,
            until: now + LEASE - LEASE_MARGIN,
            verified: self.receiver.handshake_code() == leased.verified || self.receiver.handshake_code().is_none(),
        });
        Ok(true)
    }

    /// Whether the subscriber has answered the handshake; tries it if it is time.
    async fn shaken(&mut self) -> Result<bool, SiteError> {
        let Some(code) = self.receiver.handshake_code().filter(|_| !self.is_verified()) else {
            return Ok(true);
        };
        let (failures, again_at) = self.handshake;
        if Instant::now() < again_at {
            return Ok(false);
        }
        match self.receiver.handshake().await {
            Ok(()) => {
                subscribers::verified(&self.pool, &self.name, &code).await?;
                tracing::info!(subscriber = self.name, "the subscriber has answered the handshake");
                self.handshake.0 = 0;
                self.problem = None;
                self.reported = None;
                self.more = true;
                if let Some(lease) = &mut self.lease {
                    lease.verified = true;
                }
                Ok(true)
            }
            Err(refused) => {
                let wait = backoff(failures + 1, HANDSHAKE_RETRY.0, HANDSHAKE_RETRY.1);
                self.handshake = (failures + 1, Instant::now() + wait);
                self.problem = Some(format!("handshake: {refused}"));
                Ok(false)
            }
        }
    }

    /// Begins to record what has ended, and to load the next webhooks, unless that is under way.
    fn begin_exchange(&mut self, verified: bool) {
        if !self.exchange.is_empty() {
            return;
        }
        let now = Instant::now();
        let lacking = if verified { self.queue.lacking(now) } else { Vec::new() };
        let room = verified && self.queue.has_room();
        let newest = (room && (self.more || now >= self.looked + POLL)).then(|| self.queue.newest());
        if newest.is_some() {
            // Before the look: what comes meanwhile is looked for again.
            self.more = false;
            self.looked = now;
        }
        let (after, swept) = self.swept;
        let sweep = (room && now >= swept + POLL).then(|| self.queue.window(after));
        if let Some(sweep) = &sweep {
            self.swept = (after.filter(|_| sweep.is_some()), now);
        }
        let sweep = sweep.flatten();
        if self.unrecorded.is_empty() && lacking.is_empty() && newest.is_none() && sweep.is_none() {
            return;
        }
        let exchange = Exchange {
            pool: self.pool.clone(),
            subscriber: self.name.clone(),
            selection: self.selection.clone(),
            unrecorded: std::mem::take(&mut self.unrecorded),
            newest,
            sweep,
            lacking,
        };
        self.exchange.spawn(exchange.run());
    }

    /// Waits until an exchange that is under way has ended, and keeps nothing of what it loaded.
    async fn exchange_ends(&mut self) {
        while let Some(ended) = self.exchange.join_next().await {
            if let Ok(ended) = ended {
                self.unrecorded.put_back(ended.unrecorded);
            }
        }
        self.more = true;
    }

    /// An exchange has ended.
    fn exchanged(&mut self, exchanged: Option<Exchanged>) {
        // It was stopped, with everything.
        let Some(exchanged) = exchanged else { return };
        self.unrecorded.put_back(exchanged.unrecorded);
        match exchanged.loaded {
            Ok(loaded) => {
                self.failures = 0;
                self.loaded(loaded);
            }
            Err(error) => {
                self.more = true;
                self.exchange_error = Some(error);
            }
        }
    }

    /// Queues what was loaded.
    fn loaded(&mut self, loaded: Loaded) {
        let now = Instant::now();
        for (key, outcome) in loaded.again {
            match outcome {
                Outcome::Wanted(handed_on) => self.queue.put_body(key, handed_on.body),
                Outcome::Unwanted => self.unwanted(key),
                Outcome::Lost => self.lost(key),
            }
        }
        self.more |= !loaded.newest.is_empty();
        self.swept.0 = loaded.swept_until.or(self.swept.0);
        for (row, outcome) in loaded.newest.into_iter().chain(loaded.swept) {
            let key = row.key();
            match outcome {
                Outcome::Wanted(handed_on) => {
                    let entry = entry(&row, now, self.give_up_after, handed_on);
                    self.queue.add(key, entry);
                }
                Outcome::Unwanted => self.unwanted(key),
                Outcome::Lost => self.lost(key),
            }
        }
    }

    /// Nothing in a webhook is for the subscriber.
    fn unwanted(&mut self, key: Key) {
        metrics::count_delivery(&self.name, "unwanted");
        self.queue.remove(key);
        self.unrecorded.done.push(key);
    }

    /// A webhook was deleted before the subscriber had it.
    fn lost(&mut self, key: Key) {
        metrics::count_delivery(&self.name, "given_up");
        self.queue.remove(key);
        self.unrecorded.failed.push(Failed {
            key,
            problem: "the webhook was deleted".to_owned(),
            again_after: None,
        });
    }

    /// Starts what may be delivered now. Bodies that are not here are being read.
    fn start(&mut self) {
        let now = Instant::now();
        if self.lease.as_ref().is_none_or(|lease| now >= lease.until) {
            return;
        }
        for key in self.queue.ready(now) {
            let Some(body) = self.queue.body(key) else { continue };
            self.queue.start(key);
            let receiver = Arc::clone(&self.receiver);
            self.under_way.spawn(async move { (key, receiver.deliver(body).await) });
        }
    }

    /// A delivery has ended.
    fn ended(&mut self, ended: Option<(Key, Result<(), Refused>)>) {
        let now = Instant::now();
        match ended {
            // It was stopped, with everything.
            None => {}
            Some((key, Ok(()))) => {
                metrics::count_delivery(&self.name, "delivered");
                let was_down = self.queue.is_down();
                self.queue.delivered(key, now);
                self.unrecorded.done.push(key);
                self.delivered = true;
                if was_down {
                    self.problem = None;
                    self.reported = None;
                    tracing::info!(subscriber = self.name, "the subscriber takes webhooks again");
                }
            }
            Some((key, Err(refused))) => {
                let again_after = self.queue.refused(key, now);
                let result = if again_after.is_some() { "refused" } else { "given_up" };
                metrics::count_delivery(&self.name, result);
                if again_after.is_none() {
                    tracing::error!(
                        subscriber = self.name,
                        webhook = %key.webhook_id,
                        hint = "twinlog subscribers retry NAME delivers it again",
                        "a webhook was given up: {refused}"
                    );
                }
                if self.queue.is_down() {
                    self.problem = Some(refused.to_string());
                }
                self.unrecorded.failed.push(Failed {
                    key,
                    problem: refused.to_string(),
                    again_after,
                });
            }
        }
    }

    /// Gives up what has waited for too long: behind others, or while the subscriber takes nothing or too little.
    async fn give_up_old(&mut self) -> Result<(), SiteError> {
        let now = Instant::now();
        if now >= self.gave_up + GIVE_UP_EVERY && !given_up::more(&self.pool, &self.name, self.give_up_after).await? {
            self.gave_up = now;
        }
        Ok(())
    }

    /// Says how the deliveries go.
    async fn report(&mut self) -> Result<(), SiteError> {
        let now = Instant::now();
        if self.reported.is_some_and(|reported| now < reported + REPORT_EVERY) {
            return Ok(());
        }
        subscribers::stands(&self.pool, &self.name, self.problem.as_deref(), self.delivered).await?;
        self.delivered = false;
        self.reported = Some(now);
        for overview in subscribers::overview(&self.pool, Some(&self.name)).await? {
            metrics::set_subscriber(&self.name, overview.waiting, overview.lag_seconds);
            let detail = json!({
                "waiting": overview.waiting,
                "lag_seconds": overview.lag_seconds.round(),
                "given_up": overview.given_up,
            });
            self.component.stands(standing(&overview), detail);
        }
        Ok(())
    }
}
