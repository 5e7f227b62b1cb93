//! One transaction of the Agent DB: segments in, then commit with a checkpoint, or rollback.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::applier::Applier;
use super::compare::compare;
use super::ledger::Ledger;
use super::limit::Work;
use super::parking_log::ParkingCounts;
use super::pipelined::{Call, in_order};
use super::segment::{Applied, Committed, Item, Segment};
use super::write::{Constraints, LockWait};
use crate::agent_db::bookkeeping::accounting::Accounting;
use crate::agent_db::bookkeeping::failed_rows::entries;
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::bookkeeping::{Checkpoint, TableChange, TableMode, Tally, checkpoint, tables};
use crate::agent_db::difference::Comparison;
use crate::agent_db::error::AgentError;
use crate::change::{Change, Hold, HoldCause, Relation, Shape, TableDescription, TableName};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::metrics;

/// What is applied and not yet committed. Nothing is sent before the first statement that needs it.
///
/// It owns the [`Applier`], so nothing else can be written in between, and a transaction that is committed or rolled back
/// can't be used. If a commit fails, the applier is lost and the outcome unknown: connect another one and read its
/// checkpoint. If [`Transaction::apply`] fails or is dropped half-way, only a rollback is possible.
#[derive(Debug)]
pub struct Transaction {
    applier: Applier,
    ledger: Ledger,
    /// What happened to parked rows.
    parking: ParkingCounts,
}

impl Applier {
    /// Begins a transaction.
    #[must_use]
    pub fn begin(self) -> Transaction {
        Transaction {
            applier: self,
            ledger: Ledger::default(),
            parking: ParkingCounts::default(),
        }
    }
}

impl Transaction {
    /// Applies a segment. A fault of one table holds that table: its changes are passed over from this segment on, those
    /// of the other tables are written, and [`Applied::held`] says why.
    ///
    /// # Errors
    /// Those of the connection or of the whole database: the transaction must then be rolled back. Nothing is lost, since
    /// the source has everything after the last commit. [`AgentError::Aborted`] if an earlier call
    /// failed or was dropped half-way.
    pub async fn apply(&mut self, segment: Segment) -> Result<Applied, AgentError> {
        if segment.items.is_empty() && !self.applier.writer.session.is_broken() {
            return Ok(Applied::default());
        }
        self.applier.writer.session.begin_call()?;
        let applied = Box::pin(self.apply_segment(&segment))
            .await
            .map_err(|error| error.for_role(&self.applier.rights.role).of_bookkeeping())?;
        self.applier.writer.session.mend();
        Ok(applied)
    }

    async fn apply_segment(&mut self, segment: &Segment) -> Result<Applied, AgentError> {
        let writer = &mut self.applier.writer;
        let deferred = writer.checks_constraints();
        writer.session.begin_segment(deferred);
        writer.session.limit.begin_segment();
        writer.slow.row = None;
        let mut held = BTreeMap::new();
        // Each round holds one more table, so this comes to an end.
        let ledger = loop {
            match Box::pin(self.write_segment(segment)).await {
                Ok(ledger) => break ledger,
                Err(error) => {
                    let (table, hold) = Box::pin(self.hold(error)).await?;
                    held.insert(table, hold);
                }
            }
        };
        self.applier.writer.end_short_lock_wait().await?;
        self.park_slow_row(&held, segment.lsn).await?;
        let tables = ledger.tables();
        self.wake_waiting(&tables).await?;
        self.save_tables(segment).await?;
        self.ledger.add(&ledger);
        Ok(Applied {
            held,
            ..self.applied(tables)
        })
    }

    /// Parks the row that held its table because it takes too long: by trying it, it is seen that the table can be released.
    async fn park_slow_row(&mut self, held: &BTreeMap<TableName, Hold>, lsn: Lsn) -> Result<(), AgentError> {
        let writer = &mut self.applier.writer;
        let Some(change) = writer.slow.row.take() else {
            return Ok(());
        };
        if !held.contains_key(&change.relation.table) {
            return Ok(());
        }
        let reason = ParkReason::too_slow(writer.session.limit.allowed(1).as_secs());
        if writer.parked.park(&change, &reason).is_err() {
            return Ok(());
        }
        writer.session.open().await?;
        writer.session.command("SAVEPOINT slow_row").await?;
        match self.flush_parked(lsn).await {
            Ok(()) => self.applier.writer.session.command("RELEASE SAVEPOINT slow_row").await,
            // Then the table is released after a wait, and tried.
            Err(_) => {
                let writer = &mut self.applier.writer;
                writer.parked.take_back();
                writer.back_to("ROLLBACK TO SAVEPOINT slow_row").await
            }
        }
    }

