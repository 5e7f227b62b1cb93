//! Messages of which it is not known whether the provider has them, and the ids that would tell.

use std::collections::HashSet;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use crate::provider::{WaId, Wamid};
use crate::site_db::{Pool, SiteError, Transaction};

/// Most messages that are looked at.
pub const UNSETTLED: usize = 500;

/// A message without the provider's id that the provider may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The numbers that it may have gone to, in every form; empty if none is known.
    pub numbers: Vec<WaId>,
    /// When its last attempt began, and when that was given up; `None`: it is under way.
    pub attempt: (OffsetDateTime, Option<OffsetDateTime>),
}

/// Messages of a number that the provider may have, newest first: those whose outcome has been unknown for less than a week, and those
/// that are being sent. At most [`UNSETTLED`].
///
/// # Errors
/// See [`SiteError`].
pub async fn unsettled(pool: &Pool, account_id: Uuid) -> Result<Vec<Unsettled>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        id: Uuid,
        recipient: Option<String>,
        wa_id: Option<String>,
        sending_at: OffsetDateTime,
        unknown_at: Option<OffsetDateTime>,
    }
    // Inside `coalesce`, so that the planner takes the small indexes of these statuses.
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT m.id, m.recipient, l.wa_id, m.sending_at, CASE WHEN m.status = 'unknown' THEN m.unknown_at END AS unknown_at
           FROM (SELECT * FROM public.whatsapp_messages u WHERE u.status = 'unknown' AND u.unknown_at > now() - interval '7 days'
                 UNION ALL SELECT * FROM public.whatsapp_messages s WHERE s.status = 'sending' AND s.lease_until > '-infinity') AS m
             JOIN public.leads l ON l.id = m.lead_id
          WHERE coalesce(m.account_id = $1, false) AND m.wamid IS NULL AND m.sending_at IS NOT NULL
          ORDER BY m.sending_at DESC LIMIT $2",
    )
    .bind(account_id)
    .bind(i64::try_from(UNSETTLED).unwrap_or(i64::MAX))
    .fetch_all(&pool.0)
    .await?;
    let numbers = |row: &Row| -> Vec<WaId> {
        let known = [row.recipient.as_deref(), row.wa_id.as_deref()].into_iter().flatten();
        let known: Vec<WaId> = known.filter_map(WaId::parse).collect();
        let others: Vec<WaId> = known.iter().filter_map(WaId::other_form).collect();
        known.into_iter().chain(others).collect()
    };
    Ok(rows
        .into_iter()
        .map(|row| Unsettled {
            id: row.id,
            numbers: numbers(&row),
            attempt: (row.sending_at, row.unknown_at),
        })
        .collect())
}

/// Which of these ids are known here: of a message, or of a report about one, which may be another program's.
///
/// # Errors
/// See [`SiteError`].
pub async fn known_wamids(pool: &Pool, wamids: &[Wamid]) -> Result<HashSet<Wamid>, SiteError> {
    let known: Vec<Wamid> = sqlx::query_scalar(
        "SELECT g.wamid FROM unnest($1::text[]) AS g(wamid)
          WHERE EXISTS (SELECT FROM public.whatsapp_messages m WHERE m.wamid = g.wamid)
             OR EXISTS (SELECT FROM public.message_status_events e WHERE e.wamid = g.wamid)",
    )
    .bind(wamids)
    .fetch_all(&pool.0)
    .await?;
    Ok(known.into_iter().collect())
}

/// Locks a message whose outcome is unknown; false if it is settled by now, or the id is known. The caller has locked the id (see
/// [`locks`](crate::site_db::locks)).
pub(in crate::site_db) async fn lock_unknown(
    tx: &mut Transaction<'_>,
    id: Uuid,
    wamid: &Wamid,
) -> Result<bool, SiteError> {
    let locked: Option<MessageStatus> = sqlx::query_scalar(
        "SELECT m.status FROM public.whatsapp_messages m WHERE m.id = $1 AND m.status = 'unknown' AND m.wamid IS NULL
            AND NOT EXISTS (SELECT FROM public.whatsapp_messages o WHERE o.wamid = $2)
            AND NOT EXISTS (SELECT FROM public.message_status_events e WHERE e.wamid = $2) FOR UPDATE OF m",
    )
    .bind(id)
    .bind(wamid)
    .fetch_optional(tx.connection())
    .await?;
    Ok(locked.is_some())
}
