//! Which rows refer to rows that are not there, or are referred to by rows that are not right.

use std::collections::HashSet;

use ahash::AHashSet;

use super::rows::{Refused, RowsOfTable, by_table, image};
use crate::agent_db::apply::sql::{self, TextArray};
use crate::agent_db::apply::write::writer::{Constraints, Writer};
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::catalog::ForeignKey;
use crate::agent_db::error::AgentError;
use crate::change::{Change, ColumnValue, Key, Row};

/// The references that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum References {
    /// All.
    All,
    /// Those by which the removal of a row removes others, and changes or removes further rows with them.
    Cascading,
}

impl Writer {
    /// Why rows can't be written at once: with a row that goes, the database would remove rows to which others refer, and
    /// which the Site DB may keep.
    pub(super) async fn would_cascade(&mut self, rows: &[&Change]) -> Result<Option<Refused>, AgentError> {
        let found = self.referenced_deletes(&by_table(rows), References::Cascading).await?;
        Ok(found.into_iter().next().map(|(_, refused)| refused))
    }

    /// Rows that refer to a row that is neither there nor among the rows, and rows to be deleted to which a parked row
    /// refers that is not among the rows.
    pub(super) async fn dependent<'e>(
        &mut self,
        rows: &[&'e Change],
    ) -> Result<Vec<(&'e Change, Refused)>, AgentError> {
        let tables = by_table(rows);
        let mut found = self.without_parent(&tables).await?;
        found.extend(self.referenced_deletes(&tables, References::All).await?);
        let mut seen: HashSet<*const Change> = HashSet::new();
        found.retain(|(row, _)| seen.insert(std::ptr::from_ref(*row)));
        Ok(found)
    }

    async fn without_parent<'e>(
        &mut self,
        tables: &[RowsOfTable<'e>],
    ) -> Result<Vec<(&'e Change, Refused)>, AgentError> {
        let mut found = Vec::new();
        for table in tables.iter().filter(|table| !table.upserts.is_empty()) {
            let child = self.target(table.relation).await?;
            let Constraints::Checked(foreign_keys) = &self.constraints else {
                return Ok(found);
            };
            let keys: Vec<ForeignKey> = foreign_keys.of_child(&table.relation.table).cloned().collect();
            let images: Vec<&Row> = table.upserts.iter().filter_map(|change| image(change)).collect();
            for key in &keys {
                let Some((sql, positions)) = sql::missing_parents(&child, key) else {
                    continue;
                };
                let parameters = positions
                    .iter()
                    .map(|&column| TextArray::Column { rows: &images, column });
                let missing = self.ordinals(&sql, parameters.collect(), &key.child).await?;
                let provided = provided(tables, key);
                for row in missing.into_iter().filter_map(|position| table.upserts.get(position)) {
                    let wanted = image(row).and_then(|image| values(image, &positions));
                    if wanted.is_some_and(|wanted| !provided.contains(&wanted)) {
                        found.push((*row, Refused::by_reference(ParkReason::parent_missing(&key.name))));
                    }
                }
            }
        }
        Ok(found)
    }

    async fn referenced_deletes<'e>(
        &mut self,
        tables: &[RowsOfTable<'e>],
        which: References,
    ) -> Result<Vec<(&'e Change, Refused)>, AgentError> {
        let mut found = Vec::new();
        for table in tables.iter().filter(|table| !table.deletes.is_empty()) {
            let parent = self.target(table.relation).await?;
            let Constraints::Checked(foreign_keys) = &self.constraints else {
                return Ok(found);
            };
            let deleted: Vec<&Key> = table.deletes.iter().map(|change| &change.key).collect();
            for key in foreign_keys.of_parent(&table.relation.table) {
                if which == References::Cascading && !foreign_keys.cascades_further(key) {
                    continue;
                }
                let written: AHashSet<&Key> = tables
                    .iter()
                    .filter(|other| other.relation.table == key.child)
                    .flat_map(RowsOfTable::keys)
                    .collect();
                let stale: Vec<&Key> = self
                    .parked
                    .keys(&key.child)
                    .filter(|parked| !written.contains(parked))
                    .collect();
                for position in self.referenced(&parent, key, &deleted, &stale).await? {
                    if let Some(row) = table.deletes.get(position) {
                        found.push((*row, Refused::by_reference(ParkReason::still_referenced(&key.name))));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The values of some columns; `None` if one of them is NULL.
fn values(row: &Row, positions: &[usize]) -> Option<Key> {
    positions
        .iter()
        .map(|&position| match row.0.get(position) {
            Some(ColumnValue::Text(text)) => Some(text.clone()),
            _ => None,
        })
        .collect::<Option<_>>()
        .map(Key)
}

/// The values of the referenced columns that rows to be written bring.
fn provided(tables: &[RowsOfTable<'_>], key: &ForeignKey) -> AHashSet<Key> {
    let mut provided = AHashSet::new();
    for table in tables.iter().filter(|table| table.relation.table == key.parent) {
        let positions: Option<Vec<usize>> = key
            .referenced
            .iter()
            .map(|name| table.relation.columns.iter().position(|column| **column == *name))
            .collect();
        let Some(positions) = positions else { continue };
        let images = table.upserts.iter().filter_map(|change| image(change));
        provided.extend(images.filter_map(|row| values(row, &positions)));
    }
    provided
}
