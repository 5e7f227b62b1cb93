//! One number's task: holds its lease, keeps to its rate, claims what is due and starts the attempts.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::attempt;
use super::shared::{Sender, Shared};
use crate::metrics;
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::accounts::{self, AccountStatus};
use crate::site_db::messages::{self, Claimed};
use crate::site_db::{SiteError, number_leases};

/// How often a number looks for work without a wake-up: rows that other processes stored, and rows whose wait is over.
const POLL: Duration = Duration::from_millis(500);
/// How long the lease of a number lasts without renewal. After a process died, nothing is sent for its number until the
/// lease expires. If a live process renews too late, two may send for a moment: a burst beyond the rate, nothing worse.
const LEASE: Duration = Duration::from_secs(6);
/// The lease is renewed three times in its life, so that two failures in a row do no harm.
const RENEW: Duration = Duration::from_secs(2);
/// Pause after giving the lease up because our token was refused. Other processes, which may have a newer token, look
/// for free leases every [`POLL`].
const PAUSE_AFTER_GIVE_UP: Duration = Duration::from_secs(2);
/// Most messages that one statement claims. All are sent at once, so no lease expires before its message is sent.
const CLAIM: u32 = 16;
/// Bounds on a number's concurrent attempts. A call takes 0.2 to 1 s, so a number at 80 messages a second has up to 80
/// under way; each costs a task and its body.
const IN_FLIGHT: (usize, usize) = (16, 256);
/// First and longest wait after an error of the Site DB.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a round of claiming found.
enum Round {
    /// Claimed as many as it wanted: there may be more.
    Busy,
    /// Nothing to do for this long, unless woken.
    Idle(Duration),
}

struct NumberTask {
    shared: Arc<Shared>,
    sender: Arc<Sender>,
    /// Identifies this task as the lease's owner.
    owner: Uuid,
    renewed: Option<Instant>,
    limiter: DefaultDirectRateLimiter,
    /// Allowances taken from the limiter and not used yet.
    allowances: u32,
    /// How many to claim next: grows while claims come back full, so that an idle number wastes no allowance.
    wanted: u32,
    slots: Arc<Semaphore>,
    running: TaskTracker,
    was_held: bool,
}

/// Sends for a number until the stop, then waits for the attempts under way.
pub(super) async fn run(shared: Arc<Shared>, sender: Arc<Sender>) {
    let per_second = NonZeroU32::new(sender.messages_per_second).unwrap_or(NonZeroU32::MIN);
    // Meta counts per second, so a burst on top of the steady rate must be small compared with the rate.
    let burst = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
    let in_flight = usize::try_from(per_second.get())
        .unwrap_or(usize::MAX)
        .clamp(IN_FLIGHT.0, IN_FLIGHT.1);
    let mut task = NumberTask {
        owner: Uuid::new_v4(),
        renewed: None,
        limiter: RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)),
        allowances: 0,
        wanted: 1,
        slots: Arc::new(Semaphore::new(in_flight)),
        running: TaskTracker::new(),
        was_held: false,
        shared,
        sender,
    };
    task.work().await;
    task.running.close();
    task.running.wait().await;
    if task.renewed.is_some() {
        let given_up = number_leases::give_up(&task.shared.pool, task.sender.phone_number_id(), task.owner);
        // The lease ends by itself; this only saves the next process the wait.
        let _ = tokio::time::timeout(Duration::from_secs(1), given_up).await;
    }
}

