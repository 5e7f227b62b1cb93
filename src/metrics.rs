//! The one place that names metrics: constants, descriptions, and small typed functions that the other modules call.
//!
//! Units are in the names. Label values are bounded: replicated tables, configured accounts, the variants of an enum. To
//! add one: its name, its line in [`ALL`], a function that takes domain types.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::change::TableName;

mod names;

pub use names::*;

/// Bounds of [`SYNC_COMMIT_TO_APPLY_SECONDS`]: about a millisecond is what a lone change takes, 50 ms the goal for a busy
/// stream, 5 s the limit that users set and alert on; the longer ones tell a catch-up of minutes from one of seconds.
const APPLY_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Bounds of [`SEND_SECONDS`]: Meta answers in 0.1 to 1 s, 2 s is the limit that users set, 10 s our default time-out.
const SEND_BUCKETS: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 30.0];

/// Bounds of [`LISTENER_DELAY_SECONDS`]: 50 ms is the goal; half a second is how often what other programs changed is looked for.
const LISTENER_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// The recorder that the process installs, with buckets for its histograms: without buckets the exporter would make
/// summaries, which cannot be added up over several servers.
///
/// # Errors
/// A histogram has no buckets.
pub fn prometheus() -> Result<PrometheusBuilder, BuildError> {
    [
        (SYNC_COMMIT_TO_APPLY_SECONDS, APPLY_BUCKETS),
        (SEND_SECONDS, SEND_BUCKETS),
        (LISTENER_DELAY_SECONDS, LISTENER_BUCKETS),
    ]
    .into_iter()
    .try_fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
    })
}

/// Installs the recorder for the whole process and describes every metric to it.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = prometheus()?.install_recorder()?;
    describe();
    Ok(handle)
}

/// Describes every metric to the installed recorder. Call once, after installing it.
pub fn describe() {
    for &Metric { name, kind, help, .. } in ALL {
        let unit = if name.ends_with("_seconds") {
            Unit::Seconds
        } else if name.ends_with("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        };
        match kind {
            Kind::Counter => describe_counter!(name, unit, help),
            Kind::Histogram => describe_histogram!(name, unit, help),
            Kind::Gauge => describe_gauge!(name, unit, help),
        }
    }
}

/// The age of the oldest committed, unapplied transaction.
pub fn set_sync_delay(delay: Duration) {
    gauge!(SYNC_DELAY_SECONDS).set(delay.as_secs_f64());
}

/// A transaction committed in the Agent DB this long after its commit in the Site DB.
pub fn observe_commit_to_apply(delay: Duration) {
    histogram!(SYNC_COMMIT_TO_APPLY_SECONDS).record(delay.as_secs_f64());
}

/// WAL between the durable position and the end of the Site DB's log.
pub fn set_lag_bytes(bytes: u64) {
    gauge!(SYNC_LAG_BYTES).set(bytes as f64);
}

/// Changes of one table with the same operation and result.
pub fn count_rows(table: &TableName, operation: &'static str, result: &'static str, rows: u64) {
    if rows > 0 {
        counter!(SYNC_ROWS_TOTAL, "table" => table.to_string(), "op" => operation, "result" => result).increment(rows);
    }
}

/// Rows of a table that are parked now.
pub fn set_failed_rows(table: &TableName, rows: u64) {
    gauge!(FAILED_ROWS, "table" => table.to_string()).set(rows as f64);
}

/// Parked rows that were retried, with one result.
pub fn count_retries(result: &'static str, rows: u64) {
    counter!(FAILED_ROW_RETRIES_TOTAL, "result" => result).increment(rows);
}

/// Something happened to parked rows of a table that one SQLSTATE (or `TW…`) refused.
pub fn count_failed_row_events(table: &TableName, event: &'static str, reason: &str, rows: u64) {
    if rows > 0 {
        counter!(FAILED_ROW_EVENTS_TOTAL, "table" => table.to_string(), "event" => event, "reason" => reason.to_owned())
            .increment(rows);
    }
}

/// WAL that the slot keeps on the Site DB, and how much more it may keep (`None`: no limit).
pub fn set_slot(retained_bytes: u64, headroom_bytes: Option<i64>) {
    gauge!(SLOT_RETAINED_BYTES).set(retained_bytes as f64);
    gauge!(SLOT_HEADROOM_BYTES).set(headroom_bytes.map_or(-1.0, |bytes| bytes as f64));
}

/// The time until the slot is lost, at the present rate (`None`: nothing can be said).
pub fn set_slot_full_in(left: Option<std::time::Duration>) {
    gauge!(SLOT_FULL_IN_SECONDS).set(left.map_or(-1.0, |left| left.as_secs_f64()));
}

/// A gap is closed: how long that took from the moment at which it was noticed.
pub fn set_gap_recovery(seconds: f64) {
    gauge!(GAP_RECOVERY_SECONDS).set(seconds);
}

/// The state that the daemon is in, out of all states.
pub fn set_sync_state(state: &'static str, all: &[&'static str]) {
    for &other in all {
        gauge!(SYNC_STATE, "state" => other).set(if other == state { 1.0 } else { 0.0 });
    }
}

