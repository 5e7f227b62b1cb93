//! The replication slot: what the Site DB says about it, and ending an earlier daemon's connection that still uses it.

use std::time::Duration;

use tokio_postgres::Client;

use super::error::{SourceError, failed};
use crate::lsn::Lsn;

/// What `pg_replication_slots` says about the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its output plugin; `physical` for a physical slot.
    pub plugin: String,
    /// The database that it decodes; empty for a physical slot.
    pub database: String,
    /// The position that was acknowledged last; `None` while the slot is being created.
    pub confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated, if the server says so (17 and later).
    pub invalidation: Option<String>,
}

/// The slot, if it exists.
///
/// # Errors
/// The statement failed.
pub async fn slot(client: &Client, name: &str, version: i32) -> Result<Option<SlotFacts>, SourceError> {
    let invalidation = if version >= 170_000 {
        "invalidation_reason"
    } else {
        "NULL::text"
    };
    let row = client
        .query_opt(
            &format!(
                "SELECT plugin::text, database::text, confirmed_flush_lsn AS confirmed_flush, wal_status, \
                 {invalidation} AS invalidation \
                 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1"
            ),
            &[&name],
        )
        .await
        .map_err(failed("look the slot up"))?;
    Ok(row.map(|row| SlotFacts {
        plugin: row
            .get::<_, Option<String>>("plugin")
            .unwrap_or_else(|| "physical".to_owned()),
        database: row.get::<_, Option<String>>("database").unwrap_or_default(),
        confirmed_flush: row.get("confirmed_flush"),
        wal_status: row.get("wal_status"),
        invalidation: row.get("invalidation"),
    }))
}

/// Ends the replication connection that uses the slot if it has this application name; with `silent`, only if it has not answered for
/// so long. Returns whether one was ended.
///
/// # Errors
/// The statement failed.
pub async fn end_reader(
    client: &Client,
    slot: &str,
    application_name: &str,
    silent: Option<Duration>,
) -> Result<bool, SourceError> {
    let silent = silent.map(|silent| silent.as_secs_f64());
    let ended = client
        .query(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_replication_slots s \
             JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = $1 AND a.application_name = $2 AND ($3::float8 IS NULL OR EXISTS ( \
                 SELECT FROM pg_catalog.pg_stat_replication r WHERE r.pid = a.pid AND coalesce(r.reply_time, r.backend_start) \
                     < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3::float8)))",
            &[&slot, &application_name, &silent],
        )
        .await
        .map_err(failed("end the slot's reader"))?;
    Ok(!ended.is_empty())
}