impl NumberTask {
    async fn work(&mut self) {
        let pipeline = self.shared.settings.pipeline;
        let stop = self.shared.stop.clone();
        let sender = Arc::clone(&self.sender);
        let phone_number_id = sender.phone_number_id();
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            let round = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                round = self.round() => round,
            };
            let wait = match round {
                Ok(round) => {
                    if failures > 0 {
                        tracing::info!(pipeline, %phone_number_id, failures, "PERSISTENCE: the outbox reaches the Site DB again");
                        failures = 0;
                    }
                    match round {
                        Round::Busy => continue,
                        Round::Idle(wait) => wait,
                    }
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::error!(
                            pipeline,
                            %phone_number_id,
                            sqlstate = error.sqlstate(),
                            hint = error.hint(),
                            "PERSISTENCE: the outbox can't claim messages: {error}"
                        );
                    }
                    failures += 1;
                    backoff(failures, RETRY.0, RETRY.1)
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = sender.wake.notified(), if failures == 0 => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Claims what is due and starts its attempts. May be cancelled at any await: [`NumberTask::start`] runs the claim
    /// and the start of the attempts in a task that is not cancelled.
    async fn round(&mut self) -> Result<Round, SiteError> {
        let account_id = self.sender.account_id(&self.shared.pool).await?;
        if !self.hold_lease().await? {
            return Ok(Round::Idle(POLL));
        }
        let gate = accounts::gate(&self.shared.pool, account_id).await?;
        let held = gate.status == AccountStatus::Held;
        metrics::set_account_degraded(self.sender.phone_number_id().as_str(), held);
        if held && !self.was_held {
            return self.give_lease_up().await;
        }
        self.was_held = held;
        if gate.throttled_seconds > 0.0 {
            let left = Duration::try_from_secs_f64(gate.throttled_seconds).unwrap_or(POLL);
            return Ok(Round::Idle(left.min(POLL)));
        }
        if held {
            return self.send_probe(account_id, gate.probe_due).await;
        }
        self.send_due(account_id).await
    }

    /// The number has just been held. Our token may be at fault: lets a process with another token try.
    async fn give_lease_up(&mut self) -> Result<Round, SiteError> {
        self.was_held = true;
        self.renewed = None;
        number_leases::give_up(&self.shared.pool, self.sender.phone_number_id(), self.owner).await?;
        shutdown::sleep(PAUSE_AFTER_GIVE_UP, &self.shared.stop).await;
        Ok(Round::Busy)
    }

    /// Sends one message of a held number, if that is due: alone, so that one message is refused, not sixteen.
    async fn send_probe(&mut self, account_id: Uuid, due: bool) -> Result<Round, SiteError> {
        if due && self.running.is_empty() {
            self.take_allowances(1).await;
            let claimed = self.start(account_id, 1, Some(self.shared.settings.hold_probe)).await?;
            self.allowances -= claimed.min(self.allowances);
        }
        Ok(Round::Idle(POLL))
    }

    /// Claims as many due messages as the rate and the free slots allow.
    async fn send_due(&mut self, account_id: Uuid) -> Result<Round, SiteError> {
        let free = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
        if free == 0 {
            // Every attempt that ends wakes us.
            return Ok(Round::Idle(POLL));
        }
        let wanted = self.wanted.min(free).min(CLAIM);
        self.take_allowances(wanted).await;
        let limit = self.allowances.min(wanted);
        let claimed = self.start(account_id, limit, None).await?;
        // One allowance is kept for the next message; more would be a burst that the limiter does not know of.
        self.allowances = self.allowances.saturating_sub(claimed).min(1);
        if claimed == limit {
            self.wanted = (self.wanted * 2).min(CLAIM);
            Ok(Round::Busy)
        } else {
            self.wanted = 1;
            Ok(Round::Idle(POLL))
        }
    }

    /// Takes the lease, or renews it every [`RENEW`]. Returns whether this task holds it.
    async fn hold_lease(&mut self) -> Result<bool, SiteError> {
        if self.renewed.is_some_and(|renewed| renewed.elapsed() < RENEW) {
            return Ok(true);
        }
        let asked = Instant::now();
        let held = number_leases::take(&self.shared.pool, self.sender.phone_number_id(), self.owner, LEASE).await?;
        if held && self.renewed.is_none() {
            // The lease is new: the process that had it before may have held the number for another token than ours.
            self.sender.register(&self.shared.pool).await?;
        }
        self.renewed = held.then_some(asked);
        Ok(held)
    }

    /// Waits until at least one message may be sent, and takes up to `wanted` allowances if they are available now.
    async fn take_allowances(&mut self, wanted: u32) {
        if self.allowances == 0 {
            self.limiter.until_ready().await;
            self.allowances = 1;
        }
        while self.allowances < wanted && self.limiter.check().is_ok() {
            self.allowances += 1;
        }
    }

    /// Claims up to `limit` messages and starts their attempts. In a task of its own, so that a stop can't come between
    /// the two and leave claimed messages without an attempt.
    async fn start(&self, account_id: Uuid, limit: u32, probe: Option<Duration>) -> Result<u32, SiteError> {
        let shared = Arc::clone(&self.shared);
        let sender = Arc::clone(&self.sender);
        let slots = Arc::clone(&self.slots);
        let running = self.running.clone();
        let claiming = self.running.spawn(async move {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let claimed_at = Instant::now();
            let claimed = claim(&shared, account_id, limit, probe).await?;
            let count = u32::try_from(claimed.len()).unwrap_or(u32::MAX);
            for message in claimed {
                // Never fails: `limit` is at most the number of free slots, and only this task takes slots.
                let slot = Arc::clone(&slots).try_acquire_owned().ok();
                let (shared, sender) = (Arc::clone(&shared), Arc::clone(&sender));
                let attempt = attempt::Attempt {
                    message,
                    account_id,
                    probe: probe.is_some(),
                    claimed_at,
                };
                running.spawn(async move {
                    attempt::run(&shared, &sender, attempt).await;
                    drop(slot);
                    // The number's task may wait for a free slot, or for the next message of this conversation.
                    sender.wake.notify_one();
                });
            }
            Ok(count)
        });
        // The task does not panic; when the runtime shuts down, the count does not matter.
        claiming.await.unwrap_or(Ok(0))
    }
}

/// Claims up to `limit` due messages. With `probe` (the interval), claims for a held number: only if a probe is due, and
/// sets the time of the next one.
async fn claim(
    shared: &Shared,
    account_id: Uuid,
    limit: usize,
    probe: Option<Duration>,
) -> Result<Vec<Claimed>, SiteError> {
    let Some(interval) = probe else {
        return messages::claim(&shared.pool, account_id, limit, shared.lease()).await;
    };
    let mut transaction = shared.pool.begin().await?;
    if !accounts::take_probe(&mut transaction, account_id, interval).await? {
        return Ok(Vec::new());
    }
    let claimed = messages::claim_probe(&mut transaction, account_id, limit, shared.lease()).await?;
    if claimed.is_empty() {
        // Nothing to send: undo `take_probe`, so that the probe stays due.
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
    }
    Ok(claimed)
}
