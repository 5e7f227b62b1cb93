//! Commits the outcome of an attempt, and repeats that until the Site DB takes it or the process must end. In the second
//! case the message becomes `unknown` when its lease expires.
//!
//! The log names our row's id, never the wamid: a wamid contains the recipient's number in base64.

use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::outcome::{Cause, Next};
use super::shared::{Sender, Shared};
use crate::metrics;
use crate::provider::{Accepted, Code, Direction, Response};
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::messages::{self, Claimed, Ended, Problem, Wait};
use crate::site_db::status_events::{self, Acceptance};
use crate::site_db::{MessageStatus, SiteError, Transaction, accounts, storable};

/// How long one try to commit an outcome may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait between such tries.
const COMMIT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Tries during a shutdown; the grace of the whole process bounds them too.
const TRIES_IN_SHUTDOWN: u32 = 3;
/// The part of [`shutdown::GRACE`] that is kept for commits: calls are given up this long before it ends.
pub(super) const COMMIT_RESERVE: Duration = Duration::from_secs(2);
/// Longest wait of a refused message of a held number, in probe intervals (`whatsapp.hold_probe_ms`). One probe is sent in
/// each interval, so with six of them up to seven messages take turns, and a single one is still tried every six intervals.
const MAX_HOLD_WAIT_PROBES: u32 = 6;

/// An attempt's outcome, as it is to be committed.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) message: &'a Claimed,
    pub(super) account_id: Uuid,
    /// Whether the message tested if its held number can send again.
    pub(super) probe: bool,
    pub(super) next: &'a Next,
    pub(super) response: Option<&'a Response>,
}

/// Whether the wamid is written with an acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WamidIs {
    Ours,
    /// Another row has it already, which should be impossible: then only the status is written.
    Taken,
}

/// What one commit changed.
#[derive(Debug, Default)]
struct Committed {
    /// The message's new status; `None` if it was settled before.
    reached: Option<MessageStatus>,
    /// The number was free before and is held now.
    held_number: bool,
    /// The number was held before and is free now.
    released_number: bool,
}

/// Commits the outcome, repeating until it is stored; reports in the log and the metrics.
pub(super) async fn until_stored(shared: &Shared, sender: &Sender, outcome: &Outcome<'_>) {
    let mut gap = Gap::new(shared, sender, outcome);
    let mut wamid = WamidIs::Ours;
    loop {
        let commit = commit_once(shared, sender, outcome, wamid);
        let committed = tokio::time::timeout(COMMIT_TIMEOUT, commit)
            .await
            .unwrap_or(Err(SiteError::timed_out()));
        let error = match committed {
            Ok(committed) => {
                report(sender, outcome, &committed);
                gap.close_stored();
                return;
            }
            Err(error) => error,
        };
        if wamid == WamidIs::Ours && error.constraint() == Some("whatsapp_messages_wamid") {
            let phone_number_id = sender.phone_number_id();
            tracing::error!(%phone_number_id, message_id = %outcome.message.id, "PERSISTENCE: another message has this wamid already");
            wamid = WamidIs::Taken;
            continue;
        }
        gap.failed(&error);
        if shared.stop.is_cancelled() {
            if gap.failures > TRIES_IN_SHUTDOWN {
                gap.close_given_up();
                return;
            }
            tokio::time::sleep(COMMIT_RETRY.0).await;
        } else {
            let wait = backoff(gap.failures, COMMIT_RETRY.0, COMMIT_RETRY.1);
            shutdown::sleep(wait, &shared.stop).await;
        }
    }
}

/// The time during which an outcome is known here and not stored: counted, and logged when it begins and ends.
struct Gap<'a> {
    shared: &'a Shared,
    sender: &'a Sender,
    outcome: &'a Outcome<'a>,
    failures: u32,
}

impl<'a> Gap<'a> {
    const fn new(shared: &'a Shared, sender: &'a Sender, outcome: &'a Outcome<'a>) -> Self {
        Self {
            shared,
            sender,
            outcome,
            failures: 0,
        }
    }

    const fn is_sent(&self) -> bool {
        matches!(self.outcome.next, Next::Accepted(_))
    }

