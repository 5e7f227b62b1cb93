//! The inbox's statements on the Site DB.

use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::event::Message;
use crate::provider::{PhoneNumberId, UserId};
use crate::site_db::leads::Link;

/// A claimed event.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RawEvent {
    pub(super) id: Uuid,
    pub(super) body: Vec<u8>,
    pub(super) attempts: i32,
}

/// How much is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Backlog {
    /// Events that wait for longer than they should.
    pub(super) late: i64,
    /// Events with parts that could not be processed.
    pub(super) failed: i64,
}

/// What a stored message is, beside what it says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) account_id: Uuid,
    pub(super) link: Link,
    pub(super) outbound: bool,
    /// `received`, or for ours `sent` and what the history says.
    pub(super) status: &'static str,
    /// When it appears in the conversation; `None`: now.
    pub(super) created_at: Option<OffsetDateTime>,
}

pub(super) async fn insert_event(pool: &PgPool, body: &[u8]) -> sqlx::Result<Uuid> {
    sqlx::query_scalar("INSERT INTO public.webhook_events (body, body_sha256) VALUES ($1, $2) RETURNING id")
        .bind(body)
        .bind(hex::encode(Sha256::digest(body)))
        .fetch_one(pool)
        .await
}

pub(super) async fn reset_event(pool: &PgPool, id: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE public.webhook_events SET state = 'received', attempts = 0, next_attempt_at = now(), processed_at = NULL
          WHERE id = $1",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The event that is due longest and that nobody else has.
pub(super) async fn claim_event(tx: &mut PgConnection) -> sqlx::Result<Option<RawEvent>> {
    sqlx::query_as(
        "SELECT id, body, attempts FROM public.webhook_events
          WHERE state = 'received' AND next_attempt_at <= now()
          ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(tx)
    .await
}

/// Leaves an event for later.
pub(super) async fn postpone_event(executor: &mut PgConnection, id: Uuid, seconds: f64) -> sqlx::Result<()> {
    sqlx::query("UPDATE public.webhook_events SET next_attempt_at = now() + make_interval(secs => $2) WHERE id = $1")
        .bind(id)
        .bind(seconds)
        .execute(executor)
        .await?;
    Ok(())
}

/// The same after a failed attempt.
pub(super) async fn retry_event(pool: &PgPool, id: Uuid, seconds: f64) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.webhook_events SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2)
          WHERE id = $1 AND state = 'received'",
    )
    .bind(id)
    .bind(seconds)
    .execute(pool)
    .await?;
    Ok(())
}

/// All parts have been tried.
pub(super) async fn finish_event(
    tx: &mut PgConnection,
    id: Uuid,
    real: i32,
    protocol: i32,
    failures: Option<&Value>,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.webhook_events SET state = CASE WHEN $4::jsonb IS NULL THEN 'processed' ELSE 'failed' END,
                attempts = attempts + 1, real_events = $2, protocol_events = $3, failures = $4,
                processed_at = clock_timestamp()
          WHERE id = $1",
    )
    .bind(id)
    .bind(real)
    .bind(protocol)
    .bind(failures)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn backlog(pool: &PgPool, late_after_seconds: f64) -> sqlx::Result<Backlog> {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM public.webhook_events
                  WHERE state = 'received' AND received_at < now() - make_interval(secs => $1)) AS late,
                (SELECT count(*) FROM public.webhook_events WHERE state = 'failed') AS failed",
    )
    .bind(late_after_seconds)
    .fetch_one(pool)
    .await
}

/// Each number's last real message, in Unix seconds.
pub(super) async fn last_real_messages(pool: &PgPool) -> sqlx::Result<Vec<(String, f64)>> {
    sqlx::query_as(
        "SELECT phone_number_id, extract(epoch FROM last_real_message_at)::float8 FROM public.whatsapp_accounts
          WHERE last_real_message_at IS NOT NULL",
    )
    .fetch_all(pool)
    .await
}

/// The account of a number; made if Meta sends for one that is not configured, so that nothing is lost.
pub(super) async fn account(
    tx: &mut PgConnection,
    number: &PhoneNumberId,
    waba_id: Option<&str>,
    display_phone_number: Option<&str>,
) -> sqlx::Result<Uuid> {
    let known: Option<(Uuid, bool)> = sqlx::query_as(
        "SELECT id, (waba_id IS NULL AND $2::text IS NOT NULL) OR (display_phone_number IS NULL AND $3::text IS NOT NULL)
           FROM public.whatsapp_accounts WHERE phone_number_id = $1",
    )
    .bind(number.as_str())
    .bind(waba_id)
    .bind(display_phone_number)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((id, false)) = known {
        return Ok(id);
    }
    sqlx::query_scalar(
        "INSERT INTO public.whatsapp_accounts AS a (phone_number_id, waba_id, display_phone_number) VALUES ($1, $2, $3)
         ON CONFLICT (phone_number_id) DO UPDATE SET
             waba_id = coalesce(a.waba_id, excluded.waba_id),
             display_phone_number = coalesce(a.display_phone_number, excluded.display_phone_number),
             updated_at = now()
         RETURNING id",
    )
    .bind(number.as_str())
    .bind(waba_id)
    .bind(display_phone_number)
    .fetch_one(tx)
    .await
}

