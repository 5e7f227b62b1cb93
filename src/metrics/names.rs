//! The names of all metrics, and of each its kind, labels and meaning.

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
