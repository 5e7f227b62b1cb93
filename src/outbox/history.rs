//! Messages whose outcome is unknown, settled by what the provider's own history has.
//!
//! A report settles nearly all of them within seconds, by our id, which it carries. Where no report came, the provider is asked which
//! messages it has of the number. It tells neither the text nor our id, so a message of ours is found by its recipient and its time:
//! and only if just one entry that nobody here knows fits the message, and just one message fits the entry. That the history lacks
//! a message proves nothing: it stays unknown.
//!
//! Bounded: the process that sends for a number asks; not before [`OutboxSettings::ask_history_after`] has passed, and ever more
//! seldom as long as nothing new is unknown.
//!
//! [`OutboxSettings::ask_history_after`]: super::OutboxSettings::ask_history_after

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::shared::{Sender, Shared};
use crate::metrics;
use crate::provider::event::StatusReport;
use crate::provider::history::{HistoryEntry, HistoryError, HistoryEvent};
use crate::provider::{
    ContactIdentity, Direction, ErrorClass, OpaqueId, PhoneNumberId, Refusal, ReportedStatus, Wamid,
};
use crate::shutdown;
use crate::site_db::messages::{self, UNSETTLED, Unsettled};
use crate::site_db::{SiteError, status_events};

/// How often to look for messages that the provider is to be asked about, at most.
const EVERY: Duration = Duration::from_secs(10);
/// Longest wait between two questions about the same messages.
const SELDOM: Duration = Duration::from_secs(3600);
/// How far the provider's clock may be from the Site DB's, and how long a message may be under way before its first event.
const MARGIN: time::Duration = time::Duration::seconds(60);

/// When a number's history is asked for.
#[derive(Debug, Default)]
struct Turn {
    /// When it was asked for last, and how long to wait since then.
    asked: Option<(Instant, Duration)>,
    /// The newest message that was unknown then.
    newest: Option<OffsetDateTime>,
    /// The provider refused to tell, which is said once.
    refused: bool,
}

#[derive(Debug, thiserror::Error)]
enum Unasked {
    #[error(transparent)]
    SiteDb(#[from] SiteError),
    #[error(transparent)]
    Provider(#[from] HistoryError),
}

/// Runs until the stop.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut turns: HashMap<PhoneNumberId, Turn> = HashMap::new();
    let every = EVERY.min(shared.settings.ask_history_after);
    while shutdown::sleep(every, &shared.stop).await {
        for sender in shared.senders.values().filter(|sender| sender.standing.is_leased()) {
            let turn = turns.entry(sender.phone_number_id().clone()).or_default();
            let looked = Box::pin(look(&shared, sender, turn));
            match shared.stop.run_until_cancelled(looked).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => say(sender, turn, &error),
            }
        }
    }
}

fn say(sender: &Sender, turn: &mut Turn, error: &Unasked) {
    let phone_number_id = sender.phone_number_id();
    match error {
        Unasked::Provider(HistoryError::Refused(code)) if !std::mem::replace(&mut turn.refused, true) => {
            tracing::info!(
                %phone_number_id, code,
                "the provider does not tell what became of messages whose outcome is unknown: they wait for its reports"
            )
        }
        // The Site DB's troubles are the outbox's, and shown there.
        error => tracing::debug!(%phone_number_id, "the history can't be asked: {error}"),
    }
}

