//! A lead's ids: which of those that a person has or had counts. Pure; the result does not depend on the order of what is told.
//!
//! WhatsApp says in notices, with a time, that an id was replaced by another one. Messages, statuses and answers show ids
//! together, without a word on which is newer. So what was told counts before what was seen: of the ids that were told to be
//! the person's and not to be replaced later, the one that was told last; else the one that the lead has. Every id is
//! kept, so that a late event with a former one finds the lead.

use time::OffsetDateTime;

use crate::provider::ContactIdentity;
use crate::provider::event::IdentityChange;

/// The two kinds of ids, as `lead_ids.kind` writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IdKind {
    /// A number.
    WaId,
    /// A business-scoped user id.
    UserId,
}

impl IdKind {
    /// Numbers last: whether one counts depends on whether there is a user id.
    pub(super) const ALL: [Self; 2] = [Self::UserId, Self::WaId];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::WaId => "wa_id",
            Self::UserId => "user_id",
        }
    }

    /// The contact's id of this kind.
    pub(super) fn of(self, contact: &ContactIdentity) -> Option<&str> {
        match self {
            Self::WaId => contact.wa_id.as_ref().map(|id| id.as_str()),
            Self::UserId => contact.user_id.as_ref().map(|id| id.as_str()),
        }
    }
}

/// A row of `lead_ids`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownId {
    pub(super) kind: IdKind,
    pub(super) id: String,
    pub(super) current_at: Option<OffsetDateTime>,
    pub(super) replaced_at: Option<OffsetDateTime>,
}

impl KnownId {
    fn is_told_current(&self) -> bool {
        self.current_at > self.replaced_at
    }

    fn is_told_replaced(&self) -> bool {
        self.replaced_at.is_some() && self.replaced_at >= self.current_at
    }
}

/// All ids of a lead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ids {
    /// The column `wa_id`: the number that counts.
    pub(super) wa_id: Option<String>,
    /// The column `user_id`: the user id that counts.
    pub(super) user_id: Option<String>,
    /// The rows of `lead_ids`.
    pub(super) known: Vec<KnownId>,
}

impl Ids {
    pub(super) fn column(&self, kind: IdKind) -> Option<&str> {
        match kind {
            IdKind::WaId => self.wa_id.as_deref(),
            IdKind::UserId => self.user_id.as_deref(),
        }
    }

    fn set_column(&mut self, kind: IdKind, id: Option<String>) {
        let before = match kind {
            IdKind::WaId => std::mem::replace(&mut self.wa_id, id),
            IdKind::UserId => std::mem::replace(&mut self.user_id, id),
        };
        // A replaced id is kept.
        if let Some(before) = before.filter(|before| self.column(kind) != Some(before)) {
            self.entry(kind, &before);
        }
    }

    pub(super) fn has(&self, kind: IdKind, id: &str) -> bool {
        self.column(kind) == Some(id) || self.known(kind, id).is_some()
    }

    fn known(&self, kind: IdKind, id: &str) -> Option<&KnownId> {
        self.known.iter().find(|known| known.kind == kind && known.id == id)
    }

    fn entry(&mut self, kind: IdKind, id: &str) -> &mut KnownId {
        let at = self.known.iter().position(|known| known.kind == kind && known.id == id);
        let at = at.unwrap_or_else(|| {
            self.known.push(KnownId {
                kind,
                id: id.to_owned(),
                current_at: None,
                replaced_at: None,
            });
            self.known.len() - 1
        });
        &mut self.known[at]
    }

    /// WhatsApp showed these ids together: a new one takes the place of one that was only seen too.
    pub(super) fn see(&mut self, contact: &ContactIdentity) {
        for kind in IdKind::ALL {
            let Some(id) = kind.of(contact) else { continue };
            if self.has(kind, id) {
                continue;
            }
            let told = self.column(kind).and_then(|column| self.known(kind, column));
            if told.is_some_and(KnownId::is_told_current) {
                self.entry(kind, id);
            } else {
                self.set_column(kind, Some(id.to_owned()));
            }
        }
        self.settle_all();
    }

    /// They are the person's, but nothing else is known of them.
    pub(super) fn add(&mut self, contact: &ContactIdentity) {
        for kind in IdKind::ALL {
            let Some(id) = kind.of(contact) else { continue };
            if !self.has(kind, id) {
                self.entry(kind, id);
            }
        }
        self.settle_all();
    }

    /// WhatsApp told that the ids changed at a time.
    pub(super) fn told(&mut self, change: &IdentityChange, at: OffsetDateTime) {
        for kind in IdKind::ALL {
            if let Some(id) = kind.of(&change.previous) {
                let known = self.entry(kind, id);
                known.replaced_at = known.replaced_at.max(Some(at));
            }
            if let Some(id) = kind.of(&change.current) {
                let known = self.entry(kind, id);
                known.current_at = known.current_at.max(Some(at));
            }
        }
        self.add(&change.other);
    }

    /// The ids of a lead that is the same person.
    pub(super) fn absorb(&mut self, other: Self) {
        for kind in IdKind::ALL {
            if let Some(id) = other.column(kind) {
                self.entry(kind, id);
            }
        }
        for known in other.known {
            let entry = self.entry(known.kind, &known.id);
            entry.current_at = entry.current_at.max(known.current_at);
            entry.replaced_at = entry.replaced_at.max(known.replaced_at);
        }
        self.settle_all();
    }

