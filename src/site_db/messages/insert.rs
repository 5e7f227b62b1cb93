//! How a message begins: a client's as `pending`, a person's as `received`, one that was written on the phone as
//! `accepted`.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::Value;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use super::submit::{StoredMessage, Submission};
use crate::provider::Wamid;
use crate::provider::event::Direction;
use crate::site_db::conversations::Link;
use crate::site_db::notifications::{self, NotificationKind};
use crate::site_db::{SiteError, Transaction};

/// A message of a webhook: where it belongs, how it begins, and what it says.
#[derive(Debug, Clone, Copy)]
pub struct NewSaid<'a> {
    /// The row of the number that it is from or to.
    pub account_id: Uuid,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// Whether a user or we wrote it.
    pub direction: Direction,
    /// When it appears in the conversation.
    pub created_at: OffsetDateTime,
    /// Whether a person is to be notified of it.
    pub announced: bool,
    /// What it says.
    pub said: Said<'a>,
}

/// What a message of a webhook says.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Meta's id of the message.
    pub wamid: &'a Wamid,
    /// Meta's name of the type.
    pub kind: &'a str,
    /// The text that a person sees.
    pub text: Option<&'a str>,
    /// The message's whole object in the webhook.
    pub payload: &'a Value,
    /// The user's number, else the user id.
    pub recipient: Option<&'a str>,
    /// The message that it answers, reacts to, edits or revokes.
    pub context: Option<&'a Wamid>,
    /// When it was written, by WhatsApp's clock, to the second.
    pub at: Option<OffsetDateTime>,
}

/// Stores a client's message as `pending`, in a transaction that has found or made its lead and conversation. `None`, and
/// nothing is stored: the client id is taken.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert(
    tx: &mut Transaction<'_>,
    submission: &Submission,
    link: Link,
) -> Result<Option<StoredMessage>, SiteError> {
    let within = submission.send_within.map(|within| within.each);
    let created_at = sqlx::query_scalar(
        "INSERT INTO public.whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, body, \
         request, recipient, context_wamid, client_name, client_id, request_sha256, client_opaque, next_attempt_at, \
         send_by, api_version) VALUES ($1, $2, $3, $4, 'outbound', 'pending', $5, $6, $7, $8, $9, $10, $11, $12, $13, \
         now(), now() + make_interval(secs => $14), $15) ON CONFLICT (client_name, client_id) DO NOTHING \
         RETURNING created_at",
    )
    .bind(submission.id)
    .bind(submission.account_id)
    .bind(link.conversation_id)
    .bind(link.lead_id)
    .bind(&submission.kind)
    .bind(&submission.body)
    .bind(&*submission.request)
    .bind(&submission.recipient)
    .bind(&submission.context)
    .bind(&submission.client_name)
    .bind(&submission.client_id)
    .bind(&submission.request_sha256)
    .bind(&submission.client_opaque)
    .bind(within.map(|within| within.as_secs_f64()))
    .bind(&submission.api_version)
    .fetch_optional(tx.connection())
    .await?;
    Ok(created_at.map(|created_at| StoredMessage {
        id: submission.id,
        conversation_id: link.conversation_id,
        lead_id: link.lead_id,
        created_at,
        send_within: within,
    }))
}

static INSERT_SAID: LazyLock<String> = LazyLock::new(|| {
    let announced = Some("id IN (SELECT id FROM said WHERE announced)");
    let notifications = notifications::of_messages("new", NotificationKind::InboundMessage, "NULL", announced);
    // In one order, so that two batches with the same messages never wait for each other in a circle.
    format!(
        "WITH said AS (
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
                 $9::jsonb[], $10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::timestamptz[],
                 $15::timestamptz[], $16::boolean[])
               AS given(id, account_id, conversation_id, lead_id, direction, status, type, body, payload, wamid, recipient,
                 context_wamid, created_at, provider_at, received_at, announced)
         ), new AS (
             INSERT INTO public.whatsapp_messages
                 (id, account_id, conversation_id, lead_id, direction, status, type, body, payload, wamid, recipient,
                  context_wamid, created_at, provider_at, received_at)
             SELECT id, account_id, conversation_id, lead_id, direction, status, type, body, payload, wamid, recipient,
                    context_wamid, created_at, provider_at, received_at
               FROM said ORDER BY account_id, direction, wamid, created_at
             ON CONFLICT (account_id, direction, wamid) DO NOTHING
             RETURNING id, account_id, conversation_id
         ), notified AS ({notifications})
         SELECT id FROM new"
    )
});

/// Stores messages of webhooks, as `received`, or as `accepted` if we wrote them, with the notifications of those that are
/// announced. Returns the id of each; `None` for one that is stored already. Two with the same wamid are one message.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert_said(tx: &mut Transaction<'_>, new: &[NewSaid<'_>]) -> Result<Vec<Option<Uuid>>, SiteError> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    // Time-ordered, so that the index grows at its end.
    let ids: Vec<Uuid> = new.iter().map(|_| Uuid::now_v7()).collect();
    let status = |direction| match direction {
        Direction::Outbound => MessageStatus::Accepted,
        Direction::Inbound => MessageStatus::Received,
    };
    macro_rules! each {
        ($value:expr) => {
            new.iter().map($value).collect::<Vec<_>>()
        };
    }
    let inserted: Vec<Uuid> = sqlx::query_scalar(INSERT_SAID.as_str())
        .bind(&ids)
        .bind(each!(|new| new.account_id))
        .bind(each!(|new| new.conversation_id))
        .bind(each!(|new| new.lead_id))
        .bind(each!(|new| new.direction))
        .bind(each!(|new| status(new.direction)))
        .bind(each!(|new| new.said.kind))
        .bind(each!(|new| new.said.text))
        .bind(each!(|new| Json(new.said.payload)))
        .bind(each!(|new| new.said.wamid))
        .bind(each!(|new| new
            .said
            .recipient
            .filter(|_| new.direction == Direction::Outbound)))
        .bind(each!(|new| new.said.context))
        .bind(each!(|new| new.created_at))
        .bind(each!(|new| new.said.at))
        .bind(each!(
            |new| (new.direction == Direction::Inbound).then_some(new.created_at)
        ))
        .bind(each!(|new| new.announced))
        .fetch_all(tx.connection())
        .await?;
    let inserted: HashSet<Uuid> = inserted.into_iter().collect();
    Ok(ids.into_iter().map(|id| inserted.contains(&id).then_some(id)).collect())
}
