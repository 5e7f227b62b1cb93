//! A table of the Site DB: how the stream describes it, and what is stored about it over a restart. Shared by the modules of
//! both databases.

use std::sync::Arc;

use super::{RelationId, TableName};

/// A table as the source's stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// Its OID in the Site DB.
    pub id: RelationId,
    /// The table.
    pub table: TableName,
    /// Its published columns, in the order of the row images.
    pub columns: Vec<Arc<str>>,
    /// How the stream identifies the old row of an update or a delete.
    pub identity: Identity,
    /// What the Site DB's catalog says beyond that.
    pub facts: Arc<SourceFacts>,
}

/// What the Site DB's catalog says about a table, and the stream does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceFacts {
    /// The columns of each unique index that has a place for every row: neither partial nor over expressions, and none
    /// of its columns can be NULL.
    pub unique: Vec<Vec<Arc<str>>>,
    /// The columns that are NOT NULL.
    pub not_null: Vec<Arc<str>>,
}

/// A table's replica identity in the Site DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The whole old row.
    Full,
    /// These positions in the columns (DEFAULT or INDEX). Empty (NOTHING, a DEFAULT without a primary key, an INDEX that was
    /// dropped) where rows are only ever inserted: the source itself refuses the rest.
    Columns(Vec<usize>),
}

/// What is stored about a table when it is copied. If this differs later, the stream may have missed changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its OID: a table that was dropped and created again has another.
    pub oid: u32,
    /// A text about its entry in the publication and the published operations: a table that was removed and added again has
    /// another entry, and has missed the changes between.
    pub membership: String,
    /// Its published columns with their types.
    pub columns: Vec<String>,
    /// The publication's row filter.
    pub row_filter: Option<String>,
}

impl Shape {
    /// Why rows that were copied with this shape can't be used with the new one; `None` if they can. Dropped columns do no
    /// harm; an added one, or one with a new type, has values that the stream never sent.
    #[must_use]
    pub fn outdated_by(&self, now: &Self) -> Option<&'static str> {
        if self.oid != now.oid {
            Some("it was created anew")
        } else if self.membership != now.membership {
            Some("it left the publication for a while, or the publication sends other changes")
        } else if self.row_filter != now.row_filter {
            Some("its row filter is another one")
        } else if now.columns.iter().any(|column| !self.columns.contains(column)) {
            Some("it has another column, or one of another type")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            oid: 7,
            membership: "1:2:tttt".to_owned(),
            columns: vec!["id bigint".to_owned(), "n int".to_owned()],
            row_filter: None,
        }
    }

    #[test]
    fn only_what_makes_a_stream_miss_rows_outdates_a_copy() {
        let outdated = |change: fn(&mut Shape)| {
            let mut now = shape();
            change(&mut now);
            shape().outdated_by(&now).is_some()
        };
        assert!(outdated(|now| now.oid = 8));
        assert!(outdated(|now| now.membership = "1:3:tttt".to_owned()));
        assert!(outdated(|now| now.row_filter = Some("(n > 0)".to_owned())));
        assert!(outdated(|now| now.columns.push("more text".to_owned())));
        assert!(outdated(|now| now.columns[1] = "n bigint".to_owned()));
        assert!(!outdated(|now| now.columns.reverse()), "the order is nothing");
        assert!(!outdated(|now| now.columns.truncate(1)), "less is there already");
        assert!(!outdated(|_| {}));
    }
}
