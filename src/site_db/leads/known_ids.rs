//! `lead_ids`: the ids that leads have beside those in their own row; and how a lead's ids are read and written as a whole.

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::ids::{IdKind, Ids, KnownId};
use crate::site_db::{SiteError, Transaction};

#[derive(FromRow)]
struct Row {
    kind: String,
    known_id: String,
    current_at: Option<OffsetDateTime>,
    replaced_at: Option<OffsetDateTime>,
}

impl Row {
    fn known(self) -> Option<KnownId> {
        Some(KnownId {
            kind: IdKind::ALL.into_iter().find(|kind| kind.as_str() == self.kind)?,
            id: self.known_id,
            current_at: self.current_at,
            replaced_at: self.replaced_at,
        })
    }
}

/// Locks a lead's row and reads all its ids; `None` if the lead is gone or merged into another one.
pub(super) async fn load(tx: &mut Transaction<'_>, lead_id: Uuid) -> Result<Option<Ids>, SiteError> {
    let columns: Option<(Option<String>, Option<String>)> =
        sqlx::query_as("SELECT wa_id, user_id FROM public.leads WHERE id = $1 AND merged_into IS NULL FOR UPDATE")
            .bind(lead_id)
            .fetch_optional(tx.connection())
            .await?;
    let Some((wa_id, user_id)) = columns else {
        return Ok(None);
    };
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT kind, known_id, current_at, replaced_at FROM public.lead_ids WHERE lead_id = $1 ORDER BY known_id",
    )
    .bind(lead_id)
    .fetch_all(tx.connection())
    .await?;
    Ok(Some(Ids {
        wa_id,
        user_id,
        known: rows.into_iter().filter_map(Row::known).collect(),
    }))
}

/// Writes what differs from `before`. A number that counts no more also becomes the lead's `phone`, if it has none.
pub(super) async fn save(tx: &mut Transaction<'_>, lead_id: Uuid, before: &Ids, after: &Ids) -> Result<(), SiteError> {
    if before.wa_id != after.wa_id {
        take_number(tx, lead_id, after).await?;
    }
    if (&before.wa_id, &before.user_id) != (&after.wa_id, &after.user_id) {
        // Not an id that another lead has: its own notices or messages decide about that.
        sqlx::query(
            "UPDATE public.leads AS l SET phone = CASE WHEN l.wa_id IS DISTINCT FROM $2 THEN coalesce(l.phone, l.wa_id) ELSE l.phone END,
                    wa_id = CASE WHEN EXISTS (SELECT FROM public.leads o WHERE o.wa_id = $2 AND o.id <> $1) THEN l.wa_id ELSE $2 END,
                    user_id = CASE WHEN EXISTS (SELECT FROM public.leads o WHERE o.user_id = $3 AND o.id <> $1) THEN l.user_id ELSE $3 END,
                    updated_at = now()
              WHERE l.id = $1",
        )
        .bind(lead_id)
        .bind(after.wa_id.as_deref())
        .bind(after.user_id.as_deref())
        .execute(tx.connection())
        .await?;
    }
    let news: Vec<&KnownId> = after
        .known
        .iter()
        .filter(|known| !before.known.contains(known))
        .collect();
    if news.is_empty() {
        return Ok(());
    }
    // An id that was another lead's belongs to the one that has it now.
    sqlx::query(
        "INSERT INTO public.lead_ids (lead_id, kind, known_id, current_at, replaced_at)
         SELECT $1, n.kind, n.known_id, n.current_at, n.replaced_at
           FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) AS n(kind, known_id, current_at, replaced_at)
          ORDER BY n.known_id
         ON CONFLICT (known_id) DO UPDATE SET lead_id = excluded.lead_id, current_at = excluded.current_at,
             replaced_at = excluded.replaced_at",
    )
    .bind(lead_id)
    .bind(news.iter().map(|known| known.kind.as_str()).collect::<Vec<_>>())
    .bind(news.iter().map(|known| known.id.as_str()).collect::<Vec<_>>())
    .bind(news.iter().map(|known| known.current_at).collect::<Vec<_>>())
    .bind(news.iter().map(|known| known.replaced_at).collect::<Vec<_>>())
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Takes the lead's number from a lead that has another user id: its person has given the number up. Not where WhatsApp told later
/// that it is that one's.
async fn take_number(tx: &mut Transaction<'_>, lead_id: Uuid, ids: &Ids) -> Result<(), SiteError> {
    let (Some(number), Some(user_id)) = (&ids.wa_id, &ids.user_id) else {
        return Ok(());
    };
    let told = ids.known.iter().find(|known| &known.id == number);
    let former: Option<Uuid> = sqlx::query_scalar(
        "UPDATE public.leads l SET wa_id = NULL, updated_at = now()
          WHERE l.wa_id = $2 AND l.id <> $1 AND l.user_id <> $3 AND NOT EXISTS (
            SELECT FROM public.lead_ids k WHERE k.known_id = $2 AND k.lead_id = l.id
               AND k.current_at > coalesce(k.replaced_at, '-infinity') AND coalesce(k.current_at >= $4, true))
          RETURNING l.id",
    )
    .bind(lead_id)
    .bind(number)
    .bind(user_id)
    .bind(told.and_then(|known| known.current_at))
    .fetch_optional(tx.connection())
    .await?;
    if let Some(former) = former {
        sqlx::query("DELETE FROM public.lead_ids WHERE lead_id = $1 AND known_id = $2")
            .bind(former)
            .bind(number)
            .execute(tx.connection())
            .await?;
    }
    Ok(())
}