/// Stores a message of a webhook; `None` if it is there already.
pub(super) async fn insert_message(
    tx: &mut PgConnection,
    origin: &Origin,
    message: &Message,
) -> sqlx::Result<Option<Uuid>> {
    let contact = &message.contact;
    let user = contact.wa_id.as_ref().map(|id| id.as_str().to_owned());
    let recipient = user.or_else(|| contact.user_id.as_ref().map(ToString::to_string));
    sqlx::query_scalar(
        "INSERT INTO public.whatsapp_messages
             (account_id, conversation_id, lead_id, direction, status, type, body, payload, wamid, recipient, context_wamid,
              created_at, provider_at, received_at)
         VALUES ($1, $2, $3, CASE WHEN $4 THEN 'outbound' ELSE 'inbound' END, $5, $6, $7, $8, $9,
                 CASE WHEN $4 THEN $10 END, $11, coalesce($12, clock_timestamp()), $13,
                 CASE WHEN $4 THEN NULL ELSE clock_timestamp() END)
         ON CONFLICT (account_id, direction, wamid) DO NOTHING
         RETURNING id",
    )
    .bind(origin.account_id)
    .bind(origin.link.conversation_id)
    .bind(origin.link.lead_id)
    .bind(origin.outbound)
    .bind(origin.status)
    .bind(&message.kind)
    .bind(&message.text)
    .bind(&message.raw)
    .bind(message.wamid.as_str())
    .bind(recipient)
    .bind(message.context.as_ref().map(|wamid| wamid.as_str().to_owned()))
    .bind(origin.created_at)
    .bind(message.at)
    .fetch_optional(tx)
    .await
}

/// Moves a conversation's times on, never back. The user's own clock decides, but not beyond ours.
pub(super) async fn touch_conversation(
    tx: &mut PgConnection,
    conversation_id: Uuid,
    outbound: bool,
    at: Option<OffsetDateTime>,
    unread: bool,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.conversations SET
             last_inbound_at  = CASE WHEN $2 THEN last_inbound_at ELSE greatest(last_inbound_at, t.at) END,
             last_outbound_at = CASE WHEN $2 THEN greatest(last_outbound_at, t.at) ELSE last_outbound_at END,
             last_message_at  = greatest(last_message_at, t.at),
             unread_count     = unread_count + $4::int,
             updated_at       = now()
            FROM (SELECT least(coalesce($3, clock_timestamp()), clock_timestamp()) AS at) AS t
           WHERE id = $1",
    )
    .bind(conversation_id)
    .bind(outbound)
    .bind(at)
    .bind(unread)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn notify_inbound(
    tx: &mut PgConnection,
    account_id: Uuid,
    conversation_id: Uuid,
    message_id: Uuid,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO public.notifications (kind, account_id, conversation_id, message_id) VALUES ('inbound_message', $1, $2, $3)",
    )
    .bind(account_id)
    .bind(conversation_id)
    .bind(message_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// The advertisement that brought the lead; the first one counts.
pub(super) async fn set_referral(tx: &mut PgConnection, lead_id: Uuid, referral: &Value) -> sqlx::Result<()> {
    sqlx::query("UPDATE public.leads SET referral = $2, updated_at = now() WHERE id = $1 AND referral IS NULL")
        .bind(lead_id)
        .bind(referral)
        .execute(tx)
        .await?;
    Ok(())
}

/// A user's new number, if no other lead has it; the old one stays in `phone`.
pub(super) async fn renumber(tx: &mut PgConnection, lead_id: Uuid, wa_id: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.leads SET phone = coalesce(phone, wa_id), wa_id = $2, updated_at = now()
          WHERE id = $1 AND NOT EXISTS (SELECT FROM public.leads other WHERE other.wa_id = $2)",
    )
    .bind(lead_id)
    .bind(wa_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// A user's new id, if no other lead has it.
pub(super) async fn change_user_id(tx: &mut PgConnection, previous: &UserId, current: &UserId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.leads SET user_id = $2, updated_at = now()
          WHERE user_id = $1 AND NOT EXISTS (SELECT FROM public.leads other WHERE other.user_id = $2)",
    )
    .bind(previous.as_str())
    .bind(current.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// The lead of a message, if this is its number and its user id is not known.
pub(super) async fn lead_without_user_id(
    tx: &mut PgConnection,
    message_id: Uuid,
    wa_id: &str,
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar(
        "SELECT l.id FROM public.whatsapp_messages m JOIN public.leads l ON l.id = m.lead_id
          WHERE m.id = $1 AND l.user_id IS NULL AND l.wa_id = $2",
    )
    .bind(message_id)
    .bind(wa_id)
    .fetch_optional(tx)
    .await
}

/// A number has seen real messages.
pub(super) async fn touch_account(tx: &mut PgConnection, account_id: Uuid) -> sqlx::Result<()> {
    sqlx::query("UPDATE public.whatsapp_accounts SET last_real_message_at = clock_timestamp() WHERE id = $1")
        .bind(account_id)
        .execute(tx)
        .await?;
    Ok(())
}
