//! What both databases' rooms say to each other about a table of the Site DB: how the stream describes it, and what of it is
//! remembered over a restart.

use std::sync::Arc;

use super::{RelationId, TableName};

/// A table as the source's stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// The stream's name for it.
    pub id: RelationId,
    /// The table.
    pub table: TableName,
    /// Its published columns, in the order of the row images.
    pub columns: Vec<Arc<str>>,
    /// By what the source identifies the old row of an update or a delete.
    pub identity: Identity,
}

/// A table's replica identity in the Site DB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The whole old row.
    Full,
    /// These positions in the columns (DEFAULT or INDEX). Empty (NOTHING) where rows are only ever inserted: the source
    /// itself refuses the rest.
    Columns(Vec<usize>),
}

/// A table of the Site DB, as far as a stream that goes on over its changes would miss rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its OID: one that was dropped and created anew has another.
    pub oid: u32,
    /// By what it is a member of the publication, and what that sends: a table that was taken out and put back has another
    /// entry, and missed the changes between.
    pub membership: String,
    /// Its published columns with their types.
    pub columns: Vec<String>,
    /// The publication's row filter.
    pub row_filter: Option<String>,
}

impl Shape {
    /// Why rows that were copied under this shape do not do under the new one; `None` where they do. Columns that went
    /// take nothing away; one that came (or changed its type) has values that no change brought.
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
