//! Many webhooks in one transaction: their events become messages, reports and leads by a few statements, whose number does
//! not depend on how many events there are. What hosted databases cost is the round trip.
//!
//! - **Common events only**: a user's message, a status report, and what leaves no row. A webhook with any other event (an
//!   echo, history, a change of identity, a group's message), one that was tried before, and one that is very long is processed
//!   alone (see [`webhook`]); the batch ends before it.
//! - **A refusal is one event's.** If the Site DB refuses the batch because of its content, it is done again in halves, down
//!   to the one webhook, which is then processed alone and in which the one event fails.
//! - **Any other error** (connection, deadlock, a missing table, a panic) is rolled back for all, and each of them is tried
//!   again later, alone: so one webhook that can't be processed delays the others once.
//!
//! # Locks
//!
//! Batches of several workers run at the same time and often have the same people. Every transaction takes its locks in this
//! order, each kind in the order of its keys, so that nobody waits in a circle:
//!
//! 1. its webhooks (skipping those of others);
//! 2. advisory locks, in one call: the wamids of reports, and people of whom something is new (see [`locks`]). A
//!    person who is known is not locked;
//! 3. the leads: of all its people before it writes to one; new leads and conversations, new messages;
//! 4. the rows of messages that reports are about;
//! 5. leads' referrals, the numbers' rows, then the conversations' rows, at the end: these are what others wait for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::messages::{self as said, Counted};
use super::order::TimedEvent;
use super::portion::Effects;
use super::webhook::{self, Processed, Webhook};
use super::{InboxSettings, account_events, failures, statuses};
use crate::failpoint;
use crate::provider::event::{Content, Event, Message, StatusReport};
use crate::provider::{ContactIdentity, PhoneNumberId};
use crate::site_db::accounts::{self, Seen};
use crate::site_db::conversations::{self, Touch};
use crate::site_db::status_events::ReceivedReport;
use crate::site_db::webhook_events::{self, ClaimLimit};
use crate::site_db::{Pool, SiteError, Transaction, leads, locks, messages};

/// With 20 ms to the Site DB, a batch takes a quarter of a second; four workers then process 4,000 webhooks a second. Memory
/// is bounded by the bytes: parsed, they take about ten times as much.
const LIMIT: ClaimLimit = ClaimLimit {
    webhooks: 256,
    bytes: 512 * 1024,
};

/// Most events of a batch: some need a lock or two, and Postgres's lock table has 64 entries per connection by default.
const EVENTS: usize = 256;

/// Bodies of more bytes are parsed on a thread of their own: parsing as many takes about a millisecond.
const LARGE: usize = 64 * 1024;

/// The webhooks that are being processed, for the caller to use on failure.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) webhooks: Vec<Claim>,
    /// What is processed and committed of them.
    pub(super) processed: Vec<Processed>,
    /// Whether the claim brought as much as it may: there is probably more.
    pub(super) full: bool,
}

/// A webhook that is being processed, and how often it was tried before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) webhook_id: Uuid,
    pub(super) attempts: i32,
}

/// How often a transaction begins again because leads were merged while it waited for them.
const ATTEMPTS: usize = 3;

/// Claims webhooks and processes them. Nothing is claimed if none is due.
pub(super) async fn next(pool: &Pool, settings: &Arc<InboxSettings>, claims: &mut Claims) -> Result<(), SiteError> {
    for _ in 1..ATTEMPTS {
        match Box::pin(attempt(pool, settings, claims)).await {
            Err(SiteError::Merged) if claims.processed.is_empty() => *claims = Claims::default(),
            ended => return ended,
        }
    }
    attempt(pool, settings, claims).await
}

async fn attempt(pool: &Pool, settings: &Arc<InboxSettings>, claims: &mut Claims) -> Result<(), SiteError> {
    let mut tx = pool.begin().await?;
    let claimed = webhook_events::claim(&mut tx, LIMIT).await?;
    let claim = |webhook_id, attempts| Claim { webhook_id, attempts };
    // While they are parsed, too: a panic there must delay them as well.
    claims.webhooks = claimed.iter().map(|one| claim(one.id, one.attempts)).collect();
    claims.full = claimed.len() > 1;
    let mut webhooks = read(settings, claimed).await?;
    // The others are free again when this transaction ends.
    let together = together(&webhooks);
    webhooks.truncate(together.max(1));
    claims.webhooks.truncate(webhooks.len());
    match webhooks.as_slice() {
        [] => Ok(()),
        [one] if together == 0 => {
            claims.processed.push(webhook::process(tx, pool, one).await?);
            Ok(())
        }
        all => {
            let all: Vec<&Webhook> = all.iter().collect();
            match process(tx, &all).await {
                Ok(processed) => claims.processed = processed,
                Err(error) if failures::of_row(&error).is_some() => {
                    process_apart(pool, &all, &mut claims.processed).await?;
                }
                Err(error) => return Err(error),
            }
            Ok(())
        }
    }
}

