//! State that all tasks of an outbox share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::batches::{MessageReader, SubmissionWriter};
use super::message_blame::MessageBlame;
use super::outcome::Next;
use super::outcome_writer::{Committed, Outcome, OutcomeWriter, WamidIs};
use super::queue::{Candidate, SendQueue};
use super::repeats::Repeats;
use super::settings::{AccountSettings, OutboxSettings};
use super::standing::NumberStanding;
use crate::group_commit::{Bounds, GroupCommit, GroupError};
use crate::health::Health;
use crate::provider::{self, PhoneNumberId};
use crate::realtime::Waiters;
use crate::site_db::accounts::{AccountStatus, Gate};
use crate::site_db::messages::{MessageRow, StoredMessage};
use crate::site_db::{MessageStatus, Pool, SiteError, accounts};

/// A claim's lease is the send's time-out plus this; when it expires, any process may set the message `unknown`. Long
/// enough for a restart of the Site DB while the outcome waits to be committed, short enough for a person to wait.
pub(super) const LEASE_SLACK: Duration = Duration::from_secs(20);

/// Outcomes that are committed together. The queue is bounded by the attempts under way. Each acceptance is an entry in
/// Postgres's lock table, so a batch is not larger.
const OUTCOMES: Bounds = Bounds {
    writers: 3,
    batch_items: 128,
    batch_bytes: 1 << 20,
    queue_items: usize::MAX,
    queue_bytes: usize::MAX,
};
/// Messages that are stored together: few enough that one statement takes milliseconds. As many may wait as requests may.
/// Two writers: a statement costs the database about 0.8 ms before its first message and 0.1 ms for each, so full ones take
/// more; while the answer of one travels, the other runs.
const SUBMISSIONS: Bounds = Bounds {
    writers: 2,
    batch_items: 128,
    batch_bytes: 4 << 20,
    queue_items: 4096,
    queue_bytes: 32 << 20,
};
/// Messages that are read together for their waiting clients.
const READS: Bounds = Bounds {
    writers: 2,
    batch_items: 256,
    batch_bytes: usize::MAX,
    queue_items: 4096,
    queue_bytes: usize::MAX,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: Pool,
    /// Stores what clients submit.
    pub(super) submissions: GroupCommit<SubmissionWriter>,
    /// Reads messages for their waiting clients.
    reads: GroupCommit<MessageReader>,
    pub(super) settings: OutboxSettings,
    pub(super) senders: HashMap<PhoneNumberId, Arc<Sender>>,
    /// The requests that wait for a message; told after each commit.
    pub(super) waiters: Waiters,
    /// The requests of clients that wait, and of those that left.
    pub(super) repeats: Repeats,
    /// Messages that the provider accepted and whose outcome the Site DB has not taken yet.
    pub(super) unrecorded: AtomicU64,
    pub(super) stop: CancellationToken,
}

/// Why a number is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The provider's error code.
    pub code: i32,
    /// The provider's reason.
    pub reason: String,
    /// A message is due that tests if the number can send again.
    pub(super) probe_due: bool,
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
    /// What is known here of its messages.
    queue: Mutex<SendQueue>,
    /// Notified when there may be something to send.
    pub(super) wake: Notify,
    /// Set when the number's state may have changed: its task asks for it at once.
    ask: AtomicBool,
    /// Why the number is held, for clients that wait; as it was known last.
    hold: watch::Sender<Option<Hold>>,
    /// Commits its outcomes together; made with the first one.
    outcomes: OnceLock<GroupCommit<OutcomeWriter>>,
    pub(super) message_blame: MessageBlame,
    /// How it stands, for the health report.
    pub(super) standing: NumberStanding,
}

impl Shared {
    pub(super) fn new(pool: Pool, settings: OutboxSettings, health: &Health, stop: CancellationToken) -> Self {
        let senders = settings.accounts.iter().map(|account| {
            let sender = Sender::new(account.clone(), health);
            (sender.phone_number_id().clone(), Arc::new(sender))
        });
        let submissions = GroupCommit::new(SubmissionWriter { pool: pool.clone() }, SUBMISSIONS);
        let reads = GroupCommit::new(MessageReader { pool: pool.clone() }, READS);
        Self {
            pool,
            submissions,
            reads,
            senders: senders.collect(),
            settings,
            waiters: Waiters::default(),
            repeats: Repeats::default(),
            unrecorded: AtomicU64::new(0),
            stop,
        }
    }

    /// A message by its id, read together with others.
    pub(super) async fn find(&self, id: Uuid) -> Result<Option<MessageRow>, Arc<SiteError>> {
        self.reads.commit(id).await.map_err(|error| match error {
            GroupError::Failed(error) => error,
            GroupError::Full | GroupError::Abandoned => Arc::new(SiteError::Stopped),
        })
    }

