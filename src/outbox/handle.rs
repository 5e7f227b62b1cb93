//! What the rest of the server calls: an outbox is started, takes messages, and is waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::settings::OutboxSettings;
use super::shared::Shared;
use super::submit::{self, NewMessage, SubmitError, Submitted};
use super::wait::Delivered;
use super::{number, sweeper, watch};
use crate::health::Health;
use crate::provider::PhoneNumberId;
use crate::site_db::messages::Message;
use crate::site_db::{Pool, SiteError};

/// The handle on an outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Shared>);

impl Outbox {
    /// Sets the outbox up and starts its tasks, which end after `stop`: claiming stops at once, attempts under way are
    /// carried to their end within [`GRACE`](crate::shutdown::GRACE).
    #[must_use]
    pub fn start(
        pool: Pool,
        settings: OutboxSettings,
        health: &Health,
        stop: CancellationToken,
    ) -> (Self, JoinSet<()>) {
        let shared = Arc::new(Shared::new(pool, settings, stop));
        let mut tasks = JoinSet::new();
        for sender in shared.senders.values() {
            tasks.spawn(number::run(Arc::clone(&shared), Arc::clone(sender)));
        }
        tasks.spawn(watch::run(Arc::clone(&shared)));
        tasks.spawn(sweeper::run(Arc::clone(&shared), health.component("outbox")));
        (Self(shared), tasks)
    }

    /// Whether a number is ours.
    #[must_use]
    pub fn has_number(&self, number: &PhoneNumberId) -> bool {
        self.0.senders.contains_key(number)
    }

    /// The number to send from where the caller names none: the only one.
    #[must_use]
    pub fn only_number(&self) -> Option<PhoneNumberId> {
        match self.0.settings.accounts.as_slice() {
            [only] => Some(only.account.phone_number_id().clone()),
            _ => None,
        }
    }

    /// Commits a message `pending` and wakes the sender. A client's id that is known gives the message that it stands
    /// for, and nothing is stored.
    ///
    /// # Errors
    /// See [`SubmitError`]; then nothing is stored.
    pub async fn submit(&self, message: NewMessage) -> Result<Submitted, SubmitError> {
        submit::submit(&self.0, message).await
    }

    /// Waits until the message is settled, at most this long, and not into a shutdown while nothing is under way.
    ///
    /// # Errors
    /// The Site DB can't be asked.
    pub async fn wait(&self, id: Uuid, patience: Duration) -> Result<Option<Message>, SiteError> {
        self.0.wait(id, patience).await
    }

    /// Waits for a client that takes the message as failed when its patience ends: what was not begun by then is
    /// cancelled, atomically; an attempt that is under way is waited for.
    ///
    /// Carried to its end even if the caller goes away, so that the message does not outlive the client's interest.
    ///
    /// # Errors
    /// The Site DB can't be asked: then nothing is known.
    pub async fn wait_or_cancel(&self, id: Uuid, patience: Duration) -> Result<Option<Delivered>, SiteError> {
        let shared = Arc::clone(&self.0);
        let waiting = tokio::spawn(async move { shared.wait_or_cancel(id, patience).await });
        // A task that panicked, or a runtime that is going down, leaves the message to `send_by`.
        waiting.await.unwrap_or_else(|_| Err(SiteError::Stopped))
    }
}
