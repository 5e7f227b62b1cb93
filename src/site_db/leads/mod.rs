//! `leads`: the people and groups that we write with, and their ids.
//!
//! A person is found first by the business-scoped user id, then by the number (WhatsApp's own, a former one, the other form of
//! the same line, the one dialled): see `candidates`. All ids that WhatsApp shows or tells of a person are kept; leads that
//! turn out to be one person are merged: see `identity`. An existing name is kept, since a person may have corrected it.
//!
//! | file | its job |
//! |---|---|
//! | `mod` | one person, or one group, at a time |
//! | `many` | many people in a few statements |
//! | `candidates` | which leads have ids of a contact |
//! | `ids` | which of a lead's ids counts; pure |
//! | `known_ids` | `lead_ids`; a lead's ids read and written |
//! | `identity` | ids that are new, change, or lead to several leads |
//! | [`statements`] | what waits to be written because leads must be merged first |
//! | `merge` | `lead_merges`; the leads' part of a merge |

mod candidates;
mod identity;
mod ids;
mod known_ids;
mod many;
mod merge;
pub mod statements;

pub use identity::{changed, learn_recipient};
pub use many::{LookedUp, find_or_make_all, lock_in_order, look_up};

pub(super) use identity::{About, write};
pub(super) use merge::{join, lock_leads, merge_was_undone, record_moved};

use std::sync::LazyLock;

use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use self::candidates::Candidate;
use super::locks::{group_key, lock, lock_keys, lock_missing, lock_updated};
use super::{Pool, SiteError, Transaction};
use crate::provider::ContactIdentity;

/// Attempts to find or insert a lead while another program inserts or deletes it.
const ATTEMPTS: usize = 3;

/// Whose word a contact's ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// WhatsApp's: they are the person's ids now.
    WhatsApp,
    /// A client's: it dialled a number, which may be a former one or written in another form.
    Client,
}

/// A lead's ids at WhatsApp.
#[derive(Debug, Clone, FromRow)]
pub struct Address {
    /// WhatsApp's number, else the one that was dialled, unless a user id is known; `group:` and Meta's id for a group.
    pub phone: Option<String>,
    /// The business-scoped user id.
    pub user_id: Option<String>,
}

/// The ids at WhatsApp of the lead that a caller named, or of the one that it was merged into; `None`: no such lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn address(pool: &Pool, lead_id: Uuid) -> Result<Option<Address>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT coalesce(l.wa_id, CASE WHEN l.user_id IS NULL THEN l.phone END) AS phone, l.user_id
           FROM public.leads f JOIN public.leads l ON l.id = coalesce(f.merged_into, f.id) WHERE f.id = $1",
    )
    .bind(lead_id)
    .fetch_optional(&pool.0)
    .await?)
}

/// The leads that these leads were merged into, as pairs; those that were not are left out.
pub(super) async fn merged_into(tx: &mut Transaction<'_>, leads: &[Uuid]) -> Result<Vec<(Uuid, Uuid)>, SiteError> {
    Ok(
        sqlx::query_as("SELECT id, merged_into FROM public.leads WHERE id = ANY ($1) AND merged_into IS NOT NULL")
            .bind(leads)
            .fetch_all(tx.connection())
            .await?,
    )
}

/// The lead that a caller named, or the one that it was merged into; `None`: no such lead.
pub(super) async fn present(tx: &mut Transaction<'_>, lead_id: Uuid) -> Result<Option<Uuid>, SiteError> {
    Ok(
        sqlx::query_scalar("SELECT coalesce(merged_into, id) FROM public.leads WHERE id = $1")
            .bind(lead_id)
            .fetch_optional(tx.connection())
            .await?,
    )
}

/// Whether a lead belongs to some numbers: it has a conversation with one of them, or with none at all.
///
/// # Errors
/// See [`SiteError`].
pub async fn belongs_to(pool: &Pool, lead_id: Uuid, phone_number_ids: &[String]) -> Result<bool, SiteError> {
    Ok(sqlx::query_scalar(
        "SELECT coalesce(bool_or(a.phone_number_id = ANY ($2)), true) FROM public.conversations c \
         JOIN public.whatsapp_accounts a ON a.id = c.account_id \
         WHERE c.lead_id = (SELECT coalesce(merged_into, id) FROM public.leads WHERE id = $1)",
    )
    .bind(lead_id)
    .bind(phone_number_ids)
    .fetch_one(&pool.0)
    .await?)
}

