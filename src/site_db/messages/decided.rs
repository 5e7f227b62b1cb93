//! What people decide about messages: transitions under the lock of the row; and which messages need a person.

use std::sync::LazyLock;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::status::MessageStatus;
use super::transition::{self, Only, Transition};
use super::write::{Change, Statement};
use crate::provider::{PhoneNumberId, Wamid};
use crate::site_db::{Pool, SiteError, Transaction};

/// A change that a person can decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is sent as soon as possible.
    Retry,
    /// It is sent again, though it may have been sent before.
    RetryUnknown,
    /// It is not sent.
    Cancel,
    /// It was sent, though no answer or report says so.
    Sent,
    /// It was not sent, and will not be.
    NotSent,
    /// Nothing: it was only looked at.
    Seen,
}

static RETRY: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::RETRY));
static RETRY_UNKNOWN: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::RETRY_UNKNOWN));
static CALL_OFF: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::CALL_OFF));
static SETTLE_SENT: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::SETTLE_SENT));
static SETTLE_NOT_SENT: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::SETTLE_NOT_SENT));

/// What only is looked at.
const SEEN: &[MessageStatus] = &[MessageStatus::Failed, MessageStatus::Held];

impl Step {
    fn transition(self) -> Option<(&'static Transition, &'static Statement)> {
        match self {
            Self::Retry => Some((&transition::RETRY, &RETRY)),
            Self::RetryUnknown => Some((&transition::RETRY_UNKNOWN, &RETRY_UNKNOWN)),
            Self::Cancel => Some((&transition::CALL_OFF, &CALL_OFF)),
            Self::Sent => Some((&transition::SETTLE_SENT, &SETTLE_SENT)),
            Self::NotSent => Some((&transition::SETTLE_NOT_SENT, &SETTLE_NOT_SENT)),
            Self::Seen => None,
        }
    }
}

/// A message before and after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// The status before.
    pub from: MessageStatus,
    /// The status now.
    pub to: MessageStatus,
}

/// Why a message can't be decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecidable {
    /// There is no message of ours with this id.
    NotThere,
    /// It has a status for which this can't be decided.
    Status(MessageStatus),
    /// The provider has had it: it must not be sent again.
    HasWamid(MessageStatus),
}

/// Locks a message and changes it as a person has decided.
///
/// # Errors
/// See [`SiteError`].
pub(in crate::site_db) async fn decided(
    tx: &mut Transaction<'_>,
    id: Uuid,
    step: Step,
) -> Result<Result<Decided, Undecidable>, SiteError> {
    // As in `outcomes::lock_rows`: by the primary key.
    let row: Option<(MessageStatus, Option<Wamid>)> = sqlx::query_as(
        "SELECT status, wamid FROM public.whatsapp_messages WHERE id = $1 AND coalesce(direction = 'outbound', false) FOR UPDATE",
    )
    .bind(id)
    .fetch_optional(tx.connection())
    .await?;
    let Some((from, wamid)) = row else {
        return Ok(Err(Undecidable::NotThere));
    };
    let Some((transition, statement)) = step.transition() else {
        let decided = Decided { from, to: from };
        return Ok(SEEN.contains(&from).then_some(decided).ok_or(Undecidable::Status(from)));
    };
    if !transition.from.contains(&from) {
        return Ok(Err(Undecidable::Status(from)));
    }
    if transition.only == Only::WithoutWamid && wamid.is_some() {
        return Ok(Err(Undecidable::HasWamid(from)));
    }
    let change = Change {
        id,
        ..Change::default()
    };
    let moved = statement.execute(tx.connection(), &[change]).await?;
    let to = moved.first().map(|row| row.status);
    Ok(to.map(|to| Decided { from, to }).ok_or(Undecidable::Status(from)))
}

/// A message that needs a person, without what it says and to whom.
#[derive(Debug, Clone, FromRow)]
pub struct Troubled {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The number of ours that it is from.
    pub phone_number_id: PhoneNumberId,
    /// The current status.
    pub status: MessageStatus,
    /// Meta's type.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// The client that submitted it.
    pub client_name: Option<String>,
    /// The client's id for it.
    pub client_id: Option<String>,
    /// Whether the provider has had it.
    pub has_wamid: bool,
    /// Attempts made that count towards the limit.
    pub attempt: i32,
    /// When the next attempt is due.
    pub next_attempt_at: Option<OffsetDateTime>,
    /// Meta's code of the last error.
    pub error_code: Option<i32>,
    /// Class of the last error.
    pub error_class: Option<String>,
    /// The last error as a sentence for people.
    pub error_message: Option<String>,
    /// Why its number is held, if it is.
    pub hold_reason: Option<String>,
    /// When it was submitted.
    pub created_at: OffsetDateTime,
    /// Since when it has its trouble.
    pub since: OffsetDateTime,
}

/// How long a message may be pending until it needs a person. As for `twinlog_persistence_gap{kind="unsent"}`.
const PENDING_LONG: &str = "interval '1 minute'";

/// The messages that need a person, the oldest trouble first: `unknown` ones; those that are pending for more than a minute; those
/// that Meta holds; those that failed within so many days. A failed or held one about which a person has decided since is left out.
///
/// # Errors
/// See [`SiteError`].
pub async fn troubled(
    pool: &Pool,
    statuses: &[MessageStatus],
    failed_days: u32,
    limit: u32,
) -> Result<Vec<Troubled>, SiteError> {
    let statuses: Vec<&str> = statuses.iter().map(|status| status.as_str()).collect();
    let text = format!(
        "SELECT m.id, a.phone_number_id, m.status, m.type, m.client_name, m.client_id, m.wamid IS NOT NULL AS has_wamid, m.attempt, \
                m.next_attempt_at, m.error_code, m.error_class, m.error_message, \
                CASE WHEN a.status = 'held' THEN coalesce(a.hold_reason, 'held') END AS hold_reason, m.created_at, \
                coalesce(t.since, m.created_at) AS since \
           FROM (SELECT id, unknown_at AS since FROM public.whatsapp_messages WHERE status = 'unknown' \
                 UNION ALL \
                 SELECT id, created_at FROM public.whatsapp_messages \
                  WHERE status = 'pending' AND created_at < now() - {PENDING_LONG} \
                 UNION ALL \
                 SELECT id, held_at FROM public.whatsapp_messages WHERE status = 'held' \
                 UNION ALL \
                 SELECT id, failed_at FROM public.whatsapp_messages \
                  WHERE status = 'failed' AND failed_at > now() - make_interval(days => $2)) AS t \
           JOIN public.whatsapp_messages m ON m.id = t.id \
           JOIN public.whatsapp_accounts a ON a.id = m.account_id \
          WHERE m.status = ANY ($1) AND m.direction = 'outbound' \
            AND NOT (m.status IN ('failed', 'held') AND EXISTS ( \
                SELECT FROM twinlog.outbox_decisions d \
                 WHERE d.message_id = m.id AND d.decided_at >= coalesce(t.since, m.created_at))) \
          ORDER BY coalesce(t.since, m.created_at), m.id LIMIT $3"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(statuses)
        .bind(i32::try_from(failed_days).unwrap_or(i32::MAX))
        .bind(i64::from(limit))
        .fetch_all(&pool.0)
        .await?)
}
