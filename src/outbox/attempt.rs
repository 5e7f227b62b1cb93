//! One attempt: calls the provider once and commits the outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::commit::{self, COMMIT_RESERVE};
use super::message_blame::Verdict;
use super::outcome::{self, Cause, Next, Tries};
use super::outcome_writer::{Outcome, hold_wait};
use super::shared::{LEASE_SLACK, Sender, Shared};
use crate::failpoint;
use crate::metrics;
use crate::provider::{Accepted, Answer, Answered, Code, OpaqueId, Response, Sending, WaId};
use crate::shutdown;
use crate::site_db::messages::{Claimed, ProblemClass};
use crate::site_db::{SiteError, leads, merging, storable};

/// How long a message that repeats another one waits before it is looked at again, unless it is cancelled before.
const REPEAT_WAITS: Duration = Duration::from_secs(1);

/// A claimed message, and how it was claimed.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) message: Claimed,
    /// Whether the number is held and this message tests if it can send again.
    pub(super) probe: bool,
    pub(super) claimed_at: Instant,
}

/// Calls the provider once and commits the outcome.
pub(super) async fn run(shared: &Arc<Shared>, sender: &Sender, mut attempt: Attempt) {
    failpoint::reach(failpoint::name::SEND_AFTER_SENDING);
    let (next, response) = match repeat(shared, attempt.message.id).await {
        Some(next) => (next, None),
        None => called(shared, sender, &attempt).await,
    };
    failpoint::reach(failpoint::name::SEND_BEFORE_OUTCOME);
    // The outcome may wait for the Site DB; the body need not.
    attempt.message.request = None;
    let response = response.map(|response| Response {
        body: storable(&response.body),
        ..response
    });
    let outcome = Arc::new(Outcome {
        message: attempt.message,
        probe: attempt.probe,
        next,
        response,
    });
    commit::until_stored(shared, sender, &outcome).await;
    failpoint::reach(failpoint::name::SEND_AFTER_OUTCOME);
    sender.ended(&outcome);
    shared.waiters.committed(outcome.message.id);
    if let Next::Accepted(accepted) = &outcome.next {
        learn_recipient(shared, &outcome.message, accepted).await;
    }
}

/// Calls the provider, and decides what happens to the message next.
async fn called(shared: &Shared, sender: &Sender, attempt: &Attempt) -> (Next, Option<Response>) {
    let Answered { answer, response } = call(shared, sender, attempt).await;
    sender.standing.answered(&answer);
    let tries = Tries {
        attempt: u32::try_from(attempt.message.attempt).unwrap_or(1),
        uncounted: u32::try_from(attempt.message.uncounted).unwrap_or(0),
    };
    let next = outcome::next(answer, tries, shared.settings.retry);
    let next = blame_message(next, sender, attempt, shared.settings.hold_probe);
    count(&next);
    (next, response)
}

/// If the message repeats one whose client has left since, it is not sent: it waits for a moment, in which its client is given the
/// first one's answer and it is cancelled. The claim has not seen that, because that the client left was not committed.
async fn repeat(shared: &Shared, id: Uuid) -> Option<Next> {
    let first = shared.repeats.repeated_by(id)?;
    // Where it can't be asked now, the message waits too.
    if let Ok(None) = shared.stands_for_repeats(first).await {
        return None;
    }
    Some(Next::Pending {
        wait: REPEAT_WAITS,
        consumed: false,
        pause: None,
        cause: Cause {
            code: None,
            class: ProblemClass::Repeat,
            message: "an equal request came before, whose client left without its answer".to_owned(),
        },
    })
}

