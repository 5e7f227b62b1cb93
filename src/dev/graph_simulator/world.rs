//! The simulator's state: its numbers and their faults, the accepted messages, the callback, the updates on their way to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::fault::{self, ActiveFault, Plan};
use super::ledger::Ledger;
use super::limits::Buckets;
use super::media_store::MediaStore;
use super::settings::{Account, Settings};
use super::update::{Queued, Update};

/// The state that the routes, the deliveries and the handle share.
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) client: reqwest::Client,
    pub(super) paused: watch::Sender<bool>,
    queue: mpsc::Sender<Queued>,
    numbers: Mutex<BTreeMap<String, Number>>,
    ledger: Mutex<Ledger>,
    /// The numbers of users who wrote, as WhatsApp knows them.
    users: Mutex<BTreeSet<String>>,
    callback: Mutex<Option<Url>>,
    batch: AtomicUsize,
    pending: AtomicUsize,
    media_port: AtomicU16,
}

/// A business number and what is wrong with it.
pub(super) struct Number {
    pub(super) account: Account,
    /// Whether the token has expired; a new one ends that.
    pub(super) expired: bool,
    pub(super) faults: Vec<ActiveFault>,
    pub(super) media: MediaStore,
    buckets: Buckets,
}

impl World {
    pub(super) fn new(
        settings: Settings,
        client: reqwest::Client,
        queue: mpsc::Sender<Queued>,
        stop: CancellationToken,
    ) -> Self {
        let numbers = settings.accounts.iter().map(|account| {
            let number = Number {
                account: account.clone(),
                expired: false,
                faults: Vec::new(),
                media: MediaStore::default(),
                buckets: Buckets::default(),
            };
            (account.phone_number_id.clone(), number)
        });
        Self {
            numbers: Mutex::new(numbers.collect()),
            callback: Mutex::new(settings.callback_url.clone()),
            batch: AtomicUsize::new(settings.webhooks.batch.max(1)),
            settings,
            stop,
            tasks: TaskTracker::new(),
            client,
            paused: watch::Sender::new(false),
            queue,
            ledger: Mutex::new(Ledger::default()),
            users: Mutex::default(),
            pending: AtomicUsize::new(0),
            media_port: AtomicU16::new(0),
        }
    }

    pub(super) fn numbers(&self) -> MutexGuard<'_, BTreeMap<String, Number>> {
        lock(&self.numbers)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// A user wrote from this number.
    pub(super) fn meet(&self, number: &str) {
        lock(&self.users).insert(number.to_owned());
    }

    /// The number as WhatsApp knows it. In Brazil, Mexico and Argentina it may differ from the digits that were dialled by
    /// one: Meta answers with the user's own.
    pub(super) fn own_number(&self, dialled: &str) -> String {
        let same_line = |user: &&String| {
            ["52", "54", "55"].contains(&dialled.get(..2).unwrap_or_default())
                && user.get(..2) == dialled.get(..2)
                && user.len().abs_diff(dialled.len()) == 1
                && user.get(user.len().saturating_sub(8)..) == dialled.get(dialled.len().saturating_sub(8)..)
        };
        let users = lock(&self.users);
        users
            .get(dialled)
            .or_else(|| users.iter().find(same_line))
            .map_or_else(|| dialled.to_owned(), Clone::clone)
    }

    pub(super) fn callback(&self) -> Option<Url> {
        lock(&self.callback).clone()
    }

    pub(super) fn set_callback(&self, url: Option<Url>) {
        *lock(&self.callback) = url;
    }

    /// The port of the media host.
    pub(super) fn media_port(&self) -> u16 {
        self.media_port.load(Ordering::Relaxed)
    }

    pub(super) fn set_media_port(&self, port: u16) {
        self.media_port.store(port, Ordering::Relaxed);
    }

    pub(super) fn batch(&self) -> usize {
        self.batch.load(Ordering::Relaxed)
    }

    pub(super) fn set_batch(&self, updates: usize) {
        self.batch.store(updates.max(1), Ordering::Relaxed);
    }

    /// Updates that are due later or on their way.
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// Counts updates that the callback has taken, or that were given up.
    pub(super) fn done(&self, updates: usize) {
        self.pending.fetch_sub(updates, Ordering::AcqRel);
    }

    /// The faults that apply to the next send of a number.
    pub(super) fn plan(&self, phone_number_id: &str, recipient: Option<&str>) -> Plan {
        self.numbers()
            .get_mut(phone_number_id)
            .map_or_else(Plan::default, |number| fault::take(&mut number.faults, recipient))
    }

    /// Counts a send towards the rate limits, if they are on.
    ///
    /// # Errors
    /// Meta's code of the limit that is reached.
    pub(super) fn throttle(&self, phone_number_id: &str, to: &str) -> Result<(), i64> {
        let Some(limits) = &self.settings.limits else {
            return Ok(());
        };
        match self.numbers().get_mut(phone_number_id) {
            Some(number) => number.buckets.take(limits, to, Instant::now()),
            None => Ok(()),
        }
    }

    /// Counts updates that will be enqueued, now or later.
    pub(super) fn expect(&self, updates: usize) {
        self.pending.fetch_add(updates, Ordering::AcqRel);
    }

    /// Queues an update about a number that [`Self::expect`] has counted; `members` is the change's value without the
    /// metadata.
    pub(super) async fn enqueue(
        &self,
        phone_number_id: &str,
        field: &str,
        members: Value,
        attempted: Option<oneshot::Sender<()>>,
    ) {
        let (waba_id, display) = self.numbers().get(phone_number_id).map_or_else(
            || ("0".to_owned(), phone_number_id.to_owned()),
            |number| {
                (
                    number.account.waba_id.clone(),
                    number.account.display_phone_number.clone(),
                )
            },
        );
        let mut value = json!({"messaging_product": "whatsapp",
            "metadata": {"display_phone_number": display, "phone_number_id": phone_number_id}});
        if let (Value::Object(value), Value::Object(members)) = (&mut value, members) {
            value.extend(members);
        }
        let update = Update {
            waba_id,
            field: field.to_owned(),
            value,
        };
        // Fails only when the deliveries have stopped, and with them everything else.
        let _ = self.queue.send(Queued { update, attempted }).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock can be used: no critical section here leaves its value half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