async fn look(shared: &Shared, sender: &Sender, turn: &mut Turn) -> Result<(), Unasked> {
    let after = shared.settings.ask_history_after;
    let account_id = sender.account_id(&shared.pool).await?;
    let unsettled = messages::unsettled(&shared.pool, account_id).await?;
    let given_up = |message: &Unsettled| message.attempt.1;
    let due_before = OffsetDateTime::now_utc() - after;
    let due: Vec<&Unsettled> = unsettled
        .iter()
        .filter(|message| given_up(message).is_some_and(|at| at <= due_before) && !message.numbers.is_empty())
        .collect();
    let Some(newest) = due.iter().copied().filter_map(given_up).max() else {
        *turn = Turn {
            refused: turn.refused,
            ..Turn::default()
        };
        return Ok(());
    };
    let wait = match turn.asked {
        Some((at, wait)) if turn.newest.is_some_and(|known| newest <= known) => {
            if at.elapsed() < wait {
                return Ok(());
            }
            (wait * 2).min(SELDOM)
        }
        Some((at, _)) if at.elapsed() < after => return Ok(()),
        _ => after,
    };
    (turn.asked, turn.newest) = (Some((Instant::now(), wait)), Some(newest));
    let Some(since) = due.iter().map(|message| message.attempt.0 - MARGIN).min() else {
        return Ok(());
    };
    let entries = sender.account.history(since).await?;
    let wamids: Vec<Wamid> = entries.iter().map(|entry| entry.wamid.clone()).collect();
    // Asked after the history: an answer that came meanwhile is stored by now, or its message is still being sent.
    let unsettled = messages::unsettled(&shared.pool, account_id).await?;
    let known = messages::known_wamids(&shared.pool, &wamids).await?;
    let strange: Vec<&HistoryEntry> = entries.iter().filter(|entry| !known.contains(&entry.wamid)).collect();
    for (message, entry) in found(&unsettled, &strange) {
        settle(shared, sender, account_id, message, entry).await?;
    }
    Ok(())
}

