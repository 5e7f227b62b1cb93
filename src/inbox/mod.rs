//! Receives a provider's webhooks, stores them, and turns them into messages, statuses and leads.
//!
//! A *webhook* is one POST, kept byte for byte in `webhook_events`. It has *events*: one for each message, status or notice.
//!
//! ```text
//! POST /webhook ─→ Inbox::receive: signature → raw webhook committed, with others that came in → 200
//!                          │ wakes
//!                  Worker: claim webhooks → their events, together → commit → metrics, log
//! ```
//!
//! Two steps, because Meta never sends a webhook again that was answered with 200. The first step is a signature check
//! and one insert, so that little can fail; the second can be repeated. Everything in the second step is idempotent
//! (unique wamids, unique reports, statuses that only go forward), so a crash, a retry by Meta, a batch that Meta grouped
//! differently or a manual replay changes nothing twice.
//!
//! Not here: routes (the HTTP server calls [`Inbox::receive`] and answers), and what the daemon or the user interface do
//! with the rows.
//!
//! | file | its job |
//! |---|---|
//! | `receiving` | the webhooks of many requests, stored in one statement |
//! | `worker` | the loops: claim webhooks, retry after transient errors, count the backlog |
//! | `batch` | many webhooks in one transaction, by a few statements; the order of the locks |
//! | `order` | when each event was received: the order of a person's messages |
//! | `webhook` | what a webhook says; one that is processed alone |
//! | `portion` | some events of a webhook in one transaction; each event can fail alone |
//! | `messages` | a message: a user's, ours from the phone, one of the history |
//! | `statuses` | a report about a message of ours |
//! | `account_events` | events about a number or an account |
//! | `retention` | deletes webhooks that are no longer needed |
//! | `genuine` | whether what comes in is genuine, for the health report |
//! | `failures` | why an event could not be stored |

mod account_events;
mod batch;
mod failures;
mod genuine;
mod messages;
mod order;
mod portion;
mod receiving;
mod retention;
mod statuses;
mod webhook;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::genuine::Genuine;
use self::receiving::{Storing, Verified};
use crate::config::Retention;
use crate::group_commit::{GroupCommit, GroupError};
use crate::health::Standing;
use crate::provider::Callback;
use crate::provider::callback::SignatureError;
use crate::site_db::{Pool, SiteError, webhook_events};

pub use worker::Worker;

/// Meta treats a callback as failed after some seconds without an answer; a clear 503 before that is better.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A longer body is hashed on a thread of its own: a hash of so many bytes takes about 0.1 ms, and one of Meta's longest
/// body (3 MB) would keep the runtime's thread from everything else for 5 ms.
const LARGE_BODY: usize = 64 * 1024;

/// How an inbox works.
#[derive(Debug, Clone)]
pub struct InboxSettings {
    /// Names this inbox in log lines; one of the program's own words, so that it may be a metric's label.
    pub pipeline: &'static str,
    /// The provider whose webhooks come in.
    pub callback: Callback,
    /// Batches of webhooks that are processed at the same time; each needs one connection.
    pub concurrency: usize,
    /// How often to look for webhooks that other processes received, and for due retries.
    pub poll: Duration,
    /// Wait before the first retry of a webhook.
    pub retry_initial: Duration,
    /// Longest wait between two retries of a webhook.
    pub retry_max: Duration,
    /// How often the backlog is counted.
    pub survey: Duration,
    /// How long webhooks are kept; `None`: for ever.
    pub retention: Option<Retention>,
    /// How long a message from the phone keeps programs out of its conversation.
    pub takeover: Duration,
}

impl InboxSettings {
    /// The default settings for this provider.
    #[must_use]
    pub fn new(callback: Callback) -> Self {
        Self {
            pipeline: "whatsapp",
            callback,
            // A batch of webhooks costs a dozen round trips to the Site DB, so several are on their way.
            concurrency: 4,
            poll: Duration::from_secs(1),
            retry_initial: Duration::from_millis(200),
            retry_max: Duration::from_secs(60),
            survey: Duration::from_secs(5),
            retention: None,
            takeover: Duration::from_secs(12 * 60 * 60),
        }
    }
}

/// A stored webhook's id: `webhook_events.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WebhookId(pub Uuid);

