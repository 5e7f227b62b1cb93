//! Who a person is when ids are new, change, or lead to several leads. The caller has locked the ids (see
//! [`locks`](crate::site_db::locks)).
//!
//! With one lead, or none, what is known is written at once. Several leads are one person, so they are merged; that needs
//! locks that the caller may not take any more, so a [`Statement`] is stored, and the message is stored with the lead that
//! will be kept.

use std::collections::BTreeSet;

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::candidates::{self, Candidate};
use super::ids::{IdKind, Ids};
use super::known_ids::{load, save};
use super::merge::{lock_to_join, merge_was_undone};
use super::statements::{self, Reached, Statement, Word};
use crate::provider::event::IdentityChange;
use crate::provider::{ContactIdentity, WaId};
use crate::site_db::locks::lock;
use crate::site_db::{SiteError, Transaction};

/// Attempts while another transaction merges or inserts the lead.
const ATTEMPTS: usize = 3;

/// The leads that a statement is about, once its ids are locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::site_db) enum About {
    /// It is written, or there is nothing to write.
    Written,
    /// They are one person and must be merged first; the oldest is the first.
    Several(Vec<Uuid>),
}

/// Writes what is known to the person's lead, if it is one.
pub(in crate::site_db) async fn write(tx: &mut Transaction<'_>, statement: &Statement) -> Result<About, SiteError> {
    let candidates = lock_candidates(tx, statement).await?;
    let mut leads: Vec<(OffsetDateTime, Uuid)> = candidates::leads(&candidates)
        .into_iter()
        .map(|lead| (lead.created_at, lead.id))
        .collect();
    if let Some(reached) = &statement.lead {
        match reached_lead(tx, reached, statement).await? {
            Some(lead) => leads.push(lead),
            None if leads.is_empty() => return Ok(About::Written),
            None => {}
        }
    }
    leads.sort_unstable();
    leads.dedup();
    match leads.as_slice() {
        [] => {
            make(tx, &statement.word).await?;
        }
        [(_, lead_id)] => {
            write_to(tx, *lead_id, &statement.word).await?;
        }
        several => return Ok(About::Several(several.iter().map(|(_, id)| *id).collect())),
    }
    Ok(About::Written)
}

/// The leads that a statement may be about by its ids. If there are several with the one that a message was sent to, all are
/// locked, in one order: each of them may be written to.
async fn lock_candidates(tx: &mut Transaction<'_>, statement: &Statement) -> Result<Vec<Candidate>, SiteError> {
    let candidates = candidates::of_person(tx, &statement.contacts()).await?;
    // Also one that gives its number away.
    let by_ids = candidates.iter().filter(|one| one.is_by_id()).map(|one| one.id);
    let leads: BTreeSet<Uuid> = by_ids
        .chain(statement.lead.as_ref().map(|reached| reached.lead_id))
        .collect();
    if leads.len() < 2 {
        return Ok(candidates);
    }
    let locked = lock_to_join(tx, &Vec::from_iter(leads)).await?;
    // While the locks were waited for, their holder may have merged some of them.
    let candidates = candidates::of_person(tx, &statement.contacts()).await?;
    let is_locked = candidates::leads(&candidates)
        .iter()
        .all(|lead| locked.contains(&lead.id));
    if is_locked {
        Ok(candidates)
    } else {
        Err(SiteError::Merged)
    }
}

/// The lead that a message was sent to, if the number that was dialled is the lead's: a client may send a message to any number
/// and file it under any lead.
async fn reached_lead(
    tx: &mut Transaction<'_>,
    reached: &Reached,
    statement: &Statement,
) -> Result<Option<(OffsetDateTime, Uuid)>, SiteError> {
    #[derive(FromRow)]
    struct Row {
        id: Uuid,
        phone: Option<String>,
        created_at: OffsetDateTime,
    }
    let row: Option<Row> = sqlx::query_as(
        "SELECT l.id, l.phone, l.created_at FROM public.leads f JOIN public.leads l ON l.id = coalesce(f.merged_into, f.id)
          WHERE f.id = $1 AND NOT coalesce(l.phone LIKE 'group:%', false)",
    )
    .bind(reached.lead_id)
    .fetch_optional(tx.connection())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let Some(ids) = load(tx, row.id).await? else {
        return Ok(None);
    };
    let phone = row.phone.as_deref().and_then(WaId::parse);
    let is_its = |number: &WaId| ids.has(IdKind::WaId, number.as_str()) || phone.as_ref() == Some(number);
    let dialled = reached.dialled.as_deref().and_then(ContactIdentity::from_recipient);
    let belongs = match dialled {
        Some(ContactIdentity {
            wa_id: Some(number), ..
        }) => is_its(&number) || number.other_form().as_ref().is_some_and(is_its),
        Some(ContactIdentity {
            user_id: Some(user_id), ..
        }) => ids.has(IdKind::UserId, user_id.as_str()),
        _ => statement.contacts().iter().any(|contact| {
            IdKind::ALL
                .iter()
                .any(|kind| kind.of(contact).is_some_and(|id| ids.has(*kind, id)))
        }),
    };
    Ok(belongs.then_some((row.created_at, row.id)))
}

/// Writes what is known to a lead. False: it is gone or merged.
pub(super) async fn write_to(tx: &mut Transaction<'_>, lead_id: Uuid, word: &Word) -> Result<bool, SiteError> {
    let Some(before) = load(tx, lead_id).await? else {
        return Ok(false);
    };
    let mut after = before.clone();
    match word {
        Word::Seen(contact) => after.see(contact),
        Word::Told(change, at) => after.told(change, *at),
    }
    save(tx, lead_id, &before, &after).await?;
    Ok(true)
}