    /// Writes a segment's rows and the entries of those that are parked.
    async fn write_segment(&mut self, segment: &Segment) -> Result<Ledger, AgentError> {
        let ledger = Box::pin(self.applier.writer.write(segment)).await?;
        if let Some(table) = ledger.unbalanced() {
            return Err(AgentError::Internal(format!("the changes of {table} do not add up")));
        }
        self.flush_parked(segment.lsn).await?;
        Ok(ledger)
    }

    /// Holds the table whose fault this is, and goes back to where the segment began. Returns the table and why.
    ///
    /// # Errors
    /// The fault itself, where it is not one table's, or the connection did not survive it.
    async fn hold(&mut self, fault: AgentError) -> Result<(TableName, Hold), AgentError> {
        let fault = fault.for_role(&self.applier.rights.role);
        let writer = &mut self.applier.writer;
        let Some(table) = fault
            .table_fault()
            .filter(|table| !writer.held.contains(*table))
            .cloned()
        else {
            return Err(fault);
        };
        if fault.hold().cause == HoldCause::Locked {
            writer.lock_wait = LockWait::Short;
        }
        if writer.rewind().await.is_err() {
            return Err(fault);
        }
        let fault = Box::pin(writer.explained(fault)).await?;
        writer.set_mode(&table, TableMode::Held);
        let fault = self.applier.named(fault);
        Ok((table, fault.hold()))
    }

    /// Writes the entries of keys that were parked, healed or refused again.
    async fn flush_parked(&mut self, lsn: Lsn) -> Result<(), AgentError> {
        let writer = &mut self.applier.writer;
        if writer.parked.has_pending() {
            writer.session.open().await?;
            let counts = writer.parked.flush(&writer.session.client, lsn).await?;
            let total = counts.total();
            self.parking.add(counts);
            if total.parked + total.folded > 0 {
                failpoint::reach(failpoint::name::AGENT_AFTER_PARK);
            }
        }
        Ok(())
    }

    /// Makes parked rows due that may wait for rows of their own table, of their parent's or of their children's, soon after
    /// some of those are written.
    async fn wake_waiting(&mut self, written: &BTreeMap<TableName, Tally>) -> Result<(), AgentError> {
        let writer = &self.applier.writer;
        let Constraints::Checked(foreign_keys) = &writer.constraints else {
            return Ok(());
        };
        if !writer.parked.any() {
            return Ok(());
        }
        let is_written = |table: &TableName| {
            let tally = written.get(table);
            tally.is_some_and(|tally| tally.applied + tally.copied + tally.healed > 0)
        };
        let linked = foreign_keys
            .pairs()
            .flat_map(|(child, parent)| [(child, parent), (parent, child)]);
        let waiting: BTreeSet<&TableName> = linked
            .chain(written.keys().map(|table| (table, table)))
            .filter(|(waiting, other)| writer.parked.count(waiting) > 0 && is_written(other))
            .map(|(waiting, _)| waiting)
            .collect();
        for table in waiting {
            entries::wake_waiting(&writer.session.client, &self.applier.slot, table).await?;
        }
        Ok(())
    }

    /// Writes the tables' states, for each table the last one in the segment.
    async fn save_tables(&mut self, segment: &Segment) -> Result<(), AgentError> {
        let mut changes = HashMap::new();
        for item in &segment.items {
            if let Item::Table(change) = item {
                changes.insert(change.table(), change);
            }
        }
        let session = &mut self.applier.writer.session;
        for change in changes.values() {
            session.open().await?;
            Box::pin(tables::write(
                &session.client,
                self.applier.encoding,
                &self.applier.slot,
                change,
            ))
            .await?;
        }
        Ok(())
    }

