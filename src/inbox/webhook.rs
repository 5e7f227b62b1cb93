//! One webhook: what it says, and how it is processed alone. Its events are committed in portions.
//!
//! Portions, because one webhook may have a thousand events: each takes locks (see [`crate::site_db::locks`]) and
//! perhaps a savepoint, and Postgres's shared lock table and its snapshots are made for some dozens per transaction. If
//! processing stops between two portions, the webhook is processed again from its beginning.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::InboxSettings;
use super::account_events;
use super::failures::{self, Failure};
use super::order::{self, TimedEvent};
use super::portion::{self, Effects};
use crate::failpoint;
use crate::metrics;
use crate::provider::event::{Content, Event};
use crate::site_db::webhook_events::{self, ClaimedWebhook, Finished};
use crate::site_db::{Pool, SiteError, Transaction};

/// Events in a transaction: below the 64 subtransactions that Postgres keeps in memory per session.
const PORTION: usize = 50;

/// After a portion that is not the last, the webhook stays with its worker this long before another may claim it.
const LEASE: Duration = Duration::from_secs(30);

/// A webhook that is being processed.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) id: Uuid,
    /// Attempts before this one.
    pub(super) attempts: i32,
    /// What it says; empty if it could not be read.
    pub(super) events: Vec<TimedEvent>,
    /// Why it could not be read.
    pub(super) unreadable: Option<Failure>,
    /// See [`InboxSettings::takeover`].
    pub(super) takeover: Duration,
}

/// The result of processing one webhook.
#[derive(Debug)]
pub(super) struct Processed {
    pub(super) webhook_id: Uuid,
    /// Events that are messages of people.
    pub(super) real: usize,
    /// All other events (statuses, notices, account events).
    pub(super) protocol: usize,
    pub(super) failures: Vec<Failure>,
    /// Whether leads may have to be merged (see [`crate::site_db::merging`]).
    pub(super) doubts: bool,
}

impl Webhook {
    /// Reads what a webhook says.
    pub(super) fn read(settings: &InboxSettings, claimed: ClaimedWebhook) -> Self {
        let (events, unreadable) = match settings.callback.events(&claimed.body) {
            Ok(events) => (order::timed(claimed.received_at, events), None),
            Err(error) => (Vec::new(), Some(Failure::of_webhook(error.to_string()))),
        };
        Self {
            id: claimed.id,
            attempts: claimed.attempts,
            events,
            unreadable,
            takeover: settings.takeover,
        }
    }
}

impl Processed {
    /// The result of a webhook whose events have all been stored.
    pub(super) fn of(webhook: &Webhook) -> Self {
        let real = webhook.events.iter().filter(|timed| timed.event.is_real()).count();
        Self {
            webhook_id: webhook.id,
            real,
            protocol: webhook.events.len() - real,
            failures: webhook.unreadable.iter().cloned().collect(),
            doubts: false,
        }
    }

    /// What its row keeps of it.
    pub(super) fn finished(&self) -> Finished {
        Finished {
            id: self.webhook_id,
            real: self.real,
            protocol: self.protocol,
            failures: failures::to_json(&self.failures),
        }
    }
}

/// Processes a webhook that `tx` has claimed.
pub(super) async fn process(mut tx: Transaction<'_>, pool: &Pool, webhook: &Webhook) -> Result<Processed, SiteError> {
    let mut processed = Processed::of(webhook);
    let mut portions = webhook.events.chunks(PORTION).peekable();
    let mut done = 0;
    loop {
        // A webhook without events still has one (empty) portion, which finishes it.
        let portion = portions.next().unwrap_or_default();
        let last = portions.peek().is_none();
        let effects = Box::pin(portion::store(&mut tx, done, portion, webhook.takeover)).await?;
        done += portion.len();
        processed.failures.extend_from_slice(&effects.failures);
        processed.doubts |= effects.doubts;
        if last {
            webhook_events::finish(&mut tx, &[processed.finished()]).await?;
        } else {
            webhook_events::postpone(&mut tx, webhook.id, LEASE).await?;
        }
        failpoint::reach(failpoint::name::INBOX_BEFORE_COMMIT);
        tx.commit().await?;
        count(&effects);
        if last {
            account_events::note(notes(webhook));
            return Ok(processed);
        }
        tx = pool.begin().await?;
    }
}

/// The events that leave only a line in the log.
fn notes(webhook: &Webhook) -> impl Iterator<Item = &Event> {
    let events = webhook.events.iter().map(|timed| &timed.event);
    events.filter(|event| {
        matches!(
            event.content,
            Content::AccountError(_) | Content::AccountNotice(_) | Content::Template(_) | Content::Other(_)
        )
    })
}

/// Counts in the metrics what was committed.
pub(super) fn count(effects: &Effects) {
    for counted in &effects.counted {
        metrics::count_message(counted.direction.as_str(), counted.status.as_str());
    }
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9;
    for number in effects.real.values() {
        metrics::set_account_last_real_message(number.as_str(), now);
    }
}