/// Makes the lead of a person of whom only the change of ids is known.
async fn make(tx: &mut Transaction<'_>, word: &Word) -> Result<Option<Uuid>, SiteError> {
    let mut ids = Ids::default();
    match word {
        Word::Seen(contact) => ids.see(contact),
        Word::Told(change, at) => {
            ids.see(&change.other);
            ids.told(change, *at);
        }
    }
    let made: Option<Uuid> = sqlx::query_scalar(
        "INSERT INTO public.leads (wa_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(ids.wa_id.as_deref())
    .bind(ids.user_id.as_deref())
    .fetch_optional(tx.connection())
    .await?;
    if let Some(lead_id) = made {
        save(
            tx,
            lead_id,
            &Ids {
                known: Vec::new(),
                ..ids.clone()
            },
            &ids,
        )
        .await?;
    }
    Ok(made)
}

/// A user's ids have changed: writes that, and returns the user's lead.
///
/// # Errors
/// See [`SiteError`].
pub async fn changed(tx: &mut Transaction<'_>, change: &IdentityChange, at: OffsetDateTime) -> Result<Uuid, SiteError> {
    lock(tx, [], [&change.previous, &change.current, &change.other]).await?;
    let statement = Statement {
        lead: None,
        word: Word::Told(Box::new(change.clone()), at),
    };
    for _ in 0..ATTEMPTS {
        let candidates = candidates::of_person(tx, &statement.contacts()).await?;
        let lead = match candidates::leads(&candidates).as_slice() {
            [] => make(tx, &statement.word).await?,
            [one]
                if candidates
                    .iter()
                    .any(|other| candidates::had_number(other, &candidates)) =>
            {
                // Both leads are locked first.
                statements::add(tx, std::slice::from_ref(&statement)).await?;
                Some(one.id)
            }
            [one] => write_to(tx, one.id, &statement.word).await?.then_some(one.id),
            [kept, ..] => {
                statements::add(tx, std::slice::from_ref(&statement)).await?;
                Some(filed_under(tx, kept, &candidates).await?)
            }
        };
        if let Some(lead) = lead {
            return Ok(lead);
        }
    }
    Err(SiteError::Vanished("leads"))
}

/// A person's ids were seen together, and lead to these leads: writes what is new, and returns the lead. `None`: another
/// transaction has changed the lead meanwhile; ask again.
pub(super) async fn seen(
    tx: &mut Transaction<'_>,
    contact: &ContactIdentity,
    candidates: &[Candidate],
) -> Result<Option<Uuid>, SiteError> {
    let leads = candidates::leads(candidates);
    let word = Word::Seen(ContactIdentity {
        name: None,
        username: None,
        ..contact.clone()
    });
    match leads.as_slice() {
        [] => Ok(None),
        [one] if candidates.iter().any(|other| candidates::had_number(other, candidates)) => {
            statements::add(tx, &[Statement { lead: None, word }]).await?;
            Ok(Some(one.id))
        }
        [one] => {
            let same = one.wa_id.as_deref() == IdKind::WaId.of(contact).or(one.wa_id.as_deref())
                && one.user_id.as_deref() == IdKind::UserId.of(contact).or(one.user_id.as_deref());
            Ok((same || write_to(tx, one.id, &word).await?).then_some(one.id))
        }
        [kept, ..] => {
            statements::add(tx, &[Statement { lead: None, word }]).await?;
            Ok(Some(filed_under(tx, kept, candidates).await?))
        }
    }
}

/// The lead that a person's message is filed under if there are several: the oldest, with which the others are merged. If a merge of
/// them was undone, they stay apart, and it is the one that the ids lead to most reliably.
async fn filed_under(
    tx: &mut Transaction<'_>,
    oldest: &Candidate,
    candidates: &[Candidate],
) -> Result<Uuid, SiteError> {
    let ids: Vec<Uuid> = candidates::leads(candidates).into_iter().map(|lead| lead.id).collect();
    let best = candidates.iter().min_by_key(|one| one.rank).unwrap_or(oldest);
    Ok(if merge_was_undone(tx, &ids).await? {
        best.id
    } else {
        oldest.id
    })
}

/// The number is a lead's by a person's word (`phone`), while WhatsApp knows the lead by another one: it is kept as one of its
/// ids. False: the lead is gone or merged.
pub(super) async fn add_to(
    tx: &mut Transaction<'_>,
    lead_id: Uuid,
    contact: &ContactIdentity,
) -> Result<bool, SiteError> {
    let Some(before) = load(tx, lead_id).await? else {
        return Ok(false);
    };
    let mut after = before.clone();
    if before.wa_id.is_none() {
        after.see(contact);
    } else {
        after.add(contact);
    }
    save(tx, lead_id, &before, &after).await?;
    Ok(true)
}

/// Stores the recipient's ids from the answer to a send: WhatsApp's own number, if it differs from the one dialled (Brazil,
/// Mexico), so that the person's reply finds the same lead; and the user id. Returns whether leads wait to be merged.
///
/// # Errors
/// See [`SiteError`].
pub async fn learn_recipient(
    tx: &mut Transaction<'_>,
    lead_id: Uuid,
    dialled: Option<&WaId>,
    known: &ContactIdentity,
) -> Result<bool, SiteError> {
    let dialled_contact = ContactIdentity {
        wa_id: dialled.cloned(),
        ..ContactIdentity::default()
    };
    lock(tx, [], [&dialled_contact, known]).await?;
    let statement = Statement {
        lead: Some(Reached {
            lead_id,
            dialled: dialled.map(|dialled| dialled.as_str().to_owned()),
        }),
        word: Word::Seen(known.clone()),
    };
    match write(tx, &statement).await? {
        About::Written => Ok(false),
        About::Several(_) => {
            statements::add(tx, &[statement]).await?;
            Ok(true)
        }
    }
}
