//! `lead_merges`, and the leads' part of a merge: the older lead gets the ids, and the names that it lacks; the other one
//! points to it. The record has both as they were.

use std::collections::HashSet;

use serde_json::Value;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::known_ids::{load, save};
use crate::site_db::{SiteError, Transaction};

/// Locks these leads; returns them, the oldest first.
///
/// # Errors
/// See [`SiteError`]; [`SiteError::Merged`] if one of them is merged, or gone, by now: which lead stands for it is to be looked up
/// before anything is locked.
pub(in crate::site_db) async fn lock_leads(tx: &mut Transaction<'_>, leads: &[Uuid]) -> Result<Vec<Uuid>, SiteError> {
    let mut locked: Vec<(OffsetDateTime, Uuid)> = sqlx::query_as(
        "SELECT created_at, id FROM public.leads WHERE id = ANY ($1) AND merged_into IS NULL ORDER BY id FOR UPDATE",
    )
    .bind(leads)
    .fetch_all(tx.connection())
    .await?;
    if locked.len() < leads.iter().collect::<HashSet<_>>().len() {
        return Err(SiteError::Merged);
    }
    locked.sort_unstable();
    Ok(locked.into_iter().map(|(_, id)| id).collect())
}

/// Locks what a merge of these leads changes, or of those that they were merged into: their rows and the rows that were merged
/// into them, in the order of their ids, and then the known ids. Returns all leads that are locked.
pub(super) async fn lock_to_join(tx: &mut Transaction<'_>, leads: &[Uuid]) -> Result<HashSet<Uuid>, SiteError> {
    let locked: Vec<Uuid> = sqlx::query_scalar(
        "WITH wanted AS MATERIALIZED (
             SELECT array_agg(coalesce(merged_into, id)) AS ids FROM public.leads WHERE id = ANY ($1)
         )
         SELECT id FROM public.leads
          WHERE id = ANY ((SELECT ids FROM wanted)::uuid[])
             OR (merged_into IS NOT NULL AND merged_into = ANY ((SELECT ids FROM wanted)::uuid[]))
          ORDER BY id FOR UPDATE",
    )
    .bind(leads)
    .fetch_all(tx.connection())
    .await?;
    sqlx::query("SELECT FROM public.lead_ids WHERE lead_id = ANY ($1) ORDER BY known_id FOR UPDATE")
        .bind(&locked)
        .execute(tx.connection())
        .await?;
    Ok(locked.into_iter().collect())
}

/// Whether a merge of two of these leads was undone: somebody knows that they are two people.
///
/// # Errors
/// See [`SiteError`].
pub(in crate::site_db) async fn merge_was_undone(tx: &mut Transaction<'_>, leads: &[Uuid]) -> Result<bool, SiteError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM public.lead_merges
          WHERE kept_lead_id = ANY ($1) AND merged_lead_id = ANY ($1) AND undone_at IS NOT NULL)",
    )
    .bind(leads)
    .fetch_one(tx.connection())
    .await?)
}

/// Makes `merged` point to `kept`, which gets its ids; all is locked (see [`lock_to_join`]). Returns the record's id.
pub(in crate::site_db) async fn join(tx: &mut Transaction<'_>, kept: Uuid, merged: Uuid) -> Result<Uuid, SiteError> {
    let (Some(before), Some(other)) = (load(tx, kept).await?, load(tx, merged).await?) else {
        return Err(SiteError::Vanished("leads"));
    };
    let record: Uuid = sqlx::query_scalar(
        "INSERT INTO public.lead_merges (kept_lead_id, merged_lead_id, kept, merged, known_ids)
         SELECT k.id, m.id, to_jsonb(k), to_jsonb(m), (SELECT coalesce(jsonb_agg(i.known_id), '[]') FROM public.lead_ids i
                WHERE i.lead_id = m.id)
           FROM public.leads k, public.leads m WHERE k.id = $1 AND m.id = $2 RETURNING id",
    )
    .bind(kept)
    .bind(merged)
    .fetch_one(tx.connection())
    .await?;
    sqlx::query("UPDATE public.lead_ids SET lead_id = $1 WHERE lead_id = $2")
        .bind(kept)
        .bind(merged)
        .execute(tx.connection())
        .await?;
    // The ids are unique: they go before they come.
    sqlx::query(
        "UPDATE public.leads SET merged_into = $1, wa_id = NULL, user_id = NULL, phone = NULL, updated_at = now()
          WHERE id = $2 OR merged_into = $2",
    )
    .bind(kept)
    .bind(merged)
    .execute(tx.connection())
    .await?;
    sqlx::query(
        "UPDATE public.leads l SET
             phone    = coalesce(l.phone, m.merged->>'phone'),
             name     = coalesce(l.name, m.merged->>'name'),
             username = coalesce(l.username, m.merged->>'username'),
             referral = coalesce(l.referral, nullif(m.merged->'referral', 'null')),
             updated_at = now()
            FROM public.lead_merges m WHERE l.id = $1 AND m.id = $2",
    )
    .bind(kept)
    .bind(record)
    .execute(tx.connection())
    .await?;
    let mut after = before.clone();
    after.absorb(other);
    save(tx, kept, &before, &after).await?;
    Ok(record)
}

/// Completes the record of a merge with what was moved.
pub(in crate::site_db) async fn record_moved(
    tx: &mut Transaction<'_>,
    record: Uuid,
    moved: &Value,
) -> Result<(), SiteError> {
    sqlx::query("UPDATE public.lead_merges SET moved = $2 WHERE id = $1")
        .bind(record)
        .bind(Json(moved))
        .execute(tx.connection())
        .await?;
    Ok(())
}
