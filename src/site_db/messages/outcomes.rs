//! Writes the outcome of a call to the provider, and what reports say: the transitions that the outbox and the inbox use.
//!
//! Each changes one message or many, and returns those that it changed; the others had another status already (see
//! [`transition`]).

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::fold::{MessageState, ReportedStep};
use super::problem::Problem;
use super::status::MessageStatus;
use super::transition;
use super::write::{Change, Statement};
use crate::provider::{Response, Wamid};
use crate::site_db::conversations::{self, Author};
use crate::site_db::{Pool, SiteError, Transaction};

/// Names one attempt to send a message.
#[derive(Debug, Clone, Copy)]
pub struct AttemptKey {
    /// `whatsapp_messages.id`.
    pub id: Uuid,
    /// The attempt's own id: see [`Claimed::lease_owner`](super::Claimed::lease_owner).
    pub lease_owner: Uuid,
}

/// How a message waits for its next attempt.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// Time until the next attempt, at least.
    pub after: Duration,
    /// Whether the attempt counts towards the limit; if not, the column `throttles` counts it (whatever the cause).
    pub consumed: bool,
}

static ACCEPT: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::ACCEPT));
static PUT_BACK: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::PUT_BACK));
static FAIL: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::FAIL));
static LOSE: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::LOSE));
static REPEAT: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::REPEAT));
static CANCEL: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::CANCEL));
static LEAVE: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::LEAVE));
static REVIVE: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::REVIVE));
static REPORT: LazyLock<Statement> = LazyLock::new(|| Statement::new(&transition::REPORT));

/// How an attempt ended that did not bring an acceptance: what the row keeps of it.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The attempt.
    pub attempt: AttemptKey,
    /// Why the message was not sent, or has no outcome.
    pub problem: Problem,
    /// The provider's response, if one came.
    pub response: Option<Response>,
}

/// The messages failed finally: writes that and a notification of each. Returns those that it changed; the others had
/// changed before and were left alone.
///
/// # Errors
/// See [`SiteError`].
pub async fn failed(tx: &mut Transaction<'_>, ended: Vec<Ended>) -> Result<Vec<Uuid>, SiteError> {
    change(tx, &FAIL, ended.into_iter().map(Change::from).collect()).await
}

/// Certainly nothing was sent: makes the messages wait for another attempt. Returns those that it changed; the others had
/// changed before and were left alone.
///
/// # Errors
/// See [`SiteError`].
pub async fn put_back(tx: &mut Transaction<'_>, ended: Vec<(Ended, Wait)>) -> Result<Vec<Uuid>, SiteError> {
    let waiting = |(ended, wait): (Ended, Wait)| Change {
        wait: wait.after,
        consumed: wait.consumed,
        ..ended.into()
    };
    change(tx, &PUT_BACK, ended.into_iter().map(waiting).collect()).await
}

/// It is not known whether the messages were sent: writes that and a notification of each. Returns those that it changed;
/// the others had changed before and were left alone.
///
/// # Errors
/// See [`SiteError`].
pub async fn lost(tx: &mut Transaction<'_>, ended: Vec<Ended>) -> Result<Vec<Uuid>, SiteError> {
    change(tx, &LOSE, ended.into_iter().map(Change::from).collect()).await
}

impl Locked {
    pub(in crate::site_db) const fn id(&self) -> Uuid {
        self.id
    }

    /// The provider's id of the message, once known.
    pub(in crate::site_db) const fn wamid(&self) -> Option<&Wamid> {
        self.state.wamid.as_ref()
    }

    /// Whom the message is for.
    pub(in crate::site_db) const fn addressed(&self) -> &Addressed {
        &self.addressed
    }
}

impl From<Ended> for Change {
    fn from(ended: Ended) -> Self {
        Self {
            id: ended.attempt.id,
            lease_owner: Some(ended.attempt.lease_owner),
            problem: Some(ended.problem),
            response: ended.response,
            ..Self::default()
        }
    }
}

async fn change(
    tx: &mut Transaction<'_>,
    statement: &'static Statement,
    changes: Vec<Change>,
) -> Result<Vec<Uuid>, SiteError> {
    let moved = statement.execute(tx.connection(), &changes).await?;
    Ok(moved.into_iter().map(|row| row.id).collect())
}

