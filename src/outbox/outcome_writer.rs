//! Writes the outcomes of a number's attempts, many in one transaction: the messages first, then the number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::outcome::{Cause, Next};
use crate::group_commit::Committer;
use crate::provider::{Accepted, Code, Response};
use crate::retry::Disposition;
use crate::site_db::accounts::{self, ThrottleReach};
use crate::site_db::messages::{self, AttemptKey, Claimed, Ended, Problem, ProblemClass, Wait};
use crate::site_db::status_events::{self, Acceptance};
use crate::site_db::{MessageStatus, Pool, SiteError, Transaction, storable};

/// How long one try to commit outcomes may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of a refused message of a held number, in probe intervals (`whatsapp.hold_probe_ms`). One probe is sent in
/// each interval, so with six of them up to seven messages take turns, and a single one is still tried every six intervals.
const MAX_HOLD_WAIT_PROBES: u32 = 6;
/// What an outcome takes in memory beside the response, about.
const OUTCOME_BYTES: usize = 512;

/// An attempt's outcome, as it is to be committed.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) message: Claimed,
    /// Whether the message tested if its held number can send again.
    pub(super) probe: bool,
    pub(super) next: Next,
    pub(super) response: Option<Response>,
}

/// Whether the wamid is written with an acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WamidIs {
    Ours,
    /// Another row has it already, which should be impossible: then only the status is written.
    Taken,
}

/// What one commit changed for one outcome.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Committed {
    /// The message's new status; `None` if it was settled before.
    pub(super) reached: Option<MessageStatus>,
    /// The number was free before and is held now.
    pub(super) held_number: bool,
    /// The number was held before and is free now.
    pub(super) released_number: bool,
}

/// Commits the outcomes of one number.
#[derive(Debug)]
pub(super) struct OutcomeWriter {
    pub(super) pool: Pool,
    pub(super) account_id: Uuid,
    pub(super) token_sha256: String,
    /// See [`OutboxSettings::hold_probe`](super::OutboxSettings::hold_probe).
    pub(super) hold_probe: Duration,
}

impl Committer for OutcomeWriter {
    type Item = (Arc<Outcome>, WamidIs);
    type Done = Committed;
    type Error = SiteError;

    fn bytes((outcome, _): &Self::Item) -> usize {
        OUTCOME_BYTES + outcome.response.as_ref().map_or(0, |response| response.body.len())
    }

    fn is_an_items_fault(error: &SiteError) -> bool {
        error.disposition() == Disposition::Row
    }

    async fn commit(&self, items: &[Self::Item]) -> Result<Vec<Committed>, SiteError> {
        tokio::time::timeout(COMMIT_TIMEOUT, self.write(items))
            .await
            .unwrap_or(Err(SiteError::timed_out()))
    }
}

/// Outcomes by what they change.
#[derive(Default)]
struct ByKind<'a> {
    accepted: Vec<Acceptance<'a>>,
    failed: Vec<Ended>,
    waiting: Vec<(Ended, Wait)>,
    lost: Vec<Ended>,
    /// The longest pause for each reach.
    pauses: HashMap<ThrottleReach, Duration>,
    hold: Option<&'a Cause>,
    release: bool,
}

impl OutcomeWriter {
    async fn write(&self, items: &[(Arc<Outcome>, WamidIs)]) -> Result<Vec<Committed>, SiteError> {
        let kinds = self.sort(items);
        let mut transaction = self.pool.begin().await?;
        let tx = &mut transaction;
        let mut reached = HashMap::new();
        if !kinds.accepted.is_empty() {
            let accepted: HashMap<_, _> = (kinds.accepted.iter())
                .map(|one| (one.message_id, one.status))
                .collect();
            for id in status_events::accept(tx, &kinds.accepted).await?.into_keys() {
                // Only `accepted` or `held`: the inbox counts the statuses that reports bring.
                reached.extend(
                    accepted
                        .get(&id)
                        .map(|status| (id, MessageStatus::after_acceptance(*status))),
                );
            }
        }
        let mut moved = |ids: Vec<Uuid>, to| reached.extend(ids.into_iter().map(|id| (id, to)));
        if !kinds.failed.is_empty() {
            moved(messages::failed(tx, kinds.failed).await?, MessageStatus::Failed);
        }
        if !kinds.waiting.is_empty() {
            moved(messages::put_back(tx, kinds.waiting).await?, MessageStatus::Pending);
        }
        if !kinds.lost.is_empty() {
            moved(messages::lost(tx, kinds.lost).await?, MessageStatus::Unknown);
        }
        // The widest first: it locks the numbers in the order of their ids.
        for reach in [ThrottleReach::App, ThrottleReach::Waba, ThrottleReach::Number] {
            if let Some(length) = kinds.pauses.get(&reach) {
                accounts::throttle(tx, self.account_id, reach, *length).await?;
            }
        }
        let held_number = match kinds.hold {
            Some(cause) => self.hold(tx, cause).await?,
            None => false,
        };
        let released_number = kinds.release && accounts::release(tx, self.account_id).await?;
        transaction.commit().await?;
        Ok(results(items, &reached, held_number, released_number))
    }

