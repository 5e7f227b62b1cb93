//! Waiting for a message: until it is settled, or until its client's patience ends and it is cancelled.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::shared::Shared;
use crate::metrics;
use crate::provider::Direction;
use crate::retry::Disposition;
use crate::site_db::messages::{self, MessageRow};
use crate::site_db::{MessageStatus, SiteError};

/// How often a waiter queries its message itself, in case [`other_processes`](crate::realtime::other_processes), which
/// queries for all waiters, fails.
const QUERY_EVERY: Duration = Duration::from_secs(2);

/// What a waiting client gets.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// Settled, or still under way when the patience ended.
    Known(Box<MessageRow>),
    /// It was not sent in time and is cancelled: it will never be sent.
    Cancelled(Box<MessageRow>),
}

impl Shared {
    /// See [`Outbox::wait`](super::Outbox::wait).
    pub(super) async fn wait(&self, id: Uuid, patience: Duration) -> Result<Option<MessageRow>, SiteError> {
        let deadline = Instant::now() + patience;
        let ticket = self.waiters.register(id);
        loop {
            // Registered before the query, so that an outcome committed between the two is not missed.
            let changed = ticket.changed();
            let found = messages::find(&self.pool, id).await;
            let stopping = self.stop.is_cancelled();
            match &found {
                Ok(None) => return found,
                Ok(Some(message)) if message.status.is_settled() => return found,
                Ok(Some(message)) if stopping && message.status == MessageStatus::Pending => return found,
                Ok(Some(_)) => {}
                Err(error) if error.disposition() != Disposition::Transient => return found,
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return found;
            }
            // If another process sends it, or a status webhook settles it, nothing here is notified: query now and then.
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(QUERY_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.stop.cancelled(), if !stopping => {}
            }
        }
    }

    pub(super) async fn wait_or_cancel(&self, id: Uuid, patience: Duration) -> Result<Option<Delivered>, SiteError> {
        let Some(message) = self.wait(id, patience).await? else {
            return Ok(None);
        };
        if message.status == MessageStatus::Cancelled {
            return Ok(Some(Delivered::Cancelled(Box::new(message))));
        }
        if message.status.is_settled() {
            return Ok(Some(Delivered::Known(Box::new(message))));
        }
        // Between attempts the message can be cancelled; during an attempt, wait for its outcome first.
        let last = Instant::now() + self.lease();
        loop {
            if messages::cancel_waiting(&self.pool, id).await? {
                metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Cancelled.as_str());
                self.waiters.committed(id);
                let message = messages::find(&self.pool, id).await?;
                return Ok(message.map(|message| Delivered::Cancelled(Box::new(message))));
            }
            let left = last.saturating_duration_since(Instant::now());
            let Some(message) = self.wait_while_sending(id, left).await? else {
                return Ok(None);
            };
            match message.status {
                MessageStatus::Pending if !left.is_zero() => {}
                MessageStatus::Cancelled => return Ok(Some(Delivered::Cancelled(Box::new(message)))),
                _ => return Ok(Some(Delivered::Known(Box::new(message)))),
            }
        }
    }

    /// Waits until the message is anything but `sending`.
    async fn wait_while_sending(&self, id: Uuid, patience: Duration) -> Result<Option<MessageRow>, SiteError> {
        let deadline = Instant::now() + patience;
        let ticket = self.waiters.register(id);
        loop {
            let changed = ticket.changed();
            let found = messages::find(&self.pool, id).await?;
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
