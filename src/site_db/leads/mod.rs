//! `leads`: the people and groups that we write with, and their ids.
//!
//! A person is found first by the business-scoped user id, then by the number (WhatsApp's, then the one dialled). An id
//! that the lead lacks is stored if no other lead has it. Two leads are never merged here: only a person can decide that.
//! An existing name is kept, since a person may have corrected it.
//!
//! | file | its job |
//! |---|---|
//! | `mod` | one person, or one group, at a time; what is learnt |
//! | `many` | many people in a few statements |

mod many;

pub use many::{LookedUp, find_or_make_all, look_up};

use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::locks::{group_key, lock, lock_keys, lock_missing};
use super::{Pool, SiteError, Transaction};
use crate::provider::{ContactIdentity, UserId, WaId};

/// Attempts to find or insert a lead while another program inserts or deletes it.
const ATTEMPTS: usize = 3;

/// A lead's ids and names. Plain texts, because other programs write these columns too, in their own formats.
#[derive(Debug, FromRow)]
struct Lead {
    id: Uuid,
    wa_id: Option<String>,
    user_id: Option<String>,
    name: Option<String>,
    username: Option<String>,
}

/// A lead's ids at WhatsApp.
#[derive(Debug, Clone, FromRow)]
pub struct Address {
    /// WhatsApp's number, else the one that was dialled; `group:` and Meta's id for a group.
    pub phone: Option<String>,
    /// The business-scoped user id.
    pub user_id: Option<String>,
}

/// The ids at WhatsApp of the lead that a caller named; `None`: no such lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn address(pool: &Pool, lead_id: Uuid) -> Result<Option<Address>, SiteError> {
    Ok(
        sqlx::query_as("SELECT coalesce(wa_id, phone) AS phone, user_id FROM public.leads WHERE id = $1")
            .bind(lead_id)
            .fetch_optional(&pool.0)
            .await?,
    )
}

