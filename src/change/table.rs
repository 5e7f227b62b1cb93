//! A table of the Site DB as the stream describes it. Shared by the modules of both databases.

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
    /// The columns that are not published.
    pub unsent: Vec<Arc<str>>,
    /// The columns with the types in which their values are stored: with their lengths, domains as what they stand for.
    pub types: Vec<(Arc<str>, String)>,
    /// The published columns with the type of each as it is declared.
    pub declared: Vec<(Arc<str>, String)>,
    /// Of the published columns with types of users' own: the types that these are made of, in the order of their places.
    pub parts: Vec<(Arc<str>, Vec<String>)>,
    /// The foreign keys whose actions delete or change rows of the table.
    pub acting_keys: Vec<String>,
    /// The columns of the replica identity that are not published. The rest of it may be the same in several rows.
    pub unsent_identity: Vec<Arc<str>>,
    /// Whether one of those is generated: old rows come, and lack it. (Else rows are only inserted: the source refuses updates
    /// where a column list leaves a part of the identity out.)
    pub generated_identity: bool,
    /// The published columns that old rows bring whatever the partition, where some partitions bring less than the table's own
    /// replica identity; else `None`. They may be the same in several rows.
    pub old_rows: Option<Vec<Arc<str>>>,
    /// Some of those partitions, quoted.
    pub narrower_partitions: Vec<String>,
    /// The published columns whose collation takes different texts as equal.
    pub nondeterministic: Vec<Arc<str>>,
}

impl SourceFacts {
    /// What old rows bring of a table with these columns, where this is the identity of the table itself.
    #[must_use]
    pub fn identity(&self, own: Identity, columns: &[Arc<str>]) -> Identity {
        match &self.old_rows {
            Some(names) => Identity::of(columns, |name| names.contains(name)),
            None => own,
        }
    }

    /// Whether the replica identity, as far as it is sent, tells rows apart.
    #[must_use]
    pub const fn identity_is_unique(&self) -> bool {
        self.unsent_identity.is_empty() && self.old_rows.is_none()
    }
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

impl Identity {
    /// The columns, of these, that belong to it.
    #[must_use]
    pub fn of(columns: &[Arc<str>], belongs: impl Fn(&Arc<str>) -> bool) -> Self {
        let positions = columns.iter().enumerate().filter(|(_, name)| belongs(name));
        Self::Columns(positions.map(|(position, _)| position).collect())
    }

    /// Whether nothing identifies old rows, so that rows are only inserted.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        match self {
            Self::Full => false,
            Self::Columns(columns) => columns.is_empty(),
        }
    }
}
