//! Stores some events of a webhook in one transaction; each event can fail alone.
//!
//! Nearly always every event can be stored, so the portion is tried as a whole first. If the Site DB refuses an event because
//! of its content, the portion is done again with a savepoint around each event; events that are refused then are rolled
//! back alone and listed as failures. Any other error (connection, deadlock, a missing table) is not an event's fault: the
//! portion is rolled back and the webhook is tried again later.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::failures::{self, Failure};
use super::messages::Counted;
use super::{account_events, messages, statuses};
use crate::provider::event::{Content, Event};
use crate::provider::{ContactIdentity, PhoneNumberId, Wamid};
use crate::site_db::accounts::{self, Seen};
use crate::site_db::{SiteError, Transaction, leads, locks};

/// What a portion does, once it is committed.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Messages that are new or have a new status.
    pub(super) counted: Vec<Counted>,
    /// Numbers over which people wrote to each other, by their rows.
    pub(super) real: BTreeMap<Uuid, PhoneNumberId>,
    pub(super) failures: Vec<Failure>,
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
struct Stored {
    account_id: Uuid,
    /// What it counts as, if it is news.
    counted: Option<Counted>,
}

/// Stores events; the first of them is the webhook's event number `first`.
pub(super) async fn store(tx: &mut Transaction<'_>, first: usize, events: &[Event]) -> Result<Effects, SiteError> {
    let mut whole = tx.savepoint().await?;
    match Box::pin(store_events(&mut whole, first, events, Refused::EndsAll)).await {
        Ok(effects) => {
            whole.commit().await?;
            Ok(effects)
        }
        Err(error) if failures::of_row(&error).is_some() => {
            whole.rollback().await?;
            Box::pin(store_events(tx, first, events, Refused::FailsAlone)).await
        }
        Err(error) => Err(error),
    }
}

async fn store_events(
    tx: &mut Transaction<'_>,
    first: usize,
    events: &[Event],
    refused: Refused,
) -> Result<Effects, SiteError> {
    let mut effects = Effects::default();
    let mut accounts: HashMap<&PhoneNumberId, Uuid> = HashMap::new();
    lock_all(tx, events).await?;
    for (index, event) in (first..).zip(events) {
        if let Content::Malformed(why) = event.content {
            effects.failures.push(Failure::of_event(index, &event.field, why));
            continue;
        }
        let Some(number) = &event.phone_number_id else {
            account_events::note(event);
            continue;
        };
        let known = accounts.get(number).copied();
        let stored = match refused {
            Refused::EndsAll => Box::pin(store_event(tx, known, number, event)).await,
            Refused::FailsAlone => {
                let mut savepoint = tx.savepoint().await?;
                let stored = Box::pin(store_event(&mut savepoint, known, number, event)).await;
                match &stored {
                    Ok(_) => savepoint.commit().await?,
                    Err(_) => savepoint.rollback().await?,
                }
                stored
            }
        };
        match stored {
            Ok(Stored { account_id, counted }) => {
                accounts.insert(number, account_id);
                if event.is_real() && counted.is_some() {
                    effects.real.insert(account_id, number.clone());
                }
                effects.counted.extend(counted);
            }
            Err(error) => match failures::of_row(&error) {
                Some(reason) if refused == Refused::FailsAlone => {
                    effects.failures.push(Failure::of_event(index, &event.field, reason));
                }
                _ => return Err(error),
            },
        }
    }
    // In the order of the ids, so that two workers never wait for each other in a circle.
    for &account_id in effects.real.keys() {
        accounts::touch(tx, account_id).await?;
    }
    Ok(effects)
}

/// Takes every lock that the portion needs, before it touches a row.
async fn lock_all(tx: &mut Transaction<'_>, events: &[Event]) -> Result<(), SiteError> {
    let mut wamids: Vec<&Wamid> = Vec::with_capacity(events.len());
    let mut groups: Vec<&str> = Vec::new();
    let mut contacts: Vec<ContactIdentity> = Vec::new();
    for event in events {
        match &event.content {
            Content::Message(message) | Content::Echo(message) | Content::History { message, .. } => {
                wamids.push(&message.wamid);
                contacts.push(message.contact.clone());
                groups.extend(message.group.as_deref());
                contacts.extend(message.new_number.clone().map(|wa_id| ContactIdentity {
                    wa_id: Some(wa_id),
                    ..ContactIdentity::default()
                }));
            }
            Content::Status(status) => {
                wamids.push(&status.wamid);
                if status.contact.user_id.is_some() {
                    contacts.push(status.contact.clone());
                }
            }
            Content::UserIdChanged { previous, current } => {
                contacts.extend([previous, current].map(|id| ContactIdentity {
                    user_id: Some(id.clone()),
                    ..ContactIdentity::default()
                }));
            }
            Content::AccountError(_) | Content::AccountNotice(_) | Content::Other(_) | Content::Malformed(_) => {}
        }
    }
    if wamids.is_empty() && contacts.is_empty() {
        return Ok(());
    }
    locks::lock_all(tx, wamids, &contacts, groups).await
}

async fn store_event(
    tx: &mut Transaction<'_>,
    account_id: Option<Uuid>,
    number: &PhoneNumberId,
    event: &Event,
) -> Result<Stored, SiteError> {
    let account_id = match account_id {
        Some(id) => id,
        None => {
            let seen = Seen {
                phone_number_id: number,
                waba_id: event.waba_id.as_deref(),
                display_phone_number: event.display_phone_number.as_deref(),
            };
            accounts::find_or_make(tx, &seen).await?
        }
    };
    let counted = match &event.content {
        Content::Message(message) => messages::inbound(tx, account_id, message).await?,
        Content::Echo(message) => messages::echo(tx, account_id, message).await?,
        Content::History {
            message,
            direction,
            status,
        } => {
            messages::history(tx, account_id, message, *direction, status.as_ref()).await?;
            None
        }
        Content::Status(status) => statuses::report(tx, account_id, status).await?,
        Content::UserIdChanged { previous, current } => {
            leads::change_user_id(tx, previous, current).await?;
            None
        }
        Content::AccountError(_) | Content::AccountNotice(_) | Content::Other(_) | Content::Malformed(_) => {
            account_events::note(event);
            None
        }
    };
    Ok(Stored { account_id, counted })
}
