//! The result of a row's changes: one change as it is, or several changes of a key folded into one.

use crate::change::{Change, Coalesced, Key, Operation, Row};

/// What a statement writes for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image<'e> {
    /// The row's full image.
    Upsert(&'e Row),
    /// Columns to set on a row that must exist.
    Partial(&'e Row),
    /// The row is gone.
    Delete,
}

/// The image of an operation that keeps its key.
pub(super) fn image(operation: &Operation) -> Image<'_> {
    match operation {
        Operation::Insert(row) => Image::Upsert(row),
        Operation::Update { row, .. } if row.is_full() => Image::Upsert(row),
        Operation::Update { row, .. } => Image::Partial(row),
        // Where rows are counted, `counted` decides.
        Operation::Delete | Operation::DeleteOne(_) | Operation::Count { .. } | Operation::ReplaceOne(_) => {
            Image::Delete
        }
    }
}

/// The old key and the new image, where a change moves a row to another key.
pub(in crate::agent_db::apply) fn moved(change: &Change) -> Option<(&Key, &Row)> {
    match &change.operation {
        Operation::Update {
            old_key: Some(old),
            row,
        } if *old != change.key => Some((old, row)),
        _ => None,
    }
}

/// All changes of one key in a plan, folded into one.
#[derive(Debug)]
pub(in crate::agent_db::apply) struct FoldedChanges<'a> {
    folded: Folded<'a>,
    /// The newest of them: it is counted, or parked if it is refused.
    pub last: &'a Change,
    /// The oldest of them was an insert: the row should not exist yet.
    pub is_new: bool,
}

#[derive(Debug)]
enum Folded<'a> {
    /// One change replaces all earlier ones: nothing is copied.
    One(&'a Operation),
    /// A partial image was laid over an earlier one.
    Many(Coalesced),
}

impl<'a> FoldedChanges<'a> {
    /// The first change of a key. It must not change the key.
    pub(super) fn new(change: &'a Change) -> Self {
        Self {
            folded: Folded::One(&change.operation),
            last: change,
            is_new: matches!(change.operation, Operation::Insert(_)),
        }
    }

    /// The result of the changes.
    pub(super) fn image(&self) -> Image<'_> {
        match &self.folded {
            Folded::One(operation) => image(operation),
            Folded::Many(Coalesced::Upsert(row)) => Image::Upsert(row),
            Folded::Many(Coalesced::Partial(row)) => Image::Partial(row),
            Folded::Many(Coalesced::Delete | Coalesced::Count(_)) => Image::Delete,
        }
    }

    /// Folds the key's next change in; returns the change that was the newest before. `None` if they can't be folded:
    /// a partial image after a delete has no base here.
    pub(super) fn fold(&mut self, change: &'a Change) -> Option<&'a Change> {
        if matches!(image(&change.operation), Image::Partial(_)) {
            if self.image() == Image::Delete {
                return None;
            }
            let mut folded = match std::mem::replace(&mut self.folded, Folded::One(&change.operation)) {
                Folded::One(operation) => Coalesced::new(operation.clone()),
                Folded::Many(folded) => folded,
            };
            // It is refused only after a delete, which was excluded above.
            if folded.fold(change.operation.clone()).is_ok() {
                self.folded = Folded::Many(folded);
            }
        } else {
            self.folded = Folded::One(&change.operation);
        }
        Some(std::mem::replace(&mut self.last, change))
    }
}