/// A message that the provider has.
#[derive(Debug)]
pub(in crate::site_db) struct Taken<'a> {
    /// Its row, locked by this transaction.
    pub(in crate::site_db) locked: Locked,
    /// `None`: another row has it already, which should be impossible; then only the status is written.
    pub(in crate::site_db) wamid: Option<&'a Wamid>,
    /// The answer, and the reports that were faster than the answer.
    pub(in crate::site_db) steps: Vec<ReportedStep>,
    /// The HTTP response, for the row.
    pub(in crate::site_db) response: Option<&'a Response>,
}

/// The provider has these messages: applies its answers and the reports that were faster. Returns the new status of each, if
/// it changed; a new `failed` also writes a notification.
///
/// # Errors
/// See [`SiteError`].
pub(in crate::site_db) async fn accepted(
    tx: &mut Transaction<'_>,
    taken: &[Taken<'_>],
) -> Result<Vec<Option<MessageStatus>>, SiteError> {
    let (changes, shown): (Vec<Change>, Vec<_>) = taken
        .iter()
        .map(|taken| {
            let (mut change, shown) = folded(&taken.locked, taken.wamid, &taken.steps, News::Told);
            change.response = taken.response.cloned();
            (change, shown)
        })
        .unzip();
    ACCEPT.execute(tx.connection(), &changes).await?;
    Ok(shown)
}

/// Whether a `failed` that a report brings also writes a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Yes: it has just happened.
    Told,
    /// No: it is from the history, and happened long ago.
    Silent,
}

/// Applies reported steps to a message's row; writes only if that changes it. Returns the new status, if there is one.
///
/// # Errors
/// See [`SiteError`].
pub async fn apply_steps(
    tx: &mut Transaction<'_>,
    message_id: Uuid,
    wamid: &Wamid,
    steps: &[ReportedStep],
    news: News,
) -> Result<Option<MessageStatus>, SiteError> {
    let Some(locked) = lock_rows(tx, &[message_id]).await?.remove(&message_id) else {
        return Ok(None);
    };
    let (change, shown) = folded(&locked, Some(wamid), steps, news);
    if change.folded.as_ref() != Some(&locked.state) {
        REPORT.execute(tx.connection(), &[change]).await?;
    }
    Ok(shown)
}

/// A report about a message whose row is locked.
#[derive(Debug, Clone)]
pub(in crate::site_db) struct LockedReport<'a> {
    pub(in crate::site_db) message_id: Uuid,
    pub(in crate::site_db) wamid: &'a Wamid,
    pub(in crate::site_db) step: ReportedStep,
}

/// Applies reports to the rows of `locked`, in the order of the reports; writes the rows that change, in one statement.
/// Returns, for each report, the new status of its message, if the report changed it.
///
/// # Errors
/// See [`SiteError`].
pub(in crate::site_db) async fn apply_reports(
    tx: &mut Transaction<'_>,
    locked: &HashMap<Uuid, Locked>,
    reports: &[LockedReport<'_>],
) -> Result<Vec<Option<MessageStatus>>, SiteError> {
    let mut after: HashMap<Uuid, MessageState> = HashMap::new();
    let mut shown = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(before) = locked.get(&report.message_id) else {
            shown.push(None);
            continue;
        };
        let state = after.entry(report.message_id).or_insert_with(|| before.state.clone());
        let status = state.status;
        state.fold(Some(report.wamid), &report.step);
        shown.push((state.status != status).then_some(state.status));
    }
    let changes: Vec<Change> = after
        .into_iter()
        .filter_map(|(id, state)| {
            let before = &locked.get(&id)?.state;
            let failed = state.status == MessageStatus::Failed && before.status != MessageStatus::Failed;
            (state != *before).then(|| Change {
                id,
                notify: failed,
                folded: Some(state),
                ..Change::default()
            })
        })
        .collect();
    if !changes.is_empty() {
        REPORT.execute(tx.connection(), &changes).await?;
    }
    Ok(shown)
}

/// Cancels a message that was not sent, because its client stops waiting. Returns false if it is too late: an attempt is
/// under way, or the message is settled; or if it has no deadline, because it is to be sent whoever waits.
///
/// # Errors
/// See [`SiteError`].
pub async fn cancel_waiting(pool: &Pool, id: Uuid) -> Result<bool, SiteError> {
    let mut connection = pool.0.acquire().await?;
    let change = Change {
        id,
        ..Change::default()
    };
    let cancelled = CANCEL.execute(&mut connection, &[change]).await?;
    pool.committed();
    Ok(!cancelled.is_empty())
}

