//! Writing a segment: first all at once, then, where a row was refused, in exact stream order down to the guilty rows.

use std::collections::BTreeSet;

use super::Sink;
use super::ledger::{Kind as Counted, Ledger};
use super::plan::{Group, Line, Offer, Round, Run, moved};
use super::segment::{Item, Segment};
use super::sql;
use crate::agent_db::bookkeeping::Tally;
use crate::agent_db::bookkeeping::failed_rows::entries::ParkReason;
use crate::agent_db::error::AgentError;
use crate::change::{Change, Origin, Truncate};
use crate::postgres::Refusal;
use crate::retry::Disposition;

/// Checks what was deferred, and defers again. Only without `session_replication_role`: there no constraint waits.
const CHECK_DEFERRED: &str = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED";

/// How the database's refusal of a row is to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checks {
    /// Deferred constraints are looked at when the segment ends.
    Deferred,
    /// Each piece is checked on its own.
    EachPiece,
}

fn is_row_error(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { refusal, .. } if refusal.disposition() == Disposition::Row)
}

impl Sink {
    /// Writes a segment's rows and parks those that are refused (in memory; the caller flushes the lot).
    pub(super) async fn write(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        self.lot.begin_segment();
        self.spared.next_segment();
        let error = loop {
            let mut ledger = Ledger::default();
            match Box::pin(self.at_once(segment, &mut ledger)).await {
                Ok(()) => return Ok(ledger),
                // Each refusal spares one more table, so this comes to an end.
                Err(error) if is_row_error(&error) && self.spared.take_refused() => {
                    tracing::debug!(%error, "a COPY was refused; writing the batch with upserts");
                    self.rewind().await?;
                }
                Err(error) if is_row_error(&error) => break error,
                Err(error) => return Err(error),
            }
        };
        tracing::debug!(%error, items = segment.items.len(), "a batch was refused; replaying it in order");
        let mut ledger = Ledger::default();
        match Box::pin(self.one_by_one(segment, &mut ledger, Checks::Deferred)).await {
            Ok(()) => return Ok(ledger),
            Err(error) if is_row_error(&error) => {}
            Err(error) => return Err(error),
        }
        // A deferred constraint is violated when the segment ends: find out which row does it.
        let mut ledger = Ledger::default();
        Box::pin(self.one_by_one(segment, &mut ledger, Checks::EachPiece)).await?;
        Ok(ledger)
    }

    /// Folded, and one statement per table and kind.
    async fn at_once(&mut self, segment: &Segment, ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut round = Round::default();
        for item in &segment.items {
            match item {
                Item::Change(change) => {
                    receive(change, ledger);
                    loop {
                        if round.is_healing(change) {
                            let part = round.take(&change.relation);
                            self.write_round(&part, ledger).await?;
                        }
                        if self.fold_into_parked(change, ledger)? {
                            break;
                        }
                        match round.offer(change, self.heals(change)) {
                            Offer::Taken => break,
                            Offer::Folded(earlier) => {
                                if earlier.origin == Origin::Stream {
                                    count(earlier, ledger).superseded += 1;
                                }
                                break;
                            }
                            Offer::WriteFirst => {
                                let part = round.take(&change.relation);
                                self.write_round(&part, ledger).await?;
                            }
                        }
                    }
                }
                Item::Truncate(truncate) => {
                    self.write_round(&std::mem::take(&mut round), ledger).await?;
                    self.truncate(truncate, ledger).await?;
                }
                other => note(other, ledger),
            }
        }
        self.write_round(&round, ledger).await?;
        self.check_deferred().await
    }

