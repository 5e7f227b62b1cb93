//! `message_status_events`: every report by Meta about our messages, unchanged and append-only; and how a report finds its
//! message.
//!
//! The message is found by its wamid, else by our own id, which Meta returns (`biz_opaque_callback_data`); so a report
//! also settles a message whose send was never answered. A report whose message is not known yet is stored without one (an
//! orphan), and adopted when the wamid becomes known. Both sides first lock the wamid (see [`super::locks`]): without the
//! lock, a report and the outcome of its send could each miss the other.
//!
//! How reports change the message's row: see [`messages`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::FromRow;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::locks::lock;
use super::messages::{
    self, Addressed, Locked, LockedReport, MessageStatus, News, Problem, ProblemClass, ReportKey, ReportedStep, Taken,
};
use super::{Pool, SiteError, Transaction};
use crate::provider::callback::class_of_stored_code;
use crate::provider::event::{StatusReport, credible};
use crate::provider::{AcceptedStatus, Code, ReportedStatus, Response, Wamid};

/// A report, and how it came.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedReport<'a> {
    /// The row of the number that it is for.
    pub account_id: Uuid,
    /// When its webhook was committed: the report's time where it has none, or none that can be true.
    pub received_at: OffsetDateTime,
    /// What the provider says.
    pub report: &'a StatusReport,
}

impl ReceivedReport<'_> {
    /// The provider's time, if it can be true.
    fn told_at(&self) -> Option<OffsetDateTime> {
        credible(self.report.at, self.received_at)
    }

    fn at(&self) -> OffsetDateTime {
        self.told_at().unwrap_or(self.received_at)
    }
}

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
    /// Whom the message is for, by its row and its lead's.
    pub addressed: Option<Addressed>,
}

/// Stores reports and applies them to their messages, in this order. A report that teaches the wamid of its message brings the
/// orphans with that wamid along. The caller has locked the wamids in this transaction, together with all other locks that it
/// needs (see [`super::locks`]).
///
/// # Errors
/// See [`SiteError`].
pub async fn record(tx: &mut Transaction<'_>, reports: &[ReceivedReport<'_>]) -> Result<Vec<Recorded>, SiteError> {
    if reports.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<ReportKey<'_>> = reports
        .iter()
        .map(|received| ReportKey {
            account_id: received.account_id,
            wamid: &received.report.wamid,
            returned_id: received.report.opaque_id(),
        })
        .collect();
    let found = messages::find_reported(tx, &keys).await?;
    let ids: BTreeSet<Uuid> = found.iter().flatten().copied().collect();
    let locked = messages::lock_rows(tx, &ids.into_iter().collect::<Vec<_>>()).await?;
    let mut recorded: Vec<Recorded> = (reports.iter().zip(found))
        .map(|(received, found)| {
            let message = found.and_then(|id| locked.get(&id));
            let other = |wamid: &Wamid| *wamid != received.report.wamid;
            Recorded {
                message_id: message.and(found),
                new: false,
                changed_to: None,
                second_send: message.and_then(Locked::wamid).is_some_and(other),
                addressed: message.map(|message| message.addressed().clone()),
            }
        })
        .collect();
    insert(tx, reports, &mut recorded).await?;
    apply(tx, reports, &locked, &mut recorded).await?;
    Ok(recorded)
}

/// Settles a message whose outcome is unknown by what the provider's history has of it: `reports`, all with this wamid. Returns the
/// status that it shows now; `None` if it was settled before, or a row has this wamid by now.
///
/// # Errors
/// See [`SiteError`].
pub async fn settle_unknown(
    pool: &Pool,
    account_id: Uuid,
    message_id: Uuid,
    wamid: &Wamid,
    reports: &[StatusReport],
) -> Result<Option<MessageStatus>, SiteError> {
    let mut tx = pool.begin().await?;
    lock(&mut tx, [wamid], []).await?;
    if !messages::lock_unknown(&mut tx, message_id, wamid).await? {
        return Ok(None);
    }
    let received_at = OffsetDateTime::now_utc();
    let received: Vec<ReceivedReport<'_>> = reports
        .iter()
        .map(|report| ReceivedReport {
            account_id,
            received_at,
            report,
        })
        .collect();
    let recorded = record(&mut tx, &received).await?;
    tx.commit().await?;
    Ok(recorded.iter().rev().find_map(|one| one.changed_to))
}

