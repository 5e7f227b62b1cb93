//! Stores some events of a webhook in one transaction; each event can fail alone.
//!
//! Nearly always every event can be stored, so the portion is tried as a whole first. If the Site DB refuses an event because
//! of its content, the portion is done again with a savepoint around each event; events that are refused then are rolled
//! back alone and listed as failures. Any other error (connection, deadlock, a missing table) is not an event's fault: the
//! portion is rolled back and the webhook is tried again later.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use uuid::Uuid;

use super::failures::{self, Failure};
use super::messages::{Counted, Kept};
use super::order::TimedEvent;
use super::{messages, statuses};
use crate::provider::event::{Content, Event, IdentityChange, credible};
use crate::provider::{ContactIdentity, PhoneNumberId, Wamid};
use crate::site_db::accounts::{self, Found, Seen};
use crate::site_db::conversations::{self, Touch};
use crate::site_db::status_events::ReceivedReport;
use crate::site_db::{SiteError, Transaction, leads, locks, notifications, storable, template_notices};

/// What a portion does, once it is committed.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Messages that are new or have a new status.
    pub(super) counted: Vec<Counted>,
    /// Numbers over which people wrote to each other, by their rows.
    pub(super) real: BTreeMap<Uuid, PhoneNumberId>,
    pub(super) failures: Vec<Failure>,
    /// Whether leads may have to be merged.
    pub(super) doubts: bool,
}

/// What an event that is refused does to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// It ends the attempt.
    EndsAll,
    /// It is rolled back to its savepoint and becomes a failure.
    FailsAlone,
}

/// An event that was stored.
struct Stored<'a> {
    account: Found,
    kept: Kept<'a>,
    /// Whether leads may have to be merged.
    doubts: bool,
}

/// Stores events; the first of them is the webhook's event number `first`. A message from the phone keeps programs out of its
/// conversation for `takeover`.
pub(super) async fn store(
    tx: &mut Transaction<'_>,
    first: usize,
    events: &[TimedEvent],
    takeover: Duration,
) -> Result<Effects, SiteError> {
    let mut whole = tx.savepoint().await?;
    match Box::pin(store_events(&mut whole, first, events, takeover, Refused::EndsAll)).await {
        Ok(effects) => {
            whole.commit().await?;
            Ok(effects)
        }
        Err(error) if failures::of_row(&error).is_some() => {
            whole.rollback().await?;
            Box::pin(store_events(tx, first, events, takeover, Refused::FailsAlone)).await
        }
        Err(error) => Err(error),
    }
}

