//! The one connection that writes: session, transaction, commit. How a segment is written is `write`'s matter and its
//! round trips [`send`]'s, which rows are parked [`parking`]'s, what is counted [`ledger`]'s, lock and checkpoint
//! [`bookkeeping`](super::bookkeeping)'s.
//!
//! A call that fails or is dropped half-way leaves the sink unusable until [`Sink::rollback`]; a commit whose answer was
//! not seen leaves it unusable for good. So a caller can't commit a checkpoint over rows that are not there.

mod array;
mod bulk;
mod copy_text;
mod ledger;
mod parking;
mod pipeline;
mod plan;
mod segment;
mod send;
mod sql;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_postgres::{Client, Statement};

use self::bulk::Spared;
use self::ledger::Ledger;
use self::parking::Lot;
use self::pipeline::{Request, in_order};
use self::send::Prepared;
use self::sql::Kind;
use super::bookkeeping::accounting::{self, Accounting};
use super::bookkeeping::failed_rows::entries;
use super::bookkeeping::{Checkpoint, StoredCheckpoint, checkpoint, lock, tables};
use super::catalog::{self, ForeignKey, Target};
use super::error::AgentError;
use super::rights::{self, Rights};
use crate::change::{Identity, Relation, TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::failpoint;
use crate::metrics;
use crate::postgres::{Side, connect};
use crate::retry::Disposition;

pub use self::segment::{Applied, Committed, Item, Segment};

/// What the sink must be told.
#[derive(Debug, Clone)]
pub struct SinkSettings {
    /// The session's `application_name`, by which a second daemon names the first one.
    pub application_name: String,
    /// Parked rows in one table beyond which the table is at fault.
    pub max_failed_rows: usize,
    /// First wait before a parked row is tried again.
    pub retry_initial: Duration,
    /// Longest wait.
    pub retry_max: Duration,
}

/// The one connection that writes rows, failed rows, accounting and checkpoint, all in the same transaction.
#[derive(Debug)]
pub struct Sink {
    client: Client,
    /// Cuts the connection.
    connection: AbortHandle,
    slot: String,
    rights: Rights,
    state: State,
    /// Whether a transaction is open, or will be with the next statement (`opening`).
    in_transaction: bool,
    /// What is to be sent before the next statement: BEGIN, savepoint.
    opening: Option<String>,
    /// The last one that is durable here, where known.
    checkpoint: Option<Checkpoint>,
    /// By the relation's address, which the entry keeps alive.
    targets: HashMap<usize, Arc<Target>>,
    statements: HashMap<(usize, Kind), Arc<Prepared>>,
    /// Prepared once: what every commit runs.
    save_checkpoint: Statement,
    add_accounting: Statement,
    lot: Lot,
    copying: HashSet<TableName>,
    spared: Spared,
    foreign_keys: Vec<ForeignKey>,
    depths: HashMap<TableName, usize>,
    /// What the open transaction holds.
    ledger: Ledger,
    /// Attempts to heal that were refused in the open transaction.
    refused_heals: u64,
}

/// Whether the sink can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It can.
    Whole,
    /// A call has begun and not ended well: set before it, taken back after it.
    Broken,
    /// A COMMIT was sent: set before it, taken back when it is answered.
    Committing,
}

impl Sink {
    /// Opens the session and takes the slot's lock.
    ///
    /// # Errors
    /// [`AgentError::Busy`] while another daemon has the lock; otherwise the connection's, or that of a schema `twinlog`
    /// that is not there.
    pub async fn connect(url: &DatabaseUrl, slot: &str, settings: SinkSettings) -> Result<Self, AgentError> {
        let (client, connection) = connect::open(Side::Agent, url, &settings.application_name, None).await?;
        let rights = rights::probe(&client).await?;
        // A generic plan is right for statements that join an array with a table by key, and saves planning each time.
        client
            .batch_execute("SET plan_cache_mode = force_generic_plan")
            .await
            .map_err(|source| AgentError::from_driver("set plan_cache_mode", None, source))?;
        // A backend whose daemon has gone shall notice in the middle of a statement too, and free the lock. Not every
        // platform can look (PostgreSQL 14 on macOS): then it notices a little later.
        match client
            .batch_execute("SET client_connection_check_interval = '5s'")
            .await
        {
            Err(source) if source.as_db_error().is_none() => {
                return Err(AgentError::from_driver(
                    "set client_connection_check_interval",
                    None,
                    source,
                ));
            }
            Ok(()) | Err(_) => {}
        }
        lock::take(&client, slot).await?;
        let save_checkpoint = checkpoint::prepare(&client).await?;
        let add_accounting = accounting::prepare(&client).await?;
        let foreign_keys = if rights.session_replication_role {
            Vec::new()
        } else {
            catalog::foreign_keys(&client).await?
        };
        let mut lot = Lot::new(
            slot,
            settings.max_failed_rows,
            settings.retry_initial,
            settings.retry_max,
        );
        lot.load(&client).await?;
        for (table, rows) in lot.counts() {
            metrics::set_failed_rows(&table, rows);
        }
        Ok(Self {
            client,
            connection,
            slot: slot.to_owned(),
            rights,
            state: State::Whole,
            in_transaction: false,
            opening: None,
            checkpoint: None,
            targets: HashMap::new(),
            statements: HashMap::new(),
            save_checkpoint,
            add_accounting,
            lot,
            copying: HashSet::new(),
            spared: Spared::default(),
            depths: catalog::depths(&foreign_keys),
            foreign_keys,
            ledger: Ledger::default(),
            refused_heals: 0,
        })
    }

