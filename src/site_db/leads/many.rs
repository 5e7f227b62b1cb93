//! The leads of many people at once: a few statements for any number of contacts.
//!
//! Nearly every contact of a batch is a known person of whom nothing is new: one look-up for all, without a lock. The others
//! are locked by the caller and settled together. Contacts that share one id and differ in the other are looked up one after
//! the other, as the second must find what the first has stored.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::candidates::{self, Candidate};
use super::{Source, find_or_make, learn, lock_leads};
use crate::provider::{ContactIdentity, UserId, WaId};
use crate::site_db::{SiteError, Transaction};

/// The leads of many people, as far as there are any: see [`look_up`].
#[derive(Debug)]
pub struct LookedUp<'a> {
    found: HashMap<Ids<'a>, Found>,
    /// All leads that have an id of one of the contacts.
    candidates: Vec<Uuid>,
}

/// A contact's lead.
#[derive(Debug, Clone, Copy)]
struct Found {
    lead_id: Uuid,
    news: News,
}

/// What a contact says that its lead does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Nothing,
    /// The lead lacks it.
    Fills,
    /// Another id than the lead's, or ids of several leads.
    Differs,
}

impl LookedUp<'_> {
    /// The contact's lead, if there is one that has all that the contact says.
    #[must_use]
    pub fn settled(&self, contact: &ContactIdentity) -> Option<Uuid> {
        let found = self.found.get(&ids_of(contact))?;
        (found.news == News::Nothing).then_some(found.lead_id)
    }

    /// Whether ids of a contact differ from its lead's, so that leads may have to be merged.
    #[must_use]
    pub fn has_doubts(&self) -> bool {
        self.found.values().any(|found| found.news == News::Differs)
    }
}

/// What the contacts say that is new to the best of their candidates.
fn news(candidates: &[Candidate], best: &Candidate, (user_id, wa_id): Ids<'_>, said: &[&ContactIdentity]) -> News {
    let several = (candidates.iter()).any(|other| other.id != best.id && candidates::counts(other, candidates));
    let displaces = (candidates.iter()).any(|other| candidates::had_number(other, candidates));
    if several || displaces || !best.is_exact() {
        return News::Differs;
    }
    let known = |rank| candidates.iter().any(|one| one.rank == rank && one.id == best.id);
    let compare = |column: Option<&str>, id: Option<&str>, former: bool| match (column, id) {
        (_, None) => News::Nothing,
        (Some(column), Some(id)) if column == id => News::Nothing,
        _ if former => News::Nothing,
        (None, Some(_)) => News::Fills,
        _ => News::Differs,
    };
    let names = said.iter().any(|contact| {
        (best.name.is_none() && contact.name.is_some())
            || (contact.username.is_some() && best.username != contact.username)
    });
    compare(best.user_id.as_deref(), user_id.map(UserId::as_str), known(3))
        .max(compare(best.wa_id.as_deref(), wa_id.map(WaId::as_str), known(4)))
        .max(if names { News::Fills } else { News::Nothing })
}

/// The ids by which a contact is found.
type Ids<'a> = (Option<&'a UserId>, Option<&'a WaId>);

fn ids_of(contact: &ContactIdentity) -> Ids<'_> {
    (contact.user_id.as_ref(), contact.wa_id.as_ref())
}

