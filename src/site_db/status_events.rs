//! `message_status_events`: every report by Meta about our messages, unchanged and append-only; and how a report finds its
//! message.
//!
//! The message is found by its wamid, else by our own id, which Meta returns (`biz_opaque_callback_data`); so a report
//! also settles a message whose send was never answered. A report whose message is not known yet is stored without one (an
//! orphan), and adopted when the wamid becomes known. Both sides first lock the wamid (see [`super::locks`]): without the
//! lock, a report and the outcome of its send could each miss the other.
//!
//! How reports change the message's row: see [`messages`].

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::locks::lock;
use super::messages::{self, MessageStatus, News, Problem, ProblemClass, ReportedStep};
use super::{SiteError, Transaction};
use crate::provider::callback::class_of_stored_code;
use crate::provider::event::StatusReport;
use crate::provider::{AcceptedStatus, Code, ReportedStatus, Response, Wamid};

/// The result of [`record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The message that the report is about; `None` while it is not known.
    pub message_id: Option<Uuid>,
    /// False if the same report had been recorded before.
    pub new: bool,
    /// The status that the message shows now, if the report changed it.
    pub changed_to: Option<MessageStatus>,
    /// The report carries our id, but the row has another wamid: Meta took the message twice.
    pub second_send: bool,
}

/// Stores a report and applies it to its message. The caller has locked the wamid in this transaction, together with all
/// other locks that it needs (see [`super::locks`]).
///
/// # Errors
/// See [`SiteError`].
pub async fn record(tx: &mut Transaction<'_>, account_id: Uuid, status: &StatusReport) -> Result<Recorded, SiteError> {
    let found = messages::find_reported(tx, account_id, &status.wamid, status.opaque_id()).await?;
    let message_id = found.map(|found| found.id);
    let second_send = found.is_some_and(|found| found.second_send);
    let problem = status.refusal.as_ref().map(|refusal| Problem {
        code: refusal.code.map(Code::number),
        class: ProblemClass::Refused(refusal.class),
        message: refusal.message.clone(),
    });
    // If Meta repeats the report of an orphan whose message is known by now, the orphan is adopted here.
    let inserted: Option<bool> = sqlx::query_scalar(
        "INSERT INTO public.message_status_events AS e
             (account_id, message_id, wamid, status, recipient, opaque, error_code, error_message, payload, provider_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (wamid, status, recipient, provider_at)
             DO UPDATE SET message_id = excluded.message_id
             WHERE e.message_id IS NULL AND excluded.message_id IS NOT NULL
         RETURNING xmax = 0",
    )
    .bind(account_id)
    .bind(message_id)
    .bind(&status.wamid)
    .bind(&status.status)
    .bind(&status.recipient)
    .bind(&status.opaque)
    .bind(problem.as_ref().and_then(|problem| problem.code))
    .bind(problem.as_ref().map(|problem| problem.message.as_str()))
    .bind(&status.raw)
    .bind(status.at)
    .fetch_optional(tx.connection())
    .await?;
    let changed_to = match message_id {
        Some(id) if !second_send => {
            let step = ReportedStep::of(&status.status, status.at, problem);
            messages::apply_steps(tx, id, &status.wamid, &[step], News::Told).await?
        }
        _ => None,
    };
    Ok(Recorded {
        message_id,
        new: inserted == Some(true),
        changed_to,
        second_send,
    })
}

/// What Meta's answer to a send says.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance<'a> {
    /// Meta's id of the message; `None` for the impossible case that another message has it already.
    pub wamid: Option<&'a Wamid>,
    /// Whether Meta delivers it now.
    pub status: AcceptedStatus,
    /// The HTTP response, for the row.
    pub response: Option<&'a Response>,
}

/// Writes to a message's row that Meta accepted it: stores the wamid, raises the status (never lowers it: a report may
/// have been faster than the answer), and adopts the orphans with this wamid. Returns the message's new status, if it
/// changed.
///
/// To be called in the transaction that writes the rest of the outcome, before anything else in it.
///
/// # Errors
/// See [`SiteError`].
pub async fn accept(
    tx: &mut Transaction<'_>,
    message_id: Uuid,
    acceptance: &Acceptance<'_>,
) -> Result<Option<MessageStatus>, SiteError> {
    let mut steps = vec![ReportedStep::accepted(acceptance.status, OffsetDateTime::now_utc())];
    if let Some(wamid) = acceptance.wamid {
        lock(tx, [wamid], []).await?;
    }
    let Some(locked) = messages::lock_row(tx, message_id).await? else {
        return Ok(None);
    };
    if let Some(wamid) = acceptance.wamid {
        steps.extend(adopt(tx, message_id, wamid).await?);
    }
    messages::accepted(tx, &locked, acceptance.wamid, &steps, acceptance.response).await
}

/// Applies the reports that came before the message's wamid was known. Returns the message's new status, if it changed.
///
/// # Errors
/// See [`SiteError`].
pub async fn adopt_orphans(
    tx: &mut Transaction<'_>,
    message_id: Uuid,
    wamid: &Wamid,
) -> Result<Option<MessageStatus>, SiteError> {
    lock(tx, [wamid], []).await?;
    let steps = adopt(tx, message_id, wamid).await?;
    messages::apply_steps(tx, message_id, wamid, &steps, News::Told).await
}

/// Assigns the orphans with this wamid to the message, and returns the steps that they report.
async fn adopt(tx: &mut Transaction<'_>, message_id: Uuid, wamid: &Wamid) -> Result<Vec<ReportedStep>, SiteError> {
    #[derive(FromRow)]
    struct Orphan {
        status: ReportedStatus,
        provider_at: OffsetDateTime,
        error_code: Option<i32>,
        error_message: Option<String>,
    }
    let orphans: Vec<Orphan> = sqlx::query_as(
        "UPDATE public.message_status_events SET message_id = $1
          WHERE wamid = $2 AND message_id IS NULL
            AND account_id = (SELECT account_id FROM public.whatsapp_messages WHERE id = $1)
         RETURNING status, provider_at, error_code, error_message",
    )
    .bind(message_id)
    .bind(wamid)
    .fetch_all(tx.connection())
    .await?;
    let step = |orphan: Orphan| {
        let problem = orphan.error_code.map(|code| Problem {
            code: Some(code),
            class: ProblemClass::Refused(class_of_stored_code(code)),
            message: orphan.error_message.unwrap_or_default(),
        });
        ReportedStep::of(&orphan.status, orphan.provider_at, problem)
    };
    Ok(orphans.into_iter().map(step).collect())
}
