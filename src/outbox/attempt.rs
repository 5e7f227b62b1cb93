//! One attempt: the call, and its outcome committed, whatever it takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::outcome::{self, Answer, Cause, Next, Policy, Tries};
use super::{Sender, Shared};
use crate::failpoint;
use crate::metrics;
use crate::provider::cloud::send;
use crate::provider::{ContactIdentity, Direction, OpaqueId, WaId};
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::messages::{self, Claimed, Problem, Response};
use crate::site_db::status_events::{self, Acceptance};
use crate::site_db::{MessageStatus, SiteError, accounts, leads, storable};

/// A claimed message and what is to be known about its claim.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) message: Claimed,
    pub(super) account_id: Uuid,
    /// Whether the number is held and this message tries whether it still has to be.
    pub(super) probe: bool,
    pub(super) claimed_at: Instant,
}

/// How long one try to commit an outcome may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits between such tries.
const COMMIT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest that a refused message of a held number is left out of the probes, in steps of one and a half of them: six probes,
/// so that seven messages take turns and a single one is tried as often as that.
const MOST_HELD: u32 = 4;
/// What a stop leaves, of [`shutdown::GRACE`], for committing after the last call had to end.
const COMMIT_RESERVE: Duration = Duration::from_secs(2);

/// Calls the Graph API once and writes down what came of it.
pub(super) async fn run(shared: &Arc<Shared>, sender: &Sender, attempt: Attempt) {
    failpoint::reach(failpoint::name::SEND_AFTER_SENDING);
    let message = &attempt.message;
    let (answer, response) = call(shared, sender, &attempt).await;
    failpoint::reach(failpoint::name::SEND_BEFORE_OUTCOME);
    let whatsapp = &shared.config.whatsapp;
    let policy = Policy {
        max_attempts: whatsapp.max_attempts,
        initial: whatsapp.retry_initial,
        max: whatsapp.retry_max,
    };
    let tries = Tries {
        attempt: u32::try_from(message.attempt).unwrap_or(1),
        throttles: u32::try_from(message.throttles).unwrap_or(0),
    };
    let next = judged(outcome::next(answer, tries, policy), sender, &attempt);
    count(&next);
    commit(shared, sender, &attempt, &next, &response).await;
    failpoint::reach(failpoint::name::SEND_AFTER_OUTCOME);
    shared.waiters.tell(message.id);
    if let Next::Accepted { accepted, .. } = &next {
        learn_recipient(shared, message, accepted).await;
    }
}

/// What comes next, in the light of what the number's other messages met: one that alone is refused for the account's
/// sake fails, and the number goes on without it.
fn judged(next: Next, sender: &Sender, attempt: &Attempt) -> Next {
    let id = attempt.message.id;
    match next {
        Next::Hold(cause) if sender.suspects.refused(id, cause.code, Instant::now()) => Next::Failed(cause),
        Next::Accepted { .. } => {
            sender.suspects.accepted(id, attempt.claimed_at);
            next
        }
        _ => next,
    }
}

async fn call(shared: &Shared, sender: &Sender, attempt: &Attempt) -> (Answer, Response) {
    let message = &attempt.message;
    // After a long stall (a suspended machine) another server may have swept the lease: don't begin what it takes for
    // ended.
    if attempt.claimed_at.elapsed() > super::LEASE_SLACK / 2 {
        return (
            Answer::NotSent("this process stalled before the call"),
            Response::default(),
        );
    }
    let request = message.request.as_deref().unwrap_or_default();
    let body = match send::with_opaque(request, OpaqueId(message.id)) {
        Ok(body) => body,
        // A row that somebody else wrote: refused as Meta would refuse it.
        Err(error) => {
            return (
                Answer::Refused {
                    status: 400,
                    error,
                    retry_after: None,
                },
                Response::default(),
            );
        }
    };
    let account = &sender.account;
    let started = Instant::now();
    let sending = shared.graph.send(
        message.api_version.as_deref(),
        &account.phone_number_id,
        &account.access_token,
        body,
    );
    let too_late = async {
        shared.stop.cancelled().await;
        tokio::time::sleep(shutdown::GRACE.saturating_sub(COMMIT_RESERVE)).await;
    };
    let answered = tokio::select! {
        biased;
        answered = sending => answered,
        () = too_late => (Answer::Lost("this process was stopped before the answer"), Response::default()),
    };
    metrics::observe_send(started.elapsed());
    answered
}

