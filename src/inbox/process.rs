//! One event: its parts, which fail alone, in portions that are committed one by one.
//!
//! Portions, because a batch of Meta's may have a thousand parts: each takes locks (see [`crate::site_db::locks`]) and perhaps a
//! savepoint, and Postgres's shared lock table and its snapshots are made for some dozens per transaction. An event that
//! stops between two portions is simply processed again.
//!
//! Nearly always every part of a portion can be stored, so the portion is tried as a whole first. If the database refuses
//! a part for its own sake, the portion is done again with a savepoint around each part, and what is refused then is
//! rolled back alone and listed in `failures`. Anything else (connection, deadlock, a missing table) is not a part's
//! fault: the portion is rolled back and the event comes again.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use sqlx::{Acquire, PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::store::{self, Origin, RawEvent};
use crate::failpoint;
use crate::metrics;
use crate::postgres::disposition;
use crate::provider::cloud::webhook;
use crate::provider::event::{Content, Direction, Event, Message, StatusReport};
use crate::provider::{Code, ContactIdentity, PhoneNumberId, Wamid};
use crate::retry::Disposition;
use crate::site_db::MessageStatus;
use crate::site_db::leads::{learn_recipient, link, link_group, person};
use crate::site_db::locks;
use crate::site_db::messages::Report;
use crate::site_db::status_events::{self, adopt_orphans};

/// Parts in a transaction: below the 64 subtransactions that Postgres keeps in memory per session.
const PORTION: usize = 50;

/// How long an event with further portions is left to its worker before another one may take it.
const LEASE_SECONDS: f64 = 30.0;

/// What processing an event came to.
#[derive(Debug)]
pub(super) struct Processed {
    pub(super) event_id: Uuid,
    pub(super) real: usize,
    pub(super) protocol: usize,
    pub(super) failures: Vec<Value>,
}

/// The event that is being processed, and how often it was tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) event_id: Uuid,
    pub(super) attempts: i32,
}

