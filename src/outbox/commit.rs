//! Commits the outcome of an attempt, and repeats that until the Site DB takes it or the process must end. In the second
//! case the message becomes `unknown` when its lease expires.
//!
//! The log names our row's id, never the wamid: a wamid contains the recipient's number in base64.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Next;
use super::outcome_writer::{Committed, Outcome, WamidIs};
use super::shared::{Sender, Shared};
use crate::metrics;
use crate::provider::{Code, Direction};
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::{MessageStatus, SiteError};

/// First and longest wait between such tries.
const COMMIT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Tries during a shutdown; the grace of the whole process bounds them too.
const TRIES_IN_SHUTDOWN: u32 = 3;
/// The part of [`shutdown::GRACE`] that is kept for commits: calls are given up this long before it ends.
pub(super) const COMMIT_RESERVE: Duration = Duration::from_secs(2);
/// An outcome that waits for longer is logged. Shorter, it was a deadlock, or a connection that broke: the next try stores it.
const WAITS_AFTER: Duration = Duration::from_millis(500);

/// Commits the outcome together with others of its number, repeating until it is stored; reports in the log and the metrics.
pub(super) async fn until_stored(shared: &Shared, sender: &Sender, outcome: &Arc<Outcome>) {
    let mut gap = Gap::new(shared, sender, outcome);
    let mut wamid = WamidIs::Ours;
    loop {
        let error = match sender.commit_outcome(shared, Arc::clone(outcome), wamid).await {
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
    outcome: &'a Outcome,
    failures: u32,
    began: Instant,
    logged: bool,
}

impl<'a> Gap<'a> {
    fn new(shared: &'a Shared, sender: &'a Sender, outcome: &'a Outcome) -> Self {
        Self {
            shared,
            sender,
            outcome,
            failures: 0,
            began: Instant::now(),
            logged: false,
        }
    }

    const fn is_sent(&self) -> bool {
        matches!(self.outcome.next, Next::Accepted(_))
    }

    fn failed(&mut self, error: &SiteError) {
        self.failures += 1;
        if self.failures == 1 && self.is_sent() {
            let unrecorded = self.shared.unrecorded.fetch_add(1, Ordering::Relaxed) + 1;
            metrics::set_persistence_gap("sent_unrecorded", unrecorded);
        }
        if self.logged || self.began.elapsed() < WAITS_AFTER {
            return;
        }
        self.logged = true;
        let phone_number_id = self.sender.phone_number_id();
        let message = &self.outcome.message;
        let (sqlstate, hint) = (error.sqlstate(), error.hint());
        if self.is_sent() {
            tracing::error!(
                severity = "CRITICAL", %phone_number_id, message_id = %message.id, sqlstate, hint,
                conversation_id = %message.conversation_id, lead_id = %message.lead_id,
                "PERSISTENCE: a message was sent and that can't be stored, trying again: {error}"
            );
        } else {
            tracing::warn!(
                %phone_number_id, message_id = %message.id, sqlstate, hint,
                "PERSISTENCE: the outcome of a send can't be stored, trying again: {error}"
            );
        }
    }

    fn close(&self) {
        if self.failures > 0 && self.is_sent() {
            let unrecorded = self.shared.unrecorded.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
            metrics::set_persistence_gap("sent_unrecorded", unrecorded);
        }
    }

    fn close_stored(&self) {
        self.close();
        if self.logged {
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
        let (phone_number_id, message_id) = (self.sender.phone_number_id(), self.outcome.message.id);
        if self.is_sent() {
            tracing::error!(
                severity = "CRITICAL", %phone_number_id, %message_id,
                "PERSISTENCE: stopped before it was stored that a message was sent; it will show as unknown until its status comes"
            );
        } else {
            tracing::warn!(
                %phone_number_id, %message_id,
                "PERSISTENCE: stopped before the outcome of a send was stored; it will show as unknown"
            );
        }
    }
}

/// Reports in the log and the metrics what was committed.
fn report(sender: &Sender, outcome: &Outcome, committed: &Committed) {
    let phone_number_id = sender.phone_number_id();
    let message = &outcome.message;
    let (message_id, conversation_id) = (message.id, message.conversation_id);
    let reached = committed.reached;
    match &outcome.next {
        Next::HoldNumber(cause) => {
            metrics::set_account_degraded(phone_number_id.as_str(), true);
            if committed.held_number {
                // The health report's line says why, and what to do.
                let (code, class) = (cause.code.map(Code::number), cause.class.as_str());
                tracing::debug!(%phone_number_id, code, class, "the number is held");
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
        tracing::debug!(%phone_number_id, "the number is released: Meta accepts its messages again");
    }
    if let Some(status) = reached {
        metrics::count_message(Direction::Outbound.as_str(), status.as_str());
    }
}
