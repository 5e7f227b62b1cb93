//! The one place that names metrics: constants, descriptions, and small typed functions that the other modules call.
//!
//! Units are in the names. Label values are bounded: replicated tables, configured accounts, the variants of an enum. To
//! add one: its name, its line in [`ALL`], a function that takes domain types.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::change::TableName;

/// Age of the oldest committed, unapplied source transaction; 0 only when provably caught up.
pub const SYNC_DELAY_SECONDS: &str = "twinlog_sync_delay_seconds";
/// Source commit to Agent commit, per transaction.
pub const SYNC_COMMIT_TO_APPLY_SECONDS: &str = "twinlog_sync_commit_to_apply_seconds";
/// Bytes of WAL from the durable position to the end of the Site DB's log.
pub const SYNC_LAG_BYTES: &str = "twinlog_sync_lag_bytes";
/// Changes by table, operation and result.
pub const SYNC_ROWS_TOTAL: &str = "twinlog_sync_rows_total";
/// Rows parked now, by table.
pub const FAILED_ROWS: &str = "twinlog_failed_rows";
/// Attempts to heal parked rows, by result.
pub const FAILED_ROW_RETRIES_TOTAL: &str = "twinlog_failed_row_retries_total";
/// What happened to parked rows, by table, event and SQLSTATE.
pub const FAILED_ROW_EVENTS_TOTAL: &str = "twinlog_failed_row_events_total";
/// Bytes of WAL that the slot keeps on the Site DB.
pub const SLOT_RETAINED_BYTES: &str = "twinlog_slot_retained_bytes";
/// Bytes of WAL until the Site DB removes WAL that the slot needs (`max_slot_wal_keep_size`); -1 without a limit.
pub const SLOT_HEADROOM_BYTES: &str = "twinlog_slot_headroom_bytes";
/// Seconds until the slot is lost at the present rate; -1 where what it keeps does not grow, or there is no limit.
pub const SLOT_FULL_IN_SECONDS: &str = "twinlog_slot_full_in_seconds";
/// Seconds from the moment at which the last gap was noticed until every table was read again; absent before the first one.
pub const GAP_RECOVERY_SECONDS: &str = "twinlog_gap_recovery_seconds";
/// 1 for the daemon's state, 0 for the others.
pub const SYNC_STATE: &str = "twinlog_sync_state";
/// Tables by the state that they are in.
pub const TABLES: &str = "twinlog_tables";
/// Tables that are held, by cause.
pub const HELD_TABLES: &str = "twinlog_held_tables";
/// Things that should be in a database and are not, by kind.
pub const PERSISTENCE_GAP: &str = "twinlog_persistence_gap";
/// When the last verification began by which a table was equal in both databases.
pub const VERIFIED_THROUGH: &str = "twinlog_verified_through_timestamp_seconds";
/// Rows that the last verification has found to differ, by table.
pub const VERIFIED_DIFFERENCES: &str = "twinlog_verified_differences";
/// Messages by direction and the status that they reached.
pub const MESSAGES_TOTAL: &str = "twinlog_messages_total";
/// Duration of a send to the Graph API.
pub const SEND_SECONDS: &str = "twinlog_send_seconds";
/// Errors of sends, by Meta's code and our class.
pub const SEND_ERRORS_TOTAL: &str = "twinlog_send_errors_total";
/// Webhook parts, real (a message) or protocol (everything else).
pub const WEBHOOK_EVENTS_TOTAL: &str = "twinlog_webhook_events_total";
/// Webhooks that were refused, by reason.
pub const WEBHOOKS_REFUSED_TOTAL: &str = "twinlog_webhooks_refused_total";
/// When an account last had a real message.
pub const ACCOUNT_LAST_REAL_MESSAGE: &str = "twinlog_account_last_real_message_timestamp_seconds";
/// 1 while an account cannot send (held), else 0.
pub const ACCOUNT_DEGRADED: &str = "twinlog_account_degraded";
/// 1 while a part of the process is degraded or not ready, else 0.
pub const COMPONENT_DEGRADED: &str = "twinlog_component_degraded";
/// Listeners of events now.
pub const LISTENERS: &str = "twinlog_listeners";
/// Time from a change to the moment at which its listeners are given it.
pub const LISTENER_DELAY_SECONDS: &str = "twinlog_listener_delay_seconds";
/// Webhooks that wait for a subscriber.
pub const SUBSCRIBER_WAITING: &str = "twinlog_subscriber_waiting";
/// How long the oldest one has waited.
pub const SUBSCRIBER_LAG_SECONDS: &str = "twinlog_subscriber_lag_seconds";
/// Deliveries to subscribers, by result.
pub const SUBSCRIBER_DELIVERIES_TOTAL: &str = "twinlog_subscriber_deliveries_total";
/// What happened to listeners, by event.
pub const LISTENER_EVENTS_TOTAL: &str = "twinlog_listener_events_total";
/// Records of front ends' logs, by level.
pub const FRONT_END_RECORDS_TOTAL: &str = "twinlog_front_end_records_total";

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// Only ever grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Values counted in buckets.
    Histogram,
}

/// A metric's description for Prometheus. Its name ends with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// As in the queries of dashboards: part of the contract.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The names of its labels, in the order of the code.
    pub labels: &'static [&'static str],
    /// The line that Prometheus shows.
    pub help: &'static str,
}

