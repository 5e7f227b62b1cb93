//! `conversations`: the messages between a lead (a person or a group) and one of our numbers. Every message belongs to a
//! conversation, which is found or created together with its lead.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::leads::{self, LookedUp};
use super::locks::lock_updated;
use super::{SiteError, Transaction};
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

/// The same for many people, each with the number that it is about; the links are in the same order. The caller has locked
/// the contacts that `looked_up` has not settled (see [`super::locks`]).
///
/// # Errors
/// As for [`link`].
pub async fn link_all(
    tx: &mut Transaction<'_>,
    wanted: &[(Uuid, &ContactIdentity)],
    looked_up: &LookedUp<'_>,
) -> Result<Vec<Link>, SiteError> {
    let contacts: Vec<&ContactIdentity> = wanted.iter().map(|(_, contact)| *contact).collect();
    let lead_ids = leads::find_or_make_all(tx, &contacts, looked_up).await?;
    let pairs: Vec<(Uuid, Uuid)> = (wanted.iter().zip(lead_ids))
        .map(|((account_id, _), lead_id)| (*account_id, lead_id))
        .collect();
    let conversations = of_leads(tx, &pairs).await?;
    pairs
        .into_iter()
        .map(|pair| {
            let conversation_id = *conversations.get(&pair).ok_or(SiteError::Vanished("conversations"))?;
            Ok(Link {
                lead_id: pair.1,
                conversation_id,
            })
        })
        .collect()
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
    let conversations = of_leads(tx, &[(account_id, lead_id)]).await?;
    let conversation_id = *conversations
        .get(&(account_id, lead_id))
        .ok_or(SiteError::Vanished("conversations"))?;
    Ok(Link {
        lead_id,
        conversation_id,
    })
}

/// Finds or creates the conversations of these numbers and leads.
async fn of_leads(tx: &mut Transaction<'_>, pairs: &[(Uuid, Uuid)]) -> Result<HashMap<(Uuid, Uuid), Uuid>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        account_id: Uuid,
        lead_id: Uuid,
        id: Uuid,
    }
    let mut known = HashMap::new();
    for _ in 0..ATTEMPTS {
        let missing: Vec<&(Uuid, Uuid)> = pairs.iter().filter(|pair| !known.contains_key(*pair)).collect();
        if missing.is_empty() {
            break;
        }
        // One that another program inserts in this moment is found at the next attempt.
        let rows: Vec<Row> = sqlx::query_as(
            "WITH wanted AS (
                 SELECT DISTINCT account_id, lead_id FROM unnest($1::uuid[], $2::uuid[]) AS given(account_id, lead_id)
             ), found AS (
                 SELECT account_id, lead_id, c.id FROM wanted JOIN public.conversations c USING (account_id, lead_id)
             ), made AS (
                 INSERT INTO public.conversations (account_id, lead_id)
                 SELECT account_id, lead_id FROM wanted w
                  WHERE NOT EXISTS (SELECT FROM found f WHERE f.account_id = w.account_id AND f.lead_id = w.lead_id)
                  ORDER BY account_id, lead_id
                 ON CONFLICT (account_id, lead_id) DO NOTHING RETURNING account_id, lead_id, id
             )
             SELECT account_id, lead_id, id FROM found UNION ALL SELECT account_id, lead_id, id FROM made",
        )
        .bind(missing.iter().map(|pair| pair.0).collect::<Vec<_>>())
        .bind(missing.iter().map(|pair| pair.1).collect::<Vec<_>>())
        .fetch_all(tx.connection())
        .await?;
        known.extend(rows.into_iter().map(|row| ((row.account_id, row.lead_id), row.id)));
    }
    Ok(known)
}

