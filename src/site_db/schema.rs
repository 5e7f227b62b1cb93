//! Whether the Site DB is there and has what this version needs: asked at start and then every few seconds.

use super::{Pool, SiteError, messages};

/// Names every column that was added last to its table, so that an older schema fails here, with one clear sentence,
/// rather than in the middle of a send. Reads no row.
const PROBE: &str = "SELECT m.api_version, a.throttled_until, e.failures, l.lease_until \
     FROM public.whatsapp_messages m, public.whatsapp_accounts a, public.webhook_events e, twinlog.number_leases l \
     WHERE false";

/// Checks that the Site DB answers, is migrated, lets this role read and write, and is not a standby.
///
/// # Errors
/// What is wrong, with its hint.
pub async fn check(pool: &Pool) -> Result<(), SiteError> {
    sqlx::query(PROBE).fetch_optional(&pool.0).await?;
    messages::check_writable(pool).await
}
