//! `twinlog.uploaded_media`: whose medium an upload is; and whose a received one is, which its message says. Not replicated:
//! Meta keeps an upload for 30 days, and then its id means nothing.

use super::{Pool, SiteError};
use crate::provider::PhoneNumberId;

/// Stores whose medium an upload is, and removes a few that Meta has deleted.
///
/// # Errors
/// See [`SiteError`].
pub async fn remember(pool: &Pool, media_id: &str, phone_number_id: &PhoneNumberId) -> Result<(), SiteError> {
    sqlx::query(
        "WITH old AS (DELETE FROM twinlog.uploaded_media WHERE media_id IN \
           (SELECT media_id FROM twinlog.uploaded_media WHERE uploaded_at < now() - interval '31 days' \
             ORDER BY uploaded_at LIMIT 10 FOR UPDATE SKIP LOCKED)) \
         INSERT INTO twinlog.uploaded_media (media_id, phone_number_id) VALUES ($1, $2) \
         ON CONFLICT (media_id) DO UPDATE SET phone_number_id = EXCLUDED.phone_number_id, uploaded_at = now()",
    )
    .bind(media_id)
    .bind(phone_number_id)
    .execute(&pool.0)
    .await?;
    Ok(())
}

/// The number whose medium this is; `None`: it neither came nor went through this server.
///
/// # Errors
/// See [`SiteError`].
pub async fn owner(pool: &Pool, media_id: &str) -> Result<Option<PhoneNumberId>, SiteError> {
    Ok(sqlx::query_scalar(
        "SELECT phone_number_id FROM twinlog.uploaded_media WHERE media_id = $1 \
         UNION ALL \
         (SELECT a.phone_number_id FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id \
           WHERE m.payload -> m.type ->> 'id' = $1 AND m.direction = 'inbound' \
             AND m.type IN ('image', 'video', 'audio', 'voice', 'document', 'sticker') LIMIT 1) \
         LIMIT 1",
    )
    .bind(media_id)
    .fetch_optional(&pool.0)
    .await?)
}