/// Looks up the leads of many people in one statement. Locks and writes nothing, so that batches with the same people can
/// run at the same time: nearly always there is nothing to learn about a person.
///
/// # Errors
/// See [`SiteError`].
pub async fn look_up<'a>(
    tx: &mut Transaction<'_>,
    contacts: &[&'a ContactIdentity],
) -> Result<LookedUp<'a>, SiteError> {
    let mut of: HashMap<Ids<'a>, Vec<&'a ContactIdentity>> = HashMap::new();
    for contact in contacts.iter().filter(|contact| contact.is_known()) {
        of.entry(ids_of(contact)).or_default().push(contact);
    }
    let mut looked_up = LookedUp {
        found: HashMap::new(),
        candidates: Vec::new(),
    };
    if of.is_empty() {
        return Ok(looked_up);
    }
    let ids: Vec<Ids<'a>> = of.keys().copied().collect();
    let candidates = candidates::of(tx, &ids).await?;
    looked_up.candidates = candidates.iter().map(|one| one.id).collect();
    for of_one in candidates.chunk_by(|one, next| one.number == next.number) {
        let Some(best) = of_one.first() else { continue };
        let Some(ids) = usize::try_from(best.number - 1).ok().and_then(|at| ids.get(at)) else {
            continue;
        };
        let said = of.get(ids).map(Vec::as_slice).unwrap_or_default();
        let found = Found {
            lead_id: best.id,
            news: news(of_one, best, *ids, said),
        };
        looked_up.found.insert(*ids, found);
    }
    Ok(looked_up)
}

/// Finds or creates the leads of many people; the leads are in the order of the contacts. The people that [`look_up`] has not
/// settled take three statements together, and those that other contacts are mixed up with take those of [`find_or_make`], one
/// after the other. The caller has locked the contacts that are not settled (see [`crate::site_db::locks`]).
///
/// # Errors
/// As for [`find_or_make`].
pub async fn find_or_make_all(
    tx: &mut Transaction<'_>,
    contacts: &[&ContactIdentity],
    looked_up: &LookedUp<'_>,
) -> Result<Vec<Uuid>, SiteError> {
    if contacts.iter().any(|contact| !contact.is_known()) {
        return Err(SiteError::Anonymous);
    }
    let open: Vec<&ContactIdentity> = contacts
        .iter()
        .copied()
        .filter(|contact| looked_up.settled(contact).is_none())
        .collect();
    let people = people_apart(&open);
    let again = look_up_again(tx, &open, looked_up).await?;
    let made = settle(tx, &people, &again).await?;
    let mut leads = Vec::with_capacity(contacts.len());
    for contact in contacts {
        leads.push(
            match looked_up
                .settled(contact)
                .or_else(|| made.get(&ids_of(contact)).copied())
            {
                Some(lead_id) => lead_id,
                None => find_or_make(tx, contact, Source::WhatsApp).await?,
            },
        );
    }
    Ok(leads)
}

/// Looks up contacts that are locked now: another batch may have inserted some of them before it gave the lock free. If
/// something will be written to a lead, all leads of the batch are locked, in the order of their ids: else two batches that
/// learn of different people and have messages of both wait for each other. (People of whom nothing is new are not locked
/// by their ids.)
async fn look_up_again<'a>(
    tx: &mut Transaction<'_>,
    open: &[&'a ContactIdentity],
    first: &LookedUp<'_>,
) -> Result<LookedUp<'a>, SiteError> {
    let again = look_up(tx, open).await?;
    if again.found.values().all(|found| found.news == News::Nothing) {
        return Ok(again);
    }
    let leads: Vec<Uuid> = first.candidates.iter().chain(&again.candidates).copied().collect();
    lock_leads(tx, &leads).await?;
    // While these locks were waited for, their holder may have learnt more of the same people.
    look_up(tx, open).await
}

/// Locks the leads of these contacts in the order of their ids, for a transaction that finds, or changes, one after the other.
/// The caller has locked the contacts.
///
/// # Errors
/// See [`SiteError`].
pub async fn lock_in_order(tx: &mut Transaction<'_>, contacts: &[&ContactIdentity]) -> Result<(), SiteError> {
    let looked_up = look_up(tx, contacts).await?;
    if looked_up
        .candidates
        .iter()
        .any(|id| Some(id) != looked_up.candidates.first())
    {
        lock_leads(tx, &looked_up.candidates).await?;
    }
    Ok(())
}

