//! Outbound messages up to the call: stored, found, claimed, cancelled, swept. What the call brought is in
//! [`outcomes`].

use std::time::Duration;

use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Pool, SiteError};

mod fold;
pub mod outcomes;
mod status;

pub use fold::{MessageState, Report};
pub use status::MessageStatus;

/// A message to be stored `pending`.
#[derive(Debug)]
pub struct NewRow<'a> {
    /// Its id, also the opaque id that Meta will echo.
    pub id: Uuid,
    /// The number that sends it.
    pub account_id: Uuid,
    /// Its conversation.
    pub conversation_id: Uuid,
    /// Its lead.
    pub lead_id: Uuid,
    /// Meta's type.
    pub kind: &'a str,
    /// What a person reads.
    pub body: Option<&'a str>,
    /// The request, byte for byte.
    pub request: &'a [u8],
    /// The recipient as given.
    pub recipient: &'a str,
    /// The quoted message.
    pub context_wamid: Option<&'a str>,
    /// The client's name and its id for this message.
    pub client_name: &'a str,
    /// See `client_name`.
    pub client_id: Option<&'a str>,
    /// Hex hash of what the client asked for: the same id with another hash is an error.
    pub request_sha256: &'a str,
    /// The client's own opaque value.
    pub client_opaque: Option<&'a str>,
    /// Send it within this time or not at all.
    pub send_within: Option<Duration>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<&'a str>,
}

/// What is known under a client's id.
#[derive(Debug, Clone, FromRow)]
pub struct Known {
    /// The message.
    pub id: Uuid,
    /// Hash of the request that it stands for.
    pub request_sha256: Option<String>,
    /// Its status.
    #[sqlx(try_from = "String")]
    pub status: MessageStatus,
    /// Why it is so, for a cancelled one: see [`WAIT_ELAPSED`].
    pub error_class: Option<String>,
}

/// `error_class` of a message that was cancelled because its client stopped waiting: the same client may ask again.
pub const WAIT_ELAPSED: &str = "wait_elapsed";

/// A message, as the API shows it.
#[derive(Debug, Clone, FromRow)]
pub struct Message {
    /// Its id.
    pub id: Uuid,
    /// The number's id at Meta.
    pub phone_number_id: String,
    /// Its conversation.
    pub conversation_id: Uuid,
    /// Its lead.
    pub lead_id: Uuid,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// Its status.
    #[sqlx(try_from = "String")]
    pub status: MessageStatus,
    /// Meta's type.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Meta's id, once known.
    pub wamid: Option<String>,
    /// The recipient as given.
    pub recipient: Option<String>,
    /// Who had it sent; `None` for one that no client of ours did.
    pub client_name: Option<String>,
    /// The client's id for it.
    pub client_id: Option<String>,
    /// Attempts made.
    pub attempt: i32,
    /// When the next is due, while pending.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Meta's code of the last error.
    pub error_code: Option<i32>,
    /// Our class of it.
    pub error_class: Option<String>,
    /// Its words.
    pub error_message: Option<String>,
    /// HTTP status of Meta's last answer.
    pub response_status: Option<i32>,
    /// Body of Meta's last answer.
    pub response: Option<String>,
    /// Steps, with their times.
    pub created_at: OffsetDateTime,
    /// See `created_at`.
    pub sending_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub accepted_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub held_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub sent_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub delivered_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub read_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub played_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub failed_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub unknown_at: Option<OffsetDateTime>,
    /// See `created_at`.
    pub cancelled_at: Option<OffsetDateTime>,
}

/// A message under a lease, committed `sending`: the Graph API may be called now, once.
#[derive(Debug, Clone, FromRow)]
pub struct Claimed {
    /// The message.
    pub id: Uuid,
    /// The attempt's own id: an outcome counts only while the row still carries it.
    pub lease_owner: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// How often rate limits sent it back before.
    pub throttles: i32,
    /// Its conversation.
    pub conversation_id: Uuid,
    /// Its lead.
    pub lead_id: Uuid,
    /// The client's request, byte for byte.
    pub request: Option<Vec<u8>>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<String>,
}

/// What should be settled and is not, over all numbers.
#[derive(Debug, Clone, Copy, FromRow, PartialEq, Eq)]
pub struct Gaps {
    /// Messages of which we don't know whether they were sent.
    pub unknown: i64,
    /// Messages that are committed and unsent for longer than a minute.
    pub unsent: i64,
}

