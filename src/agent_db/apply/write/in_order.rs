//! Writes a segment in exact stream order: consecutive changes of one kind under one savepoint, which is halved until the
//! refused rows are found.

use std::time::{Duration, Instant};

use super::writer::{LockWait, RELEASE_PIECE, Writer, pass_over};
use crate::agent_db::apply::ledger::Ledger;
use crate::agent_db::apply::plan::{Group, OrderedRun, Purpose, RowWrite};
use crate::agent_db::apply::segment::{Item, Segment};
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::error::{AgentError, Refuses};
use crate::change::{Change, Operation};
use crate::postgres::sqlstate::{LOCK_NOT_AVAILABLE, NOT_PERMITTED};
use crate::postgres::{RaisedBy, Refusal};
use crate::retry::Disposition;

/// Locked rows of a segment that are parked; with more, their table is held. Each costs a few waits, for which all tables wait.
const MOST_LOCKED_ROWS: u32 = 10;

/// How long a statement waits for a lock once another one of the segment has waited in vain.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(300);

/// The same once single rows are known to be locked.
const ROW_LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// When deferred constraints are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checks {
    /// When the segment ends.
    Deferred,
    /// After each piece, so that the row that violates one is found.
    EachPiece,
}

impl Writer {
    /// Writes the segment from its beginning.
    pub(super) async fn in_order(
        &mut self,
        segment: &Segment,
        ledger: &mut Ledger,
        checks: Checks,
    ) -> Result<(), AgentError> {
        self.rewind().await?;
        let mut run = OrderedRun::default();
        for item in &segment.items {
            match item {
                Item::Change(change) if self.is_held(&change.relation.table) => pass_over(change, ledger),
                Item::Change(change) => {
                    for change in self.as_written(change).await?.into_iter().flatten() {
                        ledger.receive(change);
                        self.run_change(&mut run, change, ledger, checks).await?;
                    }
                }
                Item::Truncate(truncate) => {
                    if let Some(group) = run.take() {
                        self.attempt(group, ledger, checks).await?;
                    }
                    self.truncate(truncate, ledger).await?;
                }
                Item::Heal(rows) => {
                    if let Some(group) = run.take() {
                        self.attempt(group, ledger, checks).await?;
                    }
                    self.heal(rows, ledger).await?;
                }
                Item::PassedOver { relation, count, why } => ledger.pass_over(&relation.table, *count, *why),
                Item::Table(_) => {}
            }
        }
        if let Some(group) = run.take() {
            self.attempt(group, ledger, checks).await?;
        }
        if checks == Checks::Deferred {
            self.check_deferred().await?;
        }
        Ok(())
    }

