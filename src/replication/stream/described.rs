//! Whether the stream describes a table's columns as the catalog has them now. Pure.
//!
//! A column that was renamed, and renamed back before anybody looked, leaves no trace in the catalog. But the changes that
//! were made meanwhile carry its value under another name, or leave it out; and before the first of them the stream
//! describes the table with that name. So the description is the trace.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::change::{RelationId, TableName};
use crate::pgoutput::RelationMessage;
use crate::source::SourceTable;

/// The columns of each table, in the catalog's order, with the OIDs of their types.
#[derive(Debug)]
pub(in crate::replication) struct CatalogColumns(HashMap<RelationId, Vec<(Arc<str>, u32)>>);

impl CatalogColumns {
    /// The columns that the start of the run has found.
    pub(in crate::replication) fn of(tables: &BTreeMap<TableName, SourceTable>) -> Self {
        let columns = |table: &SourceTable| {
            table
                .columns
                .iter()
                .cloned()
                .zip(table.type_ids.iter().copied())
                .collect()
        };
        Self(tables.values().map(|table| (table.id, columns(table))).collect())
    }

    /// Whether changes under this description bring the value of every column that the table has now. Columns that it does
    /// not have any more do no harm.
    pub(in crate::replication) fn are_all_in(&self, message: &RelationMessage) -> bool {
        let Some(columns) = self.0.get(&message.id) else {
            return true;
        };
        // A column's place never changes: two columns in another order have swapped their names.
        let mut described = message.columns.iter();
        columns
            .iter()
            .all(|(name, kind)| described.any(|column| column.name == *name && column.type_oid == *kind))
    }

    /// Whether this description is the present one: not of a time before columns were renamed, added or dropped.
    pub(in crate::replication) fn are_those_of(&self, message: &RelationMessage) -> bool {
        self.are_all_in(message)
            && self
                .0
                .get(&message.id)
                .is_some_and(|columns| columns.len() == message.columns.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::{Column, ReplicaIdentity};

    fn message(columns: &[(&str, u32)]) -> RelationMessage {
        let column = |&(name, type_oid): &(&str, u32)| Column {
            part_of_key: false,
            name: name.into(),
            type_oid,
            type_modifier: -1,
        };
        RelationMessage {
            id: RelationId(7),
            table: TableName::new("public", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    #[test]
    fn a_description_without_a_column_of_now_is_told_from_one_with_more() {
        let now = vec![("id".into(), 23), ("a".into(), 25), ("b".into(), 25)];
        let known = CatalogColumns(HashMap::from([(RelationId(7), now)]));
        let whole = |columns: &[(&str, u32)]| known.are_all_in(&message(columns));
        assert!(whole(&[("id", 23), ("a", 25), ("b", 25)]));
        let dropped = [("id", 23), ("dropped", 16), ("a", 25), ("b", 25)];
        assert!(whole(&dropped) && !known.are_those_of(&message(&dropped)));
        assert!(!whole(&[("id", 23), ("other", 25), ("b", 25)]), "renamed");
        assert!(!whole(&[("id", 23), ("b", 25), ("a", 25)]), "swapped");
        assert!(!whole(&[("id", 23), ("a", 1043), ("b", 25)]), "another type");
        assert!(!whole(&[("id", 23), ("a", 25)]), "not published");
    }
}
