//! What the changes of equal rows come to, where rows are counted: inserts and deletes cancel each other.

use super::offer::Offer;
use crate::agent_db::apply::sql::StatementKind;
use crate::change::{Change, Operation, Row};

/// The statement for a change of a counted row, and the row; `None` for operations of rows that have a key.
pub(super) fn counted(operation: &Operation) -> Option<(StatementKind, &Row)> {
    match operation {
        Operation::Insert(row) => Some((StatementKind::Insert, row)),
        Operation::DeleteOne(row) => Some((StatementKind::DeleteOne, row)),
        Operation::Count { row, .. } => Some((StatementKind::Count, row)),
        Operation::ReplaceOne(replaced) => Some((StatementKind::UpdateOne, replaced.new.operation.row()?)),
        Operation::Update { .. } | Operation::Delete => None,
    }
}

/// Changes of rows that equal each other, in one plan: all inserts, or all deletes, or one count.
#[derive(Debug)]
pub(super) struct CountedRow<'a> {
    /// `None` once all are cancelled.
    first: Option<&'a Change>,
    more: Vec<&'a Change>,
}

impl<'a> CountedRow<'a> {
    pub(super) const fn new(change: &'a Change) -> Self {
        Self {
            first: Some(change),
            more: Vec::new(),
        }
    }

    /// Offers the next change of such a row.
    pub(super) fn offer(&mut self, change: &'a Change) -> Offer<'a> {
        let is_count = |change: &Change| matches!(change.operation, Operation::Count { .. });
        let Some(first) = self.first else {
            self.first = Some(change);
            return Offer::Taken;
        };
        if is_count(first) || is_count(change) {
            return Offer::WriteFirst;
        }
        if std::mem::discriminant(&first.operation) == std::mem::discriminant(&change.operation) {
            self.more.push(change);
            return Offer::Taken;
        }
        match self.more.pop() {
            Some(last) => Offer::Cancelled(last),
            None => {
                self.first = None;
                Offer::Cancelled(first)
            }
        }
    }

    /// What is to be written.
    pub(super) fn changes(&self) -> impl Iterator<Item = &'a Change> {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}