/// Counts what the call brought; the database's part is counted when it is committed.
fn count(next: &Next) {
    match next {
        Next::Failed(cause) | Next::Hold(cause) | Next::Pending { cause, .. } => {
            metrics::count_send_error(cause.label, cause.class);
        }
        Next::Unknown(_) => metrics::count_send_error(None, "unknown"),
        Next::Accepted { .. } => {}
    }
}

/// Commits the outcome: again and again until the Site DB takes it, or the process must end. Then the row's lease makes
/// it `unknown`. The log names our row, never the wamid: that has the recipient's number in it, in base64.
async fn commit(shared: &Shared, sender: &Sender, attempt: &Attempt, next: &Next, response: &Response) {
    let (id, phone_number_id) = (attempt.message.id, &sender.account.phone_number_id);
    let sent = matches!(next, Next::Accepted { .. });
    let mut with_wamid = true;
    let mut failures = 0_u32;
    let result = loop {
        let tried = tokio::time::timeout(
            COMMIT_TIMEOUT,
            commit_once(shared, sender, attempt, next, response, with_wamid),
        )
        .await
        .unwrap_or(Err(SiteError::timed_out()));
        let error = match tried {
            Ok(reached) => break Some(reached),
            Err(error) => error,
        };
        if with_wamid && error.constraint() == Some("whatsapp_messages_wamid") {
            tracing::error!(%phone_number_id, message_id = %id, "PERSISTENCE: another message has this wamid already");
            with_wamid = false;
            continue;
        }
        if failures == 0 {
            if sent {
                let unrecorded = shared.unrecorded.fetch_add(1, Ordering::Relaxed) + 1;
                metrics::set_persistence_gap("sent_unrecorded", unrecorded);
            }
            tracing::error!(
                severity = "CRITICAL",
                %phone_number_id,
                message_id = %id,
                conversation_id = %attempt.message.conversation_id,
                lead_id = %attempt.message.lead_id,
                sqlstate = error.sqlstate(),
                hint = error.hint(),
                "PERSISTENCE: the outcome of a send can't be stored, trying on: {error}"
            );
        }
        failures += 1;
        let wait = backoff(failures, COMMIT_RETRY.0, COMMIT_RETRY.1);
        // During a shutdown one more try, quickly; the grace of the whole process bounds the rest.
        if shared.stop.is_cancelled() {
            if failures > 3 {
                break None;
            }
            tokio::time::sleep(COMMIT_RETRY.0).await;
        } else {
            shutdown::sleep(wait, &shared.stop).await;
        }
    };
    if failures > 0 && sent {
        let unrecorded = shared.unrecorded.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        metrics::set_persistence_gap("sent_unrecorded", unrecorded);
    }
    match result {
        Some(reached) => {
            if failures > 0 {
                tracing::info!(%phone_number_id, message_id = %id, failures, "PERSISTENCE: the outcome of the send is stored now");
            }
            if let Some(status) = reached {
                metrics::count_message(Direction::Outbound.as_str(), status.as_str());
            }
        }
        None => tracing::error!(
            severity = "CRITICAL",
            %phone_number_id,
            message_id = %id,
            "PERSISTENCE: stopped before the outcome of a send was stored; it will show as unknown until its status comes"
        ),
    }
}