/// What a committed portion makes known.
#[derive(Debug, Default)]
struct Effects {
    /// Messages that are new or have a new status: direction and status.
    counted: Vec<(&'static str, String)>,
    /// Accounts with real messages.
    real: BTreeMap<Uuid, PhoneNumberId>,
    failures: Vec<Value>,
}

/// Claims an event and processes it; `None` if none is due. Says in `claim` which one, for the case that it fails.
pub(super) async fn next(pool: &PgPool, claim: &mut Option<Claim>) -> sqlx::Result<Option<Processed>> {
    let mut tx = pool.begin().await?;
    let Some(event) = store::claim_event(&mut tx).await? else {
        return Ok(None);
    };
    let RawEvent { id, body, attempts } = event;
    *claim = Some(Claim { event_id: id, attempts });
    let parts = webhook::parse(&body);
    drop(body);
    let mut processed = Processed {
        event_id: id,
        real: 0,
        protocol: 0,
        failures: Vec::new(),
    };
    let parts = parts.unwrap_or_else(|error| {
        processed.failures.push(json!({"reason": error.to_string()}));
        Vec::new()
    });
    processed.real = parts.iter().filter(|part| part.is_real()).count();
    processed.protocol = parts.len() - processed.real;

    let mut portions = parts.chunks(PORTION).peekable();
    let mut done = 0;
    loop {
        let portion = portions.next().unwrap_or_default();
        let effects = Box::pin(process_portion(&mut tx, done, portion)).await?;
        done += portion.len();
        processed.failures.extend(effects.failures);
        let last = portions.peek().is_none();
        if last {
            let failures = (!processed.failures.is_empty()).then(|| Value::from(processed.failures.clone()));
            store::finish_event(
                &mut tx,
                id,
                i32::try_from(processed.real).unwrap_or(i32::MAX),
                i32::try_from(processed.protocol).unwrap_or(i32::MAX),
                failures.as_ref(),
            )
            .await?;
        } else {
            store::postpone_event(&mut tx, id, LEASE_SECONDS).await?;
        }
        failpoint::reach(failpoint::name::INBOX_BEFORE_COMMIT);
        tx.commit().await?;
        for (direction, status) in &effects.counted {
            let status = status.parse().map_or("other", MessageStatus::as_str);
            metrics::count_message(direction, status);
        }
        let now = OffsetDateTime::now_utc();
        for number in effects.real.values() {
            metrics::set_account_last_real_message(number.as_str(), now.unix_timestamp_nanos() as f64 / 1e9);
        }
        if last {
            return Ok(Some(processed));
        }
        tx = pool.begin().await?;
    }
}

async fn process_portion(tx: &mut PgConnection, first: usize, parts: &[Event]) -> sqlx::Result<Effects> {
    let mut whole = tx.begin().await?;
    match Box::pin(process_parts(&mut whole, first, parts, false)).await {
        Ok(effects) => {
            whole.commit().await?;
            Ok(effects)
        }
        Err(error) if row_fault(&error).is_some() => {
            whole.rollback().await?;
            Box::pin(process_parts(tx, first, parts, true)).await
        }
        Err(error) => Err(error),
    }
}

/// Stores parts. With `apart`, one that is refused is a failure among the effects, else an error.
async fn process_parts(tx: &mut PgConnection, first: usize, parts: &[Event], apart: bool) -> sqlx::Result<Effects> {
    let mut effects = Effects::default();
    let mut accounts: HashMap<&PhoneNumberId, Uuid> = HashMap::new();
    lock_all(&mut *tx, parts).await?;
    for (index, part) in (first..).zip(parts) {
        let failure = |reason: &str| json!({"index": index, "field": part.field, "reason": reason});
        if let Content::Malformed(why) = part.content {
            effects.failures.push(failure(why));
            continue;
        }
        let Some(number) = &part.phone_number_id else {
            note(part);
            continue;
        };
        let known = accounts.get(number).copied();
        let stored = if apart {
            let mut savepoint = tx.begin().await?;
            let stored = Box::pin(process_part(&mut savepoint, known, number, part)).await;
            match &stored {
                Ok(_) => savepoint.commit().await?,
                Err(_) => savepoint.rollback().await?,
            }
            stored
        } else {
            Box::pin(process_part(&mut *tx, known, number, part)).await
        };
        match stored {
            Ok((account_id, counted)) => {
                accounts.insert(number, account_id);
                if part.is_real() && counted.is_some() {
                    effects.real.insert(account_id, number.clone());
                }
                effects.counted.extend(counted);
            }
            Err(error) => match row_fault(&error) {
                Some(reason) if apart => effects.failures.push(failure(&reason)),
                _ => return Err(error),
            },
        }
    }
    // In the order of the ids, so that two workers never wait for each other in a circle.
    for &account_id in effects.real.keys() {
        store::touch_account(&mut *tx, account_id).await?;
    }
    Ok(effects)
}

/// Takes every lock that the portion needs, before it touches a row.
async fn lock_all(tx: &mut PgConnection, parts: &[Event]) -> sqlx::Result<()> {
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

/// Stores a part; its account, and what it counts as, if it is news.
async fn process_part(
    tx: &mut PgConnection,
    account_id: Option<Uuid>,
    number: &PhoneNumberId,
    part: &Event,
) -> sqlx::Result<(Uuid, Option<(&'static str, String)>)> {
    let account_id = match account_id {
        Some(id) => id,
        None => {
            let (waba_id, display) = (part.waba_id.as_deref(), part.display_phone_number.as_deref());
            store::account(&mut *tx, number, waba_id, display).await?
        }
    };
    let counted = match &part.content {
        Content::Message(message) => inbound(tx, account_id, message).await,
        Content::Echo(message) => echo(tx, account_id, message).await,
        Content::History {
            message,
            direction,
            status,
        } => history(tx, account_id, message, *direction, status.as_deref()).await,
        Content::Status(status) => report(tx, account_id, status).await,
        Content::UserIdChanged { previous, current } => {
            store::change_user_id(&mut *tx, previous, current).await?;
            Ok(None)
        }
        Content::AccountError(_) | Content::AccountNotice(_) | Content::Other(_) | Content::Malformed(_) => {
            note(part);
            Ok(None)
        }
    };
    Ok((account_id, counted?))
}

async fn inbound(
    tx: &mut PgConnection,
    account_id: Uuid,
    message: &Message,
) -> sqlx::Result<Option<(&'static str, String)>> {
    let (speaker, link) = match &message.group {
        // What is said in a group belongs where we answer it; the person is known all the same.
        Some(group) => (
            person(&mut *tx, &message.contact).await?,
            link_group(&mut *tx, account_id, group).await?,
        ),
        None => {
            let link = link(&mut *tx, account_id, &message.contact).await?;
            (link.lead_id, link)
        }
    };
    let origin = Origin {
        account_id,
        link,
        outbound: false,
        status: "received",
        created_at: None,
    };
    let Some(message_id) = store::insert_message(&mut *tx, &origin, message).await? else {
        return Ok(None);
    };
    if message.is_notice() {
        // Not the user's words: it opens no window and asks for nobody's attention.
        if let Some(wa_id) = &message.new_number {
            store::renumber(&mut *tx, speaker, wa_id.as_str()).await?;
        }
        return Ok(Some(("inbound", "received".to_owned())));
    }
    // A reaction, an edit or a removal is about a message that was announced already.
    let announced = !message.is_about_another();
    store::touch_conversation(&mut *tx, link.conversation_id, false, message.at, announced).await?;
    if announced {
        store::notify_inbound(&mut *tx, account_id, link.conversation_id, message_id).await?;
    }
    if let Some(referral) = &message.referral {
        store::set_referral(&mut *tx, speaker, referral).await?;
    }
    Ok(Some(("inbound", "received".to_owned())))
}

/// A message that we wrote in the app on the phone: sent, and never ours to send.
async fn echo(
    tx: &mut PgConnection,
    account_id: Uuid,
    message: &Message,
) -> sqlx::Result<Option<(&'static str, String)>> {
    let link = link(&mut *tx, account_id, &message.contact).await?;
    let origin = Origin {
        account_id,
        link,
        outbound: true,
        status: "accepted",
        created_at: None,
    };
    let Some(message_id) = store::insert_message(&mut *tx, &origin, message).await? else {
        return Ok(None);
    };
    let at = message.at.unwrap_or_else(OffsetDateTime::now_utc);
    let sent = Report::of("sent", at);
    let shown = status_events::apply(&mut *tx, message_id, &message.wamid, &[sent]).await?;
    let adopted = adopt_orphans(&mut *tx, message_id, &message.wamid).await?;
    store::touch_conversation(&mut *tx, link.conversation_id, true, message.at, false).await?;
    Ok(adopted.or(shown).map(|status| ("outbound", status)))
}

/// A message from before the number came to the API: kept, but no news to anybody.
async fn history(
    tx: &mut PgConnection,
    account_id: Uuid,
    message: &Message,
    direction: Direction,
    status: Option<&str>,
) -> sqlx::Result<Option<(&'static str, String)>> {
    let outbound = direction == Direction::Outbound;
    let link = link(&mut *tx, account_id, &message.contact).await?;
    let origin = Origin {
        account_id,
        link,
        outbound,
        status: if outbound { "accepted" } else { "received" },
        created_at: message.at,
    };
    let Some(message_id) = store::insert_message(&mut *tx, &origin, message).await? else {
        return Ok(None);
    };
    if outbound {
        let at = message.at.unwrap_or_else(OffsetDateTime::now_utc);
        // `pending` was never sent from the phone's point of view, but Meta has it.
        let word = match status {
            Some("error") => "failed",
            Some(word) => word,
            None => "sent",
        };
        status_events::apply_silently(&mut *tx, message_id, &message.wamid, &[Report::of(word, at)]).await?;
        adopt_orphans(&mut *tx, message_id, &message.wamid).await?;
    }
    store::touch_conversation(&mut *tx, link.conversation_id, outbound, message.at, false).await?;
    Ok(None)
}

async fn report(
    tx: &mut PgConnection,
    account_id: Uuid,
    status: &StatusReport,
) -> sqlx::Result<Option<(&'static str, String)>> {
    let recorded = status_events::record(&mut *tx, account_id, status).await?;
    if recorded.second_send && recorded.new {
        // Not the wamid: that has the user's number in it, in base64. The status event has it.
        tracing::error!(
            message_id = recorded.message_id.map(|id| id.to_string()),
            "Meta took this message twice; the user may have it twice"
        );
    }
    // A status tells the user id of a number that we dialled: without it, the answer of a user who hides the number
    // would open a second lead. In a group, the recipient is not the lead.
    if let Some(message_id) = recorded.message_id
        && let (Some(wa_id), Some(_)) = (&status.contact.wa_id, &status.contact.user_id)
        && let Some(lead_id) = store::lead_without_user_id(&mut *tx, message_id, wa_id.as_str()).await?
    {
        learn_recipient(&mut *tx, lead_id, None, &status.contact).await?;
    }
    Ok(recorded.changed_to.map(|shown| ("outbound", shown)))
}

/// Says that something came which has no row of its own; the raw event is kept.
fn note(part: &Event) {
    let number = part.phone_number_id.as_ref().map(PhoneNumberId::as_str);
    match &part.content {
        Content::AccountError(error) => tracing::warn!(
            phone_number_id = number,
            waba_id = part.waba_id,
            code = error.code.map(Code::number),
            class = error.class.as_str(),
            "WEBHOOK: Meta reports an error of the account"
        ),
        Content::AccountNotice(_) => tracing::warn!(
            phone_number_id = number,
            waba_id = part.waba_id,
            field = part.field,
            "WEBHOOK: Meta reports on the account; see the raw event"
        ),
        _ => tracing::info!(
            phone_number_id = number,
            waba_id = part.waba_id,
            field = part.field,
            "WEBHOOK: an event without a message"
        ),
    }
}

/// The reason, without values, if the database refused the part for its own sake.
fn row_fault(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Database(database) => {
            let sqlstate = database.code()?;
            if disposition(&sqlstate) != Disposition::Row {
                return None;
            }
            Some(match database.constraint() {
                Some(constraint) => format!("SQLSTATE {sqlstate}, constraint {constraint}"),
                None => format!("SQLSTATE {sqlstate}"),
            })
        }
        // What the driver could not encode was never sent, so the connection is whole.
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Some("a value has no database form".to_owned()),
        _ => None,
    }
}
