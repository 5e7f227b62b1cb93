//! Waiting for a message: until it is settled, or until its client's patience ends and it is cancelled.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::shared::{Hold, Shared};
use super::submit::Submitted;
use crate::metrics;
use crate::provider::{Direction, ErrorClass, PhoneNumberId};
use crate::retry::Disposition;
use crate::site_db::messages::{self, MessageRow};
use crate::site_db::{MessageStatus, SiteError};

/// How often a waiter queries its message itself, in case the events of other processes
/// ([`EventLog`](crate::realtime::EventLog)) don't come.
const QUERY_EVERY: Duration = Duration::from_secs(2);
/// Tries to cancel a message, between which an attempt may have begun and ended.
const CANCEL_TRIES: u32 = 3;

/// What a waiting client gets.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// Settled, or still under way when the patience ended.
    Known(Box<MessageRow>),
    /// It was not sent in time and is cancelled: it will never be sent.
    Cancelled(Box<MessageRow>),
    /// Its number is held, so it was cancelled at once: it will never be sent.
    Held(Box<MessageRow>, Hold),
}

impl Shared {
    /// See [`Outbox::wait`](super::Outbox::wait).
    pub(super) async fn wait(
        &self,
        mut submitted: Submitted,
        patience: Duration,
    ) -> Result<Option<MessageRow>, Arc<SiteError>> {
        let hold = self.hold_of(&submitted);
        let deadline = Instant::now() + patience;
        let waited = self.wait_until(&mut submitted, deadline, hold, Repeated::Sent);
        Ok(waited.await?.message)
    }

    /// Why the number is held, as it was known last.
    pub(super) fn held(&self, number: &PhoneNumberId) -> Option<Hold> {
        self.senders.get(number)?.hold().borrow().clone()
    }

    fn hold_of(&self, submitted: &Submitted) -> Option<watch::Receiver<Option<Hold>>> {
        let sender = self.senders.get(&submitted.phone_number_id)?;
        Some(sender.hold())
    }

