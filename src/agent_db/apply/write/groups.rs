//! Writes groups of rows in one round trip, and counts the result for each row.

use super::part::Reply;
use super::stale::Waiting;
use super::writer::{RELEASE_PIECE, Writer};
use crate::agent_db::apply::ledger::{ChangeKind, Ledger};
use crate::agent_db::apply::plan::{Group, Purpose, RowWrite};
use crate::agent_db::apply::sql::StatementKind;
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::error::AgentError;
use crate::change::Row;

/// What a group's statement did.
struct Written<'g, 'e> {
    group: &'g Group<'e>,
    reply: Reply,
    /// Its rows that the table does not have.
    missing: Vec<RowWrite<'e>>,
}

impl Writer {
    /// Sends the groups' statements in one round trip and counts what they did. Nothing is parked and nothing counts as
    /// healed before all of them have succeeded. `before`, `after`: commands sent around the statements.
    pub(super) async fn write_groups(
        &mut self,
        groups: &[Group<'_>],
        before: &str,
        after: &str,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        let waiting = self.waiting(groups).await?;
        if waiting.is_empty() {
            return self.write_all_groups(groups, before, after, ledger).await;
        }
        let is_waiting = |group, row| waiting.iter().any(|other| other.group == group && other.row == row);
        let left: Vec<Group<'_>> = groups
            .iter()
            .enumerate()
            .filter_map(|(number, group)| group.without(|row| is_waiting(number, row)))
            .collect();
        if !left.is_empty() {
            self.write_all_groups(&left, before, after, ledger).await?;
        }
        for Waiting { group, row, constraint } in &waiting {
            let Some(group) = groups.get(*group) else { continue };
            let Some(row) = group.rows.get(*row) else { continue };
            let reason = ParkReason::still_referenced(constraint);
            if group.purpose == Purpose::Heal {
                self.parked.refused(&group.relation.table, row.key, reason);
            } else {
                self.park(row.change, &reason, ledger)?;
            }
        }
        Ok(())
    }

    async fn write_all_groups(
        &mut self,
        groups: &[Group<'_>],
        before: &str,
        after: &str,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        let mut sent = Vec::new();
        for group in groups {
            sent.push((group, self.target(group.relation).await?));
        }
        // Moves may need a second statement before the savepoint is released.
        let has_moves = groups.iter().any(Group::moves);
        let replies = self.send(&sent, before, if has_moves { "" } else { after }).await?;
        let written: Vec<Written<'_, '_>> = sent
            .iter()
            .zip(replies)
            .map(|(&(group, _), reply)| Written {
                group,
                missing: reply.missing(group),
                reply,
            })
            .collect();
        self.look_for_hidden(&written).await?;
        if has_moves {
            self.insert_moved(&written, after).await?;
        }
        for (group, target) in &sent {
            self.look_later(group, target);
        }
        if self.looks_with_piece {
            Box::pin(self.look_late()).await?;
            self.session.command(RELEASE_PIECE).await?;
        }
        if has_moves {
            // The row to move is missing, and the change has only some of its columns.
            for row in written.iter().filter(|written| written.group.moves()).flat_map(partial) {
                self.park(row.change, &ParkReason::missing_base(), ledger)?;
            }
        }
        for written in &written {
            self.settle(written, ledger)?;
        }
        Ok(())
    }

    /// Inserts moved rows that were missing; this needs only the full image.
    async fn insert_moved(&mut self, written: &[Written<'_, '_>], after: &str) -> Result<(), AgentError> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for Written { group, missing, .. } in written.iter().filter(|written| written.group.moves()) {
            groups.extend(group.as_upserts(missing));
        }
        let mut with_targets = Vec::new();
        for group in &groups {
            with_targets.push((group, self.target(group.relation).await?));
        }
        if !with_targets.is_empty() || !after.is_empty() {
            self.send(&with_targets, "", after).await?;
        }
        Ok(())
    }

    /// A delete that finds no row may have found one that it could not see, or that a trigger has kept, in a table that was
    /// changed in the Agent DB since it was looked up. Nearly always without a query.
    async fn look_for_hidden(&mut self, written: &[Written<'_, '_>]) -> Result<(), AgentError> {
        for Written { group, reply, .. } in written {
            let is_whole = match reply {
                Reply::Count(rows) => *rows >= group.rows.len() as u64,
                _ => true,
            };
            // Rows that are not copied yet are missing, and the copy writes every row.
            if is_whole || !group.deletes() || self.copying.contains(&group.relation.table) {
                continue;
            }
            let target = self.target(group.relation).await?;
            self.check_sight(&target).await?;
        }
        Ok(())
    }

    /// Counts what a group's statement did, and parks changes whose row is missing.
    fn settle(&mut self, written: &Written<'_, '_>, ledger: &mut Ledger) -> Result<(), AgentError> {
        let group = written.group;
        let table = &group.relation.table;
        let total = group.rows.len() as u64;
        let count = match &written.reply {
            Reply::Count(rows) => *rows,
            _ => total,
        };
        match group.purpose {
            Purpose::Heal => {
                for row in &group.rows {
                    self.parked.healed(table, row.key);
                }
                ledger.of(table, ChangeKind::Copy).healed += total;
                return Ok(());
            }
            Purpose::Chunk => {
                ledger.of(table, ChangeKind::Copy).copied += count;
                return Ok(());
            }
            Purpose::Stream => {}
        }
        match &group.kind {
            StatementKind::Delete | StatementKind::DeleteOne => {
                let deleted = count.min(total);
                let tally = ledger.of(table, ChangeKind::Delete);
                tally.applied += deleted;
                tally.unchanged += total - deleted;
            }
            StatementKind::Partial { .. } => {
                let is_copying = self.copying.contains(table);
                for row in &written.missing {
                    if is_copying {
                        ledger.tally(row.change).superseded += 1;
                    } else {
                        self.park(row.change, &ParkReason::missing_base(), ledger)?;
                    }
                }
                ledger.of(table, ChangeKind::Update).applied += total - written.missing.len() as u64;
            }
            StatementKind::Move { .. } | StatementKind::UpdateOne => {
                let parked = partial(written).count();
                ledger.of(table, ChangeKind::Update).applied += total - parked as u64;
            }
            // Sent in place of another group's statement, or behind it.
            StatementKind::Reinsert { .. } | StatementKind::SetIdentity { .. } => {}
            StatementKind::Look(_) | StatementKind::LookAtIdentity(_) => {}
            StatementKind::Copy | StatementKind::Upsert { .. } | StatementKind::Insert | StatementKind::Count => {
                let inserts = group
                    .rows
                    .iter()
                    .filter(|row| ChangeKind::of(row.change) == ChangeKind::Insert)
                    .count() as u64;
                ledger.of(table, ChangeKind::Insert).applied += inserts;
                ledger.of(table, ChangeKind::Update).applied += total - inserts;
            }
        }
        Ok(())
    }
}

/// The missing rows whose full image is not known.
fn partial<'w, 'e>(written: &'w Written<'_, 'e>) -> impl Iterator<Item = &'w RowWrite<'e>> {
    written
        .missing
        .iter()
        .filter(|write| !write.row.is_some_and(Row::is_full))
}