    fn settle_all(&mut self) {
        for kind in IdKind::ALL {
            self.settle(kind);
        }
    }

    /// Chooses the id of a kind that counts.
    fn settle(&mut self, kind: IdKind) {
        let known = || self.known.iter().filter(|known| known.kind == kind);
        let told = known()
            .filter(|known| known.is_told_current())
            .max_by_key(|known| (known.current_at, &known.id));
        let replaced = |id: &str| self.known(kind, id).is_some_and(KnownId::is_told_replaced);
        let chosen = if let Some(told) = told {
            Some(told.id.clone())
        } else if let Some(column) = self.column(kind).filter(|id| !replaced(id)) {
            Some(column.to_owned())
        } else {
            let seen = known().filter(|known| !known.is_told_replaced()).map(|known| &known.id);
            // A number that was replaced by one that we don't know is nobody's address; but without any id, a lead is lost.
            let last = known()
                .filter(|_| kind == IdKind::UserId || self.user_id.is_none())
                .max_by_key(|known| (known.replaced_at, &known.id));
            seen.max().or(last.map(|known| &known.id)).cloned()
        };
        self.set_column(kind, chosen);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::provider::{UserId, WaId};

    fn contact(wa_id: Option<&str>, user_id: Option<&str>) -> ContactIdentity {
        ContactIdentity {
            wa_id: wa_id.and_then(WaId::parse),
            user_id: user_id.and_then(UserId::parse),
            ..ContactIdentity::default()
        }
    }

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_750_000_000 + second).unwrap()
    }

    fn change(old: (Option<&str>, Option<&str>), new: (Option<&str>, Option<&str>)) -> IdentityChange {
        IdentityChange {
            previous: contact(old.0, old.1),
            current: contact(new.0, new.1),
            ..IdentityChange::default()
        }
    }

    fn columns(ids: &Ids) -> (Option<&str>, Option<&str>) {
        (ids.wa_id.as_deref(), ids.user_id.as_deref())
    }

    #[test]
    fn a_new_id_counts_and_the_old_one_is_kept() {
        let mut ids = Ids::default();
        ids.see(&contact(Some("16505550001"), Some("US.1")));
        ids.see(&contact(Some("16505550001"), Some("US.2")));
        assert_eq!(columns(&ids), (Some("16505550001"), Some("US.2")));
        // A late message with the former id changes nothing.
        ids.see(&contact(Some("16505550001"), Some("US.1")));
        assert_eq!(columns(&ids), (Some("16505550001"), Some("US.2")));
        assert!(ids.has(IdKind::UserId, "US.1"));
    }

    #[test]
    fn who_goes_back_to_the_old_number_has_it_again() {
        let there = change((Some("16505550001"), None), (Some("16505550002"), None));
        let back = change((Some("16505550002"), None), (Some("16505550001"), None));
        for order in [[(&there, 1), (&back, 2)], [(&back, 2), (&there, 1)]] {
            let mut ids = Ids::default();
            ids.see(&contact(Some("16505550001"), None));
            for (change, second) in order {
                ids.told(change, at(second));
            }
            assert_eq!(ids.wa_id.as_deref(), Some("16505550001"), "{order:?}");
        }
    }

    #[test]
    fn a_number_that_was_given_up_for_a_hidden_one_counts_no_more() {
        let mut ids = Ids::default();
        ids.see(&contact(Some("16505550001"), Some("US.1")));
        ids.told(
            &change((Some("16505550001"), Some("US.1")), (None, Some("US.2"))),
            at(1),
        );
        assert_eq!(columns(&ids), (None, Some("US.2")));
        ids.see(&contact(Some("16505550001"), Some("US.1")));
        assert_eq!(columns(&ids), (None, Some("US.2")));
        // The same if nothing was known before.
        let mut ids = Ids::default();
        ids.told(
            &change((Some("16505550001"), Some("US.1")), (None, Some("US.2"))),
            at(1),
        );
        assert_eq!(columns(&ids), (None, Some("US.2")));
    }

    proptest! {
        #[test]
        fn the_order_in_which_changes_are_told_does_not_matter(
            order in Just((0..4_usize).collect::<Vec<_>>()).prop_shuffle(),
            seen in prop::collection::vec((0..5_usize, 0..5_usize), 0..6),
            split in 0..4_usize,
        ) {
            let number = |at: usize| format!("1650555000{at}");
            let user = |at: usize| format!("US.{at}");
            let step = |from: usize| change(
                (Some(&number(from)), Some(&user(from))), (Some(&number(from + 1)), Some(&user(from + 1))));
            // Some of it is heard of another lead, which is merged in the end; ids are seen in between.
            let (mut one, mut other) = (Ids::default(), Ids::default());
            for (place, from) in order.into_iter().enumerate() {
                let ids = if place < split { &mut one } else { &mut other };
                if let Some((wa_id, user_id)) = seen.get(place) {
                    ids.see(&contact(Some(&number(*wa_id)), Some(&user(*user_id))));
                }
                ids.told(&step(from), at(i64::try_from(from).unwrap()));
            }
            one.absorb(other);
            prop_assert_eq!(columns(&one), (Some("16505550004"), Some("US.4")));
        }
    }
}
