//! `conversations`: the messages between a lead (a person or a group) and one of our numbers. Every message belongs to a
//! conversation, which is found or created together with its lead.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{SiteError, Transaction, leads};
use crate::provider::ContactIdentity;
use crate::provider::event::Direction;

/// Where a message belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// `leads.id` of the person or the group.
    pub lead_id: Uuid,
    /// `conversations.id` for this lead and one of our numbers.
    pub conversation_id: Uuid,
}

/// Attempts to find or insert a conversation while another program inserts or deletes it.
const ATTEMPTS: usize = 3;

/// Finds or creates the lead and its conversation with a number, and stores ids of the contact that the lead lacks.
///
/// Safe to run concurrently with itself and with other writers of the tables.
///
/// # Errors
/// See [`SiteError`]; [`SiteError::Anonymous`] for a contact without any id.
pub async fn link(tx: &mut Transaction<'_>, account_id: Uuid, contact: &ContactIdentity) -> Result<Link, SiteError> {
    let lead_id = leads::find_or_make(tx, contact).await?;
    of_lead(tx, account_id, lead_id).await
}

/// The same for a group, by Meta's id.
///
/// # Errors
/// See [`SiteError`].
pub async fn link_group(tx: &mut Transaction<'_>, account_id: Uuid, group_id: &str) -> Result<Link, SiteError> {
    let lead_id = leads::find_or_make_group(tx, group_id).await?;
    of_lead(tx, account_id, lead_id).await
}

/// Finds or creates the conversation of a number with a lead that the caller named. `None`: no such lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn with_lead(tx: &mut Transaction<'_>, account_id: Uuid, lead_id: Uuid) -> Result<Option<Link>, SiteError> {
    let conversation: Option<Uuid> = sqlx::query_scalar(
        "INSERT INTO public.conversations (account_id, lead_id) SELECT $1, id FROM public.leads WHERE id = $2 \
         ON CONFLICT (account_id, lead_id) DO UPDATE SET updated_at = now() RETURNING id",
    )
    .bind(account_id)
    .bind(lead_id)
    .fetch_optional(tx.connection())
    .await?;
    Ok(conversation.map(|conversation_id| Link {
        lead_id,
        conversation_id,
    }))
}

async fn of_lead(tx: &mut Transaction<'_>, account_id: Uuid, lead_id: Uuid) -> Result<Link, SiteError> {
    let link = |conversation_id| Link {
        lead_id,
        conversation_id,
    };
    for _ in 0..ATTEMPTS {
        let found: Option<Uuid> =
            sqlx::query_scalar("SELECT id FROM public.conversations WHERE account_id = $1 AND lead_id = $2")
                .bind(account_id)
                .bind(lead_id)
                .fetch_optional(tx.connection())
                .await?;
        if let Some(id) = found {
            return Ok(link(id));
        }
        let inserted: Option<Uuid> = sqlx::query_scalar(
            "INSERT INTO public.conversations (account_id, lead_id) VALUES ($1, $2)
             ON CONFLICT (account_id, lead_id) DO NOTHING RETURNING id",
        )
        .bind(account_id)
        .bind(lead_id)
        .fetch_optional(tx.connection())
        .await?;
        if let Some(id) = inserted {
            return Ok(link(id));
        }
    }
    Err(SiteError::Vanished("conversations"))
}

/// Updates a conversation's times after a client's message was stored in it.
///
/// # Errors
/// See [`SiteError`].
pub async fn touch_outbound(tx: &mut Transaction<'_>, conversation_id: Uuid) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE public.conversations SET last_outbound_at = now(), last_message_at = now(), updated_at = now() \
         WHERE id = $1",
    )
    .bind(conversation_id)
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// What a message of a webhook does to its conversation.
#[derive(Debug, Clone, Copy)]
pub struct Touch {
    /// Who wrote the message.
    pub direction: Direction,
    /// When it was written, by WhatsApp's clock; `None`: now.
    pub at: Option<OffsetDateTime>,
    /// Whether it counts as unread.
    pub unread: bool,
}

/// Moves a conversation's times forward, never back. The message's own time counts, but never a time in the future.
///
/// # Errors
/// See [`SiteError`].
pub async fn touch(tx: &mut Transaction<'_>, conversation_id: Uuid, touch: Touch) -> Result<(), SiteError> {
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
    .bind(touch.direction == Direction::Outbound)
    .bind(touch.at)
    .bind(touch.unread)
    .execute(tx.connection())
    .await?;
    Ok(())
}
