//! Meta's webhooks: taken, kept, and turned into messages, statuses and leads.
//!
//! ```text
//! POST /webhook ─→ Inbox::receive: signature → raw event committed → 200
//!                          │ wakes
//!                  Worker: claim a webhook → its events, in portions → commit → metrics, log
//! ```
//!
//! Two steps, because Meta forgets what was answered with 200: the first does nothing that could fail but one insert, and
//! the second can be repeated. Everything in it is idempotent (unique wamids, unique reports, statuses that only go
//! forward), so a crash, a retry of Meta's, a regrouped batch or a replay by hand change nothing twice.
//!
//! What it leaves alone: routes (the HTTP server asks [`Inbox::receive`] and answers), and what the daemon or the user
//! interface make of the rows.
//!
//! | file | its job |
//! |---|---|
//! | `worker` | the loops: claim events, try again what failed for a passing reason, count what is left |
//! | `webhook` | one webhook, from its claim to its last commit |
//! | `portion` | some events of a webhook in one transaction, failures kept apart |
//! | `messages` | a message: of a person, of ours from the phone, of the history |
//! | `statuses` | a report about a message of ours |
//! | `account_events` | what Meta says about a number or an account |
//! | `failures` | why an event could not be stored |

mod account_events;
mod failures;
mod messages;
mod portion;
mod statuses;
mod webhook;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::failpoint;
use crate::provider::cloud::signature::{self, SignatureError};
use crate::site_db::{Pool, SiteError, webhook_events};

pub use worker::Worker;

/// Meta gives a callback some seconds before it calls it failed; it is better to say so ourselves, with a 503.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How an inbox works.
#[derive(Debug, Clone)]
pub struct InboxSettings {
    /// Names this inbox in log lines; one of the program's own words, so that it may be a metric's label.
    pub pipeline: &'static str,
    /// A webhook that is signed with one of these is believed; several while a secret is replaced.
    pub app_secrets: Vec<SecretString>,
    /// Events that are processed at the same time; each takes one connection.
    pub concurrency: usize,
    /// How often to look for events that other processes took, and for due retries.
    pub poll: Duration,
    /// First wait before an event is tried again.
    pub retry_initial: Duration,
    /// Longest such wait.
    pub retry_max: Duration,
    /// How often the backlog is counted.
    pub survey: Duration,
}

impl InboxSettings {
    /// The usual ones, for these app secrets.
    #[must_use]
    pub fn new(app_secrets: Vec<SecretString>) -> Self {
        Self {
            pipeline: "whatsapp",
            app_secrets,
            // Meta posts concurrently, and an event costs some round trips to the Site DB.
            concurrency: 4,
            poll: Duration::from_secs(1),
            retry_initial: Duration::from_millis(200),
            retry_max: Duration::from_secs(60),
            survey: Duration::from_secs(5),
        }
    }
}

/// A raw event's id: `webhook_events.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub Uuid);

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is not Meta's: answer 401. Nothing was stored.
    #[error("the webhook is not genuine")]
    Forged(#[source] SignatureError),
    /// The Site DB did not take it, or did not answer in time: answer 503, and Meta sends it again. Where it did not
    /// answer, the event may be there or not; a second copy does no harm.
    #[error("the webhook was not stored")]
    NotStored(#[source] SiteError),
}

/// Takes webhooks. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Inbox {
    pool: Pool,
    settings: Arc<InboxSettings>,
    /// An event was stored: wakes a worker of this process.
    arrived: Arc<Notify>,
}

impl Inbox {
    /// An inbox on this Site DB.
    #[must_use]
    pub fn new(pool: Pool, settings: InboxSettings) -> Self {
        Self {
            pool,
            settings: Arc::new(settings),
            arrived: Arc::new(Notify::new()),
        }
    }

    /// Checks and stores a webhook; `signature` is the value of `X-Hub-Signature-256`, `body` the bytes as they came. Once
    /// this returns an id, the event is committed and Meta may have its 200.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&self, signature: Option<&str>, body: &[u8]) -> Result<EventId, ReceiveError> {
        signature::verify(&self.settings.app_secrets, signature, body).map_err(ReceiveError::Forged)?;
        let id = tokio::time::timeout(RECEIVE_TIMEOUT, webhook_events::insert(&self.pool, body))
            .await
            .unwrap_or(Err(SiteError::timed_out()))
            .map_err(ReceiveError::NotStored)?;
        failpoint::reach(failpoint::name::WEBHOOK_AFTER_COMMIT);
        self.arrived.notify_one();
        Ok(EventId(id))
    }

    /// Has an event processed again, whatever became of it. False if there is no such event.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn replay(&self, event: EventId) -> Result<bool, SiteError> {
        let found = webhook_events::reset(&self.pool, event.0).await?;
        self.arrived.notify_one();
        Ok(found)
    }
}