async fn store_events(
    tx: &mut Transaction<'_>,
    first: usize,
    events: &[TimedEvent],
    takeover: Duration,
    refused: Refused,
) -> Result<Effects, SiteError> {
    let mut effects = Effects::default();
    let mut accounts: HashMap<&PhoneNumberId, Found> = HashMap::new();
    let mut news: Vec<(Uuid, Seen<'_>)> = Vec::new();
    let mut touches: Vec<(Uuid, Touch)> = Vec::new();
    let mut referrals = Vec::new();
    lock_all(tx, events).await?;
    for (index, timed) in (first..).zip(events) {
        let event = &timed.event;
        if let Content::Malformed(why) = event.content {
            effects.failures.push(Failure::of_event(index, &event.field, why));
            continue;
        }
        let Some(number) = &event.phone_number_id else {
            continue;
        };
        let known = accounts.get(number).copied();
        let stored = match refused {
            Refused::EndsAll => Box::pin(store_event(tx, known, number, timed, takeover)).await,
            Refused::FailsAlone => {
                let mut savepoint = tx.savepoint().await?;
                let stored = Box::pin(store_event(&mut savepoint, known, number, timed, takeover)).await;
                match &stored {
                    Ok(_) => savepoint.commit().await?,
                    Err(_) => savepoint.rollback().await?,
                }
                stored
            }
        };
        match stored {
            Ok(Stored { account, kept, doubts }) => {
                accounts.insert(number, account);
                news.extend(account.has_news.then_some((account.id, seen(number, event))));
                effects.doubts |= doubts;
                if event.is_real() && kept.counted.is_some() {
                    effects.real.insert(account.id, number.clone());
                }
                effects.counted.extend(kept.counted);
                touches.extend(kept.touch);
                referrals.extend(kept.referral);
            }
            Err(error) => match failures::of_row(&error) {
                Some(reason) if refused == Refused::FailsAlone => {
                    effects.failures.push(Failure::of_event(index, &event.field, reason));
                }
                _ => return Err(error),
            },
        }
    }
    let numbers: Vec<Uuid> = effects.real.keys().copied().collect();
    // Last, and all at once: see the order of the locks in `batch`.
    leads::set_referrals(tx, &referrals).await?;
    accounts::touch(tx, &numbers, &news).await?;
    conversations::touch_all(tx, &touches).await?;
    note_templates(tx, events).await?;
    Ok(effects)
}

/// Notes what the events tell of templates, in one order.
async fn note_templates(tx: &mut Transaction<'_>, events: &[TimedEvent]) -> Result<(), SiteError> {
    let told = events.iter().filter_map(|timed| match &timed.event.content {
        Content::Template(notice) => Some((timed.event.waba_id.as_deref()?, notice, timed.received_at)),
        _ => None,
    });
    let mut told: Vec<_> = told.collect();
    told.sort_by_key(|(waba_id, notice, _)| (*waba_id, notice.id.as_str()));
    for (waba_id, notice, received_at) in told {
        let at = credible(notice.at, received_at).unwrap_or(received_at);
        template_notices::note(tx, waba_id, notice, at).await?;
    }
    Ok(())
}

/// Takes every lock that the portion needs, before it touches a row.
async fn lock_all(tx: &mut Transaction<'_>, events: &[TimedEvent]) -> Result<(), SiteError> {
    let mut wamids: Vec<&Wamid> = Vec::with_capacity(events.len());
    let mut groups: Vec<&str> = Vec::new();
    let mut contacts: Vec<ContactIdentity> = Vec::new();
    for TimedEvent { event, .. } in events {
        match &event.content {
            Content::Message(message) | Content::Echo(message) | Content::History { message, .. } => {
                wamids.push(&message.wamid);
                contacts.push(message.contact.clone());
                groups.extend(message.group.as_deref());
                contacts.extend(message.change.iter().flat_map(ids_of));
            }
            Content::Status(status) => wamids.push(&status.wamid),
            Content::IdentityChanged(change) => contacts.extend(ids_of(change)),
            Content::AccountError(_)
            | Content::AccountNotice(_)
            | Content::Template(_)
            | Content::Other(_)
            | Content::Malformed(_) => {}
        }
    }
    if wamids.is_empty() && contacts.is_empty() {
        return Ok(());
    }
    locks::lock_all(tx, wamids, &contacts, groups).await?;
    let known: Vec<&ContactIdentity> = contacts.iter().filter(|contact| contact.is_known()).collect();
    match known.as_slice() {
        [] | [_] => Ok(()),
        several => leads::lock_in_order(tx, several).await,
    }
}

/// All ids that a change names.
fn ids_of(change: &IdentityChange) -> [ContactIdentity; 3] {
    [&change.previous, &change.current, &change.other].map(Clone::clone)
}

async fn store_event<'a>(
    tx: &mut Transaction<'_>,
    account: Option<Found>,
    number: &PhoneNumberId,
    TimedEvent { event, received_at }: &'a TimedEvent,
    takeover: Duration,
) -> Result<Stored<'a>, SiteError> {
    let received_at = *received_at;
    let account = match account {
        Some(found) => found,
        None => accounts::find_or_make(tx, &seen(number, event)).await?,
    };
    let account_id = account.id;
    let counted = |counted| Kept {
        counted,
        ..Kept::default()
    };
    // Ids may be new; whether they led to several leads is asked once, after the commit.
    let mut doubts = true;
    let kept = match &event.content {
        Content::Message(message) => messages::inbound(tx, account_id, message, received_at).await?,
        Content::Echo(message) => messages::echo(tx, account_id, message, received_at, takeover).await?,
        Content::History {
            message,
            direction,
            status,
        } => messages::history(tx, account_id, message, *direction, status.as_ref(), received_at).await?,
        Content::Status(report) => {
            let received = ReceivedReport {
                account_id,
                received_at,
                report,
            };
            let mut reported = statuses::report(tx, &[received]).await?;
            doubts = reported.doubts;
            counted(reported.counted.pop().flatten())
        }
        Content::IdentityChanged(change) => {
            let at = credible(change.at, received_at).unwrap_or(received_at);
            leads::changed(tx, change, at).await?;
            counted(None)
        }
        Content::AccountError(refusal) if event.field == "history" => {
            notifications::history_declined(tx, account_id, &storable(&refusal.message)).await?;
            doubts = false;
            counted(None)
        }
        Content::AccountError(_)
        | Content::AccountNotice(_)
        | Content::Template(_)
        | Content::Other(_)
        | Content::Malformed(_) => {
            doubts = false;
            counted(None)
        }
    };
    Ok(Stored { account, kept, doubts })
}

/// What an event says about the number that it is for.
fn seen<'a>(phone_number_id: &'a PhoneNumberId, event: &'a Event) -> Seen<'a> {
    Seen {
        phone_number_id,
        waba_id: event.waba_id.as_deref(),
        display_phone_number: event.display_phone_number.as_deref(),
    }
}
