//! What the rest of the server calls: start an outbox, submit a message, wait for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::ClientThatWaits;
use super::settings::OutboxSettings;
use super::shared::{Hold, Shared};
use super::submit::{self, NewMessage, SubmitError, Submitted};
use super::wait::Delivered;
use super::{elsewhere, history, number, sweeper};
use crate::health::Health;
use crate::provider::PhoneNumberId;
use crate::realtime::EventLog;
use crate::site_db::messages::MessageRow;
use crate::site_db::{Pool, SiteError};

/// The handle on an outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Shared>);

impl Outbox {
    /// Starts the outbox's tasks. After `stop` no more messages are claimed, and attempts under way finish within
    /// [`GRACE`](crate::shutdown::GRACE).
    #[must_use]
    pub fn start(
        pool: Pool,
        settings: OutboxSettings,
        events: &EventLog,
        health: &Health,
        stop: CancellationToken,
    ) -> (Self, JoinSet<()>) {
        let shared = Arc::new(Shared::new(pool, settings, health, stop));
        let mut tasks = JoinSet::new();
        for sender in shared.senders.values() {
            tasks.spawn(number::run(Arc::clone(&shared), Arc::clone(sender)));
        }
        tasks.spawn(elsewhere::run(Arc::clone(&shared), events.subscribe()));
        tasks.spawn(history::run(Arc::clone(&shared)));
        tasks.spawn(sweeper::run(Arc::clone(&shared), health.component("outbox")));
        (Self(shared), tasks)
    }

    /// Whether the number is configured.
    #[must_use]
    pub fn has_number(&self, number: &PhoneNumberId) -> bool {
        self.0.senders.contains_key(number)
    }

    /// Commits a message as `pending` and wakes the sender. If the client used this client id before, returns that
    /// message and stores nothing.
    ///
    /// # Errors
    /// See [`SubmitError`]; then nothing is stored, unless it is [`SubmitError::InDoubt`].
    pub async fn submit(&self, message: NewMessage) -> Result<Submitted, SubmitError> {
        submit::submit(&self.0, message).await
    }

    /// Why the number is held, as it was known last; `None` if it may send.
    #[must_use]
    pub fn held(&self, number: &PhoneNumberId) -> Option<Hold> {
        self.0.held(number)
    }

    /// Waits until the message is settled, for at most `patience`. Returns early if the message waits for a held number, and
    /// in a shutdown if it is still `pending`.
    ///
    /// # Errors
    /// The Site DB can't be asked.
    pub async fn wait(&self, submitted: Submitted, patience: Duration) -> Result<Option<MessageRow>, Arc<SiteError>> {
        self.0.wait(submitted, patience).await
    }

    /// Waits for a client that treats the message as failed after the time that it named ([`NewMessage::send_within`], which
    /// counts for each message of the same conversation that is before it as well): a message that is not being sent by then
    /// is cancelled atomically; if an attempt is under way, waits for its end. A message whose number is held is cancelled at
    /// once.
    ///
    /// Goes on even if the caller's future is dropped, so that the message is not sent after its client gave up. That the
    /// client left is noted then, so that its repeat is recognised.
    ///
    /// # Errors
    /// The Site DB can't be asked: the message may be cancelled or not.
    pub async fn wait_or_cancel(&self, submitted: Submitted) -> Result<Option<Delivered>, Arc<SiteError>> {
        let shared = Arc::clone(&self.0);
        let mut submitted = submitted;
        let client = submitted.client.take();
        let client = client.unwrap_or_else(|| ClientThatWaits::new(&self.0, submitted.id));
        let waiting = tokio::spawn(async move { shared.wait_or_cancel(submitted).await });
        // If the task panicked or the runtime shuts down, `send_by` still keeps the message from being sent late.
        let delivered = waiting.await.unwrap_or_else(|_| Err(Arc::new(SiteError::Stopped)));
        client.done();
        delivered
    }
}
