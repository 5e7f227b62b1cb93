//! Processes one webhook, from its claim to its last commit. Its events are committed in portions.
//!
//! Portions, because one webhook may have a thousand events: each takes locks (see [`crate::site_db::locks`]) and
//! perhaps a savepoint, and Postgres's shared lock table and its snapshots are made for some dozens per transaction. If
//! processing stops between two portions, the webhook is processed again from its beginning.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::failures::{self, Failure};
use super::portion::{self, Effects};
use crate::failpoint;
use crate::metrics;
use crate::provider::Callback;
use crate::site_db::webhook_events::{self, Finished};
use crate::site_db::{Pool, SiteError};

/// Events in a transaction: below the 64 subtransactions that Postgres keeps in memory per session.
const PORTION: usize = 50;

/// After a portion that is not the last, the webhook stays with its worker this long before another may claim it.
const LEASE: Duration = Duration::from_secs(30);

/// The result of processing one webhook.
#[derive(Debug)]
pub(super) struct Processed {
    pub(super) webhook_id: Uuid,
    /// Events that are messages of people.
    pub(super) real: usize,
    /// All other events (statuses, notices, account events).
    pub(super) protocol: usize,
    pub(super) failures: Vec<Failure>,
}

/// The webhook that is being processed, and how often it was tried before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) webhook_id: Uuid,
    pub(super) attempts: i32,
}

/// Claims a webhook and processes it; `None` if none is due. Sets `claim` to the webhook, for the caller to use on failure.
pub(super) async fn next(
    pool: &Pool,
    callback: &Callback,
    claim: &mut Option<Claim>,
) -> Result<Option<Processed>, SiteError> {
    let mut tx = pool.begin().await?;
    let Some(webhook) = webhook_events::claim(&mut tx).await? else {
        return Ok(None);
    };
    *claim = Some(Claim {
        webhook_id: webhook.id,
        attempts: webhook.attempts,
    });
    let events = callback.events(&webhook.body);
    drop(webhook.body);
    let mut processed = Processed {
        webhook_id: webhook.id,
        real: 0,
        protocol: 0,
        failures: Vec::new(),
    };
    let events = events.unwrap_or_else(|error| {
        processed.failures.push(Failure::of_webhook(error.to_string()));
        Vec::new()
    });
    processed.real = events.iter().filter(|event| event.is_real()).count();
    processed.protocol = events.len() - processed.real;

    let mut portions = events.chunks(PORTION).peekable();
    let mut done = 0;
    loop {
        // A webhook without events still has one (empty) portion, which finishes it.
        let portion = portions.next().unwrap_or_default();
        let last = portions.peek().is_none();
        let effects = Box::pin(portion::store(&mut tx, done, portion)).await?;
        done += portion.len();
        processed.failures.extend_from_slice(&effects.failures);
        if last {
            let failures = failures::to_json(&processed.failures);
            let finished = Finished {
                real: processed.real,
                protocol: processed.protocol,
                failures: failures.as_ref(),
            };
            webhook_events::finish(&mut tx, webhook.id, &finished).await?;
        } else {
            webhook_events::postpone(&mut tx, webhook.id, LEASE).await?;
        }
        failpoint::reach(failpoint::name::INBOX_BEFORE_COMMIT);
        tx.commit().await?;
        count(&effects);
        if last {
            return Ok(Some(processed));
        }
        tx = pool.begin().await?;
    }
}

/// Counts a committed portion in the metrics.
fn count(effects: &Effects) {
    for counted in &effects.counted {
        metrics::count_message(counted.direction.as_str(), counted.status.as_str());
    }
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9;
    for number in effects.real.values() {
        metrics::set_account_last_real_message(number.as_str(), now);
    }
}
