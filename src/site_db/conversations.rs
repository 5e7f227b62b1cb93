//! `conversations`: the messages between a lead (a person or a group) and one of our numbers. Every message belongs to a
//! conversation, which is found or created together with its lead.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::leads::{self, LookedUp, Source};
use super::locks::lock_updated;
use super::{Pool, SiteError, Transaction, notifications};
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

/// Who has a message sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// A client, for whomever.
    Client,
    /// A program that keeps out of a conversation that a person has taken over.
    Automation,
    /// A person, by a name or an id: takes the conversation over.
    Person(String),
}

impl Author {
    /// The person.
    #[must_use]
    pub fn person(&self) -> Option<&str> {
        match self {
            Self::Person(person) => Some(person),
            Self::Client | Self::Automation => None,
        }
    }
}

/// `automation_paused_by` where a person wrote on the phone.
const PHONE: &str = "phone";

/// Attempts to find or insert a conversation while another program inserts or deletes it.
const ATTEMPTS: usize = 3;

/// Finds or creates the lead and its conversation with a number, and stores ids of the contact that the lead lacks.
///
/// Safe to run concurrently with itself and with other writers of the tables.
///
/// # Errors
/// See [`SiteError`]; [`SiteError::Anonymous`] for a contact without any id.
pub async fn link(tx: &mut Transaction<'_>, account_id: Uuid, contact: &ContactIdentity) -> Result<Link, SiteError> {
    let lead_id = leads::find_or_make(tx, contact, Source::WhatsApp).await?;
    of_lead(tx, account_id, lead_id).await
}

/// The same for a recipient that a client names.
///
/// # Errors
/// As for [`link`].
pub async fn link_recipient(
    tx: &mut Transaction<'_>,
    account_id: Uuid,
    contact: &ContactIdentity,
) -> Result<Link, SiteError> {
    let lead_id = leads::find_or_make(tx, contact, Source::Client).await?;
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
    let links = of_leads(tx, &pairs).await?;
    pairs
        .into_iter()
        .map(|pair| links.get(&pair).copied().ok_or(SiteError::Vanished("conversations")))
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

/// Finds or creates the conversation of a number with a lead that the caller named, or with the one that it was merged into.
/// `None`: no such lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn with_lead(tx: &mut Transaction<'_>, account_id: Uuid, lead_id: Uuid) -> Result<Option<Link>, SiteError> {
    match leads::present(tx, lead_id).await? {
        Some(lead_id) => of_lead(tx, account_id, lead_id).await.map(Some),
        None => Ok(None),
    }
}

/// Finds or creates the conversation of a number with a lead.
///
/// # Errors
/// See [`SiteError`]; one case is that there is no such lead.
pub async fn of_lead(tx: &mut Transaction<'_>, account_id: Uuid, lead_id: Uuid) -> Result<Link, SiteError> {
    let links = of_leads(tx, &[(account_id, lead_id)]).await?;
    links
        .get(&(account_id, lead_id))
        .copied()
        .ok_or(SiteError::Vanished("conversations"))
}