/// One contact for each person of whom all contacts have the same ids, with what all of them say. Left out are those that
/// share one id and differ in the other: the second must find what the first has inserted.
fn people_apart(contacts: &[&ContactIdentity]) -> Vec<ContactIdentity> {
    let mut order: Vec<Ids<'_>> = Vec::new();
    let mut people: HashMap<Ids<'_>, ContactIdentity> = HashMap::new();
    let mut of_user_id: HashMap<&UserId, HashSet<Ids<'_>>> = HashMap::new();
    let mut of_wa_id: HashMap<&WaId, HashSet<Ids<'_>>> = HashMap::new();
    for contact in contacts {
        let ids = ids_of(contact);
        if let Some(user_id) = ids.0 {
            of_user_id.entry(user_id).or_default().insert(ids);
        }
        if let Some(wa_id) = ids.1 {
            of_wa_id.entry(wa_id).or_default().insert(ids);
        }
        match people.get_mut(&ids) {
            Some(person) => {
                person.name = person.name.take().or_else(|| contact.name.clone());
                person.username = contact.username.clone().or_else(|| person.username.take());
            }
            None => {
                order.push(ids);
                people.insert(ids, (*contact).clone());
            }
        }
    }
    let apart = |(user_id, wa_id): Ids<'_>| {
        user_id.is_none_or(|id| of_user_id.get(id).is_none_or(|all| all.len() == 1))
            && wa_id.is_none_or(|id| of_wa_id.get(id).is_none_or(|all| all.len() == 1))
    };
    order
        .into_iter()
        .filter(|ids| apart(*ids))
        .filter_map(|ids| people.remove(&ids))
        .collect()
}

/// Inserts the leads of those people who have none, and stores what the others' leads lack; returns them by their ids. Missing
/// is whoever is the same person as another one here, has other ids than the lead, or gets a lead from another program in this
/// moment.
async fn settle<'a>(
    tx: &mut Transaction<'_>,
    people: &'a [ContactIdentity],
    looked_up: &LookedUp<'_>,
) -> Result<HashMap<Ids<'a>, Uuid>, SiteError> {
    if people.is_empty() {
        return Ok(HashMap::new());
    }
    let (mut settled, mut news, mut new) = (HashMap::new(), Vec::new(), Vec::new());
    let mut taught: HashSet<Uuid> = HashSet::new();
    for person in people {
        match looked_up.found.get(&ids_of(person)) {
            Some(found) if found.news == News::Nothing => drop(settled.insert(ids_of(person), found.lead_id)),
            Some(found) if found.news == News::Fills && taught.insert(found.lead_id) => {
                news.push((found.lead_id, person));
            }
            Some(_) => {}
            None => new.push((Uuid::new_v4(), person)),
        }
    }
    learn(tx, &news).await?;
    settled.extend(news.into_iter().map(|(lead_id, person)| (ids_of(person), lead_id)));
    let made = insert(tx, &new).await?;
    let made = new.into_iter().filter(|(id, _)| made.contains(id));
    settled.extend(made.map(|(id, person)| (ids_of(person), id)));
    Ok(settled)
}

/// Inserts leads, and returns the ids of those that no other program has inserted in this moment.
async fn insert(tx: &mut Transaction<'_>, new: &[(Uuid, &ContactIdentity)]) -> Result<HashSet<Uuid>, SiteError> {
    if new.is_empty() {
        return Ok(HashSet::new());
    }
    let made: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO public.leads (id, wa_id, user_id, name, username)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
             AS new(id, wa_id, user_id, name, username) ORDER BY wa_id, user_id
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(new.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(new.iter().map(|(_, person)| person.wa_id.as_ref()).collect::<Vec<_>>())
    .bind(
        new.iter()
            .map(|(_, person)| person.user_id.as_ref())
            .collect::<Vec<_>>(),
    )
    .bind(new.iter().map(|(_, person)| person.name.as_deref()).collect::<Vec<_>>())
    .bind(
        new.iter()
            .map(|(_, person)| person.username.as_deref())
            .collect::<Vec<_>>(),
    )
    .fetch_all(tx.connection())
    .await?;
    Ok(made.into_iter().collect())
}
