//! One number's task: holds its lease, keeps to its rate, and starts claims while something is due.
//!
//! Before the provider is called, a message that is submitted here pays two round trips to the Site DB: the one that stores
//! it and the one that claims it. The lease and the state of the number are asked for beside that, every [`POLL`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::claims::{Ask, ClaimEnd, ClaimTask};
use super::rate::Rate;
use super::shared::{Sender, Shared};
use crate::metrics;
use crate::retry::backoff;
use crate::site_db::accounts::{self, AccountStatus, Gate};
use crate::site_db::{SiteError, number_leases};

/// How often a number asks for its lease, its state, and whether messages are due that are not known here: those that
/// other processes stored, and those whose wait is over.
const POLL: Duration = Duration::from_millis(500);
/// How long the lease of a number lasts without renewal. After a process died, nothing is sent for its number until the
/// lease expires. If a live process renews too late, two may send for a moment: a burst beyond the rate, nothing worse.
const LEASE: Duration = Duration::from_secs(6);
/// The lease is renewed three times in its life, so that two failures in a row do no harm.
const RENEW: Duration = Duration::from_secs(2);
/// Nothing is claimed any more when the lease was renewed this long ago: a claim takes its time too.
const LEASE_TRUSTED: Duration = Duration::from_secs(4);
/// Pause after giving the lease up because our token was refused. Other processes, which may have a newer token, look
/// for free leases every [`POLL`].
const PAUSE_AFTER_GIVE_UP: Duration = Duration::from_secs(2);
/// Most messages that one statement claims. All are sent at once, so no lease expires before its message is sent.
const CLAIM: usize = 256;
/// Claims under way: while one is on its way to the Site DB, what is stored meanwhile need not wait for it.
const CLAIMS: usize = 2;
/// Bounds on a number's concurrent attempts. A call takes 0.2 to 1 s, so a number at 80 messages a second has up to 80
/// under way; each costs a task and its body.
const IN_FLIGHT: (usize, usize) = (16, 1024);
/// First and longest wait after an error of the Site DB.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long asking for the lease and the state may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the Site DB says about the number.
struct Standing {
    /// Whether this process has the lease.
    leased: bool,
    gate: Gate,
}

/// What the tasks of a number report to it.
enum Report {
    Standing(Result<Standing, SiteError>, Renewed),
    Claim(ClaimEnd),
    /// The provider was looked at.
    Looked,
}

/// Whether the lease was asked for, and when.
type Renewed = Option<Instant>;

struct NumberTask {
    shared: Arc<Shared>,
    sender: Arc<Sender>,
    /// Identifies this task as the lease's owner.
    owner: Uuid,
    renewed: Option<Instant>,
    /// The number's state when it was asked for last, and when that was.
    gate: Option<(Gate, Instant)>,
    was_held: bool,
    rate: Arc<Mutex<Rate>>,
    slots: Arc<Semaphore>,
    running: TaskTracker,
    reports: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    asking: bool,
    ask_at: Instant,
    /// Whether the provider is being looked at.
    looking: bool,
    claims: usize,
    /// Errors of the Site DB in a row, and until when nothing is asked because of them.
    failures: u32,
    paused_until: Instant,
}

/// Sends for a number until the stop, then waits for the attempts under way.
pub(super) async fn run(shared: Arc<Shared>, sender: Arc<Sender>) {
    let in_flight = usize::try_from(sender.messages_per_second)
        .unwrap_or(usize::MAX)
        .clamp(IN_FLIGHT.0, IN_FLIGHT.1);
    let mut task = NumberTask {
        owner: Uuid::new_v4(),
        renewed: None,
        gate: None,
        was_held: false,
        rate: Arc::new(Mutex::new(Rate::new(sender.messages_per_second))),
        slots: Arc::new(Semaphore::new(in_flight)),
        running: TaskTracker::new(),
        reports: mpsc::unbounded_channel(),
        asking: false,
        ask_at: Instant::now(),
        looking: false,
        claims: 0,
        failures: 0,
        paused_until: Instant::now(),
        shared,
        sender,
    };
    task.work().await;
    task.running.close();
    task.running.wait().await;
    // Also if the last answer about the lease was not read any more. The lease ends by itself; this only saves the next
    // process the wait.
    let given_up = number_leases::give_up(&task.shared.pool, task.sender.phone_number_id(), task.owner);
    let _ = tokio::time::timeout(Duration::from_secs(1), given_up).await;
}

