//! Checks that the Site DB answers and has what this version needs; called at start and then every few seconds.

use super::{Pool, SiteError, messages};

/// Names the newest column of each table, so that an older schema fails here with a clear message, and not in the middle
/// of a send. Reads no row.
const PROBE: &str = "SELECT m.api_version, a.throttled_until, e.failures, l.lease_until \
     FROM public.whatsapp_messages m, public.whatsapp_accounts a, public.webhook_events e, twinlog.number_leases l \
     WHERE false";

/// Checks that the Site DB answers, is migrated, lets this role read and write, and is not a standby.
///
/// # Errors
/// See [`SiteError`]; its hint says what to do.
pub async fn check(pool: &Pool) -> Result<(), SiteError> {
    sqlx::query(PROBE).fetch_optional(&pool.0).await?;
    messages::check_writable(pool).await
}
