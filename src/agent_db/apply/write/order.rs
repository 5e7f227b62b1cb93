//! Whether the order of the stream must be kept because the database itself changes rows (CASCADE, SET NULL).
//!
//! Changes are folded and written in another order than they came: moves first, then rows, then deletes. Where a foreign
//! key acts on rows that refer to the changed one, it must find them as it found them in the Site DB.

use std::collections::HashMap;

use super::writer::{Constraints, Writer};
use crate::agent_db::apply::plan::moved;
use crate::agent_db::apply::segment::{Item, Segment};
use crate::agent_db::catalog::{Action, ForeignKeys};
use crate::agent_db::error::AgentError;
use crate::change::{Operation, Relation, TableName};

/// What a segment does to a table.
#[derive(Debug)]
struct Done<'s> {
    relation: &'s std::sync::Arc<Relation>,
    moves: bool,
    deletes: bool,
    writes: bool,
}

impl Writer {
    /// Whether a segment must be written in its order from the beginning.
    pub(super) async fn must_keep_order(&mut self, segment: &Segment) -> Result<bool, AgentError> {
        // Only then can a slow table be written in pieces.
        if self.writes_slow_table(segment) {
            return Ok(true);
        }
        let Constraints::Checked(foreign_keys) = &self.constraints else {
            return Ok(false);
        };
        if !foreign_keys.act() {
            return Ok(false);
        }
        let done = done(segment);
        if moves_keys_of_children(&done, foreign_keys) {
            return Ok(true);
        }
        let deleted_first: Vec<_> = done
            .values()
            .filter(|table| table.deletes && table.writes && foreign_keys.acts_on_delete(&table.relation.table))
            .map(|table| table.relation)
            .collect();
        for relation in deleted_first {
            // Deletes come first where a key may come back in another spelling: before rows have left the deleted one.
            if !self.target(relation).await?.spells_keys_alike() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Writer {
    fn writes_slow_table(&self, segment: &Segment) -> bool {
        let is_slow = |item: &Item| match item {
            Item::Change(change) => {
                let table = &change.relation.table;
                self.slow.contains(table) && !self.is_held(table)
            }
            _ => false,
        };
        !self.slow.is_empty() && segment.items.iter().any(is_slow)
    }
}

fn done(segment: &Segment) -> HashMap<&TableName, Done<'_>> {
    let mut tables: HashMap<&TableName, Done<'_>> = HashMap::new();
    for item in &segment.items {
        let Item::Change(change) = item else { continue };
        let table = tables.entry(&change.relation.table).or_insert(Done {
            relation: &change.relation,
            moves: false,
            deletes: false,
            writes: false,
        });
        match change.operation {
            Operation::Delete | Operation::DeleteOne(_) => table.deletes = true,
            Operation::ReplaceOne(_) => (table.deletes, table.writes) = (true, true),
            Operation::Insert(_) | Operation::Update { .. } | Operation::Count { .. } => table.writes = true,
        }
        table.moves |= moved(change).is_some();
    }
    tables
}

/// Whether a row gets another key, which the database hands on to keys of rows that the segment changes too: they would
/// not be found under the keys that the stream knows.
fn moves_keys_of_children(done: &HashMap<&TableName, Done<'_>>, foreign_keys: &ForeignKeys) -> bool {
    done.values().filter(|table| table.moves).any(|parent| {
        foreign_keys
            .of_parent(&parent.relation.table)
            .filter(|key| key.on_update != Action::Refuse)
            .filter_map(|key| Some((key, done.get(&key.child)?)))
            .any(|(key, child)| {
                child
                    .relation
                    .key_columns()
                    .any(|column| key.columns.iter().any(|name| *name == *column))
            })
    })
}
