//! Stores some parts of an event in one transaction; each part can fail alone.
//!
//! Nearly always every part can be stored, so the portion is tried as a whole first. If the Site DB refuses a part because
//! of its content, the portion is done again with a savepoint around each part; parts that are refused then are rolled
//! back alone and listed as failures. Any other error (connection, deadlock, a missing table) is not a part's fault: the
//! portion is rolled back and the event is tried again later.

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

/// What a part that is refused does to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// It ends the attempt.
    EndsAll,
    /// It is rolled back to its savepoint and becomes a failure.
    FailsAlone,
}

/// A part that was stored.
struct Stored {
    account_id: Uuid,
    /// What it counts as, if it is news.
    counted: Option<Counted>,
}

/// Stores parts; the first of them is the event's part number `first`.
pub(super) async fn store(tx: &mut Transaction<'_>, first: usize, parts: &[Event]) -> Result<Effects, SiteError> {
    let mut whole = tx.savepoint().await?;
    match Box::pin(store_parts(&mut whole, first, parts, Refused::EndsAll)).await {
        Ok(effects) => {
            whole.commit().await?;
            Ok(effects)
        }
        Err(error) if failures::of_row(&error).is_some() => {
            whole.rollback().await?;
            Box::pin(store_parts(tx, first, parts, Refused::FailsAlone)).await
        }
        Err(error) => Err(error),
    }
}

async fn store_parts(
    tx: &mut Transaction<'_>,
    first: usize,
    parts: &[Event],
    refused: Refused,
) -> Result<Effects, SiteError> {
    let mut effects = Effects::default();
    let mut accounts: HashMap<&PhoneNumberId, Uuid> = HashMap::new();
    lock_all(tx, parts).await?;
    for (index, part) in (first..).zip(parts) {
        if let Content::Malformed(why) = part.content {
            effects.failures.push(Failure::of_part(index, &part.field, why));
            continue;
        }
        let Some(number) = &part.phone_number_id else {
            account_events::note(part);
            continue;
        };
        let known = accounts.get(number).copied();
        let stored = match refused {
            Refused::EndsAll => Box::pin(store_part(tx, known, number, part)).await,
            Refused::FailsAlone => {
                let mut savepoint = tx.savepoint().await?;
                let stored = Box::pin(store_part(&mut savepoint, known, number, part)).await;
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
                if part.is_real() && counted.is_some() {
                    effects.real.insert(account_id, number.clone());
                }
                effects.counted.extend(counted);
            }
            Err(error) => match failures::of_row(&error) {
                Some(reason) if refused == Refused::FailsAlone => {
                    effects.failures.push(Failure::of_part(index, &part.field, reason));
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
async fn lock_all(tx: &mut Transaction<'_>, parts: &[Event]) -> Result<(), SiteError> {
    let mut wamids: Vec<&Wamid> = Vec::with_capacity(parts.len());
    let mut groups: Vec<&str> = Vec::new();
    let mut contacts: Vec<ContactIdentity> = Vec::new();
    for part in parts {
        match &part.content {
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

async fn store_part(
    tx: &mut Transaction<'_>,
    account_id: Option<Uuid>,
    number: &PhoneNumberId,
    part: &Event,
) -> Result<Stored, SiteError> {
    let account_id = match account_id {
        Some(id) => id,
        None => {
            let seen = Seen {
                phone_number_id: number,
                waba_id: part.waba_id.as_deref(),
                display_phone_number: part.display_phone_number.as_deref(),
            };
            accounts::find_or_make(tx, &seen).await?
        }
    };
    let counted = match &part.content {
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
            account_events::note(part);
            None
        }
    };
    Ok(Stored { account_id, counted })
}