/// Finds or creates the lead of a person, and stores ids of the contact that the lead lacks. Creates no conversation: what
/// a person says in a group belongs to the group's conversation.
///
/// # Errors
/// See [`SiteError`]; [`SiteError::Anonymous`] for a contact without any id.
pub async fn find_or_make(tx: &mut Transaction<'_>, contact: &ContactIdentity) -> Result<Uuid, SiteError> {
    if !contact.is_known() {
        return Err(SiteError::Anonymous);
    }
    // Nearly always the lead is there and there is nothing to learn: no lock, no write.
    if let Some(lead) = find(tx, contact).await?
        && !has_news(&lead, contact)
    {
        return Ok(lead.id);
    }
    lock(tx, [], [contact]).await?;
    for _ in 0..ATTEMPTS {
        if let Some(lead) = find(tx, contact).await? {
            if has_news(&lead, contact) {
                learn(tx, &[(lead.id, contact)]).await?;
            }
            return Ok(lead.id);
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
/// transaction.
///
/// The leads that are there are locked in the order of their ids, before any conversation: a new message refers to its
/// lead, and waits if the lead's number is being changed.
pub(super) fn of_submissions() -> String {
    let locked = lock_missing("missing", "user_id", "wa_id");
    format!(
        "found AS MATERIALIZED (SELECT i.id AS input_id, l.* FROM fresh i CROSS JOIN LATERAL ( \
           SELECT c.id AS lead_id, i.lead_id IS NULL AND ((c.wa_id IS NULL AND i.wa_id IS NOT NULL) \
               OR (c.user_id IS NULL AND i.user_id IS NOT NULL)) AS learns FROM ( \
             SELECT 0 AS rank, l.* FROM public.leads l WHERE l.id = i.lead_id \
             UNION ALL SELECT 1, l.* FROM public.leads l WHERE i.lead_id IS NULL AND l.user_id = i.user_id \
             UNION ALL SELECT 2, l.* FROM public.leads l WHERE i.lead_id IS NULL AND l.wa_id = i.wa_id \
             UNION ALL SELECT CASE WHEN l.wa_id IS NULL THEN 4 ELSE 3 END, l.* FROM public.leads l \
               WHERE i.lead_id IS NULL AND l.phone IN (i.wa_id, '+' || i.wa_id, i.group_phone) \
           ) AS c ORDER BY c.rank, c.created_at, c.id LIMIT 1) AS l), \
         missing AS MATERIALIZED (SELECT i.id AS input_id, i.wa_id, i.user_id FROM fresh i \
           WHERE i.lead_id IS NULL AND i.group_phone IS NULL AND coalesce(i.user_id, i.wa_id) IS NOT NULL \
             AND NOT EXISTS (SELECT FROM found f WHERE f.input_id = i.id)), \
         locked AS MATERIALIZED ({locked}), \
         made_leads AS (INSERT INTO public.leads (wa_id, user_id) \
           SELECT DISTINCT m.wa_id, m.user_id FROM missing m, locked WHERE locked.keys >= 0 \
           ON CONFLICT DO NOTHING RETURNING id, wa_id, user_id), \
         held_leads AS MATERIALIZED (SELECT l.id FROM public.leads l, locked WHERE locked.keys >= 0 \
             AND l.id = ANY (ARRAY(SELECT f.lead_id FROM found f WHERE NOT f.learns)) ORDER BY l.id FOR KEY SHARE OF l), \
         of_lead AS MATERIALIZED (SELECT f.input_id, f.lead_id FROM found f JOIN held_leads h ON h.id = f.lead_id \
           WHERE NOT f.learns \
           UNION ALL SELECT m.input_id, l.id FROM missing m \
             JOIN made_leads l ON coalesce(l.user_id, l.wa_id) = coalesce(m.user_id, m.wa_id))"
    )
}

/// Stores the recipient's ids from the answer to a send: WhatsApp's own number, if it differs from the one dialled (Brazil,
/// Mexico), so that the person's reply finds the same lead; and the user id.
///
/// # Errors
/// See [`SiteError`].
pub async fn learn_recipient(
    tx: &mut Transaction<'_>,
    lead_id: Uuid,
    dialled: Option<&WaId>,
    known: &ContactIdentity,
) -> Result<(), SiteError> {
    let dialled_contact = ContactIdentity {
        wa_id: dialled.cloned(),
        ..ContactIdentity::default()
    };
    let current: Option<Lead> =
        sqlx::query_as("SELECT id, wa_id, user_id, name, username FROM public.leads WHERE id = $1")
            .bind(lead_id)
            .fetch_optional(tx.connection())
            .await?;
    let Some(current) = current else { return Ok(()) };
    let actual = known.wa_id.as_ref();
    let renumbered = actual.is_some() && dialled.is_some() && dialled != actual;
    if !renumbered && !has_news(&current, known) {
        return Ok(());
    }
    lock(tx, [], [&dialled_contact, known]).await?;
    if renumbered && current.wa_id.as_deref() == dialled.map(WaId::as_str) {
        // No WhatsApp user has the number that was dialled. It moves to `phone`, in this lead and in a lead that has
        // WhatsApp's number already; from now on `find` prefers that other lead.
        sqlx::query(
            "UPDATE public.leads SET phone = $2, updated_at = now(),
                    wa_id = CASE WHEN id <> $1 THEN wa_id
                                 WHEN EXISTS (SELECT FROM public.leads other WHERE other.wa_id = $3) THEN NULL
                                 ELSE $3 END
              WHERE id = $1 OR (wa_id = $3 AND phone IS NULL)",
        )
        .bind(lead_id)
        .bind(dialled)
        .bind(actual)
        .execute(tx.connection())
        .await?;
    }
    learn(tx, &[(lead_id, known)]).await
}

/// Stores the recipients' user ids from status reports, each with the report's message: without it, the reply of a user who
/// hides the number would create a second lead. Changes nothing if the message's lead has another number (in a group, the
/// recipient is not the lead) or already has a user id. The caller has locked the contacts (see [`super::locks`]).
///
/// # Errors
/// See [`SiteError`].
pub async fn learn_from_reports(
    tx: &mut Transaction<'_>,
    reports: &[(Uuid, &ContactIdentity)],
) -> Result<(), SiteError> {
    #[derive(FromRow)]
    struct Lacking {
        number: i64,
        lead_id: Uuid,
    }
    let reports: Vec<_> = reports
        .iter()
        .filter(|(_, contact)| contact.wa_id.is_some() && contact.user_id.is_some())
        .collect();
    if reports.is_empty() {
        return Ok(());
    }
    let lacking: Vec<Lacking> = sqlx::query_as(
        "SELECT DISTINCT ON (l.id) c.number, l.id AS lead_id
           FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS c(message_id, wa_id, number)
           JOIN public.whatsapp_messages m ON m.id = c.message_id JOIN public.leads l ON l.id = m.lead_id
          WHERE l.user_id IS NULL AND l.wa_id = c.wa_id ORDER BY l.id, c.number",
    )
    .bind(reports.iter().map(|(message_id, _)| *message_id).collect::<Vec<_>>())
    .bind(
        reports
            .iter()
            .map(|(_, contact)| contact.wa_id.as_ref())
            .collect::<Vec<_>>(),
    )
    .fetch_all(tx.connection())
    .await?;
    let known: Vec<(Uuid, &ContactIdentity)> = lacking
        .iter()
        .filter_map(|row| {
            let at = usize::try_from(row.number - 1).ok()?;
            Some((row.lead_id, reports.get(at)?.1))
        })
        .collect();
    learn(tx, &known).await
}

/// Stores the advertisements that leads came from; a later one of a lead is ignored.
///
/// # Errors
/// See [`SiteError`].
pub async fn set_referrals(tx: &mut Transaction<'_>, referrals: &[(Uuid, &Value)]) -> Result<(), SiteError> {
    if referrals.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE public.leads AS l SET referral = c.referral, updated_at = now()
           FROM (SELECT DISTINCT ON (id) id, referral
                   FROM unnest($1::uuid[], $2::jsonb[]) WITH ORDINALITY AS given(id, referral, number)
                  ORDER BY id, number) AS c
          WHERE l.id = c.id AND l.referral IS NULL",
    )
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

/// Stores a person's new number, if no other lead has it; the old one stays in `phone`.
///
/// # Errors
/// See [`SiteError`].
pub async fn change_number(tx: &mut Transaction<'_>, lead_id: Uuid, current: &WaId) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE public.leads SET phone = coalesce(phone, wa_id), wa_id = $2, updated_at = now()
          WHERE id = $1 AND NOT EXISTS (SELECT FROM public.leads other WHERE other.wa_id = $2)",
    )
    .bind(lead_id)
    .bind(current)
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Stores a person's new user id, if no other lead has it.
///
/// # Errors
/// See [`SiteError`].
pub async fn change_user_id(tx: &mut Transaction<'_>, previous: &UserId, current: &UserId) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE public.leads SET user_id = $2, updated_at = now()
          WHERE user_id = $1 AND NOT EXISTS (SELECT FROM public.leads other WHERE other.user_id = $2)",
    )
    .bind(previous)
    .bind(current)
    .execute(tx.connection())
    .await?;
    Ok(())
}

async fn find(tx: &mut Transaction<'_>, contact: &ContactIdentity) -> Result<Option<Lead>, SiteError> {
    // Three index look-ups; the lowest `rank` is the most reliable match.
    Ok(sqlx::query_as(
        "SELECT id, wa_id, user_id, name, username FROM (
             SELECT 1 AS rank, l.* FROM public.leads l WHERE user_id = $1
             UNION ALL SELECT 2, l.* FROM public.leads l WHERE wa_id = $2
             UNION ALL SELECT CASE WHEN wa_id IS NULL THEN 4 ELSE 3 END, l.* FROM public.leads l WHERE phone IN ($2, '+' || $2)
         ) AS candidates ORDER BY rank, created_at, id LIMIT 1",
    )
    .bind(contact.user_id.as_ref())
    .bind(contact.wa_id.as_ref())
    .fetch_optional(tx.connection())
    .await?)
}

/// Whether the contact has something that the lead lacks.
fn has_news(lead: &Lead, contact: &ContactIdentity) -> bool {
    (lead.wa_id.is_none() && contact.wa_id.is_some())
        || (lead.user_id.is_none() && contact.user_id.is_some())
        || (lead.name.is_none() && contact.name.is_some())
        || (contact.username.is_some() && lead.username != contact.username)
}

/// Fills empty columns of these leads, with ids that no other lead has. The user name comes from Meta, so the newest value
/// counts. Each lead may be there once.
async fn learn(tx: &mut Transaction<'_>, known: &[(Uuid, &ContactIdentity)]) -> Result<(), SiteError> {
    if known.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE public.leads AS l SET
             wa_id    = coalesce(l.wa_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.wa_id = c.wa_id) THEN c.wa_id END),
             user_id  = coalesce(l.user_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.user_id = c.user_id) THEN c.user_id END),
             name     = coalesce(l.name, c.name),
             username = coalesce(c.username, l.username),
             updated_at = now()
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[]) AS c(id, wa_id, user_id, name, username)
           WHERE l.id = c.id",
    )
    .bind(known.iter().map(|(lead_id, _)| *lead_id).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.wa_id.as_ref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.user_id.as_ref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.name.as_deref()).collect::<Vec<_>>())
    .bind(known.iter().map(|(_, contact)| contact.username.as_deref()).collect::<Vec<_>>())
    .execute(tx.connection())
    .await?;
    Ok(())
}