/// Parses the webhooks, large ones beside the runtime.
async fn read(
    settings: &Arc<InboxSettings>,
    claimed: Vec<webhook_events::ClaimedWebhook>,
) -> Result<Vec<Webhook>, SiteError> {
    let bytes: usize = claimed.iter().map(|one| one.body.len()).sum();
    let settings = Arc::clone(settings);
    let read = move || claimed.into_iter().map(|one| Webhook::read(&settings, one)).collect();
    if bytes <= LARGE {
        return Ok(read());
    }
    // Ends without a result if parsing panics, or the process is stopping: a panic goes on here.
    match tokio::task::spawn_blocking(read).await {
        Ok(webhooks) => Ok(webhooks),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SiteError::Stopped),
        },
    }
}

/// How many of the first webhooks can be processed together.
fn together(webhooks: &[Webhook]) -> usize {
    let mut events = 0;
    webhooks
        .iter()
        .take_while(|webhook| {
            events += webhook.events.len();
            webhook.attempts == 0 && events <= EVENTS && webhook.events.iter().all(|timed| is_common(&timed.event))
        })
        .count()
}

fn is_common(event: &Event) -> bool {
    match &event.content {
        Content::Message(message) => message.group.is_none() && !message.is_notice() && message.contact.is_known(),
        // Of the history: it will not come, which a person should know.
        Content::AccountError(_) => event.field != "history",
        Content::Status(_) | Content::AccountNotice(_) | Content::Other(_) | Content::Malformed(_) => true,
        Content::Echo(_) | Content::History { .. } | Content::IdentityChanged(_) | Content::Template(_) => false,
    }
}

/// Processes webhooks of which the Site DB refuses at least one: in halves, and the refused one alone.
async fn process_apart(pool: &Pool, webhooks: &[&Webhook], processed: &mut Vec<Processed>) -> Result<(), SiteError> {
    let mut todo: Vec<&[&Webhook]> = vec![webhooks];
    let mut whole = true;
    while let Some(part) = todo.pop() {
        // The whole was refused already.
        if !std::mem::take(&mut whole) || part.len() == 1 {
            let mut tx = pool.begin().await?;
            let ids: Vec<Uuid> = part.iter().map(|webhook| webhook.id).collect();
            let free = webhook_events::claim_again(&mut tx, &ids).await?;
            let free: Vec<&Webhook> = part
                .iter()
                .copied()
                .filter(|webhook| free.contains(&webhook.id))
                .collect();
            match free.as_slice() {
                [] => continue,
                [one] => {
                    processed.push(webhook::process(tx, pool, one).await?);
                    continue;
                }
                many => match process(tx, many).await {
                    Ok(done) => {
                        processed.extend(done);
                        continue;
                    }
                    Err(error) if failures::of_row(&error).is_some() => {}
                    Err(error) => return Err(error),
                },
            }
        }
        let (first, second) = part.split_at(part.len() / 2);
        todo.extend([second, first]);
    }
    Ok(())
}

/// Processes webhooks that `tx` has claimed, all of them or none.
async fn process(mut tx: Transaction<'_>, webhooks: &[&Webhook]) -> Result<Vec<Processed>, SiteError> {
    let mut processed: Vec<Processed> = webhooks.iter().map(|webhook| Processed::of(webhook)).collect();
    let batch = Batch::of(webhooks, &mut processed);
    let effects = Box::pin(store(&mut tx, &batch, &processed)).await?;
    failpoint::reach(failpoint::name::INBOX_BEFORE_COMMIT);
    tx.commit().await?;
    webhook::count(&effects);
    if let Some(first) = processed.first_mut() {
        first.doubts = effects.doubts;
    }
    account_events::note(batch.notes);
    Ok(processed)
}

/// The events of a batch, by what becomes of them.
#[derive(Debug, Default)]
struct Batch<'a> {
    /// Our numbers, each with the first event that names it.
    numbers: BTreeMap<&'a PhoneNumberId, &'a Event>,
    texts: Vec<Received<'a>>,
    reports: Vec<(&'a PhoneNumberId, &'a TimedEvent, &'a StatusReport)>,
    /// Events that leave only a line in the log.
    notes: Vec<&'a Event>,
}

/// A user's message.
#[derive(Debug)]
struct Received<'a> {
    number: &'a PhoneNumberId,
    timed: &'a TimedEvent,
    message: &'a Message,
}

