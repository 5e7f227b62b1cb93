//! Queries that show, find and count messages. Changes nothing.

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use super::submit::{StoredMessage, Submission};
use crate::provider::event::Direction;
use crate::provider::{OpaqueId, PhoneNumberId, Wamid};
use crate::site_db::{Pool, SiteError, Transaction};

/// A row of `whatsapp_messages`, as the API shows it.
#[derive(Debug, Clone, FromRow)]
pub struct MessageRow {
    /// Also the opaque id that Meta echoes.
    pub id: Uuid,
    /// The number of ours that it is from or to.
    pub phone_number_id: PhoneNumberId,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// Whether a user or we wrote it.
    pub direction: Direction,
    /// The current status.
    pub status: MessageStatus,
    /// Meta's type (`text`, `template`, `image`, …).
    #[sqlx(rename = "type")]
    pub kind: String,
    /// Meta's id, once known.
    pub wamid: Option<Wamid>,
    /// The recipient as the client wrote it.
    pub recipient: Option<String>,
    /// The client that submitted it (the name of its API token); `None` if no client did.
    pub client_name: Option<String>,
    /// The client's id for it, unique per `client_name`.
    pub client_id: Option<String>,
    /// Attempts made that count towards the limit.
    pub attempt: i32,
    /// When the next attempt is due; set while `pending`.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Meta's code of the last error.
    pub error_code: Option<i32>,
    /// Class of the last error: see [`ProblemClass`](super::ProblemClass).
    pub error_class: Option<String>,
    /// The last error as a sentence for people.
    pub error_message: Option<String>,
    /// HTTP status of Meta's last answer.
    pub response_status: Option<i32>,
    /// Body of Meta's last answer.
    pub response: Option<String>,
    /// When the request, or the webhook with the person's message, was committed; for history, when it was written.
    pub created_at: OffsetDateTime,
    /// When the last attempt began.
    pub sending_at: Option<OffsetDateTime>,
    /// When Meta's answer, or its first report, came.
    pub accepted_at: Option<OffsetDateTime>,
    /// When Meta said that it holds the message to assess its template.
    pub held_at: Option<OffsetDateTime>,
    /// When it left Meta. This and the next four: by Meta's clock, to the second.
    pub sent_at: Option<OffsetDateTime>,
    /// When it was on the person's phone.
    pub delivered_at: Option<OffsetDateTime>,
    /// When the person saw it.
    pub read_at: Option<OffsetDateTime>,
    /// When the person listened to it.
    pub played_at: Option<OffsetDateTime>,
    /// When it failed first.
    pub failed_at: Option<OffsetDateTime>,
    /// When it became `unknown`, or its client left without an answer.
    pub unknown_at: Option<OffsetDateTime>,
    /// When its client stopped waiting, or an operator cancelled it.
    pub cancelled_at: Option<OffsetDateTime>,
}

impl MessageRow {
    /// The row that a submission has just become.
    #[must_use]
    pub fn submitted(submission: &Submission, stored: &StoredMessage, phone_number_id: PhoneNumberId) -> Self {
        Self {
            id: stored.id,
            phone_number_id,
            conversation_id: stored.conversation_id,
            lead_id: stored.lead_id,
            direction: Direction::Outbound,
            status: MessageStatus::Pending,
            kind: submission.kind.clone(),
            wamid: None,
            recipient: Some(submission.recipient.clone()),
            client_name: Some(submission.client_name.clone()),
            client_id: submission.client_id.clone(),
            attempt: 0,
            next_attempt_at: Some(stored.created_at),
            error_code: None,
            error_class: None,
            error_message: None,
            response_status: None,
            response: None,
            created_at: stored.created_at,
            sending_at: None,
            accepted_at: None,
            held_at: None,
            sent_at: None,
            delivered_at: None,
            read_at: None,
            played_at: None,
            failed_at: None,
            unknown_at: None,
            cancelled_at: None,
        }
    }
}

/// A message and its status.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Standing {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The current status.
    pub status: MessageStatus,
}

/// What should be settled and is not, over all numbers.
#[derive(Debug, Clone, Copy, FromRow, PartialEq, Eq)]
pub struct Gaps {
    /// Messages of which we don't know whether they were sent.
    pub unknown: i64,
    /// Messages that are committed and unsent for longer than a minute.
    pub unsent: i64,
}