    /// Wakes those who wait for these messages.
    pub(super) fn wake(&self, messages: &[Uuid]) {
        for id in messages {
            self.waiters.committed(*id);
        }
    }

    /// Whether an equal request after this message gets its answer: it was sent, or may be, or is about to be.
    pub(super) async fn stands_for_repeats(&self, id: Uuid) -> Result<Option<MessageRow>, Arc<SiteError>> {
        let stands = |message: &MessageRow| {
            use MessageStatus::{Pending, Sending, Unknown};
            message.wamid.is_some() || matches!(message.status, Pending | Sending | Unknown)
        };
        Ok(self.find(id).await?.filter(stands))
    }

    /// How long a claimed message belongs to the process that claimed it.
    pub(super) fn lease(&self) -> Duration {
        self.settings.send_timeout + LEASE_SLACK
    }
}

impl Sender {
    fn new(settings: AccountSettings, health: &Health) -> Self {
        let component = health.component(format!("number {}", settings.account.phone_number_id()));
        Self {
            standing: NumberStanding::new(component, settings.account.clone()),
            token_sha256: hex::encode(Sha256::digest(settings.account.credential().expose_secret())),
            account: settings.account,
            waba_id: settings.waba_id,
            messages_per_second: settings.messages_per_second,
            id: OnceCell::new(),
            queue: Mutex::default(),
            wake: Notify::new(),
            ask: AtomicBool::new(false),
            hold: watch::Sender::new(None),
            outcomes: OnceLock::new(),
            message_blame: MessageBlame::default(),
        }
    }

    pub(super) const fn phone_number_id(&self) -> &PhoneNumberId {
        self.account.phone_number_id()
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was stored: wakes the number's task.
    pub(super) fn stored(&self, stored: &StoredMessage) {
        self.queue().push(Candidate {
            conversation_id: stored.conversation_id,
            id: stored.id,
        });
        self.wake.notify_one();
    }

    /// Messages may be due that are not known here: wakes the number's task.
    pub(super) fn ask_for_scan(&self) {
        self.queue().ask_for_scan();
        self.wake.notify_one();
    }

    /// An attempt's outcome is stored: the next message of its conversation may be sent.
    pub(super) fn ended(&self, outcome: &Outcome) {
        self.queue().ended(outcome.message.conversation_id);
        let changes_number = outcome.probe || matches!(outcome.next, Next::HoldNumber(_) | Next::Pending { .. });
        if changes_number {
            self.ask.store(true, Ordering::Relaxed);
        }
        self.wake.notify_one();
    }

    /// Whether the number's state is to be asked for at once; a second call says no.
    pub(super) fn take_ask(&self) -> bool {
        self.ask.swap(false, Ordering::Relaxed)
    }

    /// The Site DB has told the number's state: tells those who wait if it is held, and by what.
    pub(super) fn tell_hold(&self, gate: &Gate) {
        let hold = (gate.status == AccountStatus::Held).then(|| Hold {
            code: gate.hold_code.unwrap_or_default(),
            reason: gate.hold_reason.clone().unwrap_or_default(),
            probe_due: gate.probe_seconds <= 0.0,
        });
        self.hold.send_if_modified(|known| {
            let changed = *known != hold;
            *known = hold;
            changed
        });
    }

    /// Why the number is held; changes are told.
    pub(super) fn hold(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.subscribe()
    }

    /// Whether none of its messages is being claimed or sent here.
    pub(super) fn is_idle(&self) -> bool {
        self.queue().is_idle()
    }

    /// Commits an outcome together with others.
    pub(super) async fn commit_outcome(
        &self,
        shared: &Shared,
        outcome: Arc<Outcome>,
        wamid: WamidIs,
    ) -> Result<Committed, Arc<SiteError>> {
        let account_id = self.account_id(&shared.pool).await.map_err(Arc::new)?;
        let group = self.outcomes.get_or_init(|| {
            let writer = OutcomeWriter {
                pool: shared.pool.clone(),
                account_id,
                token_sha256: self.token_sha256.clone(),
                hold_probe: shared.settings.hold_probe,
            };
            GroupCommit::new(writer, OUTCOMES)
        });
        group.commit((outcome, wamid)).await.map_err(|error| match error {
            GroupError::Failed(error) => error,
            GroupError::Full | GroupError::Abandoned => Arc::new(SiteError::Stopped),
        })
    }

    /// The id of the number's row, once it is known.
    pub(super) fn known_account_id(&self) -> Option<Uuid> {
        self.id.get().copied()
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