    /// What the role may do.
    #[must_use]
    pub const fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Whether the connection has ended: the lock is lost, open another sink.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Matches a table of the stream with the Agent DB's. The same description gives the same relation as long as the
    /// Agent DB's table stays the same.
    ///
    /// # Errors
    /// What is wrong with the table, with the statement to paste as hint; then, the transaction stays whole.
    pub async fn resolve(&mut self, description: &TableDescription) -> Result<Arc<Relation>, AgentError> {
        self.usable()?;
        let target = Box::pin(catalog::resolve(&self.client, description))
            .await
            .inspect_err(|error| {
                if self.in_transaction && matches!(error, AgentError::Refused { .. } | AgentError::Connection { .. }) {
                    self.state = State::Broken;
                }
            })?;
        if !self.rights.session_replication_role {
            self.foreign_keys = catalog::foreign_keys(&self.client).await?;
            self.depths = catalog::depths(&self.foreign_keys);
        }
        Ok(Arc::clone(&self.remember(target).relation))
    }

    /// Whether the table's first copy is reading rows: a partial update whose row is missing is then superseded by the
    /// chunk that will bring the row, not parked.
    pub fn set_copying(&mut self, table: &TableName, copying: bool) {
        if copying {
            self.copying.insert(table.clone());
        } else {
            self.copying.remove(table);
        }
    }