/// Which unknown message each entry is, where there is no doubt.
fn found<'a>(unsettled: &[Unsettled], strange: &[&'a HistoryEntry]) -> Vec<(Uuid, &'a HistoryEntry)> {
    // There are older ones that are not here: an entry of their time may be theirs.
    let from = (unsettled.len() >= UNSETTLED)
        .then(|| unsettled.iter().map(|message| message.attempt.0 + MARGIN * 2).min())
        .flatten();
    let pairs: Vec<(&Unsettled, &'a HistoryEntry)> = strange
        .iter()
        .filter(|entry| from.is_none_or(|from| entry.began().is_some_and(|at| at > from)))
        .flat_map(|entry| {
            unsettled
                .iter()
                .filter(move |message| fits(message, entry))
                .map(move |message| (message, *entry))
        })
        .collect();
    let alone = |message: &Unsettled, entry: &HistoryEntry| {
        pairs.iter().filter(|(other, _)| other.id == message.id).count() == 1
            && pairs.iter().filter(|(_, other)| other.wamid == entry.wamid).count() == 1
    };
    let unknown = |message: &Unsettled| message.attempt.1.is_some();
    pairs
        .iter()
        .filter(|(message, entry)| unknown(message) && alone(message, entry))
        .map(|(message, entry)| (message.id, *entry))
        .collect()
}

/// Whether an entry may be this message: its recipient, and the time of its attempt.
fn fits(message: &Unsettled, entry: &HistoryEntry) -> bool {
    let (began, given_up) = message.attempt;
    let in_time = |at: OffsetDateTime| at >= began - MARGIN && given_up.is_none_or(|given_up| at <= given_up + MARGIN);
    entry
        .recipient
        .as_ref()
        .is_some_and(|recipient| message.numbers.contains(recipient))
        && entry.began().is_some_and(in_time)
}

async fn settle(
    shared: &Shared,
    sender: &Sender,
    account_id: Uuid,
    message_id: Uuid,
    entry: &HistoryEntry,
) -> Result<(), SiteError> {
    let reports: Vec<StatusReport> = entry
        .events
        .iter()
        .map(|event| report(message_id, entry, event))
        .collect();
    let status = status_events::settle_unknown(&shared.pool, account_id, message_id, &entry.wamid, &reports).await?;
    let Some(status) = status else {
        return Ok(());
    };
    tracing::info!(
        phone_number_id = %sender.phone_number_id(), %message_id, status = status.as_str(),
        "PERSISTENCE: the provider's history has the message whose outcome was unknown: it was sent"
    );
    metrics::count_message(Direction::Outbound.as_str(), status.as_str());
    shared.waiters.committed(message_id);
    Ok(())
}

/// An event as the provider would report it.
fn report(message_id: Uuid, entry: &HistoryEntry, event: &HistoryEvent) -> StatusReport {
    let recipient = entry.recipient.as_ref().map_or("", |recipient| recipient.as_str());
    let opaque = OpaqueId(message_id).to_string();
    let timestamp = event.at.unix_timestamp().to_string();
    StatusReport {
        raw: json!({"id": entry.wamid.as_str(), "status": event.status.as_str(), "timestamp": timestamp, "recipient_id": recipient,
            "biz_opaque_callback_data": opaque, "source": "message_history"}),
        wamid: entry.wamid.clone(),
        status: event.status.clone(),
        at: Some(event.at),
        recipient: recipient.to_owned(),
        contact: ContactIdentity::default(),
        opaque: Some(opaque),
        refusal: (event.status == ReportedStatus::Failed).then(|| Refusal {
            class: ErrorClass::Permanent,
            code: None,
            message: event
                .why
                .clone()
                .unwrap_or_else(|| "the provider's history says that it failed".to_owned()),
            retry_after: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::WaId;

    fn second(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_750_000_000 + second).unwrap()
    }

    fn message(id: u128, number: &str, began: i64, given_up: Option<i64>) -> Unsettled {
        Unsettled {
            id: Uuid::from_u128(id),
            numbers: vec![WaId::parse(number).unwrap()],
            attempt: (second(began), given_up.map(second)),
        }
    }

    fn entry(wamid: &str, number: &str, at: i64) -> HistoryEntry {
        let event = HistoryEvent {
            status: ReportedStatus::Sent,
            at: second(at),
            why: None,
        };
        HistoryEntry {
            wamid: Wamid::parse(wamid).unwrap(),
            recipient: WaId::parse(number),
            events: vec![event],
        }
    }

    #[test]
    fn a_message_is_found_only_where_there_is_no_doubt() {
        let (ada, bob) = ("16505550001", "16505550002");
        let lost = |id, number| message(id, number, 0, Some(10));
        for (what, unsettled, entries, expected) in [
            (
                "one of each",
                vec![lost(1, ada)],
                vec![entry("a", ada, 1)],
                vec![(1, "a")],
            ),
            ("another person's", vec![lost(1, ada)], vec![entry("a", bob, 1)], vec![]),
            ("too early", vec![lost(1, ada)], vec![entry("a", ada, -61)], vec![]),
            ("too late", vec![lost(1, ada)], vec![entry("a", ada, 71)], vec![]),
            (
                "two entries",
                vec![lost(1, ada)],
                vec![entry("a", ada, 1), entry("b", ada, 2)],
                vec![],
            ),
            (
                "two messages",
                vec![lost(1, ada), lost(2, ada)],
                vec![entry("a", ada, 1)],
                vec![],
            ),
            (
                "one is being sent",
                vec![lost(1, ada), message(2, ada, 20, None)],
                vec![entry("a", ada, 1)],
                vec![],
            ),
            (
                "two people",
                vec![lost(1, ada), lost(2, bob)],
                vec![entry("b", bob, 1), entry("a", ada, 1)],
                vec![(2, "b"), (1, "a")],
            ),
            (
                "one after the other",
                vec![lost(1, ada), message(2, ada, 500, Some(510))],
                vec![entry("a", ada, 1), entry("b", ada, 505)],
                vec![(1, "a"), (2, "b")],
            ),
            (
                "only one that is being sent",
                vec![message(1, ada, 0, None)],
                vec![entry("a", ada, 1)],
                vec![],
            ),
        ] {
            let entries: Vec<&HistoryEntry> = entries.iter().collect();
            let found: Vec<_> = found(&unsettled, &entries)
                .into_iter()
                .map(|(id, entry)| (id.as_u128(), entry.wamid.as_str()))
                .collect();
            assert_eq!(found, expected, "{what}");
        }
    }
}
