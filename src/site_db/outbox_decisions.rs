//! `twinlog.outbox_decisions`: what people have decided about messages of ours, and why.
//!
//! A decision and the change of its message are one transaction, under the lock of the message's row. So it holds against whatever
//! happens at the same time: a server that claims the message has it `sending`, and then nothing can be decided; an answer or a
//! report that was faster has given it another status, and the decision is refused with that status.

use sqlx::FromRow;
use strum::{Display, EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::messages::{self, Decided, MessageStatus, Step, Undecidable};
use super::{Pool, SiteError, storable};

/// What a person can decide about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Decision {
    /// It is sent as soon as possible: `pending`, `failed` without the provider's id.
    Retry,
    /// It is sent again, though it may have been sent before: `unknown`.
    RetryUnknown,
    /// It is not sent: `pending`.
    Cancel,
    /// It was sent: `unknown`.
    ResolveSent,
    /// It was not sent, and will not be: `unknown`.
    ResolveNotSent,
    /// It was looked at; nothing changes: `failed`, `held`.
    ResolveSeen,
}

impl Decision {
    /// The change of the message.
    const fn step(self) -> Step {
        match self {
            Self::Retry => Step::Retry,
            Self::RetryUnknown => Step::RetryUnknown,
            Self::Cancel => Step::Cancel,
            Self::ResolveSent => Step::Sent,
            Self::ResolveNotSent => Step::NotSent,
            Self::ResolveSeen => Step::Seen,
        }
    }
}

/// Who decides, and why.
#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// As the command line knows the person.
    pub who: &'a str,
    /// In the person's words.
    pub why: &'a str,
}

/// A decision, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Kept {
    /// `retry`, `cancel`, …
    pub decision: String,
    /// The message's status before.
    pub from_status: String,
    /// And after.
    pub to_status: String,
    /// Why.
    pub why: String,
    /// Who, as the command line knows it.
    pub who: String,
    /// The database's role of the session.
    pub role: String,
    /// When.
    pub decided_at: OffsetDateTime,
}

/// Decides about a message; or says why that is not possible, and changes nothing.
///
/// # Errors
/// See [`SiteError`]. If the commit's answer was lost, it may be decided all the same: look, or decide again.
pub async fn decide(
    pool: &Pool,
    id: Uuid,
    decision: Decision,
    author: Author<'_>,
) -> Result<Result<Decided, Undecidable>, SiteError> {
    let mut tx = pool.begin().await?;
    let decided = match messages::decided(&mut tx, id, decision.step()).await? {
        Ok(decided) => decided,
        Err(why_not) => {
            tx.rollback().await?;
            return Ok(Err(why_not));
        }
    };
    let name: &'static str = decision.into();
    let (from, to): (MessageStatus, MessageStatus) = (decided.from, decided.to);
    sqlx::query(
        "INSERT INTO twinlog.outbox_decisions (message_id, decision, from_status, to_status, why, who) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(name)
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(storable(author.why))
    .bind(storable(author.who))
    .execute(tx.connection())
    .await?;
    tx.commit().await?;
    Ok(Ok(decided))
}

/// The decisions about a message, in their order.
///
/// # Errors
/// See [`SiteError`].
pub async fn of_message(pool: &Pool, id: Uuid) -> Result<Vec<Kept>, SiteError> {
    Ok(sqlx::query_as(
        "SELECT decision, from_status, to_status, why, who, role, decided_at FROM twinlog.outbox_decisions \
         WHERE message_id = $1 ORDER BY id",
    )
    .bind(id)
    .fetch_all(&pool.0)
    .await?)
}
