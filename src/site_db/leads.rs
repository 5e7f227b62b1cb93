//! The lead and the conversation that every message belongs to, however it came: found, or made.
//!
//! A person is found by the business-scoped user id first, by the number second (WhatsApp's, then the one dialled). What
//! a contact newly tells is learnt where nobody else has it; two leads are never merged here, as only a person can judge
//! that. Names that are there stay: somebody may have corrected them.

use sqlx::PgConnection;
use uuid::Uuid;

use super::locks::{group_key, lock, lock_keys};
use crate::provider::{ContactIdentity, WaId};

/// Where a message belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The person.
    pub lead_id: Uuid,
    /// What that person and one of our numbers have said.
    pub conversation_id: Uuid,
}

/// How often a lead that somebody else inserts or deletes meanwhile is looked for again.
const ATTEMPTS: usize = 3;

#[derive(Debug, sqlx::FromRow)]
struct Lead {
    id: Uuid,
    wa_id: Option<String>,
    user_id: Option<String>,
    name: Option<String>,
    username: Option<String>,
}

/// Finds or makes the lead and its conversation with an account, and learns what the contact newly tells.
///
/// Safe beside itself and beside other writers of the tables. Runs in the caller's transaction, which must be
/// READ COMMITTED.
///
/// # Errors
/// The database's; [`sqlx::Error::InvalidArgument`] for a contact without any id.
pub async fn link(tx: &mut PgConnection, account_id: Uuid, contact: &ContactIdentity) -> sqlx::Result<Link> {
    let lead_id = lead(&mut *tx, contact).await?;
    let conversation_id = conversation(tx, account_id, lead_id).await?;
    Ok(Link {
        lead_id,
        conversation_id,
    })
}

/// Finds or makes the lead alone: of a person who speaks in a group, say, whose words are not that person's conversation.
///
/// # Errors
/// As for [`link`].
pub async fn person(tx: &mut PgConnection, contact: &ContactIdentity) -> sqlx::Result<Uuid> {
    lead(tx, contact).await
}

/// The same as [`link`] for a group: its lead stands for the group, with `group:` and Meta's id in `phone`.
///
/// # Errors
/// The database's.
pub async fn link_group(tx: &mut PgConnection, account_id: Uuid, group_id: &str) -> sqlx::Result<Link> {
    let phone = format!("group:{group_id}");
    lock_keys(&mut *tx, &[group_key(group_id)]).await?;
    let found: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM public.leads WHERE phone = $1 ORDER BY created_at, id LIMIT 1")
            .bind(&phone)
            .fetch_optional(&mut *tx)
            .await?;
    let lead_id = match found {
        Some(id) => id,
        None => {
            sqlx::query_scalar("INSERT INTO public.leads (phone) VALUES ($1) RETURNING id")
                .bind(&phone)
                .fetch_one(&mut *tx)
                .await?
        }
    };
    let conversation_id = conversation(tx, account_id, lead_id).await?;
    Ok(Link {
        lead_id,
        conversation_id,
    })
}

/// What the answer to a send tells of the recipient: WhatsApp's own number, where it differs from the one dialled (Brazil,
/// Mexico), so that the answer of the person finds the same lead; and the user id.
///
/// # Errors
/// The database's.
pub async fn learn_recipient(
    tx: &mut PgConnection,
    lead_id: Uuid,
    dialled: Option<&WaId>,
    known: &ContactIdentity,
) -> sqlx::Result<()> {
    let dialled_contact = ContactIdentity {
        wa_id: dialled.cloned(),
        ..ContactIdentity::default()
    };
    let current: Option<Lead> =
        sqlx::query_as("SELECT id, wa_id, user_id, name, username FROM public.leads WHERE id = $1")
            .bind(lead_id)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(current) = current else { return Ok(()) };
    let actual = known.wa_id.as_ref().map(WaId::as_str);
    let renumbered = actual.is_some() && dialled.is_some() && dialled != known.wa_id.as_ref();
    if !renumbered && !has_news(&current, known) {
        return Ok(());
    }
    lock(&mut *tx, [], [&dialled_contact, known]).await?;
    if renumbered && current.wa_id.as_deref() == dialled.map(WaId::as_str) {
        // The number that was dialled is nobody's: it moves to `phone`, of this lead and of the one that has the real
        // number already, and `lead` prefers the latter from now on.
        sqlx::query(
            "UPDATE public.leads SET phone = $2, updated_at = now(),
                    wa_id = CASE WHEN id <> $1 THEN wa_id
                                 WHEN EXISTS (SELECT FROM public.leads other WHERE other.wa_id = $3) THEN NULL
                                 ELSE $3 END
              WHERE id = $1 OR (wa_id = $3 AND phone IS NULL)",
        )
        .bind(lead_id)
        .bind(dialled.map(WaId::as_str))
        .bind(actual)
        .execute(&mut *tx)
        .await?;
    }
    learn(tx, lead_id, known).await
}

