//! `notifications`: what a person should look at.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};
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
