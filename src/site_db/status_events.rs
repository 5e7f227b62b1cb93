//! What Meta reports of our messages: every report is kept, and folded into its message's row.
//!
//! The message is found by its wamid, else by our own id, which Meta echoes (`biz_opaque_callback_data`); so a report
//! also settles a message whose send was never answered. A report whose message is not known yet is kept without one and
//! adopted when the wamid becomes known. Both ways first lock the wamid (see [`super::locks`]): without it, a report and
//! the outcome of its send could each miss the other.
//!
//! A row's lease is left as it is: it counts only while the status is `sending`.

use sqlx::{PgConnection, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::locks::lock;
use super::messages::{MessageState, Report};
use crate::provider::event::StatusReport;
use crate::provider::{Code, Wamid};

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its message; `None` while that is not known.
    pub message_id: Option<Uuid>,
    /// False if the same report had been recorded before.
    pub new: bool,
    /// The status that the message shows now, if the report changed it.
    pub changed_to: Option<String>,
    /// The report carries our id, but the row has another wamid: Meta took the message twice.
    pub second_send: bool,
}

/// Records a report and applies it. The caller has locked the wamid in this transaction, with all the others that it
/// needs (see [`super::locks`]).
///
/// # Errors
/// The database's.
pub async fn record(tx: &mut PgConnection, account_id: Uuid, status: &StatusReport) -> sqlx::Result<Recorded> {
    let (message_id, second_send) = find(&mut *tx, account_id, status).await?;
    let report = Report {
        status: status.status.clone(),
        at: status.at,
        error: status.refusal.as_ref().and_then(|refusal| {
            let code = refusal.code.map(Code::number)?;
            Some((code, refusal.class.as_str(), refusal.message.clone()))
        }),
    };
    // An orphan whose message is known by now is adopted by the report's repetition too.
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
    .bind(status.wamid.as_str())
    .bind(&status.status)
    .bind(&status.recipient)
    .bind(&status.opaque)
    .bind(report.error.as_ref().map(|(code, ..)| *code))
    .bind(report.error.as_ref().map(|(_, _, message)| message.as_str()))
    .bind(&status.raw)
    .bind(status.at)
    .fetch_optional(&mut *tx)
    .await?;
    let changed_to = match message_id {
        Some(id) if !second_send => apply(tx, id, &status.wamid, &[report]).await?,
        _ => None,
    };
    Ok(Recorded {
        message_id,
        new: inserted == Some(true),
        changed_to,
        second_send,
    })
}

/// Commits to a message that Meta accepted it: learns the wamid, moves the status on (never back: a report may have been
/// faster than the answer), and adopts the reports that waited for it. Returns the status that the message shows now.
///
/// To be called in the transaction that writes the rest of the outcome, before anything else in it.
///
/// # Errors
/// The database's.
pub async fn accept(
    tx: &mut PgConnection,
    message_id: Uuid,
    wamid: &Wamid,
    held: bool,
    at: OffsetDateTime,
) -> sqlx::Result<Option<String>> {
    lock(&mut *tx, [wamid], []).await?;
    let report = Report::of(if held { "held" } else { "accepted" }, at);
    let accepted = apply(&mut *tx, message_id, wamid, &[report]).await?;
    let adopted = adopt_orphans(tx, message_id, wamid).await?;
    Ok(adopted.or(accepted))
}

