//! State that all tasks of an outbox share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::message_blame::MessageBlame;
use super::settings::{AccountSettings, OutboxSettings};
use crate::provider::{self, PhoneNumberId};
use crate::realtime::Waiters;
use crate::site_db::{Pool, SiteError, accounts};

/// A claim's lease is the send's time-out plus this; when it expires, any process may set the message `unknown`. Long
/// enough for a restart of the Site DB while the outcome waits to be committed, short enough for a person to wait.
pub(super) const LEASE_SLACK: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: Pool,
    pub(super) settings: OutboxSettings,
    pub(super) senders: HashMap<PhoneNumberId, Arc<Sender>>,
    /// The requests that wait for a message; told after each commit.
    pub(super) waiters: Waiters,
    /// Messages that the provider accepted and whose outcome the Site DB has not taken yet.
    pub(super) unrecorded: AtomicU64,
    pub(super) stop: CancellationToken,
}

/// A configured number.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) account: provider::Account,
    pub(super) waba_id: Option<String>,
    pub(super) messages_per_second: u32,
    /// SHA-256 of its credential, in hex: tells whether the number was held for this credential or an earlier one.
    pub(super) token_sha256: String,
    /// Its row in `whatsapp_accounts`; set after the first successful query.
    id: OnceCell<Uuid>,
    /// Notified when there may be something to send.
    pub(super) wake: Notify,
    pub(super) message_blame: MessageBlame,
}

impl Shared {
    pub(super) fn new(pool: Pool, settings: OutboxSettings, stop: CancellationToken) -> Self {
        let senders = settings.accounts.iter().map(|account| {
            let sender = Sender::new(account.clone());
            (sender.phone_number_id().clone(), Arc::new(sender))
        });
        Self {
            pool,
            senders: senders.collect(),
            settings,
            waiters: Waiters::default(),
            unrecorded: AtomicU64::new(0),
            stop,
        }
    }

    /// How long a claimed message belongs to the process that claimed it.
    pub(super) fn lease(&self) -> Duration {
        self.settings.send_timeout + LEASE_SLACK
    }
}

impl Sender {
    fn new(settings: AccountSettings) -> Self {
        Self {
            token_sha256: hex::encode(Sha256::digest(settings.account.credential().expose_secret())),
            account: settings.account,
            waba_id: settings.waba_id,
            messages_per_second: settings.messages_per_second,
            id: OnceCell::new(),
            wake: Notify::new(),
            message_blame: MessageBlame::default(),
        }
    }

    pub(super) const fn phone_number_id(&self) -> &PhoneNumberId {
        self.account.phone_number_id()
    }

    /// The id of the number's row, which is inserted if it is missing.
    pub(super) async fn account_id(&self, pool: &Pool) -> Result<Uuid, SiteError> {
        self.id.get_or_try_init(|| self.register(pool)).await.copied()
    }

    /// Inserts or updates the number's row, and releases the number if it was held for another token.
    pub(super) async fn register(&self, pool: &Pool) -> Result<Uuid, SiteError> {
        let number = self.phone_number_id();
        let registered = accounts::register(pool, number, self.waba_id.as_deref(), &self.token_sha256).await?;
        if registered.released {
            tracing::info!(phone_number_id = %number, "the number is released: its access token was replaced");
        }
        Ok(registered.id)
    }
}