/// Finds or creates the conversations of these numbers and leads. A lead that another transaction has merged meanwhile stands
/// for the one that it was merged into. The leads stay locked, so that they are not merged before the messages are there.
async fn of_leads(tx: &mut Transaction<'_>, pairs: &[(Uuid, Uuid)]) -> Result<HashMap<(Uuid, Uuid), Link>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        account_id: Uuid,
        lead_id: Uuid,
        id: Uuid,
    }
    let mut known: HashMap<(Uuid, Uuid), Uuid> = HashMap::new();
    let mut merged: HashMap<Uuid, Uuid> = HashMap::new();
    let kept =
        |merged: &HashMap<Uuid, Uuid>, pair: (Uuid, Uuid)| (pair.0, merged.get(&pair.1).copied().unwrap_or(pair.1));
    for attempt in 0..ATTEMPTS {
        let mut missing: Vec<(Uuid, Uuid)> = pairs.iter().map(|pair| kept(&merged, *pair)).collect();
        missing.retain(|pair| !known.contains_key(pair));
        if missing.is_empty() {
            break;
        }
        if attempt > 0 {
            let leads: Vec<Uuid> = pairs.iter().map(|pair| pair.1).collect();
            merged.extend(leads::merged_into(tx, &leads).await?);
            // The others are locked, and the lead that is kept may come before them.
            if !merged.is_empty() && !known.is_empty() {
                return Err(SiteError::Merged);
            }
            missing = missing.into_iter().map(|pair| kept(&merged, pair)).collect();
        }
        // One that another program inserts in this moment is found at the next attempt.
        let rows: Vec<Row> = sqlx::query_as(
            "WITH wanted AS (
                 SELECT DISTINCT account_id, lead_id FROM unnest($1::uuid[], $2::uuid[]) AS given(account_id, lead_id)
             ), held AS MATERIALIZED (
                 SELECT l.id AS lead_id FROM public.leads l WHERE l.id = ANY ($2) AND l.merged_into IS NULL
                  ORDER BY l.id FOR KEY SHARE OF l
             ), found AS (
                 SELECT account_id, lead_id, c.id FROM wanted JOIN held USING (lead_id)
                   JOIN public.conversations c USING (account_id, lead_id)
             ), made AS (
                 INSERT INTO public.conversations (account_id, lead_id)
                 SELECT account_id, lead_id FROM wanted w JOIN held USING (lead_id)
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
    let link = |pair: &(Uuid, Uuid)| {
        let kept = kept(&merged, *pair);
        let link = Link {
            lead_id: kept.1,
            conversation_id: *known.get(&kept)?,
        };
        Some((*pair, link))
    };
    Ok(pairs.iter().filter_map(link).collect())
}

/// A conversation of a lead that is being merged.
#[derive(Debug, Clone, Copy, FromRow)]
pub(super) struct Merged {
    /// The merged lead's.
    pub(super) conversation: Uuid,
    /// The kept lead's with the same number of ours; `None`: the kept lead has none, and gets this one.
    pub(super) into: Option<Uuid>,
}

/// The conversations of a lead that is being merged, with those of the lead that is kept.
pub(super) async fn of_both(tx: &mut Transaction<'_>, kept: Uuid, merged: Uuid) -> Result<Vec<Merged>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT c.id AS conversation, k.id AS \"into\" FROM public.conversations c
           LEFT JOIN public.conversations k ON k.account_id = c.account_id AND k.lead_id = $1
          WHERE c.lead_id = $2 AND c.merged_into IS NULL ORDER BY c.id",
    )
    .bind(kept)
    .bind(merged)
    .fetch_all(tx.connection())
    .await?)
}

static MERGE_ALL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH held AS MATERIALIZED ({}),
         pairs AS (SELECT * FROM unnest($2::uuid[], $3::uuid[]) AS p(id, other)),
         kept AS (UPDATE public.conversations AS c SET
             last_inbound_at  = greatest(c.last_inbound_at, o.last_inbound_at),
             last_outbound_at = greatest(c.last_outbound_at, o.last_outbound_at),
             last_message_at  = greatest(c.last_message_at, o.last_message_at),
             unread_count     = c.unread_count + o.unread_count,
             automation_paused_by    = CASE WHEN o.automation_paused_until > coalesce(c.automation_paused_until, '-infinity')
                                            THEN o.automation_paused_by ELSE c.automation_paused_by END,
             automation_paused_until = greatest(c.automation_paused_until, o.automation_paused_until),
             updated_at       = now()
            FROM held, pairs p JOIN public.conversations o ON o.id = p.id WHERE c.id = p.other AND held.keys >= 0)
         UPDATE public.conversations AS c SET
             lead_id      = CASE WHEN c.id = p.id AND p.other IS NULL THEN $4 ELSE c.lead_id END,
             merged_into  = p.other,
             unread_count = CASE WHEN p.other IS NULL THEN c.unread_count ELSE 0 END,
             updated_at   = now()
            FROM held, pairs p WHERE (c.id = p.id OR (c.merged_into = p.id AND p.other IS NOT NULL)) AND held.keys >= 0",
        lock_updated(
            "conversations",
            "ARRAY(SELECT c.id FROM public.conversations c WHERE c.id = ANY ($1) OR c.merged_into = ANY ($1))"
        )
    )
});

