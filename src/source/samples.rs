//! Samples for the monitor: where the Site DB's log ends and how much of it the slot retains. Catalog views only: a
//! check that decodes would load the source (pitfall P16).

use time::OffsetDateTime;
use tokio_postgres::Client;

use super::error::{SourceError, failed};
use crate::lsn::Lsn;

/// What the Site DB says about its log and our slot.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The end of the Site DB's WAL that is flushed to disk.
    pub end: Lsn,
    /// The server's clock just before.
    pub clock: OffsetDateTime,
    /// Bytes of WAL that the server keeps for the slot; `None` if there is no slot.
    pub retained: Option<i64>,
    /// Bytes of WAL that the daemon has not confirmed; `None` if there is no slot.
    pub unconfirmed: Option<i64>,
    /// Bytes that can still be written before the server removes WAL that the slot needs; `None` without a limit.
    pub headroom: Option<i64>,
    /// Whether a connection reads the slot.
    pub active: bool,
}

/// Takes a sample.
///
/// # Errors
/// The statement failed.
pub async fn sample(client: &Client, slot: &str) -> Result<Sample, SourceError> {
    // The clock first: what was committed until then is in the log.
    let row = client
        .query_one(
            "SELECT pg_catalog.clock_timestamp() AS clock, pg_catalog.pg_current_wal_flush_lsn()::text AS log_end, \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint AS retained, \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint AS unconfirmed, \
             s.safe_wal_size AS headroom, \
             coalesce(s.active, false) AS active FROM (VALUES (1)) one \
             LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(failed("read the end of the log"))?;
    Ok(Sample {
        end: row.get::<_, String>("log_end").parse()?,
        clock: row.get("clock"),
        retained: row.get("retained"),
        unconfirmed: row.get("unconfirmed"),
        headroom: row.get("headroom"),
        active: row.get("active"),
    })
}
