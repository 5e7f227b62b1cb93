//! Outbound messages: submit, claim, rate-limit, send, write the outcome down, tell who waits.
//!
//! ```text
//! submit ─ commit pending ─ wake
//!                             └ number task: lease → gate → rate limit → claim (commit sending)
//!                                 └ attempt: Graph call → commit outcome → tell waiters
//! upkeep: expired leases → unknown; clients that are gone → cancelled; gap metrics
//! ```
//!
//! **The promise.** No message leaves before its `sending` is committed, and no outcome but a certain "no" makes a
//! message due again. See [`MessageStatus`] for who sets what, [`outcome::next`] for what an
//! answer means.
//!
//! **Order.** Messages of one conversation leave one after the other, oldest first. One that waits (throttled, backing
//! off, number held) keeps the later ones of its conversation waiting and nobody else's; a reply never overtakes what it
//! follows. `unknown` does not block: it may never be settled.
//!
//! **Clients that wait.** A message of a waiting client carries `send_by`: it is sent within that time or never,
//! even if this process dies, because the client will take it as failed and may send it again.
//!
//! **Scale.** Each number is leased to one process, so that the rate limiter in memory is right; claims are safe without
//! it. It uses `site_db` and `provider`; it knows no HTTP server.

mod attempt;
mod call;
mod number;
pub mod outcome;
mod submit;
mod suspects;
mod upkeep;
mod waiters;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OnceCell};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use call::{Call, GraphSetupError, NoAnswer, Passed};
pub use submit::{NewMessage, SubmitError, Submitted};

use crate::config::{Account, Config};
use crate::health::Health;
use crate::provider::PhoneNumberId;
use crate::site_db::messages::Message;
use crate::site_db::{MessageStatus, Pool, SiteError, accounts, messages};
use call::Graph;
use suspects::Suspects;
use waiters::Waiters;

/// Beyond the send's time-out: how long a claimed message is ours before any server may call it `unknown`. Long enough
/// to ride out a restart of the Site DB while the outcome waits to be committed, short enough for a person to wait.
const LEASE_SLACK: Duration = Duration::from_secs(20);

/// The handle on the outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Shared>);

/// What all tasks of the outbox share.
#[derive(Debug)]
struct Shared {
    pool: Pool,
    config: Arc<Config>,
    graph: Graph,
    numbers: HashMap<PhoneNumberId, Arc<Sender>>,
    waiters: Waiters,
    /// Accepted by Meta, and the Site DB won't take it.
    unrecorded: AtomicU64,
    stop: CancellationToken,
}

/// A configured number.
#[derive(Debug)]
struct Sender {
    number: PhoneNumberId,
    account: Account,
    /// Hash of its access token: says whether a hold was for this token.
    token_sha256: String,
    /// Its row, once the Site DB could be asked.
    id: OnceCell<Uuid>,
    /// There may be something to send.
    wake: Notify,
    /// Messages that may be refused for their own sake where Meta says that it is the account's.
    suspects: Suspects,
}

impl Sender {
    /// The number's row; made if it is missing.
    async fn account_id(&self, pool: &Pool) -> Result<Uuid, SiteError> {
        self.id.get_or_try_init(|| self.register(pool)).await.copied()
    }

    /// Makes sure of the row, and releases a hold that was for another token.
    async fn register(&self, pool: &Pool) -> Result<Uuid, SiteError> {
        let waba = self.account.waba_id.as_deref();
        let registered = accounts::register(pool, &self.number, waba, &self.token_sha256).await?;
        if registered.released {
            tracing::info!(phone_number_id = %self.number, "the number is released: its access token was replaced");
        }
        Ok(registered.id)
    }
}

/// What a waiting client gets.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// Settled, or still under way when the patience ended.
    Known(Box<Message>),
    /// It was not sent in time and is cancelled now: it never will be.
    Cancelled(Box<Message>),
}

