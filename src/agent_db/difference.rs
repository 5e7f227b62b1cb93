//! Where the Agent DB differs from what it should hold: the result of a comparison.

use std::sync::Arc;

use crate::change::{Key, Row};

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, in the Agent DB's spelling where it has the row. Where rows are counted: the digest of the row.
    pub key: Key,
    /// Where rows are counted: the row.
    pub row: Option<Row>,
    /// In what it differs.
    pub kind: DifferenceKind,
}

/// In what a row differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The Agent DB has so many rows too few: one, but where rows are counted.
    Missing(u64),
    /// The Agent DB has so many rows too many.
    Extra(u64),
    /// These columns are other than they should be.
    Columns(Vec<Arc<str>>),
}

/// The result of a comparison.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Where the Agent DB differs, in the order of what was compared.
    pub differences: Vec<Difference>,
    /// Keys that are parked: these were not compared.
    pub parked: u64,
}

impl Difference {
    /// How many rows it is about.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        match &self.kind {
            DifferenceKind::Missing(rows) | DifferenceKind::Extra(rows) => *rows,
            DifferenceKind::Columns(_) => 1,
        }
    }
}
