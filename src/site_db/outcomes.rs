//! What a call to the Graph API brought, written down.
//!
//! Every statement is conditional, so that it never takes back what the inbox learned from a status webhook meanwhile
//! (a status often arrives before the answer to the send): an outcome counts only for a row that still carries this
//! attempt's lease and is `sending` or, after the lease expired, `unknown`. An acceptance is knowledge whoever has it,
//! and counts for a row that waits for another attempt as well: that must not be sent twice.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::SiteError;

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// The message.
    pub id: Uuid,
    /// See [`Claimed::lease_owner`](super::messages::Claimed::lease_owner).
    pub lease_owner: Uuid,
}

/// Meta's answer, for the client that asks again.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// HTTP status; `None` without an answer.
    pub status: Option<u16>,
    /// Its body as it came.
    pub body: Option<String>,
}

/// An error, as the row keeps it.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// Meta's code.
    pub code: Option<i32>,
    /// Our class.
    pub class: &'static str,
    /// A sentence; Meta's words where there are some.
    pub message: String,
}

/// Keeps statuses and outcomes of one wamid apart: without it, a status that is stored as an orphan while the outcome
/// that would adopt it commits could be missed by both. Held until the transaction ends; the inbox takes the same lock.
///
/// # Errors
/// See [`SiteError`].
pub async fn lock_wamid(connection: &mut PgConnection, wamid: &str) -> Result<(), SiteError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(wamid)
        .execute(connection)
        .await?;
    Ok(())
}

/// Meta accepted the message (`held`: and assesses its quality first). Returns whether the row's status changed by it.
///
/// # Errors
/// See [`SiteError`].
pub async fn accepted(
    connection: &mut PgConnection,
    attempt: Attempt,
    wamid: Option<&str>,
    held: bool,
    response: &Response,
) -> Result<bool, SiteError> {
    let changed: Option<bool> = sqlx::query_scalar(
        "WITH old AS (SELECT id, status IN ('pending', 'unknown', 'cancelled') \
             OR (status = 'sending' AND lease_owner = $2) AS ours \
           FROM public.whatsapp_messages WHERE id = $1 FOR UPDATE) \
         UPDATE public.whatsapp_messages m SET wamid = coalesce(m.wamid, $3), response_status = $5, response = $6, \
           accepted_at = coalesce(m.accepted_at, now()), \
           held_at = CASE WHEN $4 THEN coalesce(m.held_at, now()) ELSE m.held_at END, \
           status = CASE WHEN NOT old.ours THEN m.status WHEN $4 THEN 'held' ELSE 'accepted' END, \
           error_code = CASE WHEN old.ours THEN NULL ELSE m.error_code END, \
           error_class = CASE WHEN old.ours THEN NULL ELSE m.error_class END, \
           error_message = CASE WHEN old.ours THEN NULL ELSE m.error_message END, \
           lease_owner = CASE WHEN old.ours THEN NULL ELSE m.lease_owner END, \
           lease_until = CASE WHEN old.ours THEN NULL ELSE m.lease_until END, \
           next_attempt_at = CASE WHEN old.ours THEN NULL ELSE m.next_attempt_at END, updated_at = now() \
         FROM old WHERE m.id = old.id RETURNING old.ours",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(wamid)
    .bind(held)
    .bind(response.status.map(i32::from))
    .bind(response.body.as_deref())
    .fetch_optional(connection)
    .await?;
    Ok(changed.unwrap_or(false))
}

/// The message failed for good. Writes a notification too. Returns whether it counted.
///
/// # Errors
/// See [`SiteError`].
pub async fn failed(
    connection: &mut PgConnection,
    attempt: Attempt,
    problem: &Problem,
    response: &Response,
) -> Result<bool, SiteError> {
    let done = sqlx::query(
        "WITH done AS (UPDATE public.whatsapp_messages SET status = 'failed', failed_at = now(), error_code = $3, \
           error_class = $4, error_message = $5, response_status = $6, response = $7, lease_owner = NULL, \
           lease_until = NULL, next_attempt_at = NULL, updated_at = now() \
           WHERE id = $1 AND lease_owner = $2 AND status IN ('sending', 'unknown') \
           RETURNING id, account_id, conversation_id) \
         INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail) \
         SELECT 'message_failed', account_id, conversation_id, id, $5 FROM done",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(problem.code)
    .bind(problem.class)
    .bind(&problem.message)
    .bind(response.status.map(i32::from))
    .bind(response.body.as_deref())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// It is certain that nothing was sent, and the message waits for another attempt after `wait`. Returns whether it
/// counted.
///
/// `consumed`: whether the attempt counts towards the limit. `throttled`: whether a rate limit sent it back.
///
/// # Errors
/// See [`SiteError`].
pub async fn pending_again(
    connection: &mut PgConnection,
    attempt: Attempt,
    wait: Duration,
    consumed: bool,
    throttled: bool,
    problem: &Problem,
    response: &Response,
) -> Result<bool, SiteError> {
    let done = sqlx::query(
        "UPDATE public.whatsapp_messages SET status = 'pending', unknown_at = NULL, \
         next_attempt_at = now() + make_interval(secs => $3), \
         attempt = CASE WHEN $4 THEN attempt ELSE attempt - 1 END, \
         throttles = CASE WHEN $5 THEN throttles + 1 ELSE throttles END, error_code = $6, error_class = $7, \
         error_message = $8, response_status = $9, response = $10, lease_owner = NULL, lease_until = NULL, \
         updated_at = now() WHERE id = $1 AND lease_owner = $2 AND status IN ('sending', 'unknown')",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(wait.as_secs_f64())
    .bind(consumed)
    .bind(throttled)
    .bind(problem.code)
    .bind(problem.class)
    .bind(&problem.message)
    .bind(response.status.map(i32::from))
    .bind(response.body.as_deref())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// It is not known whether the message was sent. Writes a notification too. Returns whether it counted.
///
/// # Errors
/// See [`SiteError`].
pub async fn unknown(
    connection: &mut PgConnection,
    attempt: Attempt,
    message: &str,
    response: &Response,
) -> Result<bool, SiteError> {
    let done = sqlx::query(
        "WITH done AS (UPDATE public.whatsapp_messages SET status = 'unknown', unknown_at = now(), error_code = NULL, \
           error_class = 'unknown', error_message = $3, response_status = $4, response = $5, lease_until = NULL, \
           updated_at = now() WHERE id = $1 AND lease_owner = $2 AND status = 'sending' \
           RETURNING id, account_id, conversation_id) \
         INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail) \
         SELECT 'message_unknown', account_id, conversation_id, id, $3 FROM done",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(message)
    .bind(response.status.map(i32::from))
    .bind(response.body.as_deref())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// WhatsApp knows the recipient under another id than we dialled (Brazil, Mexico): the lead learns it, unless another
/// lead has it already.
///
/// # Errors
/// See [`SiteError`].
pub async fn learn_wa_id(
    connection: &mut PgConnection,
    lead_id: Uuid,
    wa_id: &str,
) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE public.leads l SET wa_id = $2, phone = coalesce(l.phone, l.wa_id), updated_at = now() \
         WHERE id = $1 AND wa_id IS DISTINCT FROM $2 \
           AND NOT EXISTS (SELECT FROM public.leads other WHERE other.wa_id = $2)",
    )
    .bind(lead_id)
    .bind(wa_id)
    .execute(connection)
    .await?;
    Ok(())
}