    /// Reads the parked keys again, after somebody else changed `twinlog.failed_rows`.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn reload_parked(&mut self) -> Result<(), AgentError> {
        self.usable()?;
        self.lot.load(&self.client).await
    }

    /// How many rows are parked, by table, as the open transaction sees it.
    #[must_use]
    pub fn parked(&self) -> std::collections::BTreeMap<TableName, u64> {
        self.lot.counts()
    }

    /// Applies a segment inside of the open transaction, which is begun where there is none.
    ///
    /// # Errors
    /// Transient and systemic ones only, and [`AgentError::TooManyFailed`]: the transaction must then be rolled back;
    /// nothing is lost, the source has everything since the last commit.
    pub async fn apply(&mut self, segment: Segment) -> Result<Applied, AgentError> {
        self.usable()?;
        if segment.items.is_empty() {
            return Ok(Applied::default());
        }
        self.state = State::Broken;
        let applied = Box::pin(self.apply_segment(&segment))
            .await
            .map_err(|error| error.for_role(&self.rights.role).of_bookkeeping())?;
        self.state = State::Whole;
        Ok(applied)
    }

    async fn apply_segment(&mut self, segment: &Segment) -> Result<Applied, AgentError> {
        self.begin_segment();
        let ledger = Box::pin(self.write(segment)).await?;
        if let Some(table) = ledger.unbalanced() {
            return Err(AgentError::Internal(format!("the changes of {table} do not add up")));
        }
        self.flush_parked(segment, &ledger).await?;
        let mut progress = HashMap::new();
        for item in &segment.items {
            if let Item::CopyProgress(of_table) = item {
                progress.insert(&of_table.table, of_table);
            }
        }
        for of_table in progress.values() {
            self.open().await?;
            Box::pin(tables::save(&self.client, &self.slot, of_table)).await?;
        }
        self.ledger.add(&ledger);
        let tables = ledger.tables();
        let parked_now = tables
            .keys()
            .map(|table| (table.clone(), self.lot.count(table)))
            .collect();
        Ok(Applied { tables, parked_now })
    }

    /// Has the next statement open the transaction, or the segment's savepoint.
    fn begin_segment(&mut self) {
        if self.opening.is_some() {
            return;
        }
        self.opening = Some(
            if self.in_transaction {
                "RELEASE SAVEPOINT segment; SAVEPOINT segment"
            } else if self.rights.session_replication_role {
                "BEGIN; SAVEPOINT segment"
            } else {
                "BEGIN; SET CONSTRAINTS ALL DEFERRED; SAVEPOINT segment"
            }
            .to_owned(),
        );
        self.in_transaction = true;
    }

    async fn flush_parked(&mut self, segment: &Segment, ledger: &Ledger) -> Result<(), AgentError> {
        if self.lot.has_pending() {
            self.open().await?;
            let flushed = self.lot.flush(&self.client, segment.lsn).await?;
            self.refused_heals += flushed.refused as u64;
            if flushed.parked > 0 {
                failpoint::reach(failpoint::name::AGENT_AFTER_PARK);
            }
        }
        // A child waits for its parent: look again as soon as rows of the parent's table were written after it, but no
        // more often than every few seconds where it waits for something else.
        let written = ledger.tables();
        let children: BTreeSet<&TableName> = self
            .foreign_keys
            .iter()
            .filter(|key| {
                self.lot.count(&key.child) > 0
                    && written
                        .get(&key.parent)
                        .is_some_and(|tally| tally.applied + tally.copied + tally.healed > 0)
            })
            .map(|key| &key.child)
            .collect();
        for table in children {
            entries::wake_children(&self.client, &self.slot, table).await?;
        }
        Ok(())
    }

    /// Commits everything applied since the last commit together with the checkpoint; durable when it returns. Does
    /// nothing where nothing was applied and the checkpoint is there already.
    ///
    /// # Errors
    /// After a connection's error the outcome is open: open another sink and read the checkpoint.
    pub async fn commit(&mut self, checkpoint: Checkpoint) -> Result<Committed, AgentError> {
        self.usable()?;
        if checkpoint.identity.slot != self.slot {
            return Err(AgentError::Internal(format!(
                "a checkpoint of slot {} for the sink of slot {}",
                checkpoint.identity.slot, self.slot
            )));
        }
        if let Some(known) = &self.checkpoint {
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
        let end_lsn = checkpoint.end_lsn;
        let is_known = self
            .checkpoint
            .as_ref()
            .is_some_and(|known| known.identity == checkpoint.identity && known.end_lsn == end_lsn);
        if is_known && !self.in_transaction {
            return Ok(Committed {
                end_lsn,
                applied: Applied::default(),
                written: false,
            });
        }
        failpoint::reach(failpoint::name::AGENT_BEFORE_COMMIT);
        self.state = State::Committing;
        let applied = match Box::pin(self.send_commit(&checkpoint)).await {
            Ok(applied) => applied,
            Err(error) => {
                let error = error.for_role(&self.rights.role).of_bookkeeping();
                // The server's own refusal ended the transaction: nothing is committed. Anything else leaves it open.
                if matches!(&error, AgentError::Refused { .. } | AgentError::Internal(_))
                    && error.disposition() != Disposition::Transient
                {
                    self.state = State::Broken;
                }
                return Err(error);
            }
        };
        failpoint::reach(failpoint::name::AGENT_AFTER_COMMIT);
        self.state = State::Whole;
        self.in_transaction = false;
        self.checkpoint = Some(checkpoint);
        let ledger = std::mem::take(&mut self.ledger);
        ledger.export(&applied);
        metrics::count_retries("failed", std::mem::take(&mut self.refused_heals));
        Ok(Committed {
            end_lsn,
            applied,
            written: true,
        })
    }

    /// Checkpoint, accounting and COMMIT in one round trip. Where one of the former fails, the transaction is aborted and
    /// COMMIT rolls it back, so the first error decides.
    async fn send_commit(&mut self, checkpoint: &Checkpoint) -> Result<Applied, AgentError> {
        let begin = match self.opening.take() {
            Some(opening) => opening,
            None if self.in_transaction => String::new(),
            None => "BEGIN".to_owned(),
        };
        self.in_transaction = true;
        let tables = self.ledger.tables();
        let client = &self.client;
        let accounting = Accounting::of(&tables);
        let mut requests: Vec<Request<'_, Result<u64, tokio_postgres::Error>>> = Vec::new();
        if !begin.is_empty() {
            requests.push(Box::pin(async { client.batch_execute(&begin).await.map(|()| 0) }));
        }
        requests.push(Box::pin(checkpoint::save(client, &self.save_checkpoint, checkpoint)));
        if !tables.is_empty() {
            requests.push(Box::pin(accounting.add(client, &self.add_accounting, &self.slot)));
        }
        requests.push(Box::pin(async { client.batch_execute("COMMIT").await.map(|()| 0) }));
        for answer in in_order(requests).await {
            answer.map_err(|source| AgentError::from_driver("commit", None, source))?;
        }
        let parked_now = tables
            .keys()
            .map(|table| (table.clone(), self.lot.count(table)))
            .collect();
        Ok(Applied { tables, parked_now })
    }

    /// The checkpoint, made durable before it is returned; `None` before the first. Not within a transaction. A
    /// predecessor's commit may be visible and not yet flushed: a synchronous commit of our own flushes everything before
    /// it too (pitfall P43).
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn durable_checkpoint(&mut self) -> Result<Option<StoredCheckpoint>, AgentError> {
        self.usable()?;
        if self.in_transaction {
            return Err(AgentError::Internal(
                "the checkpoint was asked for within a transaction".to_owned(),
            ));
        }
        let stored = checkpoint::make_durable(&self.client, &self.slot).await?;
        self.checkpoint = stored.as_ref().map(|stored| stored.checkpoint.clone());
        Ok(stored)
    }

    /// Writes the slot's first checkpoint, or replaces one of another identity or a later position, after somebody
    /// decided that this is right. A gap that is set stays set. Durable when it returns.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn initialise_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), AgentError> {
        self.usable()?;
        checkpoint::save(&self.client, &self.save_checkpoint, checkpoint)
            .await
            .map_err(|source| AgentError::from_driver("write the checkpoint", None, source))?;
        self.checkpoint = Some(checkpoint.clone());
        Ok(())
    }

    /// Remembers that rows may be missing. The first reason stays until [`Sink::clear_gap`]. Within a transaction, both
    /// become true with its commit.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn set_gap(&mut self, reason: &str) -> Result<(), AgentError> {
        self.usable()?;
        checkpoint::set_gap(&self.client, &self.slot, reason).await
    }

    /// A full resync has shown that nothing is missing.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn clear_gap(&mut self) -> Result<(), AgentError> {
        self.usable()?;
        checkpoint::clear_gap(&self.client, &self.slot).await
    }

    /// Takes everything back that was applied since the last commit.
    ///
    /// # Errors
    /// The connection's; [`AgentError::CommitUnknown`] where a COMMIT was sent.
    pub async fn rollback(&mut self) -> Result<(), AgentError> {
        if self.state == State::Committing {
            return Err(AgentError::CommitUnknown);
        }
        self.state = State::Broken;
        self.opening = None;
        // Harmless where nothing is open: a warning.
        self.command("ROLLBACK").await?;
        self.in_transaction = false;
        self.ledger = Ledger::default();
        self.refused_heals = 0;
        self.lot.load(&self.client).await?;
        self.state = State::Whole;
        Ok(())
    }

    const fn usable(&self) -> Result<(), AgentError> {
        match self.state {
            State::Whole => Ok(()),
            State::Broken => Err(AgentError::Aborted),
            State::Committing => Err(AgentError::CommitUnknown),
        }
    }

    /// How to write a relation: remembered, or read from the catalog for one that another sink resolved.
    async fn target(&mut self, relation: &Arc<Relation>) -> Result<Arc<Target>, AgentError> {
        if let Some(target) = self.targets.get(&address(relation)) {
            return Ok(Arc::clone(target));
        }
        if let Some(target) = self.targets.values().find(|target| target.relation == *relation) {
            return Ok(Arc::clone(target));
        }
        let description = TableDescription {
            id: relation.id,
            table: relation.table.clone(),
            columns: relation.columns.to_vec(),
            identity: Identity::Full,
        };
        let target = Box::pin(catalog::resolve(&self.client, &description)).await?;
        if target.relation.key != relation.key {
            return Err(AgentError::KeyChanged {
                table: relation.table.clone(),
            });
        }
        Ok(self.remember(target))
    }

    /// Keeps a target, or finds the one that is just like it, so that its statements stay prepared.
    fn remember(&mut self, target: Target) -> Arc<Target> {
        /// Each change of a table's columns makes one; beyond this many start over.
        const MAX_TARGETS: usize = 10_000;
        if let Some(known) = self.targets.values().find(|known| ***known == target) {
            return Arc::clone(known);
        }
        if self.targets.len() >= MAX_TARGETS {
            self.targets.clear();
            self.statements.clear();
        }
        let target = Arc::new(target);
        self.targets.insert(address(&target.relation), Arc::clone(&target));
        target
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // In the middle of a statement, a polite end would wait for its answer, and the slot's lock with it.
        if self.state != State::Whole {
            self.connection.abort();
        }
    }
}

fn address(relation: &Arc<Relation>) -> usize {
    Arc::as_ptr(relation) as usize
}