impl NumberTask {
    async fn work(&mut self) {
        let stop = self.shared.stop.clone();
        let sender = Arc::clone(&self.sender);
        while !stop.is_cancelled() {
            self.start_what_is_due();
            let next = self.next_time();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(report) = self.reports.1.recv() => self.take(report),
                () = sender.wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// When something is due without a wake-up.
    fn next_time(&self) -> Instant {
        let now = Instant::now();
        let ask_at = if self.asking {
            now + POLL
        } else {
            self.ask_at.max(self.paused_until)
        };
        if self.claims < CLAIMS
            && self.may_send(now)
            && self.sender.queue().has_work()
            && self.slots.available_permits() > 0
        {
            ask_at.min(self.rate().next(now).max(now + Duration::from_millis(1)))
        } else {
            ask_at
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.sender.take_ask() {
            self.ask_at = now;
        }
        if !self.looking && self.sender.standing.look_due(now) {
            self.look();
        }
        if now < self.paused_until {
            return;
        }
        if !self.asking && now >= self.ask_at {
            self.ask(now);
        }
        while self.claims < CLAIMS && self.may_send(now) && self.start_claim(now) {}
    }

    /// Whether this process has the lease and the number may send.
    fn may_send(&self, now: Instant) -> bool {
        let leased = self.renewed.is_some_and(|renewed| now < renewed + LEASE_TRUSTED);
        leased
            && self.gate.as_ref().is_some_and(|(gate, asked)| {
                let throttled = Duration::try_from_secs_f64(gate.throttled_seconds).unwrap_or_default();
                gate.status == AccountStatus::Active && now >= *asked + throttled
            })
    }

    /// Asks for the lease, if it is to be renewed, and for the number's state.
    fn ask(&mut self, now: Instant) {
        self.asking = true;
        self.ask_at = now + POLL;
        let renew = self.renewed.is_none_or(|renewed| now >= renewed + RENEW);
        let is_new = self.renewed.is_none();
        let (shared, sender, owner) = (Arc::clone(&self.shared), Arc::clone(&self.sender), self.owner);
        let reports = self.reports.0.clone();
        self.running.spawn(async move {
            let asked = ask(&shared, &sender, owner, renew, is_new);
            let standing = tokio::time::timeout(ASK_TIMEOUT, asked)
                .await
                .unwrap_or(Err(SiteError::timed_out()));
            // The number's task has ended: nobody needs it.
            let _ = reports.send(Report::Standing(standing, renew.then_some(now)));
        });
    }

    /// Looks whether the provider answers for the number.
    fn look(&mut self) {
        self.looking = true;
        let (stop, sender, reports) = (
            self.shared.stop.clone(),
            Arc::clone(&self.sender),
            self.reports.0.clone(),
        );
        self.running.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                looked = sender.account.look() => sender.standing.looked(looked),
            }
            // The number's task has ended: nobody needs it.
            let _ = reports.send(Report::Looked);
        });
    }

    /// Starts a claim, if something is due and the rate and the slots allow one. Returns whether it did.
    fn start_claim(&mut self, now: Instant) -> bool {
        let Some(account_id) = self.sender.known_account_id() else {
            return false;
        };
        let free = self.slots.available_permits().min(CLAIM);
        let mut queue = self.sender.queue();
        if free == 0 || !queue.has_work() {
            return false;
        }
        let reserved = self.rate().reserve(free, now);
        if reserved == 0 {
            return false;
        }
        let ask = if queue.take_scan() {
            Ask::Scan(reserved)
        } else {
            Ask::These(queue.take(reserved))
        };
        drop(queue);
        let wanted = match &ask {
            Ask::These(candidates) => candidates.len(),
            Ask::Scan(_) | Ask::Probe(_) => reserved,
        };
        self.rate().settle(0, reserved - wanted, now);
        wanted > 0 && self.spawn_claim(account_id, wanted, ask)
    }