/// Stores a message `pending`. Returns false, and stores nothing, if the client's id is taken.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert(connection: &mut PgConnection, row: &NewRow<'_>) -> Result<bool, SiteError> {
    let inserted = sqlx::query(
        "INSERT INTO public.whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, body, \
         request, recipient, context_wamid, client_name, client_id, request_sha256, client_opaque, next_attempt_at, \
         send_by, api_version) VALUES ($1, $2, $3, $4, 'outbound', 'pending', $5, $6, $7, $8, $9, $10, $11, $12, $13, \
         now(), now() + make_interval(secs => $14), $15) ON CONFLICT (client_name, client_id) DO NOTHING",
    )
    .bind(row.id)
    .bind(row.account_id)
    .bind(row.conversation_id)
    .bind(row.lead_id)
    .bind(row.kind)
    .bind(row.body)
    .bind(row.request)
    .bind(row.recipient)
    .bind(row.context_wamid)
    .bind(row.client_name)
    .bind(row.client_id)
    .bind(row.request_sha256)
    .bind(row.client_opaque)
    .bind(row.send_within.map(|within| within.as_secs_f64()))
    .bind(row.api_version)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        > 0;
    if inserted {
        sqlx::query(
            "UPDATE public.conversations SET last_outbound_at = now(), last_message_at = now(), updated_at = now() \
             WHERE id = $1",
        )
        .bind(row.conversation_id)
        .execute(connection)
        .await?;
    }
    Ok(inserted)
}

/// The message that a client's id stands for.
///
/// # Errors
/// See [`SiteError`].
pub async fn find_by_client_id(pool: &Pool, client_name: &str, client_id: &str) -> Result<Option<Known>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT id, request_sha256, status, error_class FROM public.whatsapp_messages \
         WHERE client_name = $1 AND client_id = $2",
    )
    .bind(client_name)
    .bind(client_id)
    .fetch_optional(pool)
    .await?)
}

/// The lead that the caller named, and how WhatsApp knows it: `(wa_id or phone, user_id)`.
///
/// # Errors
/// See [`SiteError`].
pub async fn lead_address(pool: &Pool, lead_id: Uuid) -> Result<Option<(Option<String>, Option<String>)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT coalesce(wa_id, phone), user_id FROM public.leads WHERE id = $1")
            .bind(lead_id)
            .fetch_optional(pool)
            .await?,
    )
}

/// The conversation of a number with a lead that the caller named; made if it is missing. `None`: no such lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn conversation_with(
    connection: &mut PgConnection,
    account_id: Uuid,
    lead_id: Uuid,
) -> Result<Option<Uuid>, SiteError> {
    let conversation = sqlx::query_scalar(
        "INSERT INTO public.conversations (account_id, lead_id) SELECT $1, id FROM public.leads WHERE id = $2 \
         ON CONFLICT (account_id, lead_id) DO UPDATE SET updated_at = now() RETURNING id",
    )
    .bind(account_id)
    .bind(lead_id)
    .fetch_optional(connection)
    .await?;
    Ok(conversation)
}

/// A message by its id.
///
/// # Errors
/// See [`SiteError`].
pub async fn find(pool: &Pool, id: Uuid) -> Result<Option<Message>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT m.id, a.phone_number_id, m.conversation_id, m.lead_id, m.direction, m.status, m.type, m.wamid, \
         m.recipient, m.client_name, m.client_id, m.attempt, m.next_attempt_at, m.error_code, m.error_class, m.error_message, \
         m.response_status, m.response, m.created_at, m.sending_at, m.accepted_at, m.held_at, m.sent_at, \
         m.delivered_at, m.read_at, m.played_at, m.failed_at, m.unknown_at, m.cancelled_at \
         FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.id = $1",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?)
}

/// Claims up to `limit` due messages of a number: commits them `sending`, one attempt on, under a fresh lease.
///
/// The order: messages of one conversation leave one after the other, oldest first; one that backs off keeps the later
/// ones of its conversation waiting, and nobody else's. An `unknown` one does not: it may never be settled.
/// The gate (held, throttled) is asked in the same statement, so that another server's hold counts at once; a `probe`
/// passes a hold, and moves the time of the next probe.
///
/// # Errors
/// See [`SiteError`].
pub async fn claim(
    pool: &Pool,
    account_id: Uuid,
    limit: usize,
    lease: Duration,
    probe: Option<Duration>,
) -> Result<Vec<Claimed>, SiteError> {
    let Some(interval) = probe else {
        // One statement is one transaction: the usual case takes one round trip.
        return claim_due(&mut *pool.acquire().await?, account_id, limit, lease, false).await;
    };
    let mut transaction = pool.begin().await?;
    let due = sqlx::query(
        "UPDATE public.whatsapp_accounts SET probe_at = now() + make_interval(secs => $2), updated_at = now() \
         WHERE id = $1 AND status = 'held' AND coalesce(probe_at <= now(), true)",
    )
    .bind(account_id)
    .bind(interval.as_secs_f64())
    .execute(&mut *transaction)
    .await?;
    if due.rows_affected() == 0 {
        return Ok(Vec::new());
    }
    let claimed = claim_due(&mut transaction, account_id, limit, lease, true).await?;
    if claimed.is_empty() {
        // Nothing to send: the probe was not used either.
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
    }
    Ok(claimed)
}