/// Finds or creates the lead of a person, and stores what it lacks of the contact. Creates no conversation: what a person says
/// in a group belongs to the group's conversation.
///
/// # Errors
/// See [`SiteError`]; [`SiteError::Anonymous`] for a contact without any id.
pub async fn find_or_make(
    tx: &mut Transaction<'_>,
    contact: &ContactIdentity,
    source: Source,
) -> Result<Uuid, SiteError> {
    if !contact.is_known() {
        return Err(SiteError::Anonymous);
    }
    // Nearly always the lead is there and there is nothing to learn: no lock, no write.
    if let Some(lead_id) = look_up(tx, &[contact]).await?.settled(contact) {
        return Ok(lead_id);
    }
    lock(tx, [], [contact]).await?;
    for _ in 0..ATTEMPTS {
        let candidates = candidates::of_person(tx, &[contact]).await?;
        let found = match source {
            Source::WhatsApp => known_by_whatsapp(tx, contact, &candidates).await?,
            Source::Client => known_by_client(tx, contact, &candidates).await?,
        };
        if let Some(lead_id) = found {
            return Ok(lead_id);
        }
        if !candidates.is_empty() {
            continue;
        }
        // Other programs don't take our lock. If one inserts the lead first, the next turn finds it.
        let inserted: Option<Uuid> = sqlx::query_scalar(
            "INSERT INTO public.leads (wa_id, user_id, name, username) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(contact.wa_id.as_ref())
        .bind(contact.user_id.as_ref())
        .bind(contact.name.as_deref())
        .bind(contact.username.as_deref())
        .fetch_optional(tx.connection())
        .await?;
        if let Some(id) = inserted {
            return Ok(id);
        }
    }
    Err(SiteError::Vanished("leads"))
}

/// The lead of a contact as WhatsApp shows it; stores what is new. `None`: there is none, or it has just changed.
async fn known_by_whatsapp(
    tx: &mut Transaction<'_>,
    contact: &ContactIdentity,
    candidates: &[Candidate],
) -> Result<Option<Uuid>, SiteError> {
    let leads = candidates::leads(candidates);
    let lead_id = if leads.is_empty() {
        let Some(by_phone) = candidates.first() else {
            return Ok(None);
        };
        identity::add_to(tx, by_phone.id, contact).await?.then_some(by_phone.id)
    } else {
        identity::seen(tx, contact, candidates).await?
    };
    if let Some(lead_id) = lead_id {
        let is_new = |lead: &Candidate| {
            (lead.name.is_none() && contact.name.is_some())
                || (contact.username.is_some() && lead.username != contact.username)
        };
        if candidates.iter().any(|lead| lead.id == lead_id && is_new(lead)) {
            let names = ContactIdentity {
                wa_id: None,
                user_id: None,
                ..contact.clone()
            };
            learn(tx, &[(lead_id, &names)]).await?;
        }
    }
    Ok(lead_id)
}

/// The lead of a contact that a client names. An id that the lead lacks is stored; it takes no other's place.
async fn known_by_client(
    tx: &mut Transaction<'_>,
    contact: &ContactIdentity,
    candidates: &[Candidate],
) -> Result<Option<Uuid>, SiteError> {
    let Some(lead) = candidates.first() else {
        return Ok(None);
    };
    let lacks =
        (lead.wa_id.is_none() && contact.wa_id.is_some()) || (lead.user_id.is_none() && contact.user_id.is_some());
    Ok((!lacks || identity::add_to(tx, lead.id, contact).await?).then_some(lead.id))
}

/// The same for a group: its lead stands for the group, with `group:` and Meta's id in `phone`.
///
/// # Errors
/// See [`SiteError`].
pub(super) async fn find_or_make_group(tx: &mut Transaction<'_>, group_id: &str) -> Result<Uuid, SiteError> {
    let phone = group_phone(group_id);
    lock_keys(tx, &[group_key(group_id)]).await?;
    let found: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM public.leads WHERE phone = $1 ORDER BY created_at, id LIMIT 1")
            .bind(&phone)
            .fetch_optional(tx.connection())
            .await?;
    match found {
        Some(id) => Ok(id),
        None => Ok(
            sqlx::query_scalar("INSERT INTO public.leads (phone) VALUES ($1) RETURNING id")
                .bind(&phone)
                .fetch_one(tx.connection())
                .await?,
        ),
    }
}

/// What stands in `phone` for a group.
pub(super) fn group_phone(group_id: &str) -> String {
    format!("group:{group_id}")
}

/// Members of the `WITH` that stores submissions: `found` and `of_lead` say which lead each row of `fresh` is for
/// (`input_id`, `lead_id`). A person without a lead gets one; the person is locked while it is inserted. Rows are left out
/// whose lead lacks an id of theirs (`learns`), whose group has no lead, or whose lead is being inserted by another
/// transaction, or became known by its ids while the statement waited for the person's lock (`is_known`: the statement itself
/// sees the tables as they were when it began).
///
/// The leads that are there are locked in the order of their ids, before any conversation: a new message refers to its
/// lead, and waits if the lead's number is being changed or the lead is being merged. A merged one is left out.
pub(super) fn of_submissions() -> String {
    let locked = lock_missing("missing", &["user_id", "wa_id", "other_form"]);
    let ranks = candidates::ranks!();
    format!(
        "found AS MATERIALIZED (SELECT w.id AS input_id, l.* FROM fresh w CROSS JOIN LATERAL ( \
           SELECT l.id AS lead_id, w.lead_id IS NULL AND ((l.wa_id IS NULL AND w.wa_id IS NOT NULL) \
               OR (l.user_id IS NULL AND w.user_id IS NOT NULL)) AS learns FROM ( \
             SELECT 0 AS rank, w.lead_id WHERE w.lead_id IS NOT NULL \
             UNION ALL SELECT r.rank, r.lead_id FROM ({ranks}) AS r WHERE w.lead_id IS NULL \
             UNION ALL SELECT 9, l.id FROM public.leads l WHERE w.lead_id IS NULL AND l.phone = w.group_phone \
           ) AS c JOIN public.leads f ON f.id = c.lead_id JOIN public.leads l ON l.id = coalesce(f.merged_into, f.id) \
           ORDER BY c.rank, l.created_at, l.id LIMIT 1) AS l), \
         missing AS MATERIALIZED (SELECT i.id AS input_id, i.wa_id, i.user_id, i.other_form FROM fresh i \
           WHERE i.lead_id IS NULL AND i.group_phone IS NULL AND coalesce(i.user_id, i.wa_id) IS NOT NULL \
             AND NOT EXISTS (SELECT FROM found f WHERE f.input_id = i.id)), \
         locked AS MATERIALIZED ({locked}), \
         made_leads AS (INSERT INTO public.leads (wa_id, user_id) \
           SELECT DISTINCT m.wa_id, m.user_id FROM missing m, locked \
             WHERE NOT twinlog.is_known(m.user_id, m.wa_id, m.other_form, locked.keys) ORDER BY m.wa_id, m.user_id \
           ON CONFLICT DO NOTHING RETURNING id, wa_id, user_id), \
         held_leads AS MATERIALIZED (SELECT l.id FROM public.leads l, locked WHERE locked.keys >= 0 AND l.merged_into IS NULL \
             AND l.id = ANY (ARRAY(SELECT f.lead_id FROM found f WHERE NOT f.learns)) ORDER BY l.id FOR KEY SHARE OF l), \
         of_lead AS MATERIALIZED (SELECT f.input_id, f.lead_id FROM found f JOIN held_leads h ON h.id = f.lead_id \
           WHERE NOT f.learns \
           UNION ALL SELECT m.input_id, l.id FROM missing m \
             JOIN made_leads l ON coalesce(l.user_id, l.wa_id) = coalesce(m.user_id, m.wa_id))"
    )
}

static SET_REFERRALS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH held AS MATERIALIZED ({})
         UPDATE public.leads AS l SET referral = c.referral, updated_at = now()
           FROM held, (SELECT DISTINCT ON (id) id, referral
                   FROM unnest($1::uuid[], $2::jsonb[]) WITH ORDINALITY AS given(id, referral, number)
                  ORDER BY id, number) AS c
          WHERE l.id = c.id AND l.referral IS NULL AND held.keys >= 0",
        lock_updated("leads", "$1")
    )
});