    /// Compares what a table should hold at this place of the stream with what it holds; parked keys are only counted. To be
    /// called between a commit and the next segment. Writes nothing.
    ///
    /// # Errors
    /// What is wrong with the table, or the connection's. The session stays usable.
    pub async fn compare(&mut self, relation: &Arc<Relation>, expected: &[Change]) -> Result<Comparison, AgentError> {
        let writer = &mut self.applier.writer;
        if writer.session.is_broken() || writer.session.in_transaction() {
            return Err(AgentError::Aborted);
        }
        let target = match writer.targets.known(relation) {
            Some(known) => known,
            None => writer.targets.look_up(&writer.session.client, relation).await?,
        };
        let table = &relation.table;
        let (parked, compared): (Vec<&Change>, Vec<&Change>) = expected
            .iter()
            .partition(|change| writer.parked.contains(table, &change.key));
        let (rows, session) = (compared.len(), &writer.session);
        let work = Work {
            bytes: &|| expected.iter().map(Change::size).sum(),
            rows,
            scanned: relation.counts_rows().then_some(table).into_iter().collect(),
        };
        let answer = Box::pin(compare(&session.client, &target, compared));
        let differences = match session.limit.within(&work, answer).await {
            (Err(_), Some(cancelled)) => return Err(cancelled.of("a comparison", Some(table.clone()), rows)),
            (answer, _) => answer?,
        };
        Ok(Comparison {
            differences,
            parked: parked.len() as u64,
        })
    }

    fn applied(&self, tables: BTreeMap<TableName, Tally>) -> Applied {
        let parked = &self.applier.writer.parked;
        // Of all tables, as entries are also removed where no row is written: of another key, of a table that left.
        let mut parked_now = parked.counts();
        for table in tables.keys() {
            parked_now.entry(table.clone()).or_default();
        }
        Applied {
            tables,
            parked_now,
            held: BTreeMap::new(),
        }
    }

