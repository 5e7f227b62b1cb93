//! Merging a chunk of counted rows with the changes that its read did not see: pure.
//!
//! Numbers add up, in whatever order. At the high fence a row is there as often as the snapshot saw it, plus the inserts and
//! minus the deletes of the transactions between the fences that the snapshot did not see. So nothing has to be read again.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Change, Key, Operation, Origin, Relation, Row};

/// One count for each row that was read.
pub(super) fn merge(relation: &Arc<Relation>, rows: Vec<Row>, counts: &[u64], unseen: &[&Change]) -> Vec<Change> {
    let mut came: HashMap<&Key, i64> = HashMap::new();
    for change in unseen {
        *came.entry(&change.key).or_default() += match &change.operation {
            Operation::Insert(_) => 1,
            Operation::DeleteOne(_) => -1,
            // An update is seen as its two parts.
            Operation::Update { .. } | Operation::Delete | Operation::Count { .. } | Operation::ReplaceOne(_) => 0,
        };
    }
    rows.into_iter()
        .zip(counts)
        .filter_map(|(row, seen)| {
            // Every value was read, so the row has its digest.
            let key = relation.key_of(&row)?;
            let rows = seen.saturating_add_signed(came.get(&key).copied().unwrap_or_default());
            Some(Change {
                relation: Arc::clone(relation),
                key,
                operation: Operation::Count { row, rows },
                origin: Origin::Chunk,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{ColumnValue, RelationId, RowKey, TableName};

    fn relation() -> Arc<Relation> {
        Arc::new(Relation {
            id: RelationId(1),
            table: TableName::new("public", "t"),
            columns: ["v"].map(Arc::from).into(),
            key: RowKey::WholeRow,
        })
    }

    fn row(value: u8) -> Row {
        Row([ColumnValue::Text(Bytes::from(value.to_string()))].into())
    }

    proptest! {
        /// The table's history: a number of each row, then inserts and deletes, of which the snapshot saw some.
        #[test]
        fn a_count_is_right_whatever_the_snapshot_saw(
            start in prop::collection::vec(0_u64..4, 3),
            history in prop::collection::vec((0_u8..3, any::<bool>(), any::<bool>()), 0..20),
        ) {
            let relation = relation();
            let (mut seen, mut end) = (start.clone(), start);
            let mut changes = Vec::new();
            for (value, insert, is_seen) in history {
                let at = usize::from(value);
                if !insert && (end[at] == 0 || (is_seen && seen[at] == 0)) {
                    continue;
                }
                let step = if insert { 1 } else { -1 };
                end[at] = end[at].saturating_add_signed(step);
                if is_seen {
                    seen[at] = seen[at].saturating_add_signed(step);
                } else {
                    let row = row(value);
                    changes.push(Change {
                        relation: Arc::clone(&relation),
                        key: relation.key_of(&row).unwrap(),
                        operation: if insert { Operation::Insert(row) } else { Operation::DeleteOne(row) },
                        origin: Origin::Stream,
                    });
                }
            }
            let unseen: Vec<&Change> = changes.iter().collect();
            let merged = merge(&relation, (0..3).map(row).collect(), &seen, &unseen);
            let counts: Vec<u64> = merged
                .iter()
                .map(|change| match &change.operation {
                    Operation::Count { rows, .. } => *rows,
                    other => panic!("{other:?}"),
                })
                .collect();
            // What was never seen and is deleted again is not below nothing.
            prop_assert_eq!(counts, end);
        }
    }
}