/// Corrects `next` by what happened to the number's other messages: if only this message is refused with an account
/// error, it waits or fails instead of holding the number.
fn blame_message(next: Next, sender: &Sender, attempt: &Attempt, hold_probe: Duration) -> Next {
    let id = attempt.message.id;
    match next {
        Next::HoldNumber(cause) => {
            let client = attempt.message.client_name.as_deref().unwrap_or_default();
            match sender.message_blame.refused(id, client, cause.class, Instant::now()) {
                Verdict::NumberAtFault => Next::HoldNumber(cause),
                Verdict::MessageAtFault => Next::Failed(cause),
                Verdict::NotKnown => Next::Pending {
                    wait: hold_wait(hold_probe, attempt.message.uncounted),
                    consumed: false,
                    pause: None,
                    cause,
                },
            }
        }
        Next::Accepted(_) => {
            sender.message_blame.accepted(id, attempt.claimed_at);
            next
        }
        _ => next,
    }
}

async fn call(shared: &Shared, sender: &Sender, attempt: &Attempt) -> Answered {
    let message = &attempt.message;
    // After a long stall (a suspended machine) the lease may have expired, and another process may have set the message
    // `unknown`: do not send it then.
    if attempt.claimed_at.elapsed() > LEASE_SLACK / 2 {
        return Answer::NotSent("this process stalled before the call").into();
    }
    let started = Instant::now();
    let sending = sender.account.send(Sending {
        id: OpaqueId(message.id),
        request: message.request.as_deref().unwrap_or_default(),
        api_version: message.api_version.as_ref(),
    });
    let too_late = async {
        shared.stop.cancelled().await;
        tokio::time::sleep(shutdown::GRACE.saturating_sub(COMMIT_RESERVE)).await;
    };
    let answered = tokio::select! {
        biased;
        answered = sending => answered,
        () = too_late => Answer::Lost("this process was stopped before the answer").into(),
    };
    metrics::observe_send(started.elapsed());
    answered
}

/// Counts the call's errors by code and class. The message's new status is counted when it is committed.
fn count(next: &Next) {
    match next {
        Next::Failed(cause) | Next::HoldNumber(cause) | Next::Pending { cause, .. } => {
            let label = cause.code.and_then(Code::label).map(i64::from);
            metrics::count_send_error(label, cause.class.as_str());
        }
        Next::Unknown(_) => metrics::count_send_error(None, "unknown"),
        Next::Accepted(_) => {}
    }
}

/// Stores the recipient's WhatsApp ids in the lead, if they are news. A failure is only logged: the next inbound message has
/// the ids too.
async fn learn_recipient(shared: &Shared, message: &Claimed, accepted: &Accepted) {
    if !is_news(message, accepted) {
        return;
    }
    if let Err(error) = store_recipient(shared, message.lead_id, accepted).await {
        tracing::warn!(lead_id = %message.lead_id, sqlstate = error.sqlstate(), "the lead's WhatsApp id was not stored: {error}");
    }
}

/// Whether the answer names an id that the lead lacked when the message was claimed, or another number than the one dialled.
fn is_news(message: &Claimed, accepted: &Accepted) -> bool {
    let known = &accepted.recipient;
    let (wa_id, user_id) = (message.lead_wa_id.as_deref(), message.lead_user_id.as_deref());
    let number = known.wa_id.as_ref().map(WaId::as_str);
    let renumbered = number.is_some() && known.wa_id != accepted.dialled && number != wa_id;
    renumbered || (wa_id.is_none() && number.is_some()) || (user_id.is_none() && known.user_id.is_some())
}

async fn store_recipient(shared: &Shared, lead_id: Uuid, accepted: &Accepted) -> Result<(), SiteError> {
    let (dialled, recipient) = (accepted.dialled.as_ref(), &accepted.recipient);
    let learnt = async || {
        let mut transaction = shared.pool.begin().await?;
        let several = leads::learn_recipient(&mut transaction, lead_id, dialled, recipient).await?;
        transaction.commit().await?;
        Ok(several)
    };
    let several = match learnt().await {
        Err(SiteError::Merged) => learnt().await?,
        several => several?,
    };
    if several {
        merging::settle_due(&shared.pool).await?;
    }
    Ok(())
}
