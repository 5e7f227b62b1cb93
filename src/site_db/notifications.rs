//! `notifications`: what a person should look at.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{SiteError, Transaction};

/// `notifications.kind`, of those that the server writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum NotificationKind {
    /// A person wrote.
    InboundMessage,
    /// A message of ours will not arrive.
    MessageFailed,
    /// It is not known whether a message of ours was sent.
    MessageUnknown,
    /// Meta refuses to send for a number.
    AccountHeld,
    /// The business did not share its history from the phone.
    HistoryDeclined,
}

impl NotificationKind {
    /// As the column writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An `INSERT` of one notification per message in `from`, to be used as a member of the `WITH` of the statement that
/// changes the messages, so that it costs no round trip. `detail` is an SQL expression over the messages' columns, `only`
/// a condition on them.
pub(super) fn of_messages(from: &str, kind: NotificationKind, detail: &str, only: Option<&str>) -> String {
    let filter = only.map(|only| format!(" WHERE {only}")).unwrap_or_default();
    format!(
        "INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail) \
         SELECT '{kind}', account_id, conversation_id, id, {detail} FROM {from}{filter}"
    )
}

/// Notifies that Meta refuses to send for a number; `detail` is Meta's reason.
pub(super) async fn account_held(tx: &mut Transaction<'_>, account_id: Uuid, detail: &str) -> Result<(), SiteError> {
    sqlx::query("INSERT INTO public.notifications (kind, account_id, detail) VALUES ($1, $2, $3)")
        .bind(NotificationKind::AccountHeld)
        .bind(account_id)
        .bind(detail)
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Notifies that a number's history will not come; `detail` is Meta's reason. Once a day: each part of the history says so.
///
/// # Errors
/// See [`SiteError`].
pub async fn history_declined(tx: &mut Transaction<'_>, account_id: Uuid, detail: &str) -> Result<(), SiteError> {
    sqlx::query(
        "INSERT INTO public.notifications (kind, account_id, detail) SELECT $1, $2, $3 WHERE NOT EXISTS (
           SELECT FROM public.notifications n WHERE n.kind = $1 AND n.account_id = $2 AND n.read_at IS NULL
             AND n.created_at > now() - interval '1 day')",
    )
    .bind(NotificationKind::HistoryDeclined)
    .bind(account_id)
    .bind(detail)
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Moves the notifications about a conversation to the one that it is merged into; returns their ids.
pub(super) async fn move_to(tx: &mut Transaction<'_>, conversation: Uuid, into: Uuid) -> Result<Vec<Uuid>, SiteError> {
    Ok(sqlx::query_scalar(
        "WITH held AS MATERIALIZED (SELECT id FROM public.notifications WHERE conversation_id = $1 ORDER BY id FOR UPDATE)
         UPDATE public.notifications AS n SET conversation_id = $2 FROM held WHERE n.id = held.id RETURNING n.id",
    )
    .bind(conversation)
    .bind(into)
    .fetch_all(tx.connection())
    .await?)
}

/// Marks what notifies of a conversation's received messages as read, up to a message (its `created_at` and id).
pub(super) async fn mark_read(
    tx: &mut Transaction<'_>,
    conversation: Uuid,
    read_to: Option<(OffsetDateTime, Uuid)>,
) -> Result<(), SiteError> {
    sqlx::query(
        "UPDATE public.notifications n SET read_at = now() WHERE n.conversation_id = $1 AND n.read_at IS NULL AND n.kind = $2 \
           AND ($3::timestamptz IS NULL OR EXISTS (SELECT FROM public.whatsapp_messages m \
             WHERE m.id = n.message_id AND (m.created_at, m.id) <= ($3, $4)))",
    )
    .bind(conversation)
    .bind(NotificationKind::InboundMessage)
    .bind(read_to.map(|(at, _)| at))
    .bind(read_to.map(|(_, id)| id))
    .execute(tx.connection())
    .await?;
    Ok(())
}
