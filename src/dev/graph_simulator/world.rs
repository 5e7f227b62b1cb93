//! What the simulator knows: its numbers, what is wrong with them, what it accepted, and where the callback is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::fault::{self, ActiveFault, Plan, Reports};
use super::ledger::{Accepted, Ledger};
use super::limits::Buckets;
use super::media::Media;
use super::payload::{StatusOf, Update, status};
use super::webhooks::Queued;
use super::{Account, Settings};

/// Everything, shared by the routes, the deliveries and the handle.
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) client: reqwest::Client,
    pub(super) paused: watch::Sender<bool>,
    queue: mpsc::Sender<Queued>,
    numbers: Mutex<BTreeMap<String, Number>>,
    ledger: Mutex<Ledger>,
    callback: Mutex<Option<Url>>,
    batch: AtomicUsize,
    pending: AtomicUsize,
}

/// One of the numbers.
pub(super) struct Number {
    pub(super) account: Account,
    /// Whether the token has expired; a new one ends that.
    pub(super) expired: bool,
    pub(super) faults: Vec<ActiveFault>,
    pub(super) media: Media,
    buckets: Buckets,
}

/// An accepted message, as far as its statuses need it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) phone_number_id: String,
    pub(super) wamid: String,
    pub(super) to: String,
    pub(super) opaque: Option<String>,
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
                media: Media::default(),
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
            pending: AtomicUsize::new(0),
        }
    }

    pub(super) fn numbers(&self) -> MutexGuard<'_, BTreeMap<String, Number>> {
        lock(&self.numbers)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(super) fn callback(&self) -> Option<Url> {
        lock(&self.callback).clone()
    }

    pub(super) fn set_callback(&self, url: Option<Url>) {
        *lock(&self.callback) = url;
    }

    pub(super) fn batch(&self) -> usize {
        self.batch.load(Ordering::Relaxed)
    }

    pub(super) fn set_batch(&self, updates: usize) {
        self.batch.store(updates.max(1), Ordering::Relaxed);
    }

    /// Updates that are due or on their way.
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    pub(super) fn done(&self, updates: usize) {
        self.pending.fetch_sub(updates, Ordering::AcqRel);
    }

    /// What the next send of a number meets.
    pub(super) fn plan(&self, phone_number_id: &str, recipient: Option<&str>) -> Plan {
        self.numbers()
            .get_mut(phone_number_id)
            .map_or_else(Plan::default, |number| fault::take(&mut number.faults, recipient))
    }

    /// Meta's rate limits, if they are on.
    pub(super) fn throttle(&self, phone_number_id: &str, to: &str) -> Result<(), i64> {
        let Some(limits) = &self.settings.limits else {
            return Ok(());
        };
        match self.numbers().get_mut(phone_number_id) {
            Some(number) => number.buckets.take(limits, to, Instant::now()),
            None => Ok(()),
        }
    }

    /// Writes a message into the ledger.
    pub(super) fn accept(&self, message: Accepted) {
        self.ledger().accept(message);
    }

    /// Queues an update about a number; `members` is the change's value without the metadata.
    pub(super) async fn emit(
        &self,
        phone_number_id: &str,
        field: &str,
        members: Value,
        attempted: Option<oneshot::Sender<()>>,
    ) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        self.emit_counted(phone_number_id, field, members, attempted).await;
    }

    async fn emit_counted(
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

    /// Reports a status now.
    async fn report(&self, subject: &Subject, name: &str, code: Option<i64>, attempted: Option<oneshot::Sender<()>>) {
        self.ledger().report(&subject.wamid, name, code);
        let members = status(&StatusOf {
            wamid: &subject.wamid,
            to: &subject.to,
            status: name,
            opaque: subject.opaque.as_deref(),
            code,
        });
        self.emit_counted(&subject.phone_number_id, "messages", members, attempted)
            .await;
    }

    /// Reports `sent` and waits until the callback was tried.
    pub(super) async fn report_before_answer(&self, subject: &Subject) {
        let (attempted, done) = oneshot::channel();
        self.pending.fetch_add(1, Ordering::AcqRel);
        self.report(subject, "sent", None, Some(attempted)).await;
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = done => {}
        }
    }

    /// Reports the rest of a message's life, in the background.
    pub(super) fn schedule(self: &Arc<Self>, subject: Subject, reports: &Reports) {
        let schedule = self.timetable(reports);
        self.pending.fetch_add(schedule.len(), Ordering::AcqRel);
        let world = Arc::clone(self);
        self.tasks.spawn(async move {
            let start = tokio::time::Instant::now();
            for (after, name, code) in schedule {
                let left = (start + after).saturating_duration_since(tokio::time::Instant::now());
                if !crate::shutdown::sleep(left, &world.stop).await {
                    return;
                }
                world.report(&subject, name, code, None).await;
            }
        });
    }

    /// When which status is reported.
    fn timetable(&self, reports: &Reports) -> Vec<(Duration, &'static str, Option<i64>)> {
        if reports.silent {
            return Vec::new();
        }
        let delays = &self.settings.delays;
        let held = reports.held_for.unwrap_or_default();
        let mut steps = Vec::new();
        if let Some(code) = reports.fail_with {
            steps.push((held + delays.sent, "failed", Some(code)));
        } else {
            if !reports.before_answer {
                steps.push((held + delays.sent, "sent", None));
            }
            steps.extend(
                delays
                    .delivered
                    .filter(|_| !reports.skip_delivered)
                    .map(|after| (held + after, "delivered", None)),
            );
            steps.extend(delays.read.map(|after| (held + after, "read", None)));
        }
        if reports.reversed {
            let times: Vec<_> = steps.iter().map(|step| step.0).collect();
            steps.reverse();
            for (step, time) in steps.iter_mut().zip(times) {
                step.0 = time;
            }
        }
        if reports.duplicate {
            steps = steps.into_iter().flat_map(|step| [step, step]).collect();
        }
        steps
    }
}

/// An id in Meta's shape: the recipient's digits and something random, in base64.
pub(super) fn wamid(to: &str) -> String {
    let digits: String = to.chars().filter(char::is_ascii_digit).collect();
    let mut bytes = vec![0x1d, 0x05, 0x19, u8::try_from(digits.len()).unwrap_or(u8::MAX)];
    bytes.extend(digits.bytes());
    bytes.extend([0x15, 0x02, 0x00, 0x11, 0x18]);
    bytes.extend(uuid::Uuid::new_v4().as_bytes());
    format!("wamid.{}", STANDARD.encode(bytes))
}

/// Now, for the ledger.
pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves its value whole, whatever panics elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