/// Stores the advertisements that leads came from; a later one of a lead is ignored.
///
/// The rows are locked by [`lock_updated`], so a transaction calls it once, for all its leads (see [`locks`](super::locks)).
///
/// # Errors
/// See [`SiteError`].
pub async fn set_referrals(tx: &mut Transaction<'_>, referrals: &[(Uuid, &Value)]) -> Result<(), SiteError> {
    if referrals.is_empty() {
        return Ok(());
    }
    sqlx::query(SET_REFERRALS.as_str())
        .bind(referrals.iter().map(|(lead_id, _)| *lead_id).collect::<Vec<_>>())
        .bind(
            referrals
                .iter()
                .map(|(_, referral)| Json(*referral))
                .collect::<Vec<_>>(),
        )
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Fills empty columns of these leads, with ids that no other lead has. The user name comes from Meta, so the newest value
/// counts. Each lead may be there once.
async fn learn(tx: &mut Transaction<'_>, known: &[(Uuid, &ContactIdentity)]) -> Result<(), SiteError> {
    let ids: Vec<Uuid> = known.iter().map(|(lead_id, _)| *lead_id).collect();
    match ids.as_slice() {
        [] => return Ok(()),
        [_] => {}
        // In the order of their ids, which the update does not promise.
        several => {
            lock_leads(tx, several).await?;
        }
    }
    sqlx::query(
        "UPDATE public.leads AS l SET
             wa_id    = coalesce(l.wa_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.wa_id = c.wa_id) THEN c.wa_id END),
             user_id  = coalesce(l.user_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.user_id = c.user_id) THEN c.user_id END),
             name     = coalesce(l.name, c.name),
             username = coalesce(c.username, l.username),
             updated_at = now()
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[]) AS c(id, wa_id, user_id, name, username)
           WHERE l.id = c.id AND l.merged_into IS NULL",
    )
    .bind(ids)
    .bind(known.iter().map(|(_, contact)| contact.wa_id.as_ref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.user_id.as_ref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.name.as_deref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.username.as_deref()).collect::<Vec<_>>())
    .execute(tx.connection())
    .await?;
    Ok(())
}