/// Cancels a message that was not sent and repeats another one: see [`repeated_by`](super::repeated_by). Returns false if it is too
/// late: an attempt is under way, or the message is settled.
///
/// # Errors
/// See [`SiteError`].
pub async fn cancel_repeat(pool: &Pool, id: Uuid) -> Result<bool, SiteError> {
    let mut connection = pool.0.acquire().await?;
    let change = Change {
        id,
        ..Change::default()
    };
    let cancelled = REPEAT.execute(&mut connection, &[change]).await?;
    pool.committed();
    Ok(!cancelled.is_empty())
}

/// Notes that the client left before it had its answer: an equal request soon after is its repeat, see [`super::submit()`].
/// Returns false if there is no such message, or it failed or was cancelled.
///
/// # Errors
/// See [`SiteError`].
pub async fn client_left(pool: &Pool, id: Uuid) -> Result<bool, SiteError> {
    let mut connection = pool.0.acquire().await?;
    let change = Change {
        id,
        ..Change::default()
    };
    let left = LEAVE.execute(&mut connection, &[change]).await?;
    pool.committed();
    Ok(!left.is_empty())
}

/// Makes a cancelled message `pending` again, because the same client asks again; nothing happens if it was not cancelled by
/// [`cancel_waiting`], or another request has revived it already. Returns false if it stays cancelled because a person has taken
/// the conversation over and the author is a program.
///
/// # Errors
/// See [`SiteError`].
pub async fn revive(pool: &Pool, id: Uuid, send_within: Option<Duration>, author: &Author) -> Result<bool, SiteError> {
    let mut tx = pool.begin().await?;
    let change = Change {
        id,
        send_within,
        ..Change::default()
    };
    let revived = REVIVE.execute(tx.connection(), &[change]).await?;
    // After the message: see `locks` for the order.
    if !revived.is_empty() && *author == Author::Automation && conversations::is_taken_over(&mut tx, id).await? {
        tx.rollback().await?;
        return Ok(false);
    }
    tx.commit().await?;
    Ok(true)
}

/// Whom a message of ours is for: the client's word, and what the lead's row says.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Addressed {
    /// `leads.id`.
    pub lead_id: Uuid,
    /// The recipient as the client wrote it.
    pub recipient: Option<String>,
    /// The lead's number at WhatsApp.
    pub lead_wa_id: Option<String>,
    /// The lead's business-scoped user id.
    pub lead_user_id: Option<String>,
    /// Whether the lead is a group.
    pub to_group: bool,
}

/// A message of ours whose row this transaction has locked.
#[derive(Debug, FromRow)]
pub(in crate::site_db) struct Locked {
    id: Uuid,
    #[sqlx(flatten)]
    addressed: Addressed,
    #[sqlx(flatten)]
    state: MessageState,
}

/// Locks rows of messages, in the order of their ids, and reads what reports change. Messages that are not ours are left
/// out.
pub(in crate::site_db) async fn lock_rows(
    tx: &mut Transaction<'_>,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Locked>, SiteError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    // Inside `coalesce`: without statistics, an index that begins with `direction` would look as good as the primary key.
    let rows: Vec<Locked> = sqlx::query_as(
        "SELECT m.id, m.status, m.wamid, m.error_code, m.error_class, m.error_message, m.accepted_at, m.held_at, m.sent_at,
                m.delivered_at, m.read_at, m.played_at, m.failed_at, m.lead_id, m.recipient, l.wa_id AS lead_wa_id,
                l.user_id AS lead_user_id, coalesce(l.phone LIKE 'group:%', false) AS to_group
           FROM public.whatsapp_messages m JOIN public.leads l ON l.id = m.lead_id
          WHERE m.id = ANY($1) AND coalesce(m.direction = 'outbound', false) ORDER BY m.id FOR UPDATE OF m",
    )
    .bind(ids)
    .fetch_all(tx.connection())
    .await?;
    Ok(rows.into_iter().map(|locked| (locked.id, locked)).collect())
}

/// The row after the steps, and the status that it shows then, if it is another one.
fn folded(
    locked: &Locked,
    wamid: Option<&Wamid>,
    steps: &[ReportedStep],
    news: News,
) -> (Change, Option<MessageStatus>) {
    let before = &locked.state;
    let mut after = before.clone();
    for step in steps {
        after.fold(wamid, step);
    }
    let shown = (after.status != before.status).then_some(after.status);
    let change = Change {
        id: locked.id,
        notify: news == News::Told && shown == Some(MessageStatus::Failed),
        folded: Some(after),
        ..Change::default()
    };
    (change, shown)
}