    /// Waits until the message is settled; or its number is held, and no probe of it is due; or it is found to repeat another one.
    async fn wait_until(
        &self,
        submitted: &mut Submitted,
        deadline: Instant,
        mut hold: Option<watch::Receiver<Option<Hold>>>,
        repeated: Repeated,
    ) -> Result<Waited, Arc<SiteError>> {
        let id = submitted.id;
        // Registered before the message could be sent, so that no outcome is missed.
        let (ticket, changed) = &mut submitted.waiting;
        let mut known = submitted.fresh.take().map(|row| *row);
        loop {
            let is_fresh = known.is_some();
            let found = match known.take() {
                Some(row) => Ok(Some(row)),
                None => self.find(id).await,
            };
            let stopping = self.stop.is_cancelled();
            if let Ok(Some(message)) = &found
                && repeated == Repeated::Joined
                && let Some(first) = self.repeated_by(message, is_fresh).await
            {
                return found.map(|message| Waited {
                    message,
                    repeats: Some(first),
                });
            }
            let ends = match &found {
                Ok(None) => true,
                Ok(Some(message)) => {
                    message.status.is_settled()
                        || stopping && message.status == MessageStatus::Pending
                        || is_held(message, &hold)
                }
                Err(error) => error.disposition() != Disposition::Transient,
            };
            if ends || Instant::now() >= deadline {
                return found.map(|message| Waited { message, repeats: None });
            }
            // If another process sends it, or a status webhook settles it, nothing here is notified: query now and then.
            tokio::select! {
                () = &mut *changed => {}
                () = hold_changes(&mut hold) => {}
                () = tokio::time::sleep(QUERY_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.stop.cancelled(), if !stopping => {}
            }
            // Registered before the query, so that an outcome committed between the two is not missed.
            *changed = ticket.changed();
        }
    }

    /// The message that a waiting one repeats. `in_memory`: the row is new, the Site DB is not asked.
    async fn repeated_by(&self, message: &MessageRow, in_memory: bool) -> Option<Uuid> {
        if message.status != MessageStatus::Pending || message.client_id.is_some() {
            return None;
        }
        if let Some(first) = self.repeats.repeated_by(message.id) {
            let stands = self.stands_for_repeats(first).await;
            return stands.ok().flatten().map(|first| first.id);
        }
        if in_memory {
            return None;
        }
        // Asked again soon.
        messages::repeated_by(&self.pool, message.id).await.ok().flatten()
    }

    /// Waits for the message; if it repeats another one that is not its client's any more, cancels it and waits for that one.
    pub(super) async fn wait_or_cancel(&self, submitted: Submitted) -> Result<Option<Delivered>, Arc<SiteError>> {
        let (hold, mut submitted) = (self.hold_of(&submitted), submitted);
        let deadline = Instant::now() + submitted.send_within.unwrap_or_default();
        let waited = loop {
            let waited = self
                .wait_until(&mut submitted, deadline, hold.clone(), Repeated::Joined)
                .await?;
            let Some(first) = waited.repeats else {
                break waited.message;
            };
            // Otherwise it is being sent, or settled.
            if messages::cancel_repeat(&self.pool, submitted.id).await? {
                metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Cancelled.as_str());
                submitted = submitted.instead(first);
            }
        };
        let id = submitted.id;
        let Some(message) = waited else {
            return Ok(None);
        };
        if message.status == MessageStatus::Cancelled {
            return Ok(Some(Delivered::Cancelled(Box::new(message))));
        }
        if message.status.is_settled() {
            return Ok(Some(Delivered::Known(Box::new(message))));
        }
        let refused = refusal(&message);
        // Between attempts the message can be cancelled; during an attempt, wait for its outcome first.
        let last = Instant::now() + self.lease();
        let mut tries = 0;
        loop {
            if messages::cancel_waiting(&self.pool, id).await? {
                metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Cancelled.as_str());
                self.waiters.committed(id);
                let message = self.find(id).await?;
                return Ok(message.map(|message| cancelled(message, hold, refused)));
            }
            let left = last.saturating_duration_since(Instant::now());
            let Some(message) = self.wait_while_sending(id, left).await? else {
                return Ok(None);
            };
            tries += 1;
            match message.status {
                // It waits for its next attempt since it was looked at, or it is to be sent without a client, and is not cancelled.
                MessageStatus::Pending if tries < CANCEL_TRIES && !left.is_zero() => {}
                MessageStatus::Cancelled => return Ok(Some(Delivered::Cancelled(Box::new(message)))),
                _ => return Ok(Some(Delivered::Known(Box::new(message)))),
            }
        }
    }

    /// Waits until the message is anything but `sending`.
    async fn wait_while_sending(&self, id: Uuid, patience: Duration) -> Result<Option<MessageRow>, Arc<SiteError>> {
        let deadline = Instant::now() + patience;
        let ticket = self.waiters.register(id);
        loop {
            let changed = ticket.changed();
            let found = self.find(id).await?;
            let sending = found
                .as_ref()
                .is_some_and(|message| message.status == MessageStatus::Sending);
            if !sending || Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(QUERY_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}

/// What a wait brought.
struct Waited {
    /// The message as it was seen last; `None`: there is no such row.
    message: Option<MessageRow>,
    /// The message that it repeats.
    repeats: Option<Uuid>,
}

/// What happens to a message that is found to repeat another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeated {
    /// Nothing: its client has been told that it will be sent.
    Sent,
    /// Its client gets the other one's answer.
    Joined,
}

/// Whether the message waits for a held number, and is not needed to test it: the provider has refused it, or the number is
/// held and no probe is due.
fn is_held(message: &MessageRow, hold: &Option<watch::Receiver<Option<Hold>>>) -> bool {
    let held = || {
        hold.as_ref()
            .is_some_and(|hold| hold.borrow().as_ref().is_some_and(|hold| !hold.probe_due))
    };
    message.status == MessageStatus::Pending && (refusal(message).is_some() || held())
}

/// Ends when the number is held or released, or a probe is due or refused.
async fn hold_changes(hold: &mut Option<watch::Receiver<Option<Hold>>>) {
    let changed = match hold {
        Some(hold) => hold.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending().await
    }
}

/// Why the provider refused the message, if it refuses all of its number's. The row says so as soon as the outcome is
/// committed, a moment before the number's hold is told.
fn refusal(message: &MessageRow) -> Option<Hold> {
    (message.error_class.as_deref() == Some(ErrorClass::Account.as_str())).then(|| Hold {
        code: message.error_code.unwrap_or_default(),
        reason: message.error_message.clone().unwrap_or_default(),
        probe_due: false,
    })
}

fn cancelled(message: MessageRow, hold: Option<watch::Receiver<Option<Hold>>>, refused: Option<Hold>) -> Delivered {
    let message = Box::new(message);
    match hold.and_then(|hold| hold.borrow().clone()).or(refused) {
        Some(hold) => Delivered::Held(message, hold),
        None => Delivered::Cancelled(message),
    }
}