/// How many tables are in a state.
pub fn set_tables(state: &'static str, count: u64) {
    gauge!(TABLES, "state" => state).set(count as f64);
}

/// How many tables are held for a cause.
pub fn set_held_tables(cause: &'static str, count: u64) {
    gauge!(HELD_TABLES, "cause" => cause).set(count as f64);
}

/// How many things of one kind should be in a database and are not.
pub fn set_persistence_gap(kind: &'static str, count: u64) {
    gauge!(PERSISTENCE_GAP, "kind" => kind).set(count as f64);
}

/// As of when a table is proved to be equal in both databases, in seconds since 1970.
pub fn set_verified_through(table: &TableName, seconds: i64) {
    gauge!(VERIFIED_THROUGH, "table" => table.to_string()).set(seconds as f64);
}

/// How many rows of a table the last verification has found to differ.
pub fn set_verified_differences(table: &TableName, rows: u64) {
    gauge!(VERIFIED_DIFFERENCES, "table" => table.to_string()).set(rows as f64);
}

/// A message reached a status.
pub fn count_message(direction: &'static str, status: &'static str) {
    counter!(MESSAGES_TOTAL, "direction" => direction, "status" => status).increment(1);
}

/// A send to the Graph API was answered after this long, or given up.
pub fn observe_send(duration: Duration) {
    histogram!(SEND_SECONDS).record(duration.as_secs_f64());
}

/// A send failed, with Meta's code if it gave one.
pub fn count_send_error(code: Option<i64>, class: &'static str) {
    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    counter!(SEND_ERRORS_TOTAL, "code" => code, "class" => class).increment(1);
}

/// Parts of a webhook that are of one kind.
pub fn count_webhook_events(kind: &'static str, parts: u64) {
    counter!(WEBHOOK_EVENTS_TOTAL, "kind" => kind).increment(parts);
}

/// A webhook was refused.
pub fn count_refused_webhook(reason: &'static str) {
    counter!(WEBHOOKS_REFUSED_TOTAL, "reason" => reason).increment(1);
}

/// When a configured account last had a real message, in Unix seconds.
pub fn set_account_last_real_message(phone_number_id: &str, unix_seconds: f64) {
    gauge!(ACCOUNT_LAST_REAL_MESSAGE, "account" => phone_number_id.to_owned()).set(unix_seconds);
}

/// Whether a configured account cannot send.
pub fn set_account_degraded(phone_number_id: &str, degraded: bool) {
    gauge!(ACCOUNT_DEGRADED, "account" => phone_number_id.to_owned()).set(if degraded { 1.0 } else { 0.0 });
}

/// Whether a part of this process (as in `/health`) is degraded or not ready.
pub fn set_component_degraded(component: &str, degraded: bool) {
    gauge!(COMPONENT_DEGRADED, "component" => component.to_owned()).set(if degraded { 1.0 } else { 0.0 });
}

/// How many listeners there are.
pub fn set_listeners(listeners: usize) {
    gauge!(LISTENERS).set(listeners as f64);
}

/// Listeners were given a change this long after it was made.
pub fn observe_listener_delay(delay: Duration) {
    histogram!(LISTENER_DELAY_SECONDS).record(delay.as_secs_f64());
}

/// Something happened to listeners.
pub fn count_listener_events(event: &'static str, times: u64) {
    counter!(LISTENER_EVENTS_TOTAL, "event" => event).increment(times);
}

/// What waits for a subscriber.
pub fn set_subscriber(subscriber: &str, waiting: i64, lag_seconds: f64) {
    gauge!(SUBSCRIBER_WAITING, "subscriber" => subscriber.to_owned()).set(waiting as f64);
    gauge!(SUBSCRIBER_LAG_SECONDS, "subscriber" => subscriber.to_owned()).set(lag_seconds);
}

/// What became of a webhook for a subscriber.
pub fn count_delivery(subscriber: &str, result: &'static str) {
    counter!(SUBSCRIBER_DELIVERIES_TOTAL, "subscriber" => subscriber.to_owned(), "result" => result).increment(1);
}

/// A front end logged something.
pub fn count_front_end_records(level: &'static str, records: u64) {
    counter!(FRONT_END_RECORDS_TOTAL, "level" => level).increment(records);
}

#[cfg(test)]
mod tests;