/// Gives the kept lead the conversations that it lacks; the others point to its own, which gets their times and what is unread.
pub(super) async fn merge_all(tx: &mut Transaction<'_>, kept: Uuid, pairs: &[Merged]) -> Result<(), SiteError> {
    if pairs.is_empty() {
        return Ok(());
    }
    let all = pairs.iter().flat_map(|pair| [Some(pair.conversation), pair.into]);
    sqlx::query(MERGE_ALL.as_str())
        .bind(all.flatten().collect::<Vec<_>>())
        .bind(pairs.iter().map(|pair| pair.conversation).collect::<Vec<_>>())
        .bind(pairs.iter().map(|pair| pair.into).collect::<Vec<_>>())
        .bind(kept)
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Members of the `WITH` that stores submissions: `of_conversation` says for each row of `fresh` its lead and its
/// conversation (`input_id`, `lead_id`, `conversation_id`), which is made where it is missing, and whether a person has taken it
/// over (`paused`). The conversations' times are those of the statement. Rows are left out whose conversation another
/// transaction is inserting, and those of programs whose conversation a person takes over in this moment.
///
/// New ones are inserted before the others are locked, as everywhere: see [`locks`](super::locks).
pub(super) fn of_submissions() -> String {
    // Reads `made_conversations`, so that it comes after it.
    let held = lock_updated(
        "conversations",
        "ARRAY(SELECT a.conversation_id FROM addressed a WHERE (SELECT count(*) FROM made_conversations) >= 0)",
    );
    // Arrays of their own, which are read once: an expression that reads `addressed` for each row would read it anew when the row
    // was changed meanwhile.
    let of = |value: &str, which: &str| {
        format!(
            "ARRAY(SELECT {value} FROM addressed a JOIN fresh i ON i.id = a.input_id WHERE {which} ORDER BY i.id DESC)"
        )
    };
    let person = "i.takeover > 0 AND a.conversation_id IS NOT NULL";
    let (taken, people) = (of("a.conversation_id", person), of("i.person", person));
    let others = of("a.conversation_id", "NOT i.automation");
    let until = "now() + make_interval(secs => (SELECT max(i.takeover) FROM fresh i))";
    let takes_over = format!("c.id = ANY ({taken}) AND {until} > greatest(now(), c.automation_paused_until)");
    // A conversation where nothing but messages of programs come and are refused stays as it is: nobody is told of a change.
    let stores = format!("(c.id = ANY ({others}) OR coalesce(c.automation_paused_until <= now(), true))");
    format!(
        "addressed AS MATERIALIZED (SELECT l.input_id, i.account_id, l.lead_id, c.id AS conversation_id, c.paused \
       FROM of_lead l JOIN fresh i ON i.id = l.input_id LEFT JOIN LATERAL ( \
         SELECT c.id, c.automation_paused_until > now() AS paused FROM public.conversations c \
           WHERE c.account_id = i.account_id AND c.lead_id = l.lead_id LIMIT 1) c ON true), \
     made_conversations AS (INSERT INTO public.conversations (account_id, lead_id, last_outbound_at, last_message_at, \
         automation_paused_until, automation_paused_by) \
       SELECT a.account_id, a.lead_id, now(), now(), \
         CASE WHEN max(i.takeover) > 0 THEN now() + make_interval(secs => max(i.takeover)) END, \
         CASE WHEN max(i.takeover) > 0 THEN max(i.person) END \
       FROM addressed a JOIN fresh i ON i.id = a.input_id WHERE a.conversation_id IS NULL \
       GROUP BY a.account_id, a.lead_id ORDER BY a.account_id, a.lead_id \
       ON CONFLICT (account_id, lead_id) DO NOTHING RETURNING id, account_id, lead_id, automation_paused_until), \
     held_conversations AS MATERIALIZED ({held}), \
     touched AS (UPDATE public.conversations c SET last_outbound_at = now(), last_message_at = now(), updated_at = now(), \
         automation_paused_until = CASE WHEN {takes_over} THEN {until} ELSE c.automation_paused_until END, \
         automation_paused_by = CASE WHEN {takes_over} THEN ({people})[array_position({taken}, c.id)] \
           ELSE c.automation_paused_by END \
       FROM held_conversations WHERE held_conversations.keys >= 0 \
         AND c.id = ANY (ARRAY(SELECT a.conversation_id FROM addressed a)) AND {stores} \
       RETURNING c.id, c.automation_paused_until), \
     of_conversation AS MATERIALIZED (SELECT a.input_id, a.lead_id, a.conversation_id, \
         coalesce(t.automation_paused_until > now(), false) AS paused \
       FROM addressed a JOIN touched t ON t.id = a.conversation_id \
       UNION ALL SELECT a.input_id, a.lead_id, m.id, coalesce(m.automation_paused_until > now(), false) FROM addressed a \
         JOIN made_conversations m ON m.account_id = a.account_id AND m.lead_id = a.lead_id WHERE a.conversation_id IS NULL \
       UNION ALL SELECT a.input_id, a.lead_id, a.conversation_id, true FROM addressed a JOIN fresh i ON i.id = a.input_id \
         WHERE i.automation AND a.paused AND NOT EXISTS (SELECT FROM touched t WHERE t.id = a.conversation_id))"
    )
}

/// Updates a conversation before a client's message is stored in it: its times, and that a person has taken it over, for
/// `takeover`. False: a person has, and the author is a program, so the caller must store nothing and roll back.
///
/// # Errors
/// See [`SiteError`].
pub async fn touch_outbound(
    tx: &mut Transaction<'_>,
    conversation_id: Uuid,
    author: &Author,
    takeover: Duration,
) -> Result<bool, SiteError> {
    let paused: Option<bool> = sqlx::query_scalar(
        "UPDATE public.conversations AS c SET last_outbound_at = now(), last_message_at = now(), updated_at = now(),
             automation_paused_until = CASE WHEN t.until > greatest(now(), c.automation_paused_until) THEN t.until
                                            ELSE c.automation_paused_until END,
             automation_paused_by    = CASE WHEN t.until > greatest(now(), c.automation_paused_until) THEN $2
                                            ELSE c.automation_paused_by END
            FROM (SELECT CASE WHEN $2::text IS NOT NULL THEN now() + make_interval(secs => $3) END AS until) AS t
           WHERE c.id = $1 RETURNING coalesce(c.automation_paused_until > now(), false)",
    )
    .bind(conversation_id)
    .bind(author.person())
    .bind(takeover.as_secs_f64())
    .fetch_optional(tx.connection())
    .await?;
    Ok(paused != Some(true) || *author != Author::Automation)
}

/// Whether a person has taken over the conversation of this message. Until the transaction ends, nobody can.
pub(super) async fn is_taken_over(tx: &mut Transaction<'_>, message_id: Uuid) -> Result<bool, SiteError> {
    let paused: Option<bool> = sqlx::query_scalar(
        "SELECT coalesce(c.automation_paused_until > now(), false) FROM public.conversations c
          WHERE c.id = (SELECT m.conversation_id FROM public.whatsapp_messages m WHERE m.id = $1) FOR SHARE",
    )
    .bind(message_id)
    .fetch_optional(tx.connection())
    .await?;
    Ok(paused == Some(true))
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
    /// For how long from `at` it takes the conversation over: a person wrote it on the phone.
    pub takes_over: Option<Duration>,
}

static TOUCH_ALL: LazyLock<String> = LazyLock::new(|| {
    let held = lock_updated("conversations", "$1");
    format!(
        "WITH held AS MATERIALIZED ({held})
         UPDATE public.conversations AS c SET
             last_inbound_at  = greatest(c.last_inbound_at, t.inbound),
             last_outbound_at = greatest(c.last_outbound_at, t.outbound),
             last_message_at  = greatest(c.last_message_at, t.inbound, t.outbound),
             unread_count     = c.unread_count + t.unread,
             automation_paused_until = CASE WHEN t.until > greatest(now(), c.automation_paused_until) THEN t.until
                                            ELSE c.automation_paused_until END,
             automation_paused_by    = CASE WHEN t.until > greatest(now(), c.automation_paused_until) THEN '{PHONE}'
                                            ELSE c.automation_paused_by END,
             updated_at       = now()
            FROM held, (
                SELECT id, unread, least(taken_at, clock_timestamp()) + make_interval(secs => takeover) AS until,
                       CASE WHEN inbound IS NOT NULL THEN least(inbound, clock_timestamp()) END AS inbound,
                       CASE WHEN outbound IS NOT NULL THEN least(outbound, clock_timestamp()) END AS outbound
                  FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::timestamptz[], $6::float8[])
                    AS given(id, inbound, outbound, unread, taken_at, takeover)) AS t
           WHERE c.id = t.id AND held.keys >= 0"
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
        /// The last message that takes the conversation over, and for how long.
        takes_over: Option<(OffsetDateTime, Duration)>,
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
        sum.takes_over = sum.takes_over.max(touch.takes_over.map(|takeover| (at, takeover)));
    }
    sqlx::query(TOUCH_ALL.as_str())
        .bind(sums.keys().copied().collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.inbound).collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.outbound).collect::<Vec<_>>())
        .bind(sums.values().map(|sum| sum.unread).collect::<Vec<_>>())
        .bind(
            sums.values()
                .map(|sum| sum.takes_over.map(|(at, _)| at))
                .collect::<Vec<_>>(),
        )
        .bind(
            sums.values()
                .map(|sum| sum.takes_over.map(|(_, takeover)| takeover.as_secs_f64()))
                .collect::<Vec<_>>(),
        )
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Counts a conversation's messages as read, and what notifies of them: all, or those up to one of them. `None`: there is no such
/// conversation, or no such message in it.
///
/// # Errors
/// See [`SiteError`].
pub async fn mark_read(pool: &Pool, id: Uuid, up_to: Option<Uuid>) -> Result<Option<()>, SiteError> {
    let mut tx = pool.begin().await?;
    // Locked first: a message that comes meanwhile is counted after this, or is seen by it.
    let known: Option<Option<OffsetDateTime>> = sqlx::query_scalar(
        "SELECT (SELECT m.created_at FROM public.whatsapp_messages m WHERE m.id = $2 AND m.conversation_id = c.id) \
         FROM public.conversations c WHERE c.id = $1 FOR NO KEY UPDATE",
    )
    .bind(id)
    .bind(up_to)
    .fetch_optional(tx.connection())
    .await?;
    let read_to = match known {
        Some(read_to) if read_to.is_some() || up_to.is_none() => read_to,
        _ => return Ok(None),
    };
    sqlx::query(
        "UPDATE public.conversations c SET updated_at = now(), unread_count = CASE WHEN $2::timestamptz IS NULL THEN 0 ELSE \
           least(c.unread_count, (SELECT count(*) FROM public.whatsapp_messages m WHERE m.conversation_id = c.id \
             AND m.direction = 'inbound' AND (m.created_at, m.id) > ($2, $3)))::integer END \
         WHERE c.id = $1 AND c.unread_count > 0",
    )
    .bind(id)
    .bind(read_to)
    .bind(up_to)
    .execute(tx.connection())
    .await?;
    notifications::mark_read(&mut tx, id, read_to.zip(up_to)).await?;
    tx.commit().await?;
    Ok(Some(()))
}
