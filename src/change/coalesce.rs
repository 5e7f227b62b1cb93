//! Folds a key's changes into one, column by column, so that an unchanged TOAST value is never lost and a partial
//! image never becomes an insert (pitfalls P19, P20).

use super::{ColumnValue, Operation, Row};

/// A key's changes, folded into one. A change of the key itself is never folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coalesced {
    /// The row's full image: insert it, or overwrite the existing row.
    Upsert(Row),
    /// Columns to set on a row that must exist; those `Unchanged` stay.
    Partial(Row),
    /// The row is gone.
    Delete,
    /// The number of rows that equal this one has changed.
    Count(Row),
}

impl Coalesced {
    /// The first change of a key. The operation must not change the key.
    #[must_use]
    pub fn new(operation: Operation) -> Self {
        match operation {
            Operation::Insert(row) => Self::Upsert(row),
            Operation::Update { row, .. } if row.is_full() => Self::Upsert(row),
            Operation::Update { row, .. } => Self::Partial(row),
            Operation::Delete => Self::Delete,
            Operation::DeleteOne(row) | Operation::Count { row, .. } => Self::Count(row),
            // Its parts are folded, each under its own key.
            Operation::ReplaceOne(replaced) => Self::new(replaced.new.operation),
        }
    }

    /// Folds the key's next change in. Returns it if it can't be folded: a partial image after a delete has no base here and
    /// must be applied by itself.
    ///
    /// # Errors
    /// The later change, unfolded; `self` is as it was.
    pub fn fold(&mut self, later: Operation) -> Result<(), Operation> {
        let later_folded = match later {
            Operation::Update { row, old_key } if !row.is_full() => match self {
                Self::Upsert(base) | Self::Partial(base) => {
                    overlay(base, row);
                    return Ok(());
                }
                Self::Delete | Self::Count(_) => return Err(Operation::Update { row, old_key }),
            },
            other => Self::new(other),
        };
        *self = later_folded;
        Ok(())
    }
}

/// Replaces the columns of the earlier image that the later image has.
pub fn overlay(earlier: &mut Row, later: Row) {
    for (base, value) in earlier.0.iter_mut().zip(later.0) {
        if value != ColumnValue::Unchanged {
            *base = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = ColumnValue> {
        prop_oneof![
            Just(ColumnValue::Null),
            Just(ColumnValue::Unchanged),
            "[a-c]{0,2}".prop_map(|text| ColumnValue::Text(Bytes::from(text))),
        ]
    }

    fn known() -> impl Strategy<Value = ColumnValue> {
        value().prop_filter("known", |value| *value != ColumnValue::Unchanged)
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            prop::collection::vec(known(), 3).prop_map(|row| Operation::Insert(Row(row.into()))),
            prop::collection::vec(value(), 3).prop_map(|row| Operation::Update {
                old_key: None,
                row: Row(row.into())
            }),
            Just(Operation::Delete),
        ]
    }

    /// The table as a database would hold it: a partial update of a missing row changes nothing.
    fn apply(state: &mut Option<Row>, operation: Operation) {
        match Coalesced::new(operation) {
            Coalesced::Upsert(row) => *state = Some(row),
            Coalesced::Partial(row) => {
                if let Some(base) = state {
                    overlay(base, row);
                }
            }
            Coalesced::Delete | Coalesced::Count(_) => *state = None,
        }
    }

    proptest! {
        #[test]
        fn folding_then_applying_equals_applying_one_by_one(
            start in prop::option::of(prop::collection::vec(known(), 3).prop_map(|row| Row(row.into()))),
            operations in prop::collection::vec(operation(), 1..8),
        ) {
            let (mut one_by_one, mut folded) = (start.clone(), start);
            let mut pending: Option<Coalesced> = None;
            let flush = |state: &mut Option<Row>, pending: Coalesced| match pending {
                Coalesced::Upsert(row) => *state = Some(row),
                Coalesced::Partial(row) => {
                    if let Some(base) = state { overlay(base, row) }
                }
                Coalesced::Delete | Coalesced::Count(_) => *state = None,
            };
            for operation in operations {
                apply(&mut one_by_one, operation.clone());
                match &mut pending {
                    None => pending = Some(Coalesced::new(operation)),
                    Some(current) => {
                        if let Err(operation) = current.fold(operation) {
                            flush(&mut folded, pending.replace(Coalesced::new(operation)).unwrap());
                        }
                    }
                }
            }
            if let Some(pending) = pending { flush(&mut folded, pending) }
            prop_assert_eq!(one_by_one, folded);
        }
    }
}
