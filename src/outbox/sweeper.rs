//! Every few seconds, for all numbers: settles the messages of processes that died, and measures the gaps. Every process
//! does this.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::shared::Shared;
use crate::health::{Component, Standing};
use crate::metrics;
use crate::provider::Direction;
use crate::shutdown;
use crate::site_db::accounts::{self, AccountStatus};
use crate::site_db::{MessageStatus, SiteError, messages};

/// How often to sweep. A message of a dead process becomes `unknown` at most this long after its lease expired.
const EVERY: Duration = Duration::from_secs(5);

/// A round takes less: a few statements, each with its time limit.
const ROUND: Duration = Duration::from_secs(40);

/// Runs until the stop.
pub(super) async fn run(shared: Arc<Shared>, health: Component) {
    let health = health.reports_every(ROUND);
    loop {
        let swept = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            swept = sweep(&shared) => swept,
        };
        match swept {
            Ok(detail) => health.ready(detail),
            Err(error) => health.stands(
                Standing::NotReady(error.trouble("messages of processes that died can't be settled")),
                json!({"sent_unrecorded": shared.unrecorded.load(Ordering::Relaxed)}),
            ),
        }
        if !shutdown::sleep(EVERY, &shared.stop).await {
            return;
        }
    }
}

/// Sweeps once; returns what it found, for the health report.
async fn sweep(shared: &Shared) -> Result<Value, SiteError> {
    for id in messages::sweep_expired(&shared.pool).await? {
        metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Unknown.as_str());
        tracing::warn!(
            message_id = %id,
            "PERSISTENCE: the process that sent this message recorded no outcome; it is unknown until its status comes"
        );
        shared.waiters.committed(id);
    }
    for id in messages::sweep_abandoned(&shared.pool).await? {
        metrics::count_message(Direction::Outbound.as_str(), MessageStatus::Cancelled.as_str());
        tracing::warn!(message_id = %id, "PERSISTENCE: the client that waited for this message is gone; it was not sent");
        shared.waiters.committed(id);
    }
    let gaps = messages::gaps(&shared.pool).await?;
    metrics::set_persistence_gap("outcome_unknown", u64::try_from(gaps.unknown).unwrap_or(0));
    metrics::set_persistence_gap("unsent", u64::try_from(gaps.unsent).unwrap_or(0));
    // Set even at zero: an alert on a series that does not exist never fires.
    let unrecorded = shared.unrecorded.load(Ordering::Relaxed);
    metrics::set_persistence_gap("sent_unrecorded", unrecorded);
    let mut held = Vec::new();
    for number in accounts::overview(&shared.pool).await? {
        // Only configured numbers, so that the number of series is bounded.
        if shared.senders.contains_key(&number.phone_number_id) {
            let is_held = number.status == AccountStatus::Held;
            metrics::set_account_degraded(number.phone_number_id.as_str(), is_held);
            if is_held {
                held.push(json!({"phone_number_id": number.phone_number_id, "code": number.hold_code}));
            }
        }
    }
    Ok(json!({"unknown": gaps.unknown, "unsent": gaps.unsent, "sent_unrecorded": unrecorded, "held": held}))
}