    /// In exact stream order, each run of like neighbours under its own savepoint.
    async fn one_by_one(&mut self, segment: &Segment, ledger: &mut Ledger, checks: Checks) -> Result<(), AgentError> {
        self.rewind().await?;
        let mut run = Run::default();
        for item in &segment.items {
            match item {
                Item::Change(change) => {
                    receive(change, ledger);
                    loop {
                        if run.is_healing(change)
                            && let Some(group) = run.take()
                        {
                            self.attempt(group, ledger, checks).await?;
                        }
                        if self.fold_into_parked(change, ledger)? {
                            break;
                        }
                        match run.offer(change, self.heals(change)) {
                            None => break,
                            Some(group) => self.attempt(group, ledger, checks).await?,
                        }
                    }
                }
                Item::Truncate(truncate) => {
                    if let Some(group) = run.take() {
                        self.attempt(group, ledger, checks).await?;
                    }
                    self.truncate(truncate, ledger).await?;
                }
                other => note(other, ledger),
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

    /// Back to where the segment began.
    async fn rewind(&mut self) -> Result<(), AgentError> {
        self.lot.take_back();
        if self.opening.is_none() {
            self.command("ROLLBACK TO SAVEPOINT segment").await?;
            if self.is_fallback() {
                self.command("SET CONSTRAINTS ALL DEFERRED").await?;
            }
        }
        Ok(())
    }

    fn heals(&self, change: &Change) -> bool {
        change.origin == Origin::Chunk && self.lot.contains(&change.relation.table, &change.key)
    }

    /// A change of the stream to a parked key goes into the key's entry.
    fn fold_into_parked(&mut self, change: &Change, ledger: &mut Ledger) -> Result<bool, AgentError> {
        let table = &change.relation.table;
        let is_parked = change.origin == Origin::Stream
            && (self.lot.contains(table, &change.key)
                || moved(change).is_some_and(|(old, _)| self.lot.contains(table, old)));
        if is_parked {
            self.lot.park(change, None)?;
            count(change, ledger).parked += 1;
        }
        Ok(is_parked)
    }

    async fn write_round(&mut self, round: &Round<'_>, ledger: &mut Ledger) -> Result<(), AgentError> {
        for table in &round.tables {
            let moves = Group::of_moves(table);
            if !moves.is_empty() {
                self.write_groups(&moves, "", "", ledger).await?;
            }
        }
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut keys_alike = BTreeSet::new();
        for table in &round.tables {
            let name = &table.relation.table;
            let target = self.target(table.relation).await?;
            let may_copy = target.copyable && !self.spared.contains(name);
            if target.spells_keys_alike() {
                keys_alike.insert(name);
            }
            let is_copying = self.copying.contains(name);
            groups.extend(Group::of_rows(table, |origin| {
                may_copy && (origin == Origin::Stream || is_copying)
            }));
        }
        if self.is_fallback() {
            // Foreign keys: parents before children, then deletes the other way round. Where a row may come back under another
            // spelling of its key, which the delete would find as well, deletes come first; what that breaks is replayed.
            let depth = |group: &Group<'_>| self.depths.get(&group.relation.table).copied().unwrap_or_default();
            groups.sort_by_key(|group| match group.deletes() {
                true if !keys_alike.contains(&group.relation.table) => (0, usize::MAX - depth(group)),
                false => (1, depth(group)),
                true => (2, usize::MAX - depth(group)),
            });
        } else {
            // Unique indexes: what leaves, or gives a value up, makes room for what comes.
            groups.sort_by_key(|group| (!group.deletes(), group.copies()));
        }
        if !groups.is_empty() {
            self.write_groups(&groups, "", "", ledger).await?;
        }
        for table in &round.tables {
            for group in Group::of_heals(table) {
                self.attempt(group, ledger, Checks::Deferred).await?;
            }
        }
        Ok(())
    }

    /// Writes a group under a savepoint; where it is refused, its halves in order, down to the guilty rows.
    async fn attempt(&mut self, group: Group<'_>, ledger: &mut Ledger, checks: Checks) -> Result<(), AgentError> {
        let after = if checks == Checks::EachPiece {
            format!("{CHECK_DEFERRED}; RELEASE SAVEPOINT piece")
        } else {
            "RELEASE SAVEPOINT piece".to_owned()
        };
        let mut pieces = vec![group];
        while let Some(piece) = pieces.pop() {
            let mut of_piece = Ledger::default();
            let written = self
                .write_groups(std::slice::from_ref(&piece), "SAVEPOINT piece", &after, &mut of_piece)
                .await;
            let refusal = match written {
                Ok(()) => {
                    ledger.add(&of_piece);
                    continue;
                }
                Err(AgentError::Refused { refusal, .. }) if refusal.disposition() == Disposition::Row => refusal,
                Err(error) => return Err(error),
            };
            self.command("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece")
                .await?;
            if self.is_fallback() {
                self.command("SET CONSTRAINTS ALL DEFERRED").await?;
            }
            if let [line] = piece.lines.as_slice() {
                self.refused(&piece, line, &refusal, ledger)?;
            } else {
                let (first, second) = piece.halves();
                pieces.push(second);
                pieces.push(first);
            }
        }
        Ok(())
    }

    /// A row that the database refuses even alone.
    fn refused(
        &mut self,
        group: &Group<'_>,
        line: &Line<'_>,
        refusal: &Refusal,
        ledger: &mut Ledger,
    ) -> Result<(), AgentError> {
        if let Some(column) = &refusal.column
            && !group.relation.columns.iter().any(|known| **known == **column)
        {
            // A column that the stream does not have refuses every row alike: the table's fault.
            return Err(AgentError::ColumnUnfilled {
                table: group.relation.table.clone(),
                column: column.clone(),
            });
        }
        let why = ParkReason::from(refusal);
        if group.heal {
            self.lot.refused(&group.relation.table, line.key, why);
            return Ok(());
        }
        self.park(line.change, &why, ledger)
    }

    pub(super) fn park(&mut self, change: &Change, why: &ParkReason, ledger: &mut Ledger) -> Result<(), AgentError> {
        self.lot.park(change, Some(why))?;
        if change.origin == Origin::Stream {
            count(change, ledger).parked += 1;
        }
        Ok(())
    }

    async fn truncate(&mut self, truncate: &Truncate, ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut targets = Vec::new();
        for relation in &truncate.relations {
            targets.push(self.target(relation).await?);
        }
        let Some(first) = targets.first() else {
            return Ok(());
        };
        let sql = sql::truncate(
            &targets.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            truncate.restart_identity,
        );
        let table = first.relation.table.clone();
        self.open().await?;
        // A table with checks that are still to come can't be truncated.
        self.check_deferred().await?;
        self.client
            .batch_execute(&sql)
            .await
            .map_err(|source| AgentError::from_driver("truncate", Some(&table), source))?;
        for relation in &truncate.relations {
            self.lot.clear(&relation.table);
            let tally = ledger.of(&relation.table, Counted::Truncate);
            tally.received += 1;
            tally.applied += 1;
        }
        Ok(())
    }

    async fn check_deferred(&mut self) -> Result<(), AgentError> {
        if self.is_fallback() && self.opening.is_none() {
            self.command(CHECK_DEFERRED).await?;
        }
        Ok(())
    }

    fn is_fallback(&self) -> bool {
        !self.rights.session_replication_role
    }

    /// Sends what opens the transaction, where that is still to be done.
    pub(super) async fn open(&mut self) -> Result<(), AgentError> {
        match self.opening.take() {
            Some(opening) => self.command(&opening).await,
            None => Ok(()),
        }
    }

    pub(super) async fn command(&self, sql: &str) -> Result<(), AgentError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|source| AgentError::from_driver("steer the transaction", None, source))
    }
}

fn receive(change: &Change, ledger: &mut Ledger) {
    if change.origin == Origin::Stream {
        count(change, ledger).received += 1;
    }
}

pub(super) fn count<'l>(change: &Change, ledger: &'l mut Ledger) -> &'l mut Tally {
    ledger.of(&change.relation.table, Counted::of(change))
}

/// Counts what was decided before the sink saw it.
fn note(item: &Item, ledger: &mut Ledger) {
    match item {
        Item::Filtered { relation, count } => {
            let tally = ledger.of(&relation.table, Counted::Any);
            tally.received += count;
            tally.filtered += count;
        }
        Item::Superseded { relation, count } => {
            let tally = ledger.of(&relation.table, Counted::Any);
            tally.received += count;
            tally.superseded += count;
        }
        Item::Change(_) | Item::Truncate(_) | Item::CopyProgress(_) => {}
    }
}