    /// Sends one message of a held number, if that is due: alone, so that one message is refused, not many.
    fn start_probe(&mut self, now: Instant) {
        let Some(account_id) = self.sender.known_account_id() else {
            return;
        };
        let idle = self.claims == 0 && self.slots.available_permits() > 0 && self.sender.is_idle();
        if idle && self.rate().reserve(1, now) == 1 {
            self.spawn_claim(account_id, 1, Ask::Probe(self.shared.settings.hold_probe));
        }
    }

    /// The rate has reserved `wanted` calls. Returns true.
    fn spawn_claim(&mut self, account_id: Uuid, wanted: usize, ask: Ask) -> bool {
        let places = u32::try_from(wanted).unwrap_or(u32::MAX);
        let Ok(slots) = Arc::clone(&self.slots).try_acquire_many_owned(places) else {
            // Never: only this task takes slots, and it has looked.
            return false;
        };
        let claim = ClaimTask {
            shared: Arc::clone(&self.shared),
            sender: Arc::clone(&self.sender),
            rate: Arc::clone(&self.rate),
            running: self.running.clone(),
            account_id,
            slots,
            ask,
        };
        self.claims += 1;
        let reports = self.reports.0.clone();
        self.running.spawn(async move {
            // The number's task has ended: nobody needs it.
            let _ = reports.send(Report::Claim(claim.run().await));
        });
        true
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Looked => self.looking = false,
            Report::Claim(end) => {
                self.claims -= 1;
                if let Some(error) = end.error {
                    self.sender.queue().forget();
                    self.failed(&error);
                }
            }
            Report::Standing(standing, renewed) => {
                self.asking = false;
                match standing {
                    Ok(standing) => {
                        self.failures = 0;
                        self.stands(standing, renewed);
                    }
                    Err(error) => self.failed(&error),
                }
            }
        }
    }

    fn stands(&mut self, standing: Standing, renewed: Renewed) {
        let now = Instant::now();
        let Standing { leased, gate } = standing;
        let held = gate.status == AccountStatus::Held;
        let probe_due = held && gate.probe_seconds <= 0.0;
        self.sender.tell_hold(&gate);
        self.sender.standing.stands(&gate, leased);
        if !leased {
            self.renewed = None;
            // Another process sends for the number.
            self.sender.queue().forget();
            return;
        }
        self.renewed = renewed.or(self.renewed);
        metrics::set_account_degraded(self.sender.phone_number_id().as_str(), held);
        if gate.is_waiting {
            self.sender.queue().ask_for_scan();
        }
        let newly_held = held && !std::mem::replace(&mut self.was_held, held);
        self.gate = Some((gate, now));
        if newly_held {
            self.give_lease_up(now);
        } else if probe_due {
            self.start_probe(now);
        }
    }

    /// The number has just been held. Our token may be at fault: lets a process with another token try.
    fn give_lease_up(&mut self, now: Instant) {
        self.renewed = None;
        self.ask_at = now + PAUSE_AFTER_GIVE_UP;
        let (shared, sender, owner) = (Arc::clone(&self.shared), Arc::clone(&self.sender), self.owner);
        self.running.spawn(async move {
            let given_up = number_leases::give_up(&shared.pool, sender.phone_number_id(), owner);
            // If it fails, the lease ends by itself.
            let _ = tokio::time::timeout(PAUSE_AFTER_GIVE_UP / 2, given_up).await;
        });
    }

    fn failed(&mut self, error: &SiteError) {
        self.sender.standing.site_db_failed(error);
        self.failures += 1;
        self.paused_until = Instant::now() + backoff(self.failures, RETRY.0, RETRY.1);
        self.ask_at = self.paused_until;
    }

    fn rate(&self) -> std::sync::MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes or renews the lease, if that is asked for, and asks for the number's state.
async fn ask(shared: &Shared, sender: &Sender, owner: Uuid, renew: bool, is_new: bool) -> Result<Standing, SiteError> {
    let account_id = sender.account_id(&shared.pool).await?;
    let leased = !renew || number_leases::take(&shared.pool, sender.phone_number_id(), owner, LEASE).await?;
    if leased && is_new {
        // The process that had the lease before may have held the number for another token than ours.
        sender.register(&shared.pool).await?;
    }
    let gate = accounts::gate(&shared.pool, account_id).await?;
    Ok(Standing { leased, gate })
}