    fn failed(&mut self, error: &SiteError) {
        self.failures += 1;
        if self.failures > 1 {
            return;
        }
        if self.is_sent() {
            let unrecorded = self.shared.unrecorded.fetch_add(1, Ordering::Relaxed) + 1;
            metrics::set_persistence_gap("sent_unrecorded", unrecorded);
        }
        tracing::error!(
            severity = "CRITICAL",
            phone_number_id = %self.sender.phone_number_id(),
            message_id = %self.outcome.message.id,
            conversation_id = %self.outcome.message.conversation_id,
            lead_id = %self.outcome.message.lead_id,
            sqlstate = error.sqlstate(),
            hint = error.hint(),
            "PERSISTENCE: the outcome of a send can't be stored, trying again: {error}"
        );
    }

    fn close(&self) {
        if self.failures > 0 && self.is_sent() {
            let unrecorded = self.shared.unrecorded.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
            metrics::set_persistence_gap("sent_unrecorded", unrecorded);
        }
    }

    fn close_stored(&self) {
        self.close();
        if self.failures > 0 {
            tracing::info!(
                phone_number_id = %self.sender.phone_number_id(),
                message_id = %self.outcome.message.id,
                failures = self.failures,
                "PERSISTENCE: the outcome of the send is stored now"
            );
        }
    }

    fn close_given_up(&self) {
        self.close();
        tracing::error!(
            severity = "CRITICAL",
            phone_number_id = %self.sender.phone_number_id(),
            message_id = %self.outcome.message.id,
            "PERSISTENCE: stopped before the outcome of a send was stored; it will show as unknown until its status comes"
        );
    }
}

/// Commits the outcome in one transaction, tried once.
async fn commit_once(
    shared: &Shared,
    sender: &Sender,
    outcome: &Outcome<'_>,
    wamid: WamidIs,
) -> Result<Committed, SiteError> {
    let mut transaction = shared.pool.begin().await?;
    let tx = &mut transaction;
    let committed = match outcome.next {
        Next::Accepted(accepted) => accept(tx, outcome, accepted, wamid).await?,
        Next::Failed(cause) => fail(tx, outcome, cause).await?,
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
            let committed = put_back(tx, outcome, cause, wait).await?;
            if let Some((reach, length)) = pause {
                accounts::throttle(tx, outcome.account_id, *reach, *length).await?;
            }
            committed
        }
        Next::HoldNumber(cause) => hold(tx, shared, sender, outcome, cause).await?,
        Next::Unknown(why) => mark_unknown(tx, outcome, why).await?,
    };
    transaction.commit().await?;
    Ok(committed)
}

async fn accept(
    tx: &mut Transaction<'_>,
    outcome: &Outcome<'_>,
    accepted: &Accepted,
    wamid: WamidIs,
) -> Result<Committed, SiteError> {
    let acceptance = Acceptance {
        wamid: (wamid == WamidIs::Ours).then_some(&accepted.wamid),
        status: accepted.status,
        response: outcome.response,
    };
    let changed = status_events::accept(tx, outcome.message.id, &acceptance).await?;
    let released_number = outcome.probe && accounts::release(tx, outcome.account_id).await?;
    let status = MessageStatus::after_acceptance(accepted.status);
    Ok(Committed {
        // Only `accepted` or `held`: the inbox counts the statuses that reports bring.
        reached: changed.map(|_| status),
        released_number,
        ..Committed::default()
    })
}

async fn fail(tx: &mut Transaction<'_>, outcome: &Outcome<'_>, cause: &Cause) -> Result<Committed, SiteError> {
    let changed = messages::failed(tx, ended(outcome, cause)).await?;
    Ok(Committed::reached(changed, MessageStatus::Failed))
}

async fn put_back(
    tx: &mut Transaction<'_>,
    outcome: &Outcome<'_>,
    cause: &Cause,
    wait: Wait,
) -> Result<Committed, SiteError> {
    let changed = messages::put_back(tx, ended(outcome, cause), wait).await?;
    Ok(Committed::reached(changed, MessageStatus::Pending))
}

