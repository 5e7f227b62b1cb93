//! What a call to the Graph API brought, written down.
//!
//! Every statement is conditional, so that it never takes back what the inbox learned from a status webhook meanwhile
//! (a status often arrives before the answer to the send): an outcome counts only for a row that still carries this
//! attempt's lease and is `sending` or, after the lease expired, `unknown`. An acceptance is knowledge whoever has it,
//! and counts for a row that waits for another attempt as well: that must not be sent twice.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::Wamid;
use crate::site_db::{SiteError, status_events};

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// The message.
    pub id: Uuid,
    /// See [`Claimed::lease_owner`](super::Claimed::lease_owner).
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

/// Meta accepted the message (`held`: and assesses its quality first). Returns the status that the row shows now, if this
/// changed it; statuses that came before the answer are adopted.
///
/// Without a wamid only the status is written: for the impossible case that another row has it already.
///
/// # Errors
/// See [`SiteError`].
pub async fn accepted(
    connection: &mut PgConnection,
    attempt: Attempt,
    wamid: Option<&Wamid>,
    held: bool,
    response: &Response,
) -> Result<Option<String>, SiteError> {
    let changed = match wamid {
        Some(wamid) => {
            status_events::accept(&mut *connection, attempt.id, wamid, held, OffsetDateTime::now_utc()).await?
        }
        None => {
            sqlx::query_scalar(
                "UPDATE public.whatsapp_messages SET status = CASE WHEN $2 THEN 'held' ELSE 'accepted' END, \
                 accepted_at = coalesce(accepted_at, now()), held_at = CASE WHEN $2 THEN now() END, updated_at = now() \
                 WHERE id = $1 AND status IN ('pending', 'sending', 'unknown', 'cancelled') RETURNING status",
            )
            .bind(attempt.id)
            .bind(held)
            .fetch_optional(&mut *connection)
            .await?
        }
    };
    sqlx::query(
        "UPDATE public.whatsapp_messages SET response_status = $3, response = $4, lease_owner = NULL, \
         lease_until = NULL, next_attempt_at = NULL, updated_at = now() \
         WHERE id = $1 AND (status <> 'sending' OR lease_owner = $2)",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(response.status.map(i32::from))
    .bind(response.body.as_deref())
    .execute(connection)
    .await?;
    Ok(changed)
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

/// How a message waits for its next attempt.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// At least this long.
    pub after: Duration,
    /// Whether the attempt counts towards the limit; else it counts as one that was sent back.
    pub consumed: bool,
}

/// It is certain that nothing was sent, and the message waits for another attempt. Returns whether it counted.
///
/// # Errors
/// See [`SiteError`].
pub async fn pending_again(
    connection: &mut PgConnection,
    attempt: Attempt,
    wait: Wait,
    problem: &Problem,
    response: &Response,
) -> Result<bool, SiteError> {
    let done = sqlx::query(
        "UPDATE public.whatsapp_messages SET status = 'pending', unknown_at = NULL, \
         next_attempt_at = now() + make_interval(secs => $3), \
         attempt = CASE WHEN $4 THEN attempt ELSE attempt - 1 END, \
         throttles = CASE WHEN $4 THEN throttles ELSE throttles + 1 END, error_code = $5, error_class = $6, \
         error_message = $7, response_status = $8, response = $9, lease_owner = NULL, lease_until = NULL, \
         updated_at = now() WHERE id = $1 AND lease_owner = $2 AND status IN ('sending', 'unknown')",
    )
    .bind(attempt.id)
    .bind(attempt.lease_owner)
    .bind(wait.after.as_secs_f64())
    .bind(wait.consumed)
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
