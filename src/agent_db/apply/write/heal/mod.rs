//! Writing parked rows that wait for each other.
//!
//! A row may be refused only because of other parked rows: a foreign key to one, a unique value that one has not given up
//! yet, a reference of one to a row that was deleted. Written alone, none of them ever succeeds. So all of them are read
//! at one point of the log, where they are right together, and written together:
//!
//! 1. All at once, by one statement, with the constraints deferred that may be. This is nearly always enough.
//! 2. Where it is refused: find the rows that are refused for reasons of their own, and those that depend on them
//!    ([`blocked`]); write the others at once.
//! 3. Where that is refused as well: halve, down to the rows that are refused.
//!
//! What is refused stays parked, with its own reason. The database must never remove or change a row that the Site DB
//! keeps: a row to which a parked row refers, and whose removal would cascade further, waits for that row.
//!
//! | file | |
//! |---|---|
//! | `rows` | the rows, by table |
//! | `attempt` | some rows at once, and the ways to make room for their values |
//! | `blocked` | which rows are refused for reasons of their own, and which depend on them |
//! | `references` | which rows refer to which |

mod attempt;
mod blocked;
mod references;
mod rows;

use attempt::Keep;
use rows::{Refused, by_depth};

use super::writer::{Constraints, Writer};
use crate::agent_db::apply::ledger::{ChangeKind, Ledger};
use crate::agent_db::error::AgentError;
use crate::change::Change;

/// Rounds in which rows are found that depend on rows that were found before. Each round finds at least one more level.
const ROUNDS: usize = 20;

/// Attempts with parts of the rows, after which those that are left wait for the next time: the stream waits meanwhile.
const ATTEMPTS: usize = 400;

impl Writer {
    /// Writes rows that were read together because their keys are parked.
    pub(super) async fn heal(&mut self, rows: &[Change], ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut rows: Vec<&Change> = rows.iter().filter(|row| !self.is_held(&row.relation.table)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        self.session.open().await?;
        // What earlier changes have left to check is not the fault of these rows.
        self.check_deferred().await?;
        if let Constraints::Checked(foreign_keys) = &self.constraints {
            by_depth(&mut rows, foreign_keys);
        }
        if Box::pin(self.attempt_rows(&rows, Keep::IfChecked)).await?.is_none() {
            self.healed(&rows, ledger);
            return Ok(());
        }
        let mut budget = ATTEMPTS;
        let mut blocked: Vec<(&Change, Refused)> = Vec::new();
        for _ in 0..ROUNDS {
            let found = Box::pin(self.blocked(&rows, &mut budget)).await?;
            if found.is_empty() {
                break;
            }
            rows.retain(|row| !found.iter().any(|(other, _)| std::ptr::eq(*row, *other)));
            blocked.extend(found);
        }
        Box::pin(self.halve(rows, &mut budget, ledger)).await?;
        // They may have waited for nothing but rows that are there now.
        let last: Vec<&Change> = blocked.iter().map(|(row, _)| *row).collect();
        let is_own = blocked.iter().any(|(_, refused)| refused.is_own());
        if !is_own && !last.is_empty() && Box::pin(self.attempt_rows(&last, Keep::IfChecked)).await?.is_none() {
            self.healed(&last, ledger);
            return Ok(());
        }
        for (row, refused) in blocked {
            self.refused_again(row, refused, ledger)?;
        }
        Ok(())
    }

    /// Writes the rows, or, where they are refused, their halves in order.
    async fn halve(&mut self, rows: Vec<&Change>, budget: &mut usize, ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut pieces = vec![rows];
        while let Some(piece) = pieces.pop() {
            if piece.is_empty() {
                continue;
            }
            let Some(refused) = Box::pin(self.attempt_rows(&piece, Keep::IfChecked)).await? else {
                self.healed(&piece, ledger);
                continue;
            };
            *budget = budget.saturating_sub(1);
            if piece.len() == 1 || *budget == 0 {
                for row in piece {
                    self.refused_again(row, refused.clone(), ledger)?;
                }
            } else {
                let (first, second) = piece.split_at(piece.len() / 2);
                pieces.push(second.to_vec());
                pieces.push(first.to_vec());
            }
        }
        Ok(())
    }

    /// The rows are written: their keys are not parked any more.
    fn healed(&mut self, rows: &[&Change], ledger: &mut Ledger) {
        for row in rows {
            let table = &row.relation.table;
            let tally = ledger.of(table, ChangeKind::Copy);
            if self.parked.contains(table, &row.key) {
                tally.healed += 1;
            } else {
                // Healed in the meantime, or discarded.
                tally.copied += 1;
            }
            self.parked.healed(table, &row.key);
        }
    }

    fn refused_again(&mut self, row: &Change, refused: Refused, ledger: &mut Ledger) -> Result<(), AgentError> {
        if self.parked.contains(&row.relation.table, &row.key) {
            self.parked.refused(&row.relation.table, &row.key, refused.reason);
            return Ok(());
        }
        self.park(row, &refused.reason, ledger)
    }
}