/// Applies reports, and the orphans that they bring along, to their messages; sets [`Recorded::changed_to`].
async fn apply(
    tx: &mut Transaction<'_>,
    reports: &[ReceivedReport<'_>],
    locked: &HashMap<Uuid, Locked>,
    recorded: &mut [Recorded],
) -> Result<(), SiteError> {
    // Which report each step is from.
    let mut from: Vec<usize> = Vec::new();
    let mut steps: Vec<LockedReport<'_>> = Vec::new();
    let mut learned: BTreeMap<Uuid, (usize, &Wamid)> = BTreeMap::new();
    for (at, (received, one)) in reports.iter().zip(recorded.iter()).enumerate() {
        let Some(message_id) = one.message_id.filter(|_| !one.second_send) else {
            continue;
        };
        let report = received.report;
        from.push(at);
        steps.push(LockedReport {
            message_id,
            wamid: &report.wamid,
            step: ReportedStep::of(&report.status, received.at(), problem(report)),
        });
        if locked.get(&message_id).is_some_and(|row| row.wamid().is_none()) {
            learned.entry(message_id).or_insert((at, &report.wamid));
        }
    }
    if !learned.is_empty() {
        let known: Vec<(Uuid, &Wamid)> = learned.iter().map(|(id, (_, wamid))| (*id, *wamid)).collect();
        for (message_id, orphans) in adopt(tx, &known).await? {
            let Some((at, wamid)) = learned.get(&message_id).copied() else {
                continue;
            };
            from.extend(orphans.iter().map(|_| at));
            steps.extend(orphans.into_iter().map(|step| LockedReport {
                message_id,
                wamid,
                step,
            }));
        }
    }
    let shown = messages::apply_reports(tx, locked, &steps).await?;
    for (at, changed_to) in from.into_iter().zip(shown) {
        if let Some(one) = recorded.get_mut(at) {
            one.changed_to = changed_to.or(one.changed_to);
        }
    }
    Ok(())
}

fn problem(report: &StatusReport) -> Option<Problem> {
    report.refusal.as_ref().map(|refusal| Problem {
        code: refusal.code.map(Code::number),
        class: ProblemClass::Refused(refusal.class),
        message: refusal.message.clone(),
    })
}

/// Stores the reports that are not there yet, and sets [`Recorded::new`] of these.
async fn insert(
    tx: &mut Transaction<'_>,
    reports: &[ReceivedReport<'_>],
    recorded: &mut [Recorded],
) -> Result<(), SiteError> {
    #[derive(FromRow)]
    struct Row {
        number: i64,
        new: bool,
    }
    // A report that is there several times is stored once, with its message if one of them knows it.
    let mut once: BTreeMap<(&Wamid, &str, &str, Option<OffsetDateTime>), usize> = BTreeMap::new();
    for (at, received) in reports.iter().enumerate() {
        let report = received.report;
        let key = (
            &report.wamid,
            report.status.as_str(),
            report.recipient.as_str(),
            received.told_at(),
        );
        let first = once.entry(key).or_insert(at);
        let knows = |at: usize| recorded.get(at).is_some_and(|one| one.message_id.is_some());
        if !knows(*first) && knows(at) {
            *first = at;
        }
    }
    let rows: Vec<(usize, ReceivedReport<'_>, Option<Uuid>)> = once
        .into_values()
        .filter_map(|at| Some((at, *reports.get(at)?, recorded.get(at)?.message_id)))
        .collect();
    let problems: Vec<Option<Problem>> = rows.iter().map(|(_, received, _)| problem(received.report)).collect();
    macro_rules! each {
        ($value:expr) => {
            rows.iter().map($value).collect::<Vec<_>>()
        };
    }
    // If Meta repeats the report of an orphan whose message is known by now, the orphan is adopted here. A report with an assumed
    // time is the same as one with the same text for its time, or none.
    let stored: Vec<Row> = sqlx::query_as(
        "WITH given AS (
             SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[],
                 $8::integer[], $9::text[], $10::jsonb[], $11::timestamptz[], $12::boolean[])
               AS g(number, account_id, message_id, wamid, status, recipient, opaque, error_code, error_message, payload,
                 provider_at, assumed)
         ), stored AS (
             INSERT INTO public.message_status_events AS e
                 (account_id, message_id, wamid, status, recipient, opaque, error_code, error_message, payload, provider_at)
             SELECT account_id, message_id, wamid, status, recipient, opaque, error_code, error_message, payload, provider_at
               FROM given WHERE NOT assumed OR NOT EXISTS (
                 SELECT FROM public.message_status_events AS b
                  WHERE b.wamid = given.wamid AND b.status = given.status AND b.recipient = given.recipient
                    AND b.payload->>'timestamp' IS NOT DISTINCT FROM given.payload->>'timestamp')
              ORDER BY wamid, status, recipient, provider_at
             ON CONFLICT (wamid, status, recipient, provider_at)
                 DO UPDATE SET message_id = excluded.message_id
                 WHERE e.message_id IS NULL AND excluded.message_id IS NOT NULL
             RETURNING wamid, status, recipient, provider_at, xmax = 0 AS new
         )
         SELECT number, new FROM stored JOIN given USING (wamid, status, recipient, provider_at)",
    )
    .bind(each!(|row| i64::try_from(row.0).unwrap_or(i64::MAX)))
    .bind(each!(|row| row.1.account_id))
    .bind(each!(|row| row.2))
    .bind(each!(|row| &row.1.report.wamid))
    .bind(each!(|row| &row.1.report.status))
    .bind(each!(|row| row.1.report.recipient.as_str()))
    .bind(each!(|row| row.1.report.opaque.as_deref()))
    .bind(problems.iter().map(|problem| problem.as_ref().and_then(|problem| problem.code)).collect::<Vec<_>>())
    .bind(problems.iter().map(|problem| problem.as_ref().map(|problem| problem.message.as_str())).collect::<Vec<_>>())
    .bind(each!(|row| Json(&row.1.report.raw)))
    .bind(each!(|row| row.1.at()))
    .bind(each!(|row| row.1.told_at().is_none()))
    .fetch_all(tx.connection())
    .await?;
    for row in stored {
        if let Some(one) = usize::try_from(row.number).ok().and_then(|at| recorded.get_mut(at)) {
            one.new = row.new;
        }
    }
    Ok(())
}

/// What Meta's answer to a send says.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance<'a> {
    /// The message that was sent.
    pub message_id: Uuid,
    /// Meta's id of the message; `None` for the impossible case that another message has it already.
    pub wamid: Option<&'a Wamid>,
    /// Whether Meta delivers it now.
    pub status: AcceptedStatus,
    /// The HTTP response, for the row.
    pub response: Option<&'a Response>,
}

