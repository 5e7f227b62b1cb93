//! One claim: commits due messages as `sending` and starts their attempts. Runs in a task of its own that is never
//! cancelled, so that a stop can't come between the two and leave claimed messages without an attempt.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::attempt::{self, Attempt};
use super::queue::Candidate;
use super::rate::Rate;
use super::shared::{Sender, Shared};
use crate::retry::backoff;
use crate::site_db::SiteError;
use crate::site_db::accounts;
use crate::site_db::messages::{self, Claimed, Wanted};

/// How long a claim may take: after that its answer is taken as lost.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// A statement ends within this time, also without its client: the pool's `statement_timeout` and some seconds. Well below
/// the lease, after which the messages would be `unknown`.
const STATEMENT_ENDS: Duration = Duration::from_secs(14);
/// Tries during a shutdown, which has its own grace.
const TRIES_IN_SHUTDOWN: u32 = 4;
/// First and longest wait between tries to give a lost claim back.
const GIVE_BACK_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a claim asks for.
#[derive(Debug)]
pub(super) enum Ask {
    /// These, which the queue gave.
    These(Vec<Candidate>),
    /// All that is due, at most this many.
    Scan(usize),
    /// One message of a held number, if a probe is due; the time until the next one.
    Probe(Duration),
}

/// How a claim ended.
#[derive(Debug)]
pub(super) struct ClaimEnd {
    /// Why it failed.
    pub(super) error: Option<SiteError>,
}

/// A claim that is to be made, with the places that its attempts take.
pub(super) struct ClaimTask {
    pub(super) shared: Arc<Shared>,
    pub(super) sender: Arc<Sender>,
    pub(super) rate: Arc<Mutex<Rate>>,
    pub(super) running: TaskTracker,
    pub(super) account_id: Uuid,
    /// One place for each message that may be claimed.
    pub(super) slots: OwnedSemaphorePermit,
    pub(super) ask: Ask,
}

impl ClaimTask {
    /// Claims, and starts the attempts.
    pub(super) async fn run(mut self) -> ClaimEnd {
        let reserved = self.slots.num_permits();
        let claim = messages::Claim {
            account_id: self.account_id,
            lease_owner: Uuid::new_v4(),
            lease: self.shared.lease(),
        };
        let claimed_at = Instant::now();
        let claimed = tokio::time::timeout(CLAIM_TIMEOUT, self.claim(claim))
            .await
            .unwrap_or(Err(SiteError::timed_out()));
        let (claimed, error) = match claimed {
            Ok(claimed) => (claimed, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        self.tell_queue(&claimed, reserved);
        {
            let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            let unused = reserved.saturating_sub(claimed.len());
            rate.settle(claimed.len(), unused, Instant::now());
        }
        for message in claimed {
            let Some(slot) = self.slots.split(1) else { break };
            let attempt = Attempt {
                message,
                probe: matches!(self.ask, Ask::Probe(_)),
                claimed_at,
            };
            let (shared, sender) = (Arc::clone(&self.shared), Arc::clone(&self.sender));
            self.running.spawn(async move {
                attempt::run(&shared, &sender, attempt).await;
                drop(slot);
                // The number's task may wait for a free slot.
                sender.wake.notify_one();
            });
        }
        if error.is_some() {
            self.running
                .spawn(give_back(Arc::clone(&self.shared), Arc::clone(&self.sender), claim));
        }
        ClaimEnd { error }
    }

    async fn claim(&self, claim: messages::Claim) -> Result<Vec<Claimed>, SiteError> {
        let pool = &self.shared.pool;
        match &self.ask {
            Ask::These(candidates) => {
                let ids: Vec<Uuid> = candidates.iter().map(|candidate| candidate.id).collect();
                messages::claim(pool, claim, Wanted::These(&ids)).await
            }
            Ask::Scan(limit) => messages::claim(pool, claim, Wanted::Due(*limit)).await,
            Ask::Probe(interval) => {
                let mut transaction = pool.begin().await?;
                if !accounts::take_probe(&mut transaction, self.account_id, *interval).await? {
                    return Ok(Vec::new());
                }
                let claimed = messages::claim_probe(&mut transaction, claim).await?;
                if claimed.is_empty() {
                    // Nothing to send: undo `take_probe`, so that the probe stays due.
                    transaction.rollback().await?;
                } else {
                    transaction.commit().await?;
                }
                Ok(claimed)
            }
        }
    }

    fn tell_queue(&self, claimed: &[Claimed], limit: usize) {
        let mut queue = self.sender.queue();
        match &self.ask {
            Ask::These(candidates) => {
                let claimed: HashSet<Uuid> = claimed.iter().map(|message| message.id).collect();
                for candidate in candidates {
                    if !claimed.contains(&candidate.id) {
                        queue.not_claimed(*candidate);
                    }
                }
            }
            Ask::Scan(_) | Ask::Probe(_) => {
                for message in claimed {
                    let candidate = Candidate {
                        conversation_id: message.conversation_id,
                        id: message.id,
                    };
                    queue.claimed(candidate, message.more);
                }
                match self.ask {
                    Ask::Scan(_) if claimed.len() < limit => queue.scanned_all(),
                    Ask::Scan(_) => queue.ask_for_scan(),
                    _ => {}
                }
            }
        }
    }
}

/// A claim whose answer was lost may be committed, now or in the next seconds: a server that has lost its client ends the
/// statement first. Nothing of it was sent, so its messages are put back.
async fn give_back(shared: Arc<Shared>, sender: Arc<Sender>, claim: messages::Claim) {
    let last = Instant::now() + STATEMENT_ENDS;
    let mut tries = 0;
    while Instant::now() < last && !(shared.stop.is_cancelled() && tries >= TRIES_IN_SHUTDOWN) {
        tries += 1;
        tokio::time::sleep(backoff(tries, GIVE_BACK_RETRY.0, GIVE_BACK_RETRY.1)).await;
        let given = messages::give_back(&shared.pool, claim.lease_owner);
        if let Ok(Ok(messages @ 1..)) = tokio::time::timeout(CLAIM_TIMEOUT, given).await {
            let phone_number_id = sender.phone_number_id();
            tracing::warn!(%phone_number_id, messages, "PERSISTENCE: the answer to a claim was lost; its messages wait again");
            sender.queue().ask_for_scan();
            sender.wake.notify_one();
            return;
        }
    }
}
