//! A table of the Site DB: what is needed to read it, to look it up in the Agent DB, and to notice that it was changed
//! or recreated.

use std::sync::Arc;

use crate::change::{Identity, Marks, Relation, RelationId, Shape, SourceFacts, TableDescription, TableName};
use crate::postgres::keys::{is_spelled_one_way, spelled_as};
use crate::postgres::{Condition, ConditionError, quote_identifier};

/// A table of the Site DB, as the publication shows it.
#[derive(Debug, Clone)]
pub struct SourceTable {
    /// The table's OID, which the stream uses as its id.
    pub id: RelationId,
    /// Schema and name at the time of the query.
    pub table: TableName,
    /// Published columns in the stream's order, never generated ones.
    pub columns: Vec<Arc<str>>,
    /// Types of the columns, without their modifiers (`numeric`, not `numeric(10,2)`), ready for a cast.
    pub types: Vec<String>,
    /// OIDs of the columns' types.
    pub type_ids: Vec<u32>,
    /// For each column, whether its collation is deterministic: only equal texts are equal.
    pub deterministic: Vec<bool>,
    /// Types of the columns as declared, with their modifiers.
    pub declared: Vec<String>,
    /// A text about the table's entry in the publication and the published operations; it differs after the table was
    /// removed from the publication and added again.
    pub membership: String,
    /// Traces of what the log does not carry.
    pub marks: Marks,
    /// How the stream identifies the old row of an update or a delete.
    pub identity: Identity,
    /// What else the catalog says about its keys.
    pub facts: Arc<SourceFacts>,
    /// Schemas of the operators of its unique indexes, `pg_catalog` left out.
    pub operators: Vec<String>,
    /// The publication's row filter, an SQL condition.
    pub row_filter: Option<String>,
    /// Whether it is a partitioned table that is published as a whole.
    pub partitioned: bool,
    /// The planner's estimate of its rows, for progress bars; -1 if it was never analysed.
    pub estimated_rows: i64,
}

impl SourceTable {
    /// Whether nothing has changed that matters to how the table is streamed and copied. (The estimate of its rows does
    /// not; the marks only say that it has to be read again.)
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.id == other.id
            && self.columns == other.columns
            && self.declared == other.declared
            && self.membership == other.membership
            && self.identity == other.identity
            && self.facts == other.facts
            && self.row_filter == other.row_filter
            && self.partitioned == other.partitioned
    }

    /// Whether equal keys always have the same spelling.
    #[must_use]
    pub fn spells_keys_alike(&self, relation: &Relation) -> bool {
        self.key_places(relation)
            .filter_map(|at| Some((*self.deterministic.get(at)?, self.types.get(at)?)))
            .all(|(deterministic, kind)| deterministic && is_spelled_one_way(kind))
    }

    /// Whether the Agent DB, where the key's columns have these types (without length), spells the same keys as this table does.
    #[must_use]
    pub fn spells_keys_as(&self, relation: &Relation, agent: &[String]) -> bool {
        let here = self.key_places(relation).filter_map(|at| self.types.get(at));
        here.map(String::as_str)
            .map(spelled_as)
            .eq(agent.iter().map(String::as_str).map(spelled_as))
    }

    /// The places of the key's columns in [`columns`](Self::columns), in key order.
    fn key_places(&self, relation: &Relation) -> impl Iterator<Item = usize> {
        let names = relation.key_columns();
        names.filter_map(|name| self.columns.iter().position(|column| **column == *name))
    }

    /// The table as it stands in FROM. `ONLY`, since the rows of tables that inherit from this one are published as their
    /// own.
    pub(super) fn from(&self) -> String {
        if self.partitioned {
            self.table.quoted()
        } else {
            format!("ONLY {}", self.table.quoted())
        }
    }

    /// The conditions that a row must meet: the publication's row filter, and this one.
    ///
    /// # Errors
    /// The condition names a column that is not published.
    pub(super) fn filters(&self, condition: Option<&Condition>) -> Result<Vec<String>, ConditionError> {
        let condition = condition.map(|condition| self.condition(condition)).transpose()?;
        Ok(self
            .row_filter
            .iter()
            .cloned()
            .chain(condition)
            .map(|filter| format!("({filter})"))
            .collect())
    }

    /// A condition as SQL for this table, whose alias is `t`.
    ///
    /// # Errors
    /// It names a column that is not published.
    pub fn condition(&self, condition: &Condition) -> Result<String, ConditionError> {
        condition.to_sql(&self.table, |name| {
            let at = self.columns.iter().position(|column| **column == *name)?;
            let (kind, declared) = (self.types.get(at)?, self.declared.get(at)?);
            // A literal is not read as a domain: its check may be any function of its owner's, and would run with our rights.
            let stored = self.facts.types.iter().find(|(column, _)| **column == *name);
            let base = stored
                .filter(|(_, stored)| stored != declared)
                .map(|(_, stored)| &**stored);
            Some(base.unwrap_or(kind))
        })
    }

    /// What is stored about the table, to notice after a restart that it has changed.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let columns = self.columns.iter().zip(&self.declared);
        Shape {
            oid: self.id.0,
            membership: self.membership.clone(),
            columns: columns
                .map(|(name, kind)| format!("{} {kind}", quote_identifier(name)))
                .collect(),
            row_filter: self.row_filter.clone(),
            marks: Some(self.marks.clone()),
        }
    }

    /// The table as a relation message of the stream will name it.
    #[must_use]
    pub fn description(&self) -> TableDescription {
        TableDescription {
            id: self.id,
            table: self.table.clone(),
            columns: self.columns.clone(),
            identity: self.identity.clone(),
            facts: Arc::clone(&self.facts),
        }
    }
}

/// Names (quoted) and types of the key's columns.
pub(super) fn key_columns(table: &SourceTable, relation: &Relation) -> Vec<(String, String)> {
    relation
        .key_positions()
        .iter()
        .filter_map(|&index| {
            let name = relation.columns.get(index)?;
            let at = table.columns.iter().position(|column| column == name)?;
            Some((quote_identifier(name), table.types.get(at)?.clone()))
        })
        .collect()
}
