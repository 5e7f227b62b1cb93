//! What the Site DB knows of one message beside its row: what its number and its conversation are doing, what was reported, and
//! which webhooks about it are not processed. For people who ask what has become of it.

use serde_json::Value;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::{OpaqueId, Wamid};
use crate::site_db::{Pool, SiteError};

/// Messages that have a name: their id (or our opaque id), the provider's id, or a client's id. At most `limit`.
///
/// # Errors
/// See [`SiteError`].
pub async fn named(pool: &Pool, name: &str, limit: u32) -> Result<Vec<Uuid>, SiteError> {
    let id = OpaqueId::parse(name)
        .map(|id| id.0)
        .or_else(|| Uuid::try_parse(name).ok());
    // The index of clients' ids begins with the client's name: the names are found by one step in the index for each.
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE clients AS (
             (SELECT client_name FROM public.whatsapp_messages WHERE client_name IS NOT NULL ORDER BY client_name LIMIT 1)
             UNION ALL
             SELECT (SELECT m.client_name FROM public.whatsapp_messages m WHERE m.client_name > c.client_name
                      ORDER BY m.client_name LIMIT 1) FROM clients c WHERE c.client_name IS NOT NULL)
         SELECT DISTINCT id FROM (
             SELECT m.id FROM public.whatsapp_messages m WHERE m.id = $1
             UNION ALL SELECT m.id FROM public.whatsapp_messages m WHERE m.wamid = $2
             UNION ALL SELECT o.id FROM clients c CROSS JOIN LATERAL (
                 SELECT m.id FROM public.whatsapp_messages m WHERE m.client_name = c.client_name AND m.client_id = $2
                  LIMIT 1) o) found LIMIT $3",
    )
    .bind(id)
    .bind(name)
    .bind(i64::from(limit))
    .fetch_all(&pool.0)
    .await?)
}

/// What surrounds a message.
#[derive(Debug, Clone, FromRow)]
pub struct Surroundings {
    /// Why its number is held, if it is.
    pub hold_reason: Option<String>,
    /// Until when Meta throttles its number.
    pub throttled_until: Option<OffsetDateTime>,
    /// Until when a server has its number; `None`: none ever had.
    pub leased_until: Option<OffsetDateTime>,
    /// An earlier message of its conversation that waits or is being sent.
    pub behind: Option<Uuid>,
    /// After that it is not sent any more.
    pub send_by: Option<OffsetDateTime>,
    /// Until when the attempt that is under way has time.
    pub lease_until: Option<OffsetDateTime>,
    /// Inbound: when WhatsApp says the person sent it.
    pub provider_at: Option<OffsetDateTime>,
    /// When the row changed last.
    pub updated_at: OffsetDateTime,
    /// What a person reads.
    pub body: Option<String>,
    /// By the Site DB's clock.
    pub now: OffsetDateTime,
}

/// What surrounds a message; `None` if there is none.
///
/// # Errors
/// See [`SiteError`].
pub async fn surroundings(pool: &Pool, id: Uuid) -> Result<Option<Surroundings>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT CASE WHEN a.status = 'held' THEN coalesce(a.hold_reason, 'no reason is known') END AS hold_reason,
                a.throttled_until,
                (SELECT l.lease_until FROM twinlog.number_leases l WHERE l.phone_number_id = a.phone_number_id) AS leased_until,
                (SELECT e.id FROM public.whatsapp_messages e
                  WHERE e.conversation_id = m.conversation_id AND e.status IN ('pending', 'sending')
                    AND (e.created_at, e.id) < (m.created_at, m.id) ORDER BY e.created_at, e.id LIMIT 1) AS behind,
                m.send_by, m.lease_until, m.provider_at, m.updated_at, m.body, now() AS now
           FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.id = $1",
    )
    .bind(id)
    .fetch_optional(&pool.0)
    .await?)
}

/// A report of Meta's about a message.
#[derive(Debug, Clone, FromRow)]
pub struct Report {
    /// Meta's word for the status.
    pub status: String,
    /// When, by Meta's clock, to the second.
    pub provider_at: OffsetDateTime,
    /// When it was stored.
    pub created_at: OffsetDateTime,
    /// Meta's code, for `failed`.
    pub error_code: Option<i32>,
    /// Meta's reason.
    pub error_message: Option<String>,
}

/// The reports about a message, in the order in which they were stored.
///
/// # Errors
/// See [`SiteError`].
pub async fn reports(pool: &Pool, id: Uuid, limit: u32) -> Result<Vec<Report>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT status, provider_at, created_at, error_code, error_message FROM public.message_status_events
          WHERE message_id = $1 ORDER BY created_at, provider_at, id LIMIT $2",
    )
    .bind(id)
    .bind(i64::from(limit))
    .fetch_all(&pool.0)
    .await?)
}

/// A webhook that names a message and is not processed as a whole.
#[derive(Debug, Clone, FromRow)]
pub struct OpenWebhook {
    /// `webhook_events.id`.
    pub id: Uuid,
    /// `received` or `failed`.
    pub state: String,
    /// When it was committed.
    pub received_at: OffsetDateTime,
    /// Which of its parts could not be stored, and why.
    pub failures: Option<Value>,
}

/// Webhooks that wait or have failed, and name a message by Meta's id or by ours.
///
/// # Errors
/// See [`SiteError`].
pub async fn open_webhooks(pool: &Pool, id: Uuid, wamid: Option<&Wamid>) -> Result<Vec<OpenWebhook>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT id, state, received_at, failures FROM public.webhook_events
          WHERE state IN ('received', 'failed')
            AND (position(convert_to($1, 'UTF8') IN body) > 0 OR position(convert_to($2, 'UTF8') IN body) > 0)
          ORDER BY received_at LIMIT 10",
    )
    .bind(OpaqueId(id).to_string())
    .bind(wamid)
    .fetch_all(&pool.0)
    .await?)
}
