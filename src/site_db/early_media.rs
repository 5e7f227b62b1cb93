//! `twinlog.early_media`: media of the history that came before the message that stands for them, and without a user, so that
//! they can't be stored as messages yet.

use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::messages::Medium;
use super::{SiteError, Transaction};
use crate::provider::Wamid;

/// A medium that waited for its message.
#[derive(Debug, FromRow)]
pub struct EarlyMedium {
    /// Meta's name of the type.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// The text that a person sees.
    pub body: Option<String>,
    /// The message's whole object in the webhook.
    pub payload: Json<Value>,
}

/// Keeps a medium until its message comes, unless that is there and has it. After two months it is forgotten: the history
/// comes within a day.
///
/// # Errors
/// See [`SiteError`].
pub async fn keep(tx: &mut Transaction<'_>, medium: &Medium<'_>) -> Result<(), SiteError> {
    sqlx::query(
        "WITH old AS (DELETE FROM twinlog.early_media WHERE ctid = ANY (ARRAY(SELECT ctid FROM twinlog.early_media
              WHERE created_at < now() - interval '60 days' FOR UPDATE SKIP LOCKED)))
         INSERT INTO twinlog.early_media (account_id, wamid, type, body, payload) SELECT $1, $2, $3, $4, $5
          WHERE NOT EXISTS (SELECT FROM public.whatsapp_messages m WHERE m.account_id = $1 AND m.wamid = $2)
         ON CONFLICT (account_id, wamid) DO NOTHING",
    )
    .bind(medium.account_id)
    .bind(medium.wamid)
    .bind(medium.kind)
    .bind(medium.text)
    .bind(Json(medium.payload))
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Takes the medium that waits for this message, if there is one.
///
/// # Errors
/// See [`SiteError`].
pub async fn take(tx: &mut Transaction<'_>, account_id: Uuid, wamid: &Wamid) -> Result<Option<EarlyMedium>, SiteError> {
    Ok(sqlx::query_as(
        "DELETE FROM twinlog.early_media WHERE account_id = $1 AND wamid = $2 RETURNING type, body, payload",
    )
    .bind(account_id)
    .bind(wamid)
    .fetch_optional(tx.connection())
    .await?)
}
