//! How a message begins: a client's as `pending`, a person's as `received`, one that was written on the phone as
//! `accepted`.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use crate::provider::event::Direction;
use crate::provider::{ApiVersion, Wamid};
use crate::site_db::{SiteError, Transaction};

/// A message that a client wants sent.
#[derive(Debug)]
pub struct PendingMessage<'a> {
    /// Also the opaque id that Meta will echo.
    pub id: Uuid,
    /// The row of the number that sends it.
    pub account_id: Uuid,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// Meta's name of the type.
    pub kind: &'a str,
    /// The text that a person sees.
    pub body: Option<&'a str>,
    /// The request, byte for byte.
    pub request: &'a [u8],
    /// The recipient as the client wrote it.
    pub recipient: &'a str,
    /// The quoted message.
    pub context: Option<&'a Wamid>,
    /// The name of the client's API token.
    pub client_name: &'a str,
    /// The client's id for this message, unique per `client_name`.
    pub client_id: Option<&'a str>,
    /// Hash (hex) of the request: the same client id with another hash is an error.
    pub request_sha256: &'a str,
    /// The client's own `biz_opaque_callback_data`.
    pub client_opaque: Option<&'a str>,
    /// Send it within this time or not at all.
    pub send_within: Option<Duration>,
    /// The Graph API version that the client asked for.
    pub api_version: Option<&'a ApiVersion>,
}

/// Where a message of a webhook belongs, and how it begins.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The row of the number that it is from or to.
    pub account_id: Uuid,
    /// `conversations.id`.
    pub conversation_id: Uuid,
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// Whether a user or we wrote it.
    pub direction: Direction,
    /// When it appears in the conversation; `None`: now.
    pub created_at: Option<OffsetDateTime>,
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

/// Stores a client's message as `pending`. Returns false, and stores nothing, if the client id is taken.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert(tx: &mut Transaction<'_>, row: &PendingMessage<'_>) -> Result<bool, SiteError> {
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
    .bind(row.context)
    .bind(row.client_name)
    .bind(row.client_id)
    .bind(row.request_sha256)
    .bind(row.client_opaque)
    .bind(row.send_within.map(|within| within.as_secs_f64()))
    .bind(row.api_version)
    .execute(tx.connection())
    .await?;
    Ok(inserted.rows_affected() > 0)
}

/// Stores a message of a webhook: as `received`, or as `accepted` if we wrote it. `None` if it is stored already.
///
/// # Errors
/// See [`SiteError`].
pub async fn insert_said(
    tx: &mut Transaction<'_>,
    origin: &Origin,
    said: &Said<'_>,
) -> Result<Option<Uuid>, SiteError> {
    let outbound = origin.direction == Direction::Outbound;
    let status = if outbound {
        MessageStatus::Accepted
    } else {
        MessageStatus::Received
    };
    Ok(sqlx::query_scalar(
        "INSERT INTO public.whatsapp_messages
             (account_id, conversation_id, lead_id, direction, status, type, body, payload, wamid, recipient, context_wamid,
              created_at, provider_at, received_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, coalesce($12, clock_timestamp()), $13,
                 CASE WHEN $14 THEN NULL ELSE clock_timestamp() END)
         ON CONFLICT (account_id, direction, wamid) DO NOTHING
         RETURNING id",
    )
    .bind(origin.account_id)
    .bind(origin.conversation_id)
    .bind(origin.lead_id)
    .bind(origin.direction)
    .bind(status)
    .bind(said.kind)
    .bind(said.text)
    .bind(said.payload)
    .bind(said.wamid)
    .bind(said.recipient.filter(|_| outbound))
    .bind(said.context)
    .bind(origin.created_at)
    .bind(said.at)
    .bind(outbound)
    .fetch_optional(tx.connection())
    .await?)
}