/// One transaction. Returns the status that the message reached by it; `None` where it was settled before.
async fn commit_once(
    shared: &Shared,
    sender: &Sender,
    attempt: &Attempt,
    next: &Next,
    response: &Response,
    with_wamid: bool,
) -> Result<Option<MessageStatus>, SiteError> {
    let message = &attempt.message;
    let key = messages::AttemptKey {
        id: message.id,
        lease_owner: message.lease_owner,
    };
    let phone_number_id = &sender.account.phone_number_id;
    let mut held_now = false;
    let mut released = false;
    let mut transaction = shared.pool.begin().await?;
    let reached = match next {
        Next::Accepted { accepted, held } => {
            let acceptance = Acceptance {
                wamid: with_wamid.then_some(&accepted.wamid),
                held: *held,
                response,
            };
            let changed = status_events::accept(&mut transaction, message.id, &acceptance).await?;
            if attempt.probe {
                released = accounts::release(&mut transaction, attempt.account_id).await?;
            }
            // The inbox counts what its statuses reached.
            changed.map(|_| {
                if *held {
                    MessageStatus::Held
                } else {
                    MessageStatus::Accepted
                }
            })
        }
        Next::Failed(cause) => messages::failed(&mut transaction, key, &problem(cause), response)
            .await?
            .then_some(MessageStatus::Failed),
        Next::Pending {
            wait,
            consumed,
            pause,
            cause,
        } => {
            let waits = messages::Wait {
                after: *wait,
                consumed: *consumed,
            };
            let counted = messages::put_back(&mut transaction, key, waits, &problem(cause), response).await?;
            if let Some((reach, length)) = pause {
                accounts::throttle(&mut transaction, attempt.account_id, *reach, *length).await?;
            }
            counted.then_some(MessageStatus::Pending)
        }
        Next::Hold(cause) => {
            // Beyond the next probe, and further each time, so that the probes take turns: else one message that is
            // refused for its own sake would hold the number for ever. A release ends the wait.
            let probes = u32::try_from(message.throttles)
                .unwrap_or(0)
                .saturating_add(1)
                .min(MOST_HELD);
            let waits = messages::Wait {
                after: (shared.config.whatsapp.hold_probe * 3 / 2).saturating_mul(probes),
                consumed: false,
            };
            let counted = messages::put_back(&mut transaction, key, waits, &problem(cause), response).await?;
            held_now = accounts::hold(
                &mut transaction,
                attempt.account_id,
                &accounts::Hold {
                    code: cause.code.unwrap_or_default(),
                    reason: &storable(&cause.message),
                    token_sha256: &sender.token_sha256,
                    probe_after: shared.config.whatsapp.hold_probe,
                },
            )
            .await?;
            counted.then_some(MessageStatus::Pending)
        }
        Next::Unknown(why) => messages::lost(&mut transaction, key, why, response)
            .await?
            .then_some(MessageStatus::Unknown),
    };
    transaction.commit().await?;

    let (message_id, conversation_id) = (message.id, message.conversation_id);
    match next {
        Next::Hold(cause) => {
            metrics::set_account_degraded(phone_number_id, true);
            if held_now {
                tracing::error!(
                    %phone_number_id, code = cause.code, class = cause.class,
                    "the number is held: Meta refuses to send for it ({}); its messages wait until the cause is gone. \
                     For codes 0 and 190 replace its access_token, for others see Meta's WhatsApp Manager",
                    cause.message
                );
            }
        }
        Next::Failed(cause) if reached.is_some() => tracing::warn!(
            %phone_number_id, %message_id, %conversation_id, code = cause.code, class = cause.class,
            "PERSISTENCE: the message failed"
        ),
        Next::Unknown(why) if reached.is_some() => tracing::warn!(
            %phone_number_id, %message_id, %conversation_id, why,
            "PERSISTENCE: it is not known whether the message was sent; its status will tell"
        ),
        Next::Accepted { .. } => tracing::info!(
            %phone_number_id, %message_id, %conversation_id, lead_id = %message.lead_id, attempt = message.attempt,
            "PERSISTENCE: the message was sent and its outcome is stored"
        ),
        _ => {
            tracing::debug!(%phone_number_id, %message_id, reached = reached.map(MessageStatus::as_str), "attempt ended")
        }
    }
    if released {
        metrics::set_account_degraded(phone_number_id, false);
        tracing::info!(%phone_number_id, "the number is released: Meta accepts its messages again");
    }
    Ok(reached)
}

fn problem(cause: &Cause) -> Problem {
    Problem {
        code: cause.code,
        class: cause.class,
        message: storable(&cause.message),
    }
}

/// The lead learns how WhatsApp knows it. Best effort, after the outcome: an inbound message tells it as well.
async fn learn_recipient(shared: &Shared, message: &Claimed, accepted: &send::Accepted) {
    let dialled = message
        .request
        .as_deref()
        .and_then(|request| match send::read(request) {
            Ok(send::Request::Message(outbound)) => outbound.contact?.wa_id,
            _ => None,
        });
    let known = ContactIdentity {
        wa_id: accepted.wa_id.clone(),
        user_id: accepted.user_id.clone(),
        ..ContactIdentity::default()
    };
    if known.wa_id.as_ref() == dialled.as_ref() && known.user_id.is_none() {
        return;
    }
    if let Err(error) = learn(shared, message.lead_id, dialled.as_ref(), &known).await {
        tracing::warn!(lead_id = %message.lead_id, sqlstate = error.sqlstate(), "the lead's WhatsApp id was not stored: {error}");
    }
}

async fn learn(
    shared: &Shared,
    lead_id: Uuid,
    dialled: Option<&WaId>,
    known: &ContactIdentity,
) -> Result<(), SiteError> {
    let mut transaction = shared.pool.begin().await?;
    leads::learn_recipient(&mut transaction, lead_id, dialled, known).await?;
    transaction.commit().await?;
    Ok(())
}