/// Gives a message the reports that came before its wamid was known. Returns the status that it shows now, if they
/// changed it.
///
/// # Errors
/// The database's.
pub async fn adopt_orphans(tx: &mut PgConnection, message_id: Uuid, wamid: &Wamid) -> sqlx::Result<Option<String>> {
    lock(&mut *tx, [wamid], []).await?;
    let orphans = sqlx::query(
        "UPDATE public.message_status_events SET message_id = $1
          WHERE wamid = $2 AND message_id IS NULL
            AND account_id = (SELECT account_id FROM public.whatsapp_messages WHERE id = $1)
         RETURNING status, provider_at, error_code, error_message",
    )
    .bind(message_id)
    .bind(wamid.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let mut reports = Vec::with_capacity(orphans.len());
    for orphan in orphans {
        let code: Option<i32> = orphan.try_get("error_code")?;
        let message: Option<String> = orphan.try_get("error_message")?;
        reports.push(Report {
            status: orphan.try_get("status")?,
            at: orphan.try_get("provider_at")?,
            error: code.map(|code| {
                let class = crate::provider::cloud::classify(i64::from(code), None);
                (code, class.as_str(), message.unwrap_or_default())
            }),
        });
    }
    apply(tx, message_id, wamid, &reports).await
}

/// The message that a report is about: by wamid, else by the echo of our id.
async fn find(tx: &mut PgConnection, account_id: Uuid, status: &StatusReport) -> sqlx::Result<(Option<Uuid>, bool)> {
    let by_wamid: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM public.whatsapp_messages WHERE account_id = $1 AND direction = 'outbound' AND wamid = $2",
    )
    .bind(account_id)
    .bind(status.wamid.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if by_wamid.is_some() {
        return Ok((by_wamid, false));
    }
    let Some(id) = status.opaque_id() else {
        return Ok((None, false));
    };
    let by_echo: Option<(Uuid, Option<String>)> = sqlx::query_as(
        "SELECT id, wamid FROM public.whatsapp_messages WHERE id = $1 AND account_id = $2 AND direction = 'outbound' FOR UPDATE",
    )
    .bind(id.0)
    .bind(account_id)
    .fetch_optional(tx)
    .await?;
    Ok(match by_echo {
        Some((id, wamid)) => (Some(id), wamid.is_some()),
        None => (None, false),
    })
}

/// Folds reports into a message's row; writes only if that changes it. Returns the new status, if there is one. A new
/// `failed` is a notification too.
///
/// # Errors
/// The database's.
pub async fn apply(
    tx: &mut PgConnection,
    message_id: Uuid,
    wamid: &Wamid,
    reports: &[Report],
) -> sqlx::Result<Option<String>> {
    let shown = apply_silently(&mut *tx, message_id, wamid, reports).await?;
    if shown.as_deref() == Some("failed") {
        sqlx::query(
            "INSERT INTO public.notifications (kind, account_id, conversation_id, message_id, detail)
             SELECT 'message_failed', account_id, conversation_id, id, concat_ws(' ', error_code, error_message)
               FROM public.whatsapp_messages WHERE id = $1",
        )
        .bind(message_id)
        .execute(tx)
        .await?;
    }
    Ok(shown)
}

/// The same without a notification: for what happened long ago.
///
/// # Errors
/// The database's.
pub async fn apply_silently(
    tx: &mut PgConnection,
    message_id: Uuid,
    wamid: &Wamid,
    reports: &[Report],
) -> sqlx::Result<Option<String>> {
    let before: Option<MessageState> = sqlx::query_as(
        "SELECT status, wamid, error_code, error_class, error_message, accepted_at, held_at, sent_at, delivered_at,
                read_at, played_at, failed_at
           FROM public.whatsapp_messages WHERE id = $1 AND direction = 'outbound' FOR UPDATE",
    )
    .bind(message_id)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(before) = before else { return Ok(None) };
    let mut after = before.clone();
    for report in reports {
        after.fold(wamid.as_str(), report);
    }
    if after == before {
        return Ok(None);
    }
    sqlx::query(
        "UPDATE public.whatsapp_messages SET status = $2, wamid = $3, error_code = $4, error_class = $5, error_message = $6,
                accepted_at = $7, held_at = $8, sent_at = $9, delivered_at = $10, read_at = $11, played_at = $12,
                failed_at = $13, updated_at = now()
          WHERE id = $1",
    )
    .bind(message_id)
    .bind(&after.status)
    .bind(&after.wamid)
    .bind(after.error_code)
    .bind(&after.error_class)
    .bind(&after.error_message)
    .bind(after.accepted_at)
    .bind(after.held_at)
    .bind(after.sent_at)
    .bind(after.delivered_at)
    .bind(after.read_at)
    .bind(after.played_at)
    .bind(after.failed_at)
    .execute(&mut *tx)
    .await?;
    Ok((after.status != before.status).then_some(after.status))
}