async fn lead(tx: &mut PgConnection, contact: &ContactIdentity) -> sqlx::Result<Uuid> {
    if !contact.is_known() {
        return Err(sqlx::Error::InvalidArgument("a contact without an id".to_owned()));
    }
    // Nearly always the lead is there and there is nothing to learn: no lock, no write.
    if let Some(lead) = find(&mut *tx, contact).await?
        && !has_news(&lead, contact)
    {
        return Ok(lead.id);
    }
    lock(&mut *tx, [], [contact]).await?;
    for _ in 0..ATTEMPTS {
        if let Some(lead) = find(&mut *tx, contact).await? {
            if has_news(&lead, contact) {
                learn(&mut *tx, lead.id, contact).await?;
            }
            return Ok(lead.id);
        }
        // Writers other than us don't take our lock: then theirs is there, and found in the next turn.
        let inserted: Option<Uuid> = sqlx::query_scalar(
            "INSERT INTO public.leads (wa_id, user_id, name, username) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(contact.wa_id.as_ref().map(WaId::as_str))
        .bind(contact.user_id.as_ref().map(ToString::to_string))
        .bind(contact.name.as_deref())
        .bind(contact.username.as_deref())
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(id) = inserted {
            return Ok(id);
        }
    }
    Err(sqlx::Error::RowNotFound)
}

async fn find(tx: &mut PgConnection, contact: &ContactIdentity) -> sqlx::Result<Option<Lead>> {
    // Three index look-ups; `rank` is the order of trust.
    sqlx::query_as(
        "SELECT id, wa_id, user_id, name, username FROM (
             SELECT 1 AS rank, l.* FROM public.leads l WHERE user_id = $1
             UNION ALL SELECT 2, l.* FROM public.leads l WHERE wa_id = $2
             UNION ALL SELECT CASE WHEN wa_id IS NULL THEN 4 ELSE 3 END, l.* FROM public.leads l WHERE phone IN ($2, '+' || $2)
         ) AS candidates ORDER BY rank, created_at, id LIMIT 1",
    )
    .bind(contact.user_id.as_ref().map(ToString::to_string))
    .bind(contact.wa_id.as_ref().map(WaId::as_str))
    .fetch_optional(tx)
    .await
}

/// Whether the contact tells something that the lead lacks.
fn has_news(lead: &Lead, contact: &ContactIdentity) -> bool {
    (lead.wa_id.is_none() && contact.wa_id.is_some())
        || (lead.user_id.is_none() && contact.user_id.is_some())
        || (lead.name.is_none() && contact.name.is_some())
        || (contact.username.is_some() && lead.username != contact.username)
}

/// Fills what is empty, with ids that no other lead has. A user name is Meta's, so its newest value counts.
async fn learn(tx: &mut PgConnection, lead_id: Uuid, contact: &ContactIdentity) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE public.leads SET
             wa_id    = coalesce(wa_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.wa_id = $2) THEN $2 END),
             user_id  = coalesce(user_id, CASE WHEN NOT EXISTS (SELECT FROM public.leads o WHERE o.user_id = $3) THEN $3 END),
             name     = coalesce(name, $4),
             username = coalesce($5, username),
             updated_at = now()
           WHERE id = $1",
    )
    .bind(lead_id)
    .bind(contact.wa_id.as_ref().map(WaId::as_str))
    .bind(contact.user_id.as_ref().map(ToString::to_string))
    .bind(contact.name.as_deref())
    .bind(contact.username.as_deref())
    .execute(tx)
    .await?;
    Ok(())
}

async fn conversation(tx: &mut PgConnection, account_id: Uuid, lead_id: Uuid) -> sqlx::Result<Uuid> {
    for _ in 0..ATTEMPTS {
        let found: Option<Uuid> =
            sqlx::query_scalar("SELECT id FROM public.conversations WHERE account_id = $1 AND lead_id = $2")
                .bind(account_id)
                .bind(lead_id)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(id) = found {
            return Ok(id);
        }
        let inserted: Option<Uuid> = sqlx::query_scalar(
            "INSERT INTO public.conversations (account_id, lead_id) VALUES ($1, $2)
             ON CONFLICT (account_id, lead_id) DO NOTHING RETURNING id",
        )
        .bind(account_id)
        .bind(lead_id)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(id) = inserted {
            return Ok(id);
        }
    }
    Err(sqlx::Error::RowNotFound)
}