/// Writes to the messages' rows that Meta accepted them: stores the wamids, raises the statuses (never lowers one: a report
/// may have been faster than the answer), and adopts the orphans with these wamids. Returns the new status of each message
/// that has another one now.
///
/// To be called in the transaction that writes the rest of the outcomes, before anything else in it.
///
/// # Errors
/// See [`SiteError`].
pub async fn accept(
    tx: &mut Transaction<'_>,
    acceptances: &[Acceptance<'_>],
) -> Result<HashMap<Uuid, MessageStatus>, SiteError> {
    lock(tx, acceptances.iter().filter_map(|one| one.wamid), []).await?;
    let ids: Vec<Uuid> = acceptances.iter().map(|one| one.message_id).collect();
    let locked = messages::lock_rows(tx, &ids).await?;
    let known: Vec<_> = acceptances
        .iter()
        .filter_map(|one| Some((one.message_id, one.wamid?)))
        .collect();
    let mut adopted = adopt(tx, &known).await?;
    let by_id: HashMap<Uuid, &Acceptance<'_>> = acceptances.iter().map(|one| (one.message_id, one)).collect();
    let answered = OffsetDateTime::now_utc();
    let taken = |locked: Locked| {
        let acceptance = by_id.get(&locked.id())?;
        let mut steps = vec![ReportedStep::accepted(acceptance.status, answered)];
        steps.extend(adopted.remove(&locked.id()).unwrap_or_default());
        Some(Taken {
            locked,
            wamid: acceptance.wamid,
            steps,
            response: acceptance.response,
        })
    };
    let taken: Vec<Taken<'_>> = locked.into_values().filter_map(taken).collect();
    let shown = messages::accepted(tx, &taken).await?;
    Ok(taken
        .iter()
        .zip(shown)
        .filter_map(|(taken, shown)| Some((taken.locked.id(), shown?)))
        .collect())
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
    let steps = adopt(tx, &[(message_id, wamid)])
        .await?
        .remove(&message_id)
        .unwrap_or_default();
    messages::apply_steps(tx, message_id, wamid, &steps, News::Told).await
}

/// Assigns the orphans with these wamids to the messages, and returns the steps that they report, by message.
async fn adopt(
    tx: &mut Transaction<'_>,
    messages: &[(Uuid, &Wamid)],
) -> Result<HashMap<Uuid, Vec<ReportedStep>>, SiteError> {
    #[derive(FromRow)]
    struct Orphan {
        message_id: Uuid,
        status: ReportedStatus,
        provider_at: OffsetDateTime,
        error_code: Option<i32>,
        error_message: Option<String>,
    }
    let (ids, wamids): (Vec<Uuid>, Vec<&str>) = messages.iter().map(|(id, wamid)| (*id, wamid.as_str())).unzip();
    // The array of wamids once more, so that the orphans are found by their index.
    let orphans: Vec<Orphan> = sqlx::query_as(
        "UPDATE public.message_status_events AS e SET message_id = m.id
           FROM unnest($1::uuid[], $2::text[]) AS k(id, wamid) JOIN public.whatsapp_messages m ON m.id = k.id
          WHERE e.wamid = ANY ($2) AND e.wamid = k.wamid AND e.message_id IS NULL AND e.account_id = m.account_id
         RETURNING m.id AS message_id, e.status, e.provider_at, e.error_code, e.error_message",
    )
    .bind(ids)
    .bind(wamids)
    .fetch_all(tx.connection())
    .await?;
    let mut steps: HashMap<Uuid, Vec<ReportedStep>> = HashMap::new();
    for orphan in orphans {
        let problem = orphan.error_code.map(|code| Problem {
            code: Some(code),
            class: ProblemClass::Refused(class_of_stored_code(code)),
            message: orphan.error_message.unwrap_or_default(),
        });
        let step = ReportedStep::of(&orphan.status, orphan.provider_at, problem);
        steps.entry(orphan.message_id).or_default().push(step);
    }
    Ok(steps)
}