/// What a report says about the message that it is about.
#[derive(Debug, Clone, Copy)]
pub(in crate::site_db) struct ReportKey<'a> {
    pub(in crate::site_db) account_id: Uuid,
    pub(in crate::site_db) wamid: &'a Wamid,
    /// Our own id, which the report returns.
    pub(in crate::site_db) returned_id: Option<OpaqueId>,
}

/// A message by its id.
///
/// # Errors
/// See [`SiteError`].
pub async fn find(pool: &Pool, id: Uuid) -> Result<Option<MessageRow>, SiteError> {
    Ok(find_many(pool, &[id]).await?.pop())
}

/// Messages by their ids, in no order.
///
/// # Errors
/// See [`SiteError`].
pub async fn find_many(pool: &Pool, ids: &[Uuid]) -> Result<Vec<MessageRow>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT m.id, a.phone_number_id, m.conversation_id, m.lead_id, m.direction, m.status, m.type, m.wamid, \
         m.recipient, m.client_name, m.client_id, m.attempt, m.next_attempt_at, m.error_code, m.error_class, m.error_message, \
         m.response_status, m.response, m.created_at, m.sending_at, m.accepted_at, m.held_at, m.sent_at, \
         m.delivered_at, m.read_at, m.played_at, m.failed_at, m.unknown_at, m.cancelled_at \
         FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.id = ANY ($1)",
    )
    .bind(ids)
    .fetch_all(&pool.0)
    .await?)
}

/// The numbers that know a wamid: those that got or sent the message.
///
/// # Errors
/// See [`SiteError`].
pub async fn numbers_of(pool: &Pool, wamid: &Wamid) -> Result<Vec<PhoneNumberId>, SiteError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT a.phone_number_id FROM public.whatsapp_messages m \
         JOIN public.whatsapp_accounts a ON a.id = m.account_id WHERE m.wamid = $1",
    )
    .bind(wamid)
    .fetch_all(&pool.0)
    .await?)
}

/// The clients' own values (`biz_opaque_callback_data`) of these messages, by their ids; messages that are not there are left out.
///
/// # Errors
/// See [`SiteError`].
pub async fn client_opaques(pool: &Pool, ids: &[Uuid]) -> Result<Vec<(Uuid, Option<String>)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT id, client_opaque FROM public.whatsapp_messages WHERE id = ANY ($1)")
            .bind(ids)
            .fetch_all(&pool.0)
            .await?,
    )
}

/// The current status of some messages, for their waiting clients.
///
/// # Errors
/// See [`SiteError`].
pub async fn standing(pool: &Pool, ids: &[Uuid]) -> Result<Vec<Standing>, SiteError> {
    Ok(
        sqlx::query_as("SELECT id, status FROM public.whatsapp_messages WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&pool.0)
            .await?,
    )
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
    .fetch_one(&pool.0)
    .await?)
}

/// The messages that reports are about, in the order of the reports: found by wamid, else by our own id that the report
/// returns.
///
/// # Errors
/// See [`SiteError`].
pub(in crate::site_db) async fn find_reported(
    tx: &mut Transaction<'_>,
    reports: &[ReportKey<'_>],
) -> Result<Vec<Option<Uuid>>, SiteError> {
    Ok(sqlx::query_scalar(
        "SELECT coalesce(
                (SELECT id FROM public.whatsapp_messages m
                  WHERE m.account_id = c.account_id AND m.direction = 'outbound' AND m.wamid = c.wamid),
                (SELECT id FROM public.whatsapp_messages m
                  WHERE m.id = c.returned_id AND coalesce(m.account_id = c.account_id AND m.direction = 'outbound', false)))
           FROM unnest($1::uuid[], $2::text[], $3::uuid[]) WITH ORDINALITY AS c(account_id, wamid, returned_id, number)
          ORDER BY number",
    )
    .bind(reports.iter().map(|report| report.account_id).collect::<Vec<_>>())
    .bind(reports.iter().map(|report| report.wamid).collect::<Vec<_>>())
    .bind(
        reports
            .iter()
            .map(|report| report.returned_id.map(|id| id.0))
            .collect::<Vec<_>>(),
    )
    .fetch_all(tx.connection())
    .await?)
}