    /// Adds a change to the run; writes the run first if it must.
    async fn run_change<'a>(
        &mut self,
        run: &mut OrderedRun<'a>,
        change: &'a Change,
        ledger: &mut Ledger,
        checks: Checks,
    ) -> Result<(), AgentError> {
        loop {
            if run.is_healing(change)
                && let Some(group) = run.take()
            {
                self.attempt(group, ledger, checks).await?;
            }
            if self.fold_into_parked(change, ledger)? {
                return Ok(());
            }
            match run.offer(change, self.heals(change)) {
                None => return Ok(()),
                Some(group) => self.attempt(group, ledger, checks).await?,
            }
        }
    }

    /// Goes back to where the segment began.
    pub(in crate::agent_db::apply) async fn rewind(&mut self) -> Result<(), AgentError> {
        self.parked.take_back();
        self.late.clear();
        if !self.session.has_opening() {
            self.back_to("ROLLBACK TO SAVEPOINT segment").await?;
            if self.lock_wait == LockWait::Short {
                let timeout = match self.locked_rows {
                    Some(_) => ROW_LOCK_TIMEOUT,
                    None => SHORT_LOCK_TIMEOUT,
                };
                // Going back has undone it.
                self.set_lock_timeout(timeout).await?;
            }
        }
        Ok(())
    }

    /// Goes back to a savepoint. This also undoes `SET CONSTRAINTS`.
    pub(in crate::agent_db::apply) async fn back_to(&self, savepoint: &str) -> Result<(), AgentError> {
        self.session.command(savepoint).await?;
        if self.checks_constraints() {
            self.session.command("SET CONSTRAINTS ALL DEFERRED").await?;
        }
        Ok(())
    }

    /// Writes a group under a savepoint; if it is refused, its halves in order, until only the refused rows are left.
    pub(super) async fn attempt(
        &mut self,
        group: Group<'_>,
        ledger: &mut Ledger,
        checks: Checks,
    ) -> Result<(), AgentError> {
        // The look at what deferred triggers have changed must be within the savepoint, which is released behind it then.
        let looks = checks == Checks::EachPiece && self.target(group.relation).await?.fires_late;
        let after = match checks {
            Checks::EachPiece if looks => self.check(),
            Checks::EachPiece => format!("{}; {RELEASE_PIECE}", self.check()),
            Checks::Deferred => RELEASE_PIECE.to_owned(),
        };
        let mut pieces = self.slow.pieces(group);
        // The group's statement was accepted with no rows, so what refuses it is some of its rows.
        let mut is_accepted = false;
        while let Some(piece) = pieces.pop() {
            let began = Instant::now();
            let (table, rows) = (&piece.relation.table, piece.rows.len());
            let mut of_piece = Ledger::default();
            self.looks_with_piece = looks;
            let written = self
                .write_groups(std::slice::from_ref(&piece), "SAVEPOINT piece", &after, &mut of_piece)
                .await;
            self.looks_with_piece = false;
            if looks {
                self.late.clear();
            }
            let refusal = match written {
                Ok(()) => {
                    self.slow
                        .written(table, rows, began.elapsed(), self.session.limit.limit());
                    ledger.add(&of_piece);
                    continue;
                }
                Err(error @ AgentError::TooSlow { .. }) => {
                    let error = error.for_table(table);
                    self.too_slow(error, &piece)?;
                    self.back_to("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")
                        .await?;
                    pieces.push(piece);
                    pieces = pieces.into_iter().flat_map(|piece| self.slow.pieces(piece)).collect();
                    continue;
                }
                Err(AgentError::Refused { refusal, .. }) if self.parks_locked_rows(&refusal) => refusal,
                Err(AgentError::Refused { refusal, .. }) if refusal.may_be_of_a_row() => refusal,
                Err(error) => return Err(error),
            };
            self.back_to("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")
                .await?;
            if refusal.disposition() != Disposition::Row && !self.parks_locked_rows(&refusal) && !is_accepted {
                self.try_without_rows(&piece).await?;
                is_accepted = true;
            }
            if let [row] = piece.rows.as_slice() {
                if let Operation::ReplaceOne(replaced) = &row.change.operation {
                    // One of its parts is refused, and the other is not.
                    ledger.tally(row.change).received -= 1;
                    for part in [&replaced.new, &replaced.old] {
                        ledger.receive(part);
                        pieces.push(Group::of_one(part, false));
                    }
                    continue;
                }
                self.count_locked_row(&piece, &refusal)?;
                self.refused(&piece, row, &refusal, ledger)?;
            } else {
                let (first, second) = piece.halves();
                pieces.push(second);
                pieces.push(first);
            }
        }
        Ok(())
    }

    /// A piece was cancelled: smaller ones are tried. A single row that takes too long is its table's fault.
    fn too_slow(&mut self, error: AgentError, piece: &Group<'_>) -> Result<(), AgentError> {
        match piece.rows.as_slice() {
            [] => return Err(error),
            [row] => {
                self.slow.row = Some(row.change.clone());
                return Err(error);
            }
            rows => self.slow.cancelled(&piece.relation.table, rows.len()),
        }
        tracing::warn!(%error, "it is tried again with fewer rows");
        Ok(())
    }

    /// Tries a piece's statement with no rows: what is refused then is the table's fault, whatever the row.
    async fn try_without_rows(&mut self, piece: &Group<'_>) -> Result<(), AgentError> {
        let none = piece.without_rows();
        let target = self.target(none.relation).await?;
        let (before, after) = (
            "SAVEPOINT piece",
            "ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece",
        );
        match self.send(&[(&none, target)], before, after).await {
            Err(AgentError::Refused {
                action, refusal, role, ..
            }) => Err(AgentError::TableRefused {
                action,
                table: none.relation.table.clone(),
                refusal,
                role,
            }),
            result => result.map(drop),
        }
    }

    /// Whether the refusal is one row's because it is locked.
    pub(super) fn parks_locked_rows(&self, refusal: &Refusal) -> bool {
        self.locked_rows.is_some() && refusal.sqlstate == LOCK_NOT_AVAILABLE
    }

    /// Counts a row that is parked because it is locked. Each costs a wait: with too many, the table is held instead.
    fn count_locked_row(&mut self, group: &Group<'_>, refusal: &Refusal) -> Result<(), AgentError> {
        if refusal.sqlstate != LOCK_NOT_AVAILABLE {
            return Ok(());
        }
        let rows = self.locked_rows.get_or_insert_default();
        *rows += 1;
        if *rows <= MOST_LOCKED_ROWS {
            return Ok(());
        }
        Err(AgentError::RowsLocked {
            table: group.relation.table.clone(),
            limit: MOST_LOCKED_ROWS,
        })
    }

    /// A row that the database refuses by itself.
    fn refused(
        &mut self,
        group: &Group<'_>,
        row: &RowWrite<'_>,
        refusal: &Refusal,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        if refusal.raised_by == RaisedBy::Server
            && let Some(column) = &refusal.column
            && !group.relation.columns.iter().any(|known| **known == **column)
        {
            // A column that the stream does not have: every row is refused, so it is the table's fault.
            return Err(AgentError::ColumnUnfilled {
                table: group.relation.table.clone(),
                column: column.clone(),
                refuses: Refuses::Column,
            });
        }
        if refusal.raised_by == RaisedBy::Server && refusal.sqlstate == NOT_PERMITTED {
            // Of something that is used for each row: a default's sequence, a check's function.
            return Err(AgentError::TableRefused {
                action: "write rows",
                table: group.relation.table.clone(),
                refusal: Box::new(refusal.clone()),
                role: None,
            });
        }
        let reason = ParkReason::from(refusal);
        if group.purpose == Purpose::Heal {
            self.parked.refused(&group.relation.table, row.key, reason);
            return Ok(());
        }
        self.park(row.change, &reason, ledger)
    }
}