impl Outbox {
    /// Sets the outbox up and starts its tasks, which end after `stop`: claiming stops at once, attempts under way are
    /// carried to their end within [`GRACE`](crate::shutdown::GRACE).
    ///
    /// # Errors
    /// The HTTPS client could not be set up.
    pub fn start(
        pool: Pool,
        config: Arc<Config>,
        health: &Health,
        stop: CancellationToken,
    ) -> Result<(Self, JoinSet<()>), GraphSetupError> {
        let numbers = config
            .whatsapp
            .accounts
            .iter()
            .filter_map(|account| {
                // The configuration takes nothing but digits.
                let number = PhoneNumberId::parse(&account.phone_number_id)?;
                let sender = Sender {
                    number: number.clone(),
                    token_sha256: hex::encode(Sha256::digest(account.access_token.expose_secret())),
                    account: account.clone(),
                    id: OnceCell::new(),
                    wake: Notify::new(),
                    suspects: Suspects::default(),
                };
                Some((number, Arc::new(sender)))
            })
            .collect();
        let shared = Arc::new(Shared {
            graph: Graph::new(&config.whatsapp)?,
            pool,
            config,
            numbers,
            waiters: Waiters::default(),
            unrecorded: AtomicU64::new(0),
            stop,
        });
        let mut tasks = JoinSet::new();
        for sender in shared.numbers.values() {
            tasks.spawn(number::run(Arc::clone(&shared), Arc::clone(sender)));
        }
        tasks.spawn(waiters::look(Arc::clone(&shared)));
        tasks.spawn(upkeep::run(Arc::clone(&shared), health.component("outbox")));
        Ok((Self(shared), tasks))
    }

    /// Whether a number is ours.
    #[must_use]
    pub fn has_number(&self, phone_number_id: &str) -> bool {
        self.0.numbers.contains_key(phone_number_id)
    }

    /// The number to send from where the caller names none: the only one.
    #[must_use]
    pub fn only_number(&self) -> Option<PhoneNumberId> {
        match self.0.config.whatsapp.accounts.as_slice() {
            [account] => PhoneNumberId::parse(&account.phone_number_id),
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

    /// Passes a call on with a number's token. The caller has made sure that it sends no message: those go through
    /// [`Outbox::submit`].
    ///
    /// # Errors
    /// The Graph API did not answer, or the number is not ours.
    pub async fn pass(&self, phone_number_id: &str, call: Call) -> Result<Passed, NoAnswer> {
        let sender = self
            .0
            .numbers
            .get(phone_number_id)
            .ok_or(NoAnswer("the number is not configured"))?;
        self.0.graph.pass(&sender.account.access_token, call).await
    }
}

impl Shared {
    /// How long a claim is a process's own.
    fn lease(&self) -> Duration {
        self.config.whatsapp.send_timeout + LEASE_SLACK
    }

    async fn wait(&self, id: Uuid, patience: Duration) -> Result<Option<Message>, SiteError> {
        let deadline = tokio::time::Instant::now() + patience;
        let ticket = self.waiters.register(id);
        loop {
            // Registered before the look, so that an outcome between the two is not missed.
            let told = ticket.told();
            let found = messages::find(&self.pool, id).await;
            let stopping = self.stop.is_cancelled();
            match &found {
                Ok(None) => return found,
                Ok(Some(message)) if message.status.is_settled() => return found,
                Ok(Some(message)) if stopping && message.status == MessageStatus::Pending => return found,
                Ok(Some(_)) => {}
                Err(error) if error.disposition() != crate::retry::Disposition::Transient => return found,
                Err(_) => {}
            }
            if tokio::time::Instant::now() >= deadline {
                return found;
            }
            // Another process may send it, or a status webhook settle it: then nobody tells us, so look now and then.
            tokio::select! {
                () = told => {}
                () = tokio::time::sleep(waiters::LOOK_ALONE_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.stop.cancelled(), if !stopping => {}
            }
        }
    }

    async fn wait_or_cancel(&self, id: Uuid, patience: Duration) -> Result<Option<Delivered>, SiteError> {
        let Some(message) = self.wait(id, patience).await? else {
            return Ok(None);
        };
        if message.status == MessageStatus::Cancelled {
            return Ok(Some(Delivered::Cancelled(Box::new(message))));
        }
        if message.status.is_settled() {
            return Ok(Some(Delivered::Known(Box::new(message))));
        }
        // Between attempts it may be cancelled; during one its end must be known first.
        let last = tokio::time::Instant::now() + self.lease();
        loop {
            if messages::cancel_waiting(&self.pool, id).await? {
                crate::metrics::count_message("outbound", MessageStatus::Cancelled.as_str());
                self.waiters.tell(id);
                let message = messages::find(&self.pool, id).await?;
                return Ok(message.map(|message| Delivered::Cancelled(Box::new(message))));
            }
            let left = last.saturating_duration_since(tokio::time::Instant::now());
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
    async fn wait_while_sending(&self, id: Uuid, patience: Duration) -> Result<Option<Message>, SiteError> {
        let deadline = tokio::time::Instant::now() + patience;
        let ticket = self.waiters.register(id);
        loop {
            let told = ticket.told();
            let found = messages::find(&self.pool, id).await?;
            let sending = found
                .as_ref()
                .is_some_and(|message| message.status == MessageStatus::Sending);
            if !sending || tokio::time::Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::select! {
                () = told => {}
                () = tokio::time::sleep(waiters::LOOK_ALONE_EVERY) => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}
