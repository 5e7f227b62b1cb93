//! What rows must be once deferred triggers have fired.

use std::sync::Arc;

use ahash::AHashMap;

use crate::agent_db::apply::plan::{Group, present};
use crate::agent_db::apply::sql::{StatementKind, Written};
use crate::agent_db::catalog::Target;
use crate::change::{Key, Row, overlay};

/// The rows of a segment that deferred triggers may still change.
#[derive(Debug, Default)]
pub(in crate::agent_db::apply) struct LateRows {
    pub(super) tables: Vec<LateTable>,
    /// Such triggers may fire with the next check.
    pub(super) fires: bool,
}

/// Rows of one table.
#[derive(Debug)]
pub(super) struct LateTable {
    pub(super) target: Arc<Target>,
    /// What is known of each row, by its key; `None`: it is not there.
    rows: AHashMap<Key, Option<Row>>,
}

impl LateRows {
    /// Nothing of it is there any more, or all was looked at.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds what a group's statement has written; what was written before under the same keys does not count any more.
    pub(super) fn add(&mut self, group: &Group<'_>, target: &Arc<Target>) {
        let place = self.tables.iter().position(|table| Arc::ptr_eq(&table.target, target));
        let place = place.unwrap_or_else(|| {
            self.tables.push(LateTable {
                target: Arc::clone(target),
                rows: AHashMap::new(),
            });
            self.tables.len() - 1
        });
        let mut table = self.tables.swap_remove(place);
        // Of another version of the table, with other columns.
        let name = &target.relation.table;
        let mut others: Vec<_> = self.tables.iter_mut().collect();
        others.retain(|other| other.target.relation.table == *name);
        // A key that is not there may be another spelling of one that is.
        let is_absence_known = target.spells_keys_alike();
        for write in &group.rows {
            let key = if group.moves() { &write.change.key } else { write.key };
            for other in &mut others {
                other.rows.remove(write.key);
                other.rows.remove(key);
            }
            let before = table.rows.remove(write.key).flatten();
            if is_absence_known && write.key != key {
                table.rows.insert(write.key.clone(), None);
            }
            let now = write.row.map(|row| match before {
                Some(mut before) => {
                    overlay(&mut before, row.clone());
                    before
                }
                None => row.clone(),
            });
            if now.is_some() || is_absence_known {
                table.rows.insert(key.clone(), now);
            } else {
                table.rows.remove(key);
            }
        }
        self.tables.push(table);
    }
}

impl LateTable {
    /// The looks at the rows, with the rows of each.
    pub(super) fn looks(&self) -> AHashMap<StatementKind, (Vec<&Key>, Vec<&Row>)> {
        let mut looks: AHashMap<_, (Vec<_>, Vec<_>)> = AHashMap::new();
        for (key, row) in &self.rows {
            let written = match row {
                None => Written::Nothing,
                Some(row) if row.is_full() => Written::Images,
                Some(row) => Written::Partial { present: present(row) },
            };
            let (keys, rows) = looks.entry(StatementKind::Look(written)).or_default();
            keys.push(key);
            rows.extend(row);
        }
        looks
    }
}