/// Holds the number. A release ends the message's wait.
async fn hold(
    tx: &mut Transaction<'_>,
    shared: &Shared,
    sender: &Sender,
    outcome: &Outcome<'_>,
    cause: &Cause,
) -> Result<Committed, SiteError> {
    let hold_probe = shared.settings.hold_probe;
    let wait = Wait {
        after: hold_wait(hold_probe, outcome.message.uncounted),
        consumed: false,
    };
    let committed = put_back(tx, outcome, cause, wait).await?;
    let hold = accounts::NumberHold {
        code: cause.code.map(Code::number).unwrap_or_default(),
        reason: &storable(&cause.message),
        token_sha256: &sender.token_sha256,
        probe_after: hold_probe,
    };
    Ok(Committed {
        held_number: accounts::hold(tx, outcome.account_id, &hold).await?,
        ..committed
    })
}

/// How long a refused message of a held number waits: one and a half probe intervals more after each refusal. More than
/// one, so that another message is the next probe; a message that is always refused for its own content would otherwise
/// keep the number held.
fn hold_wait(hold_probe: Duration, refused_before: i32) -> Duration {
    let refusals = u32::try_from(refused_before).unwrap_or(0).saturating_add(1);
    (hold_probe * 3 / 2)
        .saturating_mul(refusals)
        .min(hold_probe * MAX_HOLD_WAIT_PROBES)
}

async fn mark_unknown(tx: &mut Transaction<'_>, outcome: &Outcome<'_>, why: &str) -> Result<Committed, SiteError> {
    let changed = messages::lost(tx, attempt(outcome), why, outcome.response.cloned()).await?;
    Ok(Committed::reached(changed, MessageStatus::Unknown))
}

impl Committed {
    fn reached(changed: bool, status: MessageStatus) -> Self {
        Self {
            reached: changed.then_some(status),
            ..Self::default()
        }
    }
}

const fn attempt(outcome: &Outcome<'_>) -> messages::AttemptKey {
    messages::AttemptKey {
        id: outcome.message.id,
        lease_owner: outcome.message.lease_owner,
    }
}

fn ended(outcome: &Outcome<'_>, cause: &Cause) -> Ended {
    Ended {
        attempt: attempt(outcome),
        problem: Problem {
            code: cause.code.map(Code::number),
            class: cause.class,
            message: storable(&cause.message),
        },
        response: outcome.response.cloned(),
    }
}

/// Reports in the log and the metrics what was committed.
fn report(sender: &Sender, outcome: &Outcome<'_>, committed: &Committed) {
    let phone_number_id = sender.phone_number_id();
    let message = outcome.message;
    let (message_id, conversation_id) = (message.id, message.conversation_id);
    let reached = committed.reached;
    match outcome.next {
        Next::HoldNumber(cause) => {
            metrics::set_account_degraded(phone_number_id.as_str(), true);
            if committed.held_number {
                tracing::error!(
                    %phone_number_id, code = cause.code.map(Code::number), class = cause.class.as_str(),
                    "the number is held: Meta refuses to send for it ({}); its messages wait until the cause is gone. \
                     For codes 0 and 190 replace its access_token, for others see Meta's WhatsApp Manager",
                    cause.message
                );
            }
        }
        Next::Failed(cause) if reached.is_some() => tracing::warn!(
            %phone_number_id, %message_id, %conversation_id, code = cause.code.map(Code::number),
            class = cause.class.as_str(), "PERSISTENCE: the message failed"
        ),
        Next::Unknown(why) if reached.is_some() => tracing::warn!(
            %phone_number_id, %message_id, %conversation_id, why,
            "PERSISTENCE: it is not known whether the message was sent; its status will tell"
        ),
        Next::Accepted(_) => tracing::info!(
            %phone_number_id, %message_id, %conversation_id, lead_id = %message.lead_id, attempt = message.attempt,
            "PERSISTENCE: the message was sent and its outcome is stored"
        ),
        _ => {
            tracing::debug!(%phone_number_id, %message_id, reached = reached.map(MessageStatus::as_str), "attempt ended");
        }
    }
    if committed.released_number {
        metrics::set_account_degraded(phone_number_id.as_str(), false);
        tracing::info!(%phone_number_id, "the number is released: Meta accepts its messages again");
    }
    if let Some(status) = reached {
        metrics::count_message(Direction::Outbound.as_str(), status.as_str());
    }
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