/// Why a webhook was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The signature is missing or wrong: answer 401. Nothing was stored.
    #[error("the webhook is not genuine")]
    Forged(#[source] SignatureError),
    /// Too many webhooks wait to be stored: answer 503, and Meta sends it again. Nothing was stored.
    #[error("too many webhooks wait to be stored")]
    Busy,
    /// The Site DB refused it, or did not answer in time: answer 503, and Meta sends it again. After a time-out or a lost
    /// connection the webhook may be stored or not; a second copy does no harm.
    #[error("the webhook was not stored")]
    NotStored(#[source] Arc<SiteError>),
}

/// Receives webhooks. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Inbox {
    pool: Pool,
    settings: Arc<InboxSettings>,
    storing: GroupCommit<Storing>,
    genuine: Arc<Genuine>,
    /// Notified when a webhook was stored: wakes a worker of this process.
    arrived: Arc<Notify>,
    /// The same for others of this process.
    stored: watch::Sender<()>,
}

impl Inbox {
    /// An inbox on this Site DB.
    #[must_use]
    pub fn new(pool: Pool, settings: InboxSettings) -> Self {
        Self {
            storing: GroupCommit::new(Storing(pool.clone()), receiving::BOUNDS),
            pool,
            genuine: Arc::default(),
            settings: Arc::new(settings),
            arrived: Arc::new(Notify::new()),
            stored: watch::Sender::new(()),
        }
    }

    /// Checks and stores a webhook. `signature` is the value of `X-Hub-Signature-256`, `body` the bytes as received. When
    /// this returns an id, the webhook is committed and Meta can be answered with 200.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(&self, signature: Option<&str>, body: Bytes) -> Result<WebhookId, ReceiveError> {
        let storing = async {
            let webhook = self.verified(signature, body).await;
            match &webhook {
                Ok(_) => self.genuine.checked(Ok(())),
                Err(ReceiveError::Forged(error)) => self.genuine.checked(Err(*error)),
                Err(_) => {}
            }
            let webhook = webhook?;
            self.storing.commit(webhook).await.map_err(|error| match error {
                GroupError::Full => ReceiveError::Busy,
                GroupError::Failed(error) => ReceiveError::NotStored(error),
                GroupError::Abandoned => ReceiveError::NotStored(Arc::new(SiteError::Stopped)),
            })
        };
        let id = tokio::time::timeout(RECEIVE_TIMEOUT, storing)
            .await
            .unwrap_or_else(|_| Err(ReceiveError::NotStored(Arc::new(SiteError::timed_out()))))?;
        self.arrived.notify_one();
        self.stored.send_replace(());
        Ok(WebhookId(id))
    }

    /// Changes when a webhook was stored by this process.
    #[must_use]
    pub fn stored(&self) -> watch::Receiver<()> {
        self.stored.subscribe()
    }

    /// Whether a probe (`provider::cloud::probe`) is signed rightly. Stores nothing, and says nothing about what else comes in.
    ///
    /// # Errors
    /// The signature is missing or wrong.
    pub fn check_probe(&self, signature: Option<&str>, body: &[u8]) -> Result<(), SignatureError> {
        self.settings.callback.verify(signature, body)
    }

    /// Whether what comes in is genuine.
    #[must_use]
    pub fn callback_standing(&self) -> Standing {
        self.genuine.standing(tokio::time::Instant::now())
    }

    /// Checks the signature, and hashes the body.
    async fn verified(&self, signature: Option<&str>, body: Bytes) -> Result<Verified, ReceiveError> {
        let (settings, signature) = (Arc::clone(&self.settings), signature.map(str::to_owned));
        let large = body.len() > LARGE_BODY;
        let verify = move || {
            settings
                .callback
                .verify(signature.as_deref(), &body)
                .map_err(ReceiveError::Forged)?;
            Ok(Verified {
                body_sha256: hex::encode(Sha256::digest(&body)),
                body,
            })
        };
        if !large {
            return verify();
        }
        tokio::task::spawn_blocking(verify)
            .await
            .unwrap_or_else(|_| Err(ReceiveError::NotStored(Arc::new(SiteError::Stopped))))
    }

    /// Makes a webhook due again, whether it failed or succeeded before. False if there is no such webhook, or it is due.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn replay(&self, webhook: WebhookId) -> Result<bool, SiteError> {
        let found = webhook_events::replay(&self.pool, &[webhook.0]).await?;
        self.arrived.notify_one();
        Ok(found > 0)
    }

    /// Deletes the webhooks that are older than the settings say; a worker does it every hour. Returns how many.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn forget_old(&self) -> Result<u64, SiteError> {
        match self.settings.retention {
            Some(retention) => retention::forget(&self.pool, retention, &CancellationToken::new()).await,
            None => Ok(0),
        }
    }
}