impl<'a> Batch<'a> {
    /// Sorts the events; those that could not be read become failures of their webhook.
    fn of(webhooks: &[&'a Webhook], processed: &mut [Processed]) -> Self {
        let mut batch = Self::default();
        for (webhook, result) in webhooks.iter().zip(processed) {
            for (index, timed) in webhook.events.iter().enumerate() {
                let event = &timed.event;
                if let Content::Malformed(why) = event.content {
                    result
                        .failures
                        .push(failures::Failure::of_event(index, &event.field, why));
                    continue;
                }
                let Some(number) = &event.phone_number_id else {
                    batch.notes.push(event);
                    continue;
                };
                batch.numbers.entry(number).or_insert(event);
                match &event.content {
                    Content::Message(message) => batch.texts.push(Received { number, timed, message }),
                    Content::Status(report) => batch.reports.push((number, timed, report)),
                    _ => batch.notes.push(event),
                }
            }
        }
        batch
    }

    /// Who wrote. (What reports say of recipients is written later, see [`statuses`].)
    fn contacts(&self) -> Vec<&'a ContactIdentity> {
        self.texts.iter().map(|text| &text.message.contact).collect()
    }
}

/// Writes everything; see the order of the locks above.
async fn store(tx: &mut Transaction<'_>, batch: &Batch<'_>, processed: &[Processed]) -> Result<Effects, SiteError> {
    let looked_up = leads::look_up(tx, &batch.contacts()).await?;
    let mut effects = Effects {
        doubts: looked_up.has_doubts(),
        ..Effects::default()
    };
    let open =
        (batch.texts.iter().map(|text| &text.message.contact)).filter(|contact| looked_up.settled(contact).is_none());
    locks::lock(tx, batch.reports.iter().map(|(_, _, report)| &report.wamid), open).await?;

    let mut numbers: HashMap<&PhoneNumberId, Uuid> = HashMap::new();
    let mut news: Vec<(Uuid, Seen<'_>)> = Vec::new();
    for (number, event) in &batch.numbers {
        let seen = Seen {
            phone_number_id: number,
            waba_id: event.waba_id.as_deref(),
            display_phone_number: event.display_phone_number.as_deref(),
        };
        let found = accounts::find_or_make(tx, &seen).await?;
        numbers.insert(number, found.id);
        news.extend(found.has_news.then_some((found.id, seen)));
    }
    let account = |number: &PhoneNumberId| {
        let id = numbers.get(number).copied();
        id.ok_or(SiteError::Vanished("whatsapp_accounts"))
    };

    let told = store_texts(tx, batch, &looked_up, account, &mut effects).await?;
    if !batch.reports.is_empty() {
        let reports: Vec<ReceivedReport<'_>> = (batch.reports.iter())
            .map(|(number, timed, report)| {
                Ok(ReceivedReport {
                    account_id: account(number)?,
                    received_at: timed.received_at,
                    report,
                })
            })
            .collect::<Result<_, SiteError>>()?;
        let reported = statuses::report(tx, &reports).await?;
        effects.doubts |= reported.doubts;
        effects.counted.extend(reported.counted.into_iter().flatten());
    }
    let finished: Vec<_> = processed.iter().map(Processed::finished).collect();
    webhook_events::finish(tx, &finished).await?;
    let real: Vec<Uuid> = effects.real.keys().copied().collect();
    leads::set_referrals(tx, &told.referrals).await?;
    accounts::touch(tx, &real, &news).await?;
    conversations::touch_all(tx, &told.touches).await?;
    Ok(effects)
}

/// What messages do to their conversations and leads.
#[derive(Default)]
struct Told<'a> {
    touches: Vec<(Uuid, Touch)>,
    referrals: Vec<(Uuid, &'a Value)>,
}

/// Writes the users' messages.
async fn store_texts<'a>(
    tx: &mut Transaction<'_>,
    batch: &Batch<'a>,
    looked_up: &leads::LookedUp<'_>,
    account: impl Fn(&PhoneNumberId) -> Result<Uuid, SiteError>,
    effects: &mut Effects,
) -> Result<Told<'a>, SiteError> {
    if batch.texts.is_empty() {
        return Ok(Told::default());
    }
    let wanted: Vec<(Uuid, &ContactIdentity)> = (batch.texts.iter())
        .map(|text| Ok((account(text.number)?, &text.message.contact)))
        .collect::<Result<_, SiteError>>()?;
    let links = conversations::link_all(tx, &wanted, looked_up).await?;
    let rows: Vec<messages::NewSaid<'_>> = (batch.texts.iter().zip(&links).zip(&wanted))
        .map(|((text, link), (account_id, _))| said::received(*account_id, *link, text.message, text.timed.received_at))
        .collect();
    let stored = messages::insert_said(tx, &rows).await?;
    let (mut told, mut repeated) = (Told::default(), Vec::new());
    for (((text, link), row), stored) in batch.texts.iter().zip(&links).zip(&rows).zip(stored) {
        if stored.is_none() {
            repeated.push(said::repeated(row));
            continue;
        }
        effects.counted.push(Counted::INBOUND);
        effects.real.insert(row.account_id, text.number.clone());
        told.touches.push((link.conversation_id, said::touch_of(text.message)));
        told.referrals
            .extend(text.message.referral.as_ref().map(|referral| (link.lead_id, referral)));
    }
    messages::received_before(tx, &repeated).await?;
    Ok(told)
}
