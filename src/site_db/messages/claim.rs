//! Claims messages that are due; and sweeps messages whose process died or whose client left.
//!
//! Rows are chosen `FOR UPDATE SKIP LOCKED`, so that any number of servers may do this at once.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::transition;
use super::write;
use crate::provider::ApiVersion;
use crate::site_db::{Pool, SiteError, Transaction};

/// A message under a lease, committed as `sending`: the provider may be called now, once.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The attempt's own id: an outcome counts only while the row still carries it.
    pub lease_owner: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// How many earlier attempts did not count towards the limit (throttled, number held, network down).
    #[sqlx(rename = "throttles")]
    pub uncounted: i32,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// The client's request, byte for byte.
    pub request: Option<Vec<u8>>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<ApiVersion>,
}

/// Whether a claim respects the hold of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HoldRule {
    Respected,
    Passed,
}

/// The messages that are due, in order: those of one conversation one after the other, oldest first. One that backs off
/// delays the later ones of its own conversation and no others; an `unknown` one delays none, as it may never be settled.
/// The number's hold and throttle are checked in the same statement, so that another server's hold counts at once.
///
/// `$1` the number's row, `$2` how many at most, `$3` seconds of the lease, `$4` whether a hold is ignored.
const DUE: &str = "SELECT m.id FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id \
     WHERE m.account_id = $1 AND m.status = 'pending' AND m.direction = 'outbound' \
       AND coalesce(m.next_attempt_at <= now(), true) AND coalesce(m.send_by > now(), true) \
       AND (a.status = 'active' OR $4) AND coalesce(a.throttled_until <= now(), true) \
       AND NOT EXISTS ( \
         SELECT FROM public.whatsapp_messages e \
         WHERE e.conversation_id = m.conversation_id AND e.status IN ('pending', 'sending') \
           AND (e.created_at, e.id) < (m.created_at, m.id) \
           AND (e.status = 'sending' OR coalesce(e.send_by > now(), true))) \
     ORDER BY m.created_at, m.id LIMIT $2 FOR UPDATE OF m SKIP LOCKED";

static CLAIM: LazyLock<String> = LazyLock::new(|| {
    let columns = "id, lease_owner, attempt, throttles, conversation_id, lead_id, request, api_version";
    write::chosen(DUE, &transition::CLAIM, columns)
});

static EXPIRE: LazyLock<String> = LazyLock::new(|| {
    let expired = "SELECT id FROM public.whatsapp_messages WHERE status = 'sending' AND lease_until < now() \
         ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED";
    write::chosen(expired, &transition::EXPIRE, "id")
});

static ABANDON: LazyLock<String> = LazyLock::new(|| {
    let abandoned = "SELECT id FROM public.whatsapp_messages WHERE status = 'pending' \
         AND send_by < now() - interval '5 seconds' ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED";
    write::chosen(abandoned, &transition::CANCEL, "id")
});

/// Claims up to `limit` due messages of a number: commits them as `sending`, each with its next attempt number and its own
/// lease.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim(pool: &Pool, account_id: Uuid, limit: usize, lease: Duration) -> Result<Vec<Claimed>, SiteError> {
    // One statement is one transaction: the usual case takes one round trip.
    let mut connection = pool.0.acquire().await?;
    claim_due(&mut connection, account_id, limit, lease, HoldRule::Respected).await
}

/// The same for a held number, to test if it can send again. The caller commits.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim_probe(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    limit: usize,
    lease: Duration,
) -> Result<Vec<Claimed>, SiteError> {
    claim_due(tx.connection(), account_id, limit, lease, HoldRule::Passed).await
}

async fn claim_due(
    connection: &mut PgConnection,
    account_id: Uuid,
    limit: usize,
    lease: Duration,
    hold: HoldRule,
) -> Result<Vec<Claimed>, SiteError> {
    Ok(sqlx::query_as(CLAIM.as_str())
        .bind(account_id)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(lease.as_secs_f64())
        .bind(hold == HoldRule::Passed)
        .fetch_all(connection)
        .await?)
}

/// Marks every attempt whose lease has expired `unknown`: its process died, or could not commit the outcome in time.
/// Returns the messages.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_expired(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(EXPIRE.as_str()).fetch_all(&pool.0).await?)
}

/// Cancels messages whose clients stopped waiting long ago but could not cancel them (their server died). Returns the
/// messages' ids.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_abandoned(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(ABANDON.as_str()).fetch_all(&pool.0).await?)
}

/// A member of a `WITH` that makes due what waited for its number, for the numbers in the member `released(id)`. It lives
/// here because it changes messages; the number's owner puts it into the statement that releases the number.
pub(in crate::site_db) fn make_released_due() -> String {
    let waiting = "(SELECT w.id FROM released r JOIN public.whatsapp_messages w ON w.account_id = r.id \
         WHERE w.status = 'pending' AND w.error_class = 'account') AS c";
    write::moved(waiting, &transition::MAKE_DUE)
}