    fn sort<'a>(&self, items: &'a [(Arc<Outcome>, WamidIs)]) -> ByKind<'a> {
        let mut kinds = ByKind::default();
        for (outcome, wamid) in items {
            match &outcome.next {
                Next::Accepted(accepted) => {
                    kinds.accepted.push(acceptance(outcome, accepted, *wamid));
                    kinds.release |= outcome.probe;
                }
                Next::Failed(cause) => kinds.failed.push(ended(outcome, cause)),
                Next::Pending {
                    wait,
                    consumed,
                    pause,
                    cause,
                } => {
                    let wait = Wait {
                        after: *wait,
                        consumed: *consumed,
                    };
                    kinds.waiting.push((ended(outcome, cause), wait));
                    if let Some((reach, length)) = pause {
                        let longest = kinds.pauses.entry(*reach).or_default();
                        *longest = (*longest).max(*length);
                    }
                }
                Next::HoldNumber(cause) => {
                    // A release ends the message's wait.
                    let wait = Wait {
                        after: hold_wait(self.hold_probe, outcome.message.uncounted),
                        consumed: false,
                    };
                    kinds.waiting.push((ended(outcome, cause), wait));
                    kinds.hold = Some(cause);
                }
                Next::Unknown(why) => {
                    let problem = Problem {
                        code: None,
                        class: ProblemClass::OutcomeUnknown,
                        message: (*why).to_owned(),
                    };
                    kinds.lost.push(with_problem(outcome, problem));
                }
            }
        }
        kinds
    }

    async fn hold(&self, tx: &mut Transaction<'_>, cause: &Cause) -> Result<bool, SiteError> {
        let hold = accounts::NumberHold {
            code: cause.code.map(Code::number).unwrap_or_default(),
            reason: &storable(&cause.message),
            token_sha256: &self.token_sha256,
            probe_after: self.hold_probe,
        };
        accounts::hold(tx, self.account_id, &hold).await
    }
}

/// What was committed for each outcome, in their order. The first one that holds the number is told so.
fn results(
    items: &[(Arc<Outcome>, WamidIs)],
    reached: &HashMap<Uuid, MessageStatus>,
    held_number: bool,
    released_number: bool,
) -> Vec<Committed> {
    let (mut held_number, mut released_number) = (held_number, released_number);
    let of_one = |(outcome, _): &(Arc<Outcome>, WamidIs)| Committed {
        reached: reached.get(&outcome.message.id).copied(),
        held_number: matches!(outcome.next, Next::HoldNumber(_)) && std::mem::take(&mut held_number),
        released_number: matches!(outcome.next, Next::Accepted(_))
            && outcome.probe
            && std::mem::take(&mut released_number),
    };
    items.iter().map(of_one).collect()
}

fn acceptance<'a>(outcome: &'a Outcome, accepted: &'a Accepted, wamid: WamidIs) -> Acceptance<'a> {
    Acceptance {
        message_id: outcome.message.id,
        wamid: (wamid == WamidIs::Ours).then_some(&accepted.wamid),
        status: accepted.status,
        response: outcome.response.as_ref(),
    }
}

fn ended(outcome: &Outcome, cause: &Cause) -> Ended {
    let problem = Problem {
        code: cause.code.map(Code::number),
        class: cause.class,
        message: storable(&cause.message),
    };
    with_problem(outcome, problem)
}

fn with_problem(outcome: &Outcome, problem: Problem) -> Ended {
    Ended {
        attempt: AttemptKey {
            id: outcome.message.id,
            lease_owner: outcome.message.lease_owner,
        },
        problem,
        response: outcome.response.clone(),
    }
}

/// How long a refused message of a held number waits: one and a half probe intervals more after each refusal. More than
/// one, so that another message is the next probe; a message that is always refused for its own content would otherwise
/// keep the number held.
pub(super) fn hold_wait(hold_probe: Duration, refused_before: i32) -> Duration {
    let refusals = u32::try_from(refused_before).unwrap_or(0).saturating_add(1);
    (hold_probe * 3 / 2)
        .saturating_mul(refusals)
        .min(hold_probe * MAX_HOLD_WAIT_PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_message_lets_others_probe_first_and_is_still_tried_now_and_then() {
        let probe = Duration::from_secs(60);
        let waits = [0, 1, 2, 3, 4, 100].map(|refused_before| hold_wait(probe, refused_before).as_secs());
        assert_eq!(waits, [90, 180, 270, 360, 360, 360]);
    }
}
