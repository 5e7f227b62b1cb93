//! Conversations, messages and leads, in pages: each page ends where the next one begins, by the values of its last row, so that
//! rows that come meanwhile move nothing. Changes nothing.

use std::sync::LazyLock;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::shown::{CONVERSATION, LEAD, MESSAGE};
use super::{Pool, SiteError};

/// Where a row stands among those that are read from the newest to the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The time by which they are ordered, in microseconds.
    pub at: OffsetDateTime,
    /// The row's id, which orders those of the same time.
    pub id: Uuid,
}

/// A row of a page.
#[derive(Debug, FromRow)]
pub struct ShownRow {
    at: OffsetDateTime,
    id: Uuid,
    /// JSON.
    pub shown: String,
}

impl ShownRow {
    /// Where it stands.
    #[must_use]
    pub const fn place(&self) -> Place {
        Place {
            at: self.at,
            id: self.id,
        }
    }
}

/// Which conversations are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// Those of these numbers (`phone_number_id`); `None`: of all.
    pub numbers: Option<&'a [String]>,
    /// Those with something unread.
    pub unread: bool,
}

/// One conversation.
#[derive(Debug, FromRow)]
pub struct OneConversation {
    /// Its id: not the one asked for, if that was merged into this one.
    pub id: Uuid,
    /// JSON.
    pub shown: String,
}

/// The statement of a page. The rows of the page are found first, and only they are shown. `among`: the rows that are looked at.
///
/// The limit is hidden from the planner: without statistics it believes that there are hardly more rows than that, and reads and
/// sorts all of them instead of the index's beginning.
fn page_of_conversations(among: &str) -> String {
    format!(
        "WITH page AS MATERIALIZED (SELECT coalesce(c.last_message_at, c.created_at) AS at, c.id FROM {among} c \
           WHERE c.merged_into IS NULL \
             AND ($1::text[] IS NULL OR c.account_id IN (SELECT id FROM public.whatsapp_accounts WHERE phone_number_id = ANY ($1))) \
             AND (NOT $2 OR c.unread_count > 0) \
             AND (coalesce(c.last_message_at, c.created_at), c.id) \
               < (coalesce($3::timestamptz, 'infinity'), coalesce($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)) \
           ORDER BY coalesce(c.last_message_at, c.created_at) DESC, c.id DESC LIMIT (SELECT $5::bigint)) \
         SELECT p.at, p.id, {CONVERSATION} AS shown FROM page p JOIN public.conversations c ON c.id = p.id \
           JOIN public.whatsapp_accounts a ON a.id = c.account_id JOIN public.leads l ON l.id = c.lead_id \
         ORDER BY p.at DESC, p.id DESC"
    )
}

static CONVERSATIONS: LazyLock<String> = LazyLock::new(|| page_of_conversations("public.conversations"));
// Without the fence the planner may read the whole index of recent conversations, to combine it with the lead's.
static CONVERSATIONS_OF: LazyLock<String> =
    LazyLock::new(|| page_of_conversations("(SELECT * FROM public.conversations WHERE lead_id = $6 OFFSET 0)"));

/// Conversations that were not merged into others, those with the newest messages first, from the row after `before` on.
///
/// # Errors
/// See [`SiteError`].
pub async fn conversations(
    pool: &Pool,
    wanted: &Wanted<'_>,
    before: Option<Place>,
    limit: u16,
) -> Result<Vec<ShownRow>, SiteError> {
    Ok(sqlx::query_as(CONVERSATIONS.as_str())
        .bind(wanted.numbers)
        .bind(wanted.unread)
        .bind(before.map(|place| place.at))
        .bind(before.map(|place| place.id))
        .bind(i64::from(limit))
        .fetch_all(&pool.0)
        .await?)
}

/// The same of one lead. A statement of its own, because it is found by another index.
///
/// # Errors
/// See [`SiteError`].
pub async fn conversations_of(
    pool: &Pool,
    lead: Uuid,
    wanted: &Wanted<'_>,
    before: Option<Place>,
    limit: u16,
) -> Result<Vec<ShownRow>, SiteError> {
    Ok(sqlx::query_as(CONVERSATIONS_OF.as_str())
        .bind(wanted.numbers)
        .bind(wanted.unread)
        .bind(before.map(|place| place.at))
        .bind(before.map(|place| place.id))
        .bind(i64::from(limit))
        .bind(lead)
        .fetch_all(&pool.0)
        .await?)
}

static CONVERSATION_OF: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT c.id, {CONVERSATION} AS shown FROM public.conversations asked \
           JOIN public.conversations c ON c.id = coalesce(asked.merged_into, asked.id) \
           JOIN public.whatsapp_accounts a ON a.id = c.account_id JOIN public.leads l ON l.id = c.lead_id \
         WHERE asked.id = $1 AND ($2::text[] IS NULL OR a.phone_number_id = ANY ($2))"
    )
});

/// A conversation, or the one that it was merged into. `None`: there is none, or it is not one of these numbers'.
///
/// # Errors
/// See [`SiteError`].
pub async fn conversation(
    pool: &Pool,
    id: Uuid,
    numbers: Option<&[String]>,
) -> Result<Option<OneConversation>, SiteError> {
    Ok(sqlx::query_as(CONVERSATION_OF.as_str())
        .bind(id)
        .bind(numbers)
        .fetch_optional(&pool.0)
        .await?)
}

static MESSAGES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT m.created_at AS at, m.id, {MESSAGE} AS shown FROM public.whatsapp_messages m \
           JOIN public.whatsapp_accounts a ON a.id = m.account_id \
         WHERE m.conversation_id = $1 AND (m.created_at, m.id) \
             < (coalesce($2::timestamptz, 'infinity'), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)) \
         ORDER BY m.created_at DESC, m.id DESC LIMIT $4"
    )
});

/// A conversation's messages, the newest first, from the row after `before` on.
///
/// # Errors
/// See [`SiteError`].
pub async fn messages(
    pool: &Pool,
    conversation_id: Uuid,
    before: Option<Place>,
    limit: u16,
) -> Result<Vec<ShownRow>, SiteError> {
    Ok(sqlx::query_as(MESSAGES.as_str())
        .bind(conversation_id)
        .bind(before.map(|place| place.at))
        .bind(before.map(|place| place.id))
        .bind(i64::from(limit))
        .fetch_all(&pool.0)
        .await?)
}

static LEAD_OF: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT l.id, {LEAD} AS shown FROM public.leads asked JOIN public.leads l ON l.id = coalesce(asked.merged_into, asked.id) \
         WHERE asked.id = $1 AND ($2::text[] IS NULL OR EXISTS (SELECT FROM public.conversations c \
           JOIN public.whatsapp_accounts a ON a.id = c.account_id WHERE c.lead_id = l.id AND a.phone_number_id = ANY ($2)))"
    )
});

/// A lead as JSON with its id, or the one that it was merged into. `None`: there is none, or these numbers have no conversation
/// with it.
///
/// # Errors
/// See [`SiteError`].
pub async fn lead(pool: &Pool, id: Uuid, numbers: Option<&[String]>) -> Result<Option<(Uuid, String)>, SiteError> {
    Ok(sqlx::query_as(LEAD_OF.as_str())
        .bind(id)
        .bind(numbers)
        .fetch_optional(&pool.0)
        .await?)
}
