//! Which events happened to the tables while no daemon ran: compares what is stored about them with what the Site DB
//! has now. Pure.
//!
//! Exactly the synchronised tables have a row in `twinlog.tables`. So a table that leaves and comes back later is new,
//! and copied again, since it has missed changes. A table whose shape has changed since its copy is copied or read again
//! as well.

use std::collections::BTreeMap;

use crate::agent_db::{TableRecords, TableState};
use crate::change::{Hold, Shape, TableName};

use super::life::TableEvent;

/// What a start has to do for one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::replication) struct Due {
    pub(in crate::replication) table: TableName,
    /// What happened to the table; `None` if only its shape has to be stored.
    pub(in crate::replication) event: Option<TableEvent>,
    /// The reason to log; `None` if the event needs no log line.
    pub(in crate::replication) why: Option<&'static str>,
    /// The table's shape, if the stored one differs. Store it after the event: if the start is interrupted between the
    /// two, the next start finds the same event again.
    pub(in crate::replication) shape: Option<Shape>,
}

/// The input: what a start knows about the tables.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct AtStart<'a> {
    /// The rows of `twinlog.tables`.
    pub(in crate::replication) stored: &'a TableRecords,
    /// The stored shapes: those that the tables had when they were copied.
    pub(in crate::replication) shapes: &'a BTreeMap<TableName, Shape>,
    /// The present shapes of the tables that are published, selected, and writable in the Agent DB.
    pub(in crate::replication) found: &'a BTreeMap<TableName, Shape>,
    /// The selected tables that can't be replicated now, each with the fault and its remedy. None of them is in `found`.
    pub(in crate::replication) held: &'a BTreeMap<TableName, Hold>,
    /// The Agent DB has no checkpoint.
    pub(in crate::replication) checkpoint_lost: bool,
}

impl AtStart<'_> {
    /// What to do, for each table that needs something.
    pub(in crate::replication) fn due(&self) -> Vec<Due> {
        let left = self
            .stored
            .keys()
            .filter(|table| !self.found.contains_key(*table) && !self.held.contains_key(*table))
            .map(|table| Due {
                table: table.clone(),
                event: Some(TableEvent::LeftPublication),
                why: Some("it is not published or not selected any more"),
                shape: None,
            });
        let held = self.held.iter().map(|(table, hold)| Due {
            table: table.clone(),
            event: Some(TableEvent::Held(hold.clone())),
            why: None,
            shape: None,
        });
        left.chain(held)
            .chain(self.found.iter().flat_map(|(table, shape)| self.of(table, shape)))
            .collect()
    }

    fn of(&self, table: &TableName, shape: &Shape) -> Vec<Due> {
        let (stored, before) = (self.stored.get(table), self.shapes.get(table));
        let state = stored.map(|record| record.state);
        let outdated = before.and_then(|before| before.outdated_by(shape));
        let doubted = before.and_then(|before| before.doubted_by(shape));
        let mut due = Vec::new();
        let mut happened = |event, why| {
            due.push(Due {
                table: table.clone(),
                event,
                why,
                shape: None,
            });
        };
        match (state, outdated, doubted) {
            (None, ..) => happened(Some(TableEvent::SeenFirst), None),
            (Some(_), Some(why), _) => happened(Some(TableEvent::ShapeOutdated), Some(why)),
            (Some(TableState::Held), None, _) => {}
            (Some(_), None, _) if self.checkpoint_lost => happened(Some(TableEvent::CheckpointLost), None),
            (Some(_), None, Some(why)) => happened(Some(TableEvent::MayDiffer), Some(why)),
            (Some(_), None, None) => {}
        }
        if state == Some(TableState::Held) {
            // A table in `found` can be read and written, so the reason why it was held is gone.
            happened(Some(TableEvent::Released), Some("what held it is gone"));
        }
        if before != Some(shape) {
            if due.is_empty() {
                due.push(Due {
                    table: table.clone(),
                    event: None,
                    why: None,
                    shape: None,
                });
            }
            if let Some(last) = due.last_mut() {
                last.shape = Some(shape.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_db::TableRecord;
    use crate::change::HoldCause;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn shape(oid: u32) -> Shape {
        Shape {
            oid,
            membership: String::new(),
            columns: Vec::new(),
            row_filter: None,
            marks: None,
        }
    }

    fn shapes(of: &[(&str, u32)]) -> BTreeMap<TableName, Shape> {
        of.iter().map(|(name, oid)| (table(name), shape(*oid))).collect()
    }

    fn stored(of: &[(&str, TableState)]) -> TableRecords {
        of.iter()
            .map(|(name, state)| {
                let mut record = TableRecord::new(table(name));
                record.state = *state;
                (table(name), record)
            })
            .collect()
    }

    fn due(checkpoint_lost: bool) -> Vec<(String, Option<TableEvent>, bool)> {
        let stored = stored(&[
            ("broken", TableState::Streaming),
            ("gone", TableState::Streaming),
            ("held", TableState::Held),
            ("held_other", TableState::Held),
            ("other", TableState::Streaming),
            ("same", TableState::Streaming),
            ("unshaped", TableState::Copying),
        ]);
        let before = shapes(&[("gone", 1), ("held", 2), ("held_other", 6), ("other", 3), ("same", 4)]);
        let held = BTreeMap::from([(table("broken"), Hold::new(HoldCause::Refused, "why"))]);
        let found = shapes(&[
            ("held", 2),
            ("held_other", 7),
            ("new", 9),
            ("other", 8),
            ("same", 4),
            ("unshaped", 5),
        ]);
        let at_start = AtStart {
            stored: &stored,
            shapes: &before,
            found: &found,
            held: &held,
            checkpoint_lost,
        };
        at_start
            .due()
            .into_iter()
            .map(|due| (due.table.name.to_string(), due.event, due.shape.is_some()))
            .collect()
    }

    #[test]
    fn a_start_finds_what_happened_to_each_table_while_no_daemon_ran() {
        let row = |name: &str, event, shape| (name.to_owned(), event, shape);
        assert_eq!(
            due(false),
            [
                row("gone", Some(TableEvent::LeftPublication), false),
                row(
                    "broken",
                    Some(TableEvent::Held(Hold::new(HoldCause::Refused, "why"))),
                    false,
                ),
                row("held", Some(TableEvent::Released), false),
                // Read from the beginning, in this run and not in the next one.
                row("held_other", Some(TableEvent::ShapeOutdated), false),
                row("held_other", Some(TableEvent::Released), true),
                row("new", Some(TableEvent::SeenFirst), true),
                row("other", Some(TableEvent::ShapeOutdated), true),
                // Of an older version, which did not store shapes.
                row("unshaped", None, true),
            ]
        );
    }

    #[test]
    fn without_a_checkpoint_every_known_table_gets_the_event() {
        let lost: Vec<String> = due(true)
            .into_iter()
            .filter(|(_, event, _)| *event == Some(TableEvent::CheckpointLost))
            .map(|(name, ..)| name)
            .collect();
        assert_eq!(lost, ["same", "unshaped"]);
    }
}
