//! The rows that events are about, as they are now and as people are shown them: all of a batch in one round trip. Changes nothing.

use std::sync::LazyLock;

use sqlx::FromRow;
use strum::{Display, EnumString};
use uuid::Uuid;

use super::shown::{CONVERSATION, LEAD, MESSAGE};
use super::{Pool, SiteError};

/// Which table a row is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum RowOf {
    /// `whatsapp_messages`
    Message,
    /// `conversations`
    Conversation,
    /// `leads`
    Lead,
    /// `notifications`
    Notification,
}

impl RowOf {
    /// The table's name.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::Message => "whatsapp_messages",
            Self::Conversation => "conversations",
            Self::Lead => "leads",
            Self::Notification => "notifications",
        }
    }
}

/// A row, and who may see it.
#[derive(Debug, FromRow)]
pub struct EventRow {
    row_of: String,
    /// Its id.
    pub id: Uuid,
    /// JSON.
    pub shown: String,
    /// A message's conversation, as JSON.
    pub conversation: Option<String>,
    /// The numbers (`phone_number_id`) that it belongs to. Without one only those may see it who may see all numbers.
    pub numbers: Vec<String>,
    /// The conversations that it belongs to.
    pub conversations: Vec<Uuid>,
}

impl EventRow {
    /// Its table; `None` never happens.
    #[must_use]
    pub fn row_of(&self) -> Option<RowOf> {
        self.row_of.parse().ok()
    }
}

/// Rows that are wanted, by their ids.
#[derive(Debug, Default)]
pub struct WantedRows {
    /// Messages, with their conversations.
    pub messages: Vec<Uuid>,
    /// Conversations.
    pub conversations: Vec<Uuid>,
    /// Leads.
    pub leads: Vec<Uuid>,
    /// Notifications.
    pub notifications: Vec<Uuid>,
}

impl WantedRows {
    /// These rows.
    #[must_use]
    pub fn of(rows: &[(RowOf, Uuid)]) -> Self {
        let mut wanted = Self::default();
        for (of, id) in rows {
            match of {
                RowOf::Message => wanted.messages.push(*id),
                RowOf::Conversation => wanted.conversations.push(*id),
                RowOf::Lead => wanted.leads.push(*id),
                RowOf::Notification => wanted.notifications.push(*id),
            }
        }
        wanted
    }
}

static ROWS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT 'message' AS row_of, m.id, {MESSAGE} AS shown, {CONVERSATION} AS conversation, \
           ARRAY[a.phone_number_id] AS numbers, ARRAY[m.conversation_id] AS conversations \
         FROM public.whatsapp_messages m JOIN public.whatsapp_accounts a ON a.id = m.account_id \
           JOIN public.conversations c ON c.id = m.conversation_id JOIN public.leads l ON l.id = c.lead_id WHERE m.id = ANY ($1) \
         UNION ALL SELECT 'conversation', c.id, {CONVERSATION}, NULL, ARRAY[a.phone_number_id], ARRAY[c.id] \
         FROM public.conversations c JOIN public.whatsapp_accounts a ON a.id = c.account_id \
           JOIN public.leads l ON l.id = c.lead_id WHERE c.id = ANY ($2) \
         UNION ALL SELECT 'lead', l.id, {LEAD}, NULL, \
           ARRAY(SELECT DISTINCT a.phone_number_id FROM public.conversations c \
             JOIN public.whatsapp_accounts a ON a.id = c.account_id WHERE c.lead_id = l.id), \
           ARRAY(SELECT c.id FROM public.conversations c WHERE c.lead_id = l.id) \
         FROM public.leads l WHERE l.id = ANY ($3) \
         UNION ALL SELECT 'notification', n.id, json_strip_nulls(json_build_object('id', n.id, 'kind', n.kind, \
             'phone_number_id', a.phone_number_id, 'conversation_id', n.conversation_id, 'message_id', n.message_id, \
             'detail', n.detail, 'created_at', n.created_at, 'read_at', n.read_at))::text, NULL, \
           array_remove(ARRAY[a.phone_number_id], NULL), array_remove(ARRAY[n.conversation_id], NULL) \
         FROM public.notifications n LEFT JOIN public.whatsapp_accounts a ON a.id = n.account_id WHERE n.id = ANY ($4)"
    )
});

/// The rows that are wanted, in no order, without those that are not there any more.
///
/// # Errors
/// See [`SiteError`].
pub async fn read(pool: &Pool, wanted: &WantedRows) -> Result<Vec<EventRow>, SiteError> {
    Ok(sqlx::query_as(ROWS.as_str())
        .bind(&wanted.messages)
        .bind(&wanted.conversations)
        .bind(&wanted.leads)
        .bind(&wanted.notifications)
        .fetch_all(&pool.0)
        .await?)
}
