//! Which leads have ids of a contact, in one statement for many contacts: the rules by which a person is found.
//!
//! | rank | the lead has |
//! |---|---|
//! | 1, 2 | the user id; the number |
//! | 3, 4 | the same as a former id |
//! | 5, 6 | the number in the other form of its line ([`WaId::other_form`]), now or formerly |
//! | 7, 8 | the number as `phone`: dialled, or entered by a person; first if the lead has a number at WhatsApp too |
//!
//! A number whose lead has another user id than the contact was given up by that lead's person and belongs to the contact's now, if the
//! contact has a lead of its own: it moves to that one, and the two are not one person.
//!
//! A `phone` does not count against WhatsApp's word: a lead that has another number and another user id is another person.
//! A number goes to another person some months after its user gave it up. So a lead that had it formerly is not found if that is
//! long ago, the contact has a user id, and the lead has others.

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::provider::{ContactIdentity, UserId, WaId};
use crate::site_db::{SiteError, Transaction};

/// A lead that has an id of a contact.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Candidate {
    /// Which contact, from 1.
    pub(super) number: i64,
    /// How it was found; the lowest is the most reliable.
    pub(super) rank: i32,
    pub(super) id: Uuid,
    pub(super) wa_id: Option<String>,
    pub(super) user_id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) username: Option<String>,
    pub(super) created_at: OffsetDateTime,
    /// Whether the lead has another user id than the contact.
    pub(super) of_other: bool,
}

impl Candidate {
    /// Whether the lead was found by an id as the contact has it, now or formerly.
    pub(super) const fn is_exact(&self) -> bool {
        self.rank <= 4
    }

    /// Whether WhatsApp's own ids say that it is this person; a `phone` is only a person's word.
    pub(super) const fn is_by_id(&self) -> bool {
        self.rank <= 6
    }
}

/// The query, for tables `leads` and rows `w (user_id, wa_id, other_form)`: `rank` and the lead's id.
macro_rules! ranks {
    () => {
        "SELECT 1 AS rank, l.id AS lead_id FROM public.leads l WHERE l.user_id = w.user_id \
         UNION ALL SELECT 2, l.id FROM public.leads l WHERE l.wa_id = w.wa_id \
         UNION ALL SELECT 3, k.lead_id FROM public.lead_ids k WHERE k.known_id = w.user_id \
         UNION ALL SELECT 4, k.lead_id FROM public.lead_ids k WHERE k.known_id = w.wa_id \
           AND NOT (w.user_id IS NOT NULL AND k.created_at < now() - interval '30 days' \
             AND k.replaced_at IS NOT NULL AND coalesce(k.replaced_at >= k.current_at, true) \
             AND EXISTS (SELECT FROM public.leads o WHERE o.id = k.lead_id AND o.user_id <> w.user_id)) \
         UNION ALL SELECT 5, l.id FROM public.leads l WHERE l.wa_id = w.other_form \
         UNION ALL SELECT 6, k.lead_id FROM public.lead_ids k WHERE k.known_id = w.other_form \
         UNION ALL SELECT CASE WHEN l.wa_id IS NULL THEN 8 ELSE 7 END, l.id FROM public.leads l \
           WHERE l.phone IN (w.wa_id, '+' || w.wa_id, w.other_form, '+' || w.other_form) AND l.merged_into IS NULL \
           AND NOT coalesce(l.wa_id <> w.wa_id AND l.user_id <> w.user_id, false)"
    };
}
pub(super) use ranks;

/// All candidates of these ids, by contact and rank, then the older first.
pub(super) async fn of(
    tx: &mut Transaction<'_>,
    ids: &[(Option<&UserId>, Option<&WaId>)],
) -> Result<Vec<Candidate>, SiteError> {
    Ok(sqlx::query_as(concat!(
        "SELECT w.number, c.rank, l.id, l.wa_id, l.user_id, l.name, l.username, l.created_at,
                coalesce(l.user_id <> w.user_id, false) AS of_other
           FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w(user_id, wa_id, other_form, number)
           CROSS JOIN LATERAL (",
        ranks!(),
        ") AS c JOIN public.leads f ON f.id = c.lead_id JOIN public.leads l ON l.id = coalesce(f.merged_into, f.id)
          ORDER BY w.number, c.rank, l.created_at, l.id"
    ))
    .bind(ids.iter().map(|(user_id, _)| *user_id).collect::<Vec<_>>())
    .bind(ids.iter().map(|(_, wa_id)| *wa_id).collect::<Vec<_>>())
    .bind(
        ids.iter()
            .map(|(_, wa_id)| wa_id.and_then(WaId::other_form))
            .collect::<Vec<_>>(),
    )
    .fetch_all(tx.connection())
    .await?)
}

/// The candidates of contacts that are all one person.
pub(super) async fn of_person(
    tx: &mut Transaction<'_>,
    contacts: &[&ContactIdentity],
) -> Result<Vec<Candidate>, SiteError> {
    let ids: Vec<_> = contacts
        .iter()
        .map(|contact| (contact.user_id.as_ref(), contact.wa_id.as_ref()))
        .collect();
    of(tx, &ids).await
}

/// Whether WhatsApp's ids say that a candidate is the person: by an id as it is; or by the other form of a number that no lead
/// has as it is. An exact match of another contact, or of the user id, says nothing about a number.
pub(super) fn counts(one: &Candidate, candidates: &[Candidate]) -> bool {
    let has_number = |other: &Candidate| other.number == one.number && matches!(other.rank, 2 | 4);
    !had_number(one, candidates) && (one.is_exact() || (one.is_by_id() && !candidates.iter().any(has_number)))
}

/// Whether a candidate was found only by a number that its person has given up: it has another user id than the contact, and
/// the contact has a lead of its own.
pub(super) fn had_number(one: &Candidate, candidates: &[Candidate]) -> bool {
    let by_user_id = |other: &Candidate| matches!(other.rank, 1 | 3);
    one.of_other
        && !by_user_id(one)
        && !candidates.iter().any(|other| other.id == one.id && by_user_id(other))
        && candidates
            .iter()
            .any(|other| other.id != one.id && other.is_exact() && !other.of_other)
}

/// The leads among the candidates of one person that have the person's ids at WhatsApp, the oldest first: one, if all is
/// well. A line's other form counts only where no lead has that contact's number as it is.
pub(super) fn leads(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut leads: Vec<&Candidate> = Vec::new();
    for one in candidates {
        if counts(one, candidates) && leads.iter().all(|other| other.id != one.id) {
            leads.push(one);
        }
    }
    leads.sort_by_key(|one| (one.created_at, one.id));
    leads
}