    /// As [`Applier::resolve`], within the transaction.
    ///
    /// # Errors
    /// What is wrong with the table. If a statement failed, the transaction must be rolled back.
    pub async fn resolve(&mut self, description: &TableDescription) -> Result<Arc<Relation>, AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        let result = self.applier.resolve(description).await;
        let session = &mut self.applier.writer.session;
        if session.in_transaction() && matches!(result, Err(AgentError::Refused { .. } | AgentError::Session(_))) {
            session.set_broken();
        }
        result
    }

    /// As [`Applier::set_mode`].
    pub fn set_mode(&mut self, table: &TableName, mode: TableMode) {
        self.applier.set_mode(table, mode);
    }

    /// As [`Applier::agent_changed`].
    ///
    /// # Errors
    /// The statement's or the connection's; [`AgentError::Aborted`] if an earlier call has failed.
    pub async fn agent_changed(&mut self, table: &TableName) -> Result<(), AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        self.applier.agent_changed(table).await
    }

    /// As [`Applier::write_table`]; if something was applied already, it is committed together with that.
    ///
    /// # Errors
    /// The statement or the connection failed; [`AgentError::Aborted`] if an earlier call has failed.
    pub async fn write_table(&mut self, change: &TableChange) -> Result<(), AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        self.applier.write_table(change).await
    }

    /// As [`Applier::remember_shape`]; if something was applied already, it is committed together with that.
    ///
    /// # Errors
    /// The statement or the connection failed; [`AgentError::Aborted`] if an earlier call has failed.
    pub async fn remember_shape(&mut self, table: &TableName, shape: &Shape) -> Result<(), AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        self.applier.remember_shape(table, shape).await
    }

    /// What the Agent DB's table can't have as the Site DB has it.
    #[must_use]
    pub fn notes(&self, table: &TableName) -> Option<String> {
        self.applier
            .writer
            .targets
            .newest(table)
            .and_then(|target| target.notes.clone())
    }

    /// How many rows of a table are parked.
    #[must_use]
    pub fn parked_rows(&self, table: &TableName) -> u64 {
        self.applier.writer.parked.count(table)
    }

    /// Removes the entries of a table's parked rows, after it was decided that the table is read again; where something was
    /// applied already, that goes with its commit.
    ///
    /// # Errors
    /// The statement's or the connection's; [`AgentError::Aborted`] where an earlier call has failed.
    pub async fn forget_parked(&mut self, table: &TableName) -> Result<(), AgentError> {
        self.applier.forget_parked(table).await
    }

    /// As [`Applier::clear_gap`]; if something was applied already, it is committed together with that.
    ///
    /// # Errors
    /// The statement or the connection failed; [`AgentError::Aborted`] if an earlier call has failed.
    pub async fn clear_gap(&mut self, command: i64) -> Result<bool, AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        self.applier.clear_gap(command).await
    }

    /// Commits everything that was applied together with the checkpoint; durable when it returns. Does nothing if
    /// nothing was applied and the checkpoint is stored already.
    ///
    /// # Errors
    /// The applier and its connection are lost. If the server refused, nothing is committed; after an error of the
    /// connection the outcome is unknown.
    pub async fn commit(mut self, checkpoint: Checkpoint) -> Result<(Applier, Committed), AgentError> {
        if self.applier.writer.session.is_broken() {
            return Err(AgentError::Aborted);
        }
        self.check(&checkpoint)?;
        let end_lsn = checkpoint.end_lsn;
        let is_known = self
            .applier
            .checkpoint
            .as_ref()
            .is_some_and(|known| known.identity == checkpoint.identity && known.end_lsn == end_lsn);
        if is_known && !self.applier.writer.session.in_transaction() {
            let committed = Committed {
                end_lsn,
                applied: Applied::default(),
                written: false,
            };
            return Ok((self.applier, committed));
        }
        failpoint::reach(failpoint::name::AGENT_BEFORE_COMMIT);
        self.applier.writer.session.begin_call()?;
        let applied = Box::pin(self.send_commit(&checkpoint))
            .await
            .map_err(|error| error.for_role(&self.applier.rights.role).of_bookkeeping())?;
        failpoint::reach(failpoint::name::AGENT_AFTER_COMMIT);
        self.applier.writer.session.committed();
        self.applier.checkpoint = Some(checkpoint);
        self.ledger.export(&applied);
        metrics::count_retries("failed", self.parking.total().refused);
        self.applier.parking_log.committed(self.parking, Instant::now());
        let committed = Committed {
            end_lsn,
            applied,
            written: true,
        };
        Ok((self.applier, committed))
    }

    /// A checkpoint may only move forward in its own log.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), AgentError> {
        if checkpoint.identity.slot != self.applier.slot {
            return Err(AgentError::Internal(format!(
                "a checkpoint of slot {} for the applier of slot {}",
                checkpoint.identity.slot, self.applier.slot
            )));
        }
        if let Some(known) = &self.applier.checkpoint {
            if known.identity.system_identifier != checkpoint.identity.system_identifier {
                return Err(AgentError::AnotherSource);
            }
            if checkpoint.end_lsn < known.end_lsn {
                return Err(AgentError::Backwards {
                    from: known.end_lsn,
                    to: checkpoint.end_lsn,
                });
            }
        }
        Ok(())
    }

    /// Checkpoint, accounting and COMMIT in one round trip. If one of the first two fails, the transaction is aborted and
    /// COMMIT rolls it back, so the first error is the one to report.
    async fn send_commit(&mut self, checkpoint: &Checkpoint) -> Result<Applied, AgentError> {
        let applier = &mut self.applier;
        let begin = applier.writer.session.take_opening_of_commit();
        let tables = self.ledger.tables();
        let client = &applier.writer.session.client;
        let accounting = Accounting::of(&tables);
        let mut calls: Vec<Call<'_, Result<u64, tokio_postgres::Error>>> = Vec::new();
        if !begin.is_empty() {
            calls.push(Box::pin(async { client.batch_execute(begin).await.map(|()| 0) }));
        }
        calls.push(Box::pin(checkpoint::save(client, &applier.save_checkpoint, checkpoint)));
        if !tables.is_empty() {
            calls.push(Box::pin(accounting.add(client, &applier.add_accounting, &applier.slot)));
        }
        calls.push(Box::pin(async { client.batch_execute("COMMIT").await.map(|()| 0) }));
        for answer in in_order(calls).await {
            answer.map_err(|source| AgentError::from_driver("commit", None, source))?;
        }
        Ok(self.applied(tables))
    }

    /// Rolls back everything that was applied.
    ///
    /// # Errors
    /// The connection failed: the applier is lost, and the server rolls back when it notices.
    pub async fn rollback(mut self) -> Result<Applier, AgentError> {
        let writer = &mut self.applier.writer;
        writer.session.rollback().await?;
        writer.parked.load(&writer.session.client).await?;
        writer.session.mend();
        Ok(self.applier)
    }
}
