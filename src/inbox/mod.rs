//! Meta's webhooks: taken, kept, and turned into messages, statuses and leads.
//!
//! ```text
//! POST /webhook ─→ Inbox::receive: signature → raw event committed → 200
//!                          │ wakes
//!                  Worker: claim → each part in a savepoint → commit → metrics, log
//! ```
//!
//! Two steps, because Meta forgets what was answered with 200: the first does nothing that could fail but one insert, and
//! the second can be repeated. Everything in it is idempotent (unique wamids, unique reports, statuses that only go
//! forward), so a crash, a retry of Meta's, a regrouped batch or a replay by hand change nothing twice.
//!
//! What it leaves alone: routes (the HTTP server asks [`Inbox::receive`] and answers), and what the daemon or the user
//! interface make of the rows.
//!
//! | module | its job |
//! |---|---|
//! | [`worker`] | claims events, retries them, says how it goes |
//! | `process` | one event: its parts in portions, failures kept apart |
//! | `store` | the statements |

mod process;
mod store;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::PgPool;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::failpoint;
use crate::provider::cloud::signature::{self, SignatureError};

pub use worker::{Worker, WorkerSettings};

/// Meta gives a callback some seconds before it calls it failed; it is better to say so ourselves, with a 503.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A raw event's id: `webhook_events.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub Uuid);

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is not Meta's: answer 401. Nothing was stored.
    #[error("the webhook is not genuine")]
    Forged(#[source] SignatureError),
    /// The Site DB did not take it: answer 503, and Meta comes again.
    #[error("the webhook could not be stored")]
    NotStored(#[source] sqlx::Error),
    /// The Site DB did not answer in time: the same. The event may be there or not; a second copy does no harm.
    #[error("the webhook was not stored within {} s", RECEIVE_TIMEOUT.as_secs())]
    TimedOut,
}

/// Takes webhooks. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Inbox {
    pool: PgPool,
    secrets: Arc<[SecretString]>,
    arrived: Arc<Notify>,
}

impl Inbox {
    /// An inbox that believes these app secrets.
    #[must_use]
    pub fn new(pool: PgPool, app_secrets: Vec<SecretString>) -> Self {
        Self {
            pool,
            secrets: app_secrets.into(),
            arrived: Arc::new(Notify::new()),
        }
    }

    /// Checks and stores a webhook; `signature` is the value of `X-Hub-Signature-256`, `body` the bytes as they came. Once
    /// this returns an id, the event is committed and Meta may have its 200.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&self, signature: Option<&str>, body: &[u8]) -> Result<EventId, ReceiveError> {
        signature::verify(&self.secrets, signature, body).map_err(ReceiveError::Forged)?;
        let id = tokio::time::timeout(RECEIVE_TIMEOUT, store::insert_event(&self.pool, body))
            .await
            .map_err(|_| ReceiveError::TimedOut)?
            .map_err(ReceiveError::NotStored)?;
        failpoint::reach(failpoint::name::WEBHOOK_AFTER_COMMIT);
        self.arrived.notify_one();
        Ok(EventId(id))
    }

    /// Has an event processed again, whatever became of it. False if there is no such event.
    ///
    /// # Errors
    /// The database's.
    pub async fn replay(&self, event: EventId) -> sqlx::Result<bool> {
        let found = store::reset_event(&self.pool, event.0).await?;
        self.arrived.notify_one();
        Ok(found)
    }
}
