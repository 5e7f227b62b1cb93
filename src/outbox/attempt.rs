//! One attempt: calls the provider once and commits the outcome.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use super::commit::{self, COMMIT_RESERVE, Outcome};
use super::outcome::{self, Next, Tries};
use super::shared::{LEASE_SLACK, Sender, Shared};
use crate::failpoint;
use crate::metrics;
use crate::provider::{Accepted, Answer, Answered, Code, OpaqueId, Response, Sending};
use crate::shutdown;
use crate::site_db::messages::Claimed;
use crate::site_db::{SiteError, leads, storable};

/// A claimed message, and how it was claimed.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) message: Claimed,
    pub(super) account_id: Uuid,
    /// Whether the number is held and this message tests if it can send again.
    pub(super) probe: bool,
    pub(super) claimed_at: Instant,
}

/// Calls the provider once and commits the outcome.
pub(super) async fn run(shared: &Arc<Shared>, sender: &Sender, attempt: Attempt) {
    failpoint::reach(failpoint::name::SEND_AFTER_SENDING);
    let message = &attempt.message;
    let Answered { answer, response } = call(shared, sender, &attempt).await;
    failpoint::reach(failpoint::name::SEND_BEFORE_OUTCOME);
    let tries = Tries {
        attempt: u32::try_from(message.attempt).unwrap_or(1),
        uncounted: u32::try_from(message.uncounted).unwrap_or(0),
    };
    let next = blame_message(outcome::next(answer, tries, shared.settings.retry), sender, &attempt);
    count(&next);
    let response = response.map(|response| Response {
        body: storable(&response.body),
        ..response
    });
    let outcome = Outcome {
        message,
        account_id: attempt.account_id,
        probe: attempt.probe,
        next: &next,
        response: response.as_ref(),
    };
    commit::until_stored(shared, sender, &outcome).await;
    failpoint::reach(failpoint::name::SEND_AFTER_OUTCOME);
    shared.waiters.committed(message.id);
    if let Next::Accepted(accepted) = &next {
        learn_recipient(shared, message, accepted).await;
    }
}

/// Corrects `next` by what happened to the number's other messages: if only this message is refused with an account
/// error, it fails instead of holding the number.
fn blame_message(next: Next, sender: &Sender, attempt: &Attempt) -> Next {
    let id = attempt.message.id;
    match next {
        Next::HoldNumber(cause) if sender.message_blame.refused(id, cause.class, Instant::now()) => Next::Failed(cause),
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

/// Stores the recipient's WhatsApp ids in the lead. A failure is only logged: the next inbound message has the ids too.
async fn learn_recipient(shared: &Shared, message: &Claimed, accepted: &Accepted) {
    let known = &accepted.recipient;
    if known.wa_id == accepted.dialled && known.user_id.is_none() {
        return;
    }
    if let Err(error) = store_recipient(shared, message.lead_id, accepted).await {
        tracing::warn!(lead_id = %message.lead_id, sqlstate = error.sqlstate(), "the lead's WhatsApp id was not stored: {error}");
    }
}

async fn store_recipient(shared: &Shared, lead_id: Uuid, accepted: &Accepted) -> Result<(), SiteError> {
    let mut transaction = shared.pool.begin().await?;
    leads::learn_recipient(
        &mut transaction,
        lead_id,
        accepted.dialled.as_ref(),
        &accepted.recipient,
    )
    .await?;
    transaction.commit().await
}