/// Members of the `WITH` that stores submissions: `of_conversation` says for each row of `fresh` its lead and its
/// conversation (`input_id`, `lead_id`, `conversation_id`), which is made where it is missing. The conversations' times are
/// those of the statement. Rows are left out whose conversation another transaction is inserting.
///
/// New ones are inserted before the others are locked, as everywhere: see [`locks`](super::locks).
pub(super) fn of_submissions() -> String {
    // Reads `made_conversations`, so that it comes after it.
    let held = lock_updated(
        "conversations",
        "ARRAY(SELECT a.conversation_id FROM addressed a WHERE (SELECT count(*) FROM made_conversations) >= 0)",
    );
    format!(
        "addressed AS MATERIALIZED (SELECT l.input_id, i.account_id, l.lead_id, c.id AS conversation_id \
       FROM of_lead l JOIN fresh i ON i.id = l.input_id LEFT JOIN LATERAL ( \
         SELECT c.id FROM public.conversations c WHERE c.account_id = i.account_id AND c.lead_id = l.lead_id LIMIT 1) c ON true), \
     made_conversations AS (INSERT INTO public.conversations (account_id, lead_id, last_outbound_at, last_message_at) \
       SELECT DISTINCT a.account_id, a.lead_id, now(), now() FROM addressed a WHERE a.conversation_id IS NULL \
       ORDER BY a.account_id, a.lead_id \
       ON CONFLICT (account_id, lead_id) DO NOTHING RETURNING id, account_id, lead_id), \
     held_conversations AS MATERIALIZED ({held}), \
     touched AS (UPDATE public.conversations c SET last_outbound_at = now(), last_message_at = now(), updated_at = now() \
       FROM held_conversations WHERE held_conversations.keys >= 0 \
         AND c.id = ANY (ARRAY(SELECT a.conversation_id FROM addressed a)) RETURNING c.id), \
     of_conversation AS MATERIALIZED (SELECT a.input_id, a.lead_id, a.conversation_id FROM addressed a \
         JOIN touched t ON t.id = a.conversation_id \
       UNION ALL SELECT a.input_id, a.lead_id, m.id FROM addressed a \
         JOIN made_conversations m ON m.account_id = a.account_id AND m.lead_id = a.lead_id WHERE a.conversation_id IS NULL)"
    )
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

static TOUCH_ALL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH held AS MATERIALIZED ({})
         UPDATE public.conversations AS c SET
             last_inbound_at  = greatest(c.last_inbound_at, t.inbound),
             last_outbound_at = greatest(c.last_outbound_at, t.outbound),
             last_message_at  = greatest(c.last_message_at, t.inbound, t.outbound),
             unread_count     = c.unread_count + t.unread,
             updated_at       = now()
            FROM held, (
                SELECT id, unread, CASE WHEN inbound IS NOT NULL THEN least(inbound, clock_timestamp()) END AS inbound,
                       CASE WHEN outbound IS NOT NULL THEN least(outbound, clock_timestamp()) END AS outbound
                  FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[])
                    AS given(id, inbound, outbound, unread)) AS t
           WHERE c.id = t.id AND held.keys >= 0",
        lock_updated("conversations", "$1")
    )
});

/// Moves the times of conversations forward, never back, and counts what is unread. A message's own time counts, but never
/// a time in the future. A conversation may be there several times.
///
/// The rows are locked by [`lock_updated`], so that two batches never wait for each other in a circle.
///
/// # Errors
/// See [`SiteError`].
pub async fn touch_all(tx: &mut Transaction<'_>, touches: &[(Uuid, Touch)]) -> Result<(), SiteError> {
    #[derive(Default)]
    struct Sum {
        inbound: Option<OffsetDateTime>,
        outbound: Option<OffsetDateTime>,
        unread: i32,
    }
    if touches.is_empty() {
        return Ok(());
    }
    let mut sums: BTreeMap<Uuid, Sum> = BTreeMap::new();
    for (conversation_id, touch) in touches {
        let sum = sums.entry(*conversation_id).or_default();
        let at = touch.at.unwrap_or_else(OffsetDateTime::now_utc);
        let latest = match touch.direction {
            Direction::Inbound => &mut sum.inbound,
            Direction::Outbound => &mut sum.outbound,
        };
        *latest = (*latest).max(Some(at));
        sum.unread = sum.unread.saturating_add(i32::from(touch.unread));
    }
    sqlx::query(TOUCH_ALL.as_str())
        .bind(sums.keys().copied().collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.inbound).collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.outbound).collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.unread).collect::<Vec<_>>())
        .execute(tx.connection())
        .await?;
    Ok(())
}
