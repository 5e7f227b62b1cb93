//! Writes a segment at once: each key's changes are folded, and one statement is sent for each table and kind.

use std::collections::BTreeSet;

use super::in_order::Checks;
use super::writer::{Constraints, Writer, pass_over};
use crate::agent_db::apply::ledger::Ledger;
use crate::agent_db::apply::plan::{Group, Offer, WritePlan};
use crate::agent_db::apply::segment::{Item, Segment};
use crate::agent_db::catalog::ForeignKeys;
use crate::agent_db::error::AgentError;
use crate::change::{Change, Origin, TableName};

impl Writer {
    /// Writes the whole segment, or fails at the first refusal.
    pub(super) async fn at_once(&mut self, segment: &Segment, ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut plan = WritePlan::default();
        for item in &segment.items {
            match item {
                Item::Change(change) if self.is_held(&change.relation.table) => pass_over(change, ledger),
                Item::Change(change) => {
                    for change in self.as_written(change).await?.into_iter().flatten() {
                        ledger.receive(change);
                        self.plan_change(&mut plan, change, ledger).await?;
                    }
                }
                Item::Truncate(truncate) => {
                    self.write_plan(&std::mem::take(&mut plan), ledger).await?;
                    self.truncate(truncate, ledger).await?;
                }
                Item::Heal(rows) => {
                    self.write_plan(&std::mem::take(&mut plan), ledger).await?;
                    self.heal(rows, ledger).await?;
                }
                Item::PassedOver { relation, count, why } => ledger.pass_over(&relation.table, *count, *why),
                Item::Table(_) => {}
            }
        }
        self.write_plan(&plan, ledger).await?;
        self.check_deferred().await
    }

    /// Adds a change to the plan; writes the table's part of the plan first if it must.
    async fn plan_change<'a>(
        &mut self,
        plan: &mut WritePlan<'a>,
        change: &'a Change,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        loop {
            if plan.is_healing(change) {
                let part = plan.take(&change.relation);
                self.write_plan(&part, ledger).await?;
            }
            if self.fold_into_parked(change, ledger)? {
                return Ok(());
            }
            match plan.offer(change, self.heals(change)) {
                Offer::Taken => return Ok(()),
                Offer::Folded(earlier) => {
                    if earlier.origin == Origin::Stream {
                        ledger.tally(earlier).superseded += 1;
                    }
                    return Ok(());
                }
                Offer::Cancelled(earlier) => {
                    for change in [earlier, change] {
                        ledger.tally(change).superseded += 1;
                    }
                    return Ok(());
                }
                Offer::WriteFirst => {
                    let part = plan.take(&change.relation);
                    self.write_plan(&part, ledger).await?;
                }
            }
        }
    }

    /// Writes a plan: the moves, then the rows of all tables in one round trip, then the heals.
    async fn write_plan(&mut self, plan: &WritePlan<'_>, ledger: &mut Ledger) -> Result<(), AgentError> {
        for table in &plan.tables {
            let mut moves = Group::of_moves(table);
            moves.extend(Group::of_updates(table));
            if !moves.is_empty() {
                self.write_groups(&moves, "", "", ledger).await?;
            }
        }
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut keys_alike = BTreeSet::new();
        for table in &plan.tables {
            let name = &table.relation.table;
            let target = self.target(table.relation).await?;
            let may_copy = target.copyable && !self.copy_backoff.contains(name);
            if target.spells_keys_alike() {
                keys_alike.insert(name);
            }
            let is_copying = self.copying.contains(name);
            groups.extend(Group::of_counted(table, may_copy));
            groups.extend(Group::of_rows(table, |origin| {
                may_copy && (origin == Origin::Stream || is_copying)
            }));
        }
        match &self.constraints {
            Constraints::Checked(foreign_keys) => sort_by_foreign_keys(&mut groups, foreign_keys, &keys_alike),
            // Unique indexes: a row that goes, or changes a value, must free it before another row takes it.
            Constraints::Silent { .. } => groups.sort_by_key(|group| (!group.deletes(), group.copies())),
        }
        if !groups.is_empty() {
            self.write_groups(&groups, "", "", ledger).await?;
        }
        for table in &plan.tables {
            for group in Group::of_heals(table) {
                self.attempt(group, ledger, Checks::Deferred).await?;
            }
        }
        Ok(())
    }
}

/// Parents before children, then deletes the other way round. If a row may come back under another spelling of its key,
/// which the delete would find as well, deletes come first; if the database refuses that, it is replayed in order.
fn sort_by_foreign_keys(groups: &mut [Group<'_>], foreign_keys: &ForeignKeys, keys_alike: &BTreeSet<&TableName>) {
    groups.sort_by_key(|group| {
        let table = &group.relation.table;
        let depth = foreign_keys.depth(table);
        match group.deletes() {
            true if !keys_alike.contains(table) => (0, usize::MAX - depth),
            false => (1, depth),
            true => (2, usize::MAX - depth),
        }
    });
}