async fn claim_due(
    connection: &mut PgConnection,
    account_id: Uuid,
    limit: usize,
    lease: Duration,
    through_hold: bool,
) -> Result<Vec<Claimed>, SiteError> {
    Ok(sqlx::query_as(
        "WITH due AS ( \
           SELECT m.id FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id \
           WHERE m.account_id = $1 AND m.status = 'pending' AND m.direction = 'outbound' \
             AND coalesce(m.next_attempt_at <= now(), true) AND coalesce(m.send_by > now(), true) \
             AND (a.status = 'active' OR $4) AND coalesce(a.throttled_until <= now(), true) \
             AND NOT EXISTS ( \
               SELECT FROM public.whatsapp_messages e \
               WHERE e.conversation_id = m.conversation_id AND e.status IN ('pending', 'sending') \
                 AND (e.created_at, e.id) < (m.created_at, m.id) \
                 AND (e.status = 'sending' OR coalesce(e.send_by > now(), true))) \
           ORDER BY m.created_at, m.id LIMIT $2 FOR UPDATE OF m SKIP LOCKED) \
         UPDATE public.whatsapp_messages m SET status = 'sending', attempt = m.attempt + 1, \
           lease_owner = gen_random_uuid(), lease_until = now() + make_interval(secs => $3), sending_at = now(), \
           updated_at = now() \
         FROM due WHERE m.id = due.id \
         RETURNING m.id, m.lease_owner, m.attempt, m.throttles, m.conversation_id, m.lead_id, m.request, \
           m.api_version",
    )
    .bind(account_id)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind(lease.as_secs_f64())
    .bind(through_hold)
    .fetch_all(connection)
    .await?)
}

/// The statuses of some messages, for those who wait for them.
///
/// # Errors
/// See [`SiteError`].
pub async fn statuses(pool: &Pool, ids: &[Uuid]) -> Result<Vec<(Uuid, String)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT id, status FROM public.whatsapp_messages WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(pool)
            .await?,
    )
}

/// Cancels a message that was not sent, because its client stops waiting. Returns false if it is too late for that:
/// an attempt is under way, or it is settled.
///
/// # Errors
/// See [`SiteError`].
pub async fn cancel_waiting(pool: &Pool, id: Uuid) -> Result<bool, SiteError> {
    Ok(sqlx::query(
        "UPDATE public.whatsapp_messages SET status = 'cancelled', cancelled_at = now(), error_class = $2, \
         updated_at = now() WHERE id = $1 AND status = 'pending'",
    )
    .bind(id)
    .bind(WAIT_ELAPSED)
    .execute(pool)
    .await?
    .rows_affected()
        > 0)
}

/// Takes a cancellation back, because the same client asks again. Returns false if it was not of that kind, or somebody
/// else took it back.
///
/// # Errors
/// See [`SiteError`].
pub async fn revive(pool: &Pool, id: Uuid, send_within: Option<Duration>) -> Result<bool, SiteError> {
    Ok(sqlx::query(
        "UPDATE public.whatsapp_messages SET status = 'pending', cancelled_at = NULL, error_class = NULL, \
         error_code = NULL, error_message = NULL, next_attempt_at = now(), \
         send_by = now() + make_interval(secs => $3), updated_at = now() \
         WHERE id = $1 AND status = 'cancelled' AND error_class = $2",
    )
    .bind(id)
    .bind(WAIT_ELAPSED)
    .bind(send_within.map(|within| within.as_secs_f64()))
    .execute(pool)
    .await?
    .rows_affected()
        > 0)
}

/// Marks every attempt whose lease has expired `unknown`: its process died, or could not commit the outcome in time.
/// Returns the messages. The lease's owner stays, so that a late outcome of the same attempt still counts.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_expired(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(
        "WITH expired AS (SELECT id FROM public.whatsapp_messages WHERE status = 'sending' AND lease_until < now() \
           ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED), \
         swept AS (UPDATE public.whatsapp_messages m SET status = 'unknown', unknown_at = now(), \
           error_class = 'unknown', error_message = 'the process that sent it did not record an outcome', \
           updated_at = now() FROM expired WHERE m.id = expired.id RETURNING m.id, m.account_id, m.conversation_id), \
         told AS (INSERT INTO public.notifications (kind, account_id, conversation_id, message_id) \
           SELECT 'message_unknown', account_id, conversation_id, id FROM swept) \
         SELECT id FROM swept",
    )
    .fetch_all(pool)
    .await?)
}

/// Cancels messages whose clients have long gone without cancelling them (their server died). Returns them.
///
/// # Errors
/// See [`SiteError`].
pub async fn sweep_abandoned(pool: &Pool) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(
        "WITH abandoned AS (SELECT id FROM public.whatsapp_messages WHERE status = 'pending' AND send_by < now() - \
           interval '5 seconds' ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED) \
         UPDATE public.whatsapp_messages m SET status = 'cancelled', cancelled_at = now(), error_class = $1, \
           updated_at = now() FROM abandoned WHERE m.id = abandoned.id RETURNING m.id",
    )
    .bind(WAIT_ELAPSED)
    .fetch_all(pool)
    .await?)
}

/// What should be settled and is not.
///
/// # Errors
/// See [`SiteError`].
pub async fn gaps(pool: &Pool) -> Result<Gaps, SiteError> {
    Ok(sqlx::query_as(
        "SELECT (SELECT count(*) FROM public.whatsapp_messages WHERE status = 'unknown') AS unknown, \
         (SELECT count(*) FROM public.whatsapp_messages WHERE status = 'pending' \
            AND created_at < now() - interval '1 minute') AS unsent",
    )
    .fetch_one(pool)
    .await?)
}
