//! Changes in exact stream order, cut where one statement ends and the next begins.

use ahash::AHashSet;

use super::group::{Group, Purpose};
use super::image::moved;
use crate::change::{Change, Key, Operation};

/// Consecutive changes of the stream that one statement can write: of one table and one kind, with distinct keys.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct OrderedRun<'a> {
    group: Option<Group<'a>>,
    keys: AHashSet<&'a Key>,
}

impl<'a> OrderedRun<'a> {
    /// Takes the change, or gives back what must be written before it can be taken.
    pub(in crate::agent_db::apply) fn offer(&mut self, change: &'a Change, heal: bool) -> Option<Group<'a>> {
        let one = Group::of_one(change, heal);
        let old = moved(change).map(|(old, _)| old);
        if let Some(group) = &mut self.group {
            let is_known = match &change.operation {
                // A row that another update has made.
                Operation::ReplaceOne(replaced) => self.keys.contains(&replaced.old.key),
                _ if one.takes_equal_rows() => false,
                _ => self.keys.contains(&change.key) || old.is_some_and(|old| self.keys.contains(old)),
            };
            if is_known || !group.is_like(&one) {
                return self.take();
            }
            group.rows.extend(one.rows);
        } else {
            self.group = Some(one);
        }
        self.keys.insert(&change.key);
        self.keys.extend(old);
        None
    }

    /// Whether the run is about to heal a key of the change. Only after that it is known whether the key is still parked.
    pub(in crate::agent_db::apply) fn is_healing(&self, change: &Change) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| group.purpose == Purpose::Heal && group.relation.table == change.relation.table)
            && (self.keys.contains(&change.key) || moved(change).is_some_and(|(old, _)| self.keys.contains(old)))
    }

    /// What is left to be written.
    pub(in crate::agent_db::apply) fn take(&mut self) -> Option<Group<'a>> {
        self.keys.clear();
        self.group.take()
    }
}