const fn metric(kind: Kind, name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// Every metric. Tests compare dashboards, alerts, the README and what the code records with this list.
pub const ALL: &[Metric] = &[
    metric(
        Kind::Gauge,
        SYNC_DELAY_SECONDS,
        &[],
        "age of the oldest committed, unapplied source transaction; 0 only when provably caught up",
    ),
    metric(
        Kind::Histogram,
        SYNC_COMMIT_TO_APPLY_SECONDS,
        &[],
        "time from a transaction's commit on the Site DB to its commit on the Agent DB",
    ),
    metric(
        Kind::Gauge,
        SYNC_LAG_BYTES,
        &[],
        "bytes of WAL from the durable position to the end of the Site DB's log",
    ),
    metric(
        Kind::Counter,
        SYNC_ROWS_TOTAL,
        &["table", "op", "result"],
        "changes by table, operation (insert, update, delete, truncate, copy, any) and result",
    ),
    metric(
        Kind::Gauge,
        FAILED_ROWS,
        &["table"],
        "rows that the Agent DB refused and that wait for a retry, by table",
    ),
    metric(
        Kind::Counter,
        FAILED_ROW_RETRIES_TOTAL,
        &["result"],
        "attempts to heal a parked row, by result (healed, failed)",
    ),
    metric(
        Kind::Counter,
        FAILED_ROW_EVENTS_TOTAL,
        &["table", "event", "reason"],
        "what happened to parked rows, by table, event (parked, folded, healed, refused) and SQLSTATE",
    ),
    metric(
        Kind::Gauge,
        SLOT_RETAINED_BYTES,
        &[],
        "bytes of WAL that the replication slot keeps on the Site DB",
    ),
    metric(
        Kind::Gauge,
        SLOT_HEADROOM_BYTES,
        &[],
        "bytes of WAL until the Site DB removes WAL that the slot needs; -1 without a limit",
    ),
    metric(
        Kind::Gauge,
        SLOT_FULL_IN_SECONDS,
        &[],
        "seconds until the slot is lost, at the rate of the last minutes; -1 where what it keeps does not grow, or there is no limit",
    ),
    metric(
        Kind::Gauge,
        GAP_RECOVERY_SECONDS,
        &[],
        "seconds from the moment at which the last gap was noticed until every table was read again",
    ),
    metric(
        Kind::Gauge,
        SYNC_STATE,
        &["state"],
        "1 for the state that the daemon is in, 0 for the others",
    ),
    metric(
        Kind::Gauge,
        TABLES,
        &["state"],
        "tables in each state; a held one is not written until the reason is gone",
    ),
    metric(Kind::Gauge, HELD_TABLES, &["cause"], "tables that are held, by cause"),
    metric(
        Kind::Gauge,
        PERSISTENCE_GAP,
        &["kind"],
        "things that should be in a database and are not, by kind",
    ),
    metric(
        Kind::Gauge,
        VERIFIED_THROUGH,
        &["table"],
        "unix time as of which a table is proved to be equal in both databases, by table",
    ),
    metric(
        Kind::Gauge,
        VERIFIED_DIFFERENCES,
        &["table"],
        "rows that the last verification found to differ and did not repair, by table",
    ),
    metric(
        Kind::Counter,
        MESSAGES_TOTAL,
        &["direction", "status"],
        "messages by direction and the status that they reached",
    ),
    metric(
        Kind::Histogram,
        SEND_SECONDS,
        &[],
        "duration of a send to the Graph API",
    ),
    metric(
        Kind::Counter,
        SEND_ERRORS_TOTAL,
        &["code", "class"],
        "errors of sends by Meta's code and our class",
    ),
    metric(
        Kind::Counter,
        WEBHOOK_EVENTS_TOTAL,
        &["kind"],
        "webhook parts, real (a message) or protocol (everything else)",
    ),
    metric(
        Kind::Counter,
        WEBHOOKS_REFUSED_TOTAL,
        &["reason"],
        "webhooks that were refused, by reason; Meta sends them again",
    ),
    metric(
        Kind::Gauge,
        ACCOUNT_LAST_REAL_MESSAGE,
        &["account"],
        "unix time of an account's last real message",
    ),
    metric(
        Kind::Gauge,
        ACCOUNT_DEGRADED,
        &["account"],
        "1 while an account cannot send, else 0",
    ),
    metric(
        Kind::Gauge,
        COMPONENT_DEGRADED,
        &["component"],
        "1 while a part of the process is degraded or not ready (/health says why), else 0",
    ),
    metric(Kind::Gauge, LISTENERS, &[], "listeners of events now"),
    metric(
        Kind::Histogram,
        LISTENER_DELAY_SECONDS,
        &[],
        "time from a change to the moment at which its listeners are given it",
    ),
    metric(
        Kind::Counter,
        LISTENER_EVENTS_TOTAL,
        &["event"],
        "what happened to listeners: behind (too slow, reads from the Site DB), refused (all places are taken), reload (events were \
         missed), unreadable (a row that the Site DB can't read was passed over)",
    ),
    metric(
        Kind::Gauge,
        SUBSCRIBER_WAITING,
        &["subscriber"],
        "webhooks that wait for a subscriber, counted up to 10,000",
    ),
    metric(
        Kind::Gauge,
        SUBSCRIBER_LAG_SECONDS,
        &["subscriber"],
        "how long the oldest webhook has waited for a subscriber",
    ),
    metric(
        Kind::Counter,
        SUBSCRIBER_DELIVERIES_TOTAL,
        &["subscriber", "result"],
        "webhooks for subscribers by result: delivered, unwanted (not chosen), refused (tried again), given_up",
    ),
    metric(
        Kind::Counter,
        FRONT_END_RECORDS_TOTAL,
        &["level"],
        "records of front ends' logs by level (error, warn, info, debug; dropped: beyond the first 100 of a batch)",
    ),
];

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
