//! The one session that writes rows, failed rows, accounting and checkpoint, in one
//! [`Transaction`](super::Transaction) after another.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Statement;
use tracing::warn;

use super::parked_keys::ParkedKeys;
use super::parking_log::ParkingLog;
use super::session::Session;
use super::targets::Targets;
use super::write::{Constraints, CopyBackoff, LateRows, LockWait, SlowTables, Writer};
use crate::agent_db::bookkeeping::claims;
use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::agent_db::bookkeeping::{
    Checkpoint, Pipeline, StoredCheckpoint, TableChange, TableMode, accounting, checkpoint, lock, shapes, tables,
};
use crate::agent_db::catalog::Rights;
use crate::agent_db::error::{AgentError, MissingColumn, add_columns};
use crate::change::{Relation, Shape, TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;
use crate::metrics;

/// How an [`Applier`] works.
#[derive(Debug, Clone)]
pub struct ApplierSettings {
    /// The session's `application_name`, by which a second daemon names the first one.
    pub application_name: String,
    /// If more rows of one table than this are parked, the table itself is taken to be at fault.
    pub max_failed_rows: usize,
    /// Wait before a parked row is tried again the first time.
    pub retry_initial: Duration,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// A statement that takes longer is cancelled.
    pub statement_limit: Duration,
}

/// Holds the slot's lock and everything that outlives a transaction: resolved tables, prepared statements, parked keys,
/// the last checkpoint. [`Applier::begin`](super::Applier::begin) gives it to a transaction; commit and rollback give it
/// back, and an error ends it with its connection.
#[derive(Debug)]
pub struct Applier {
    pub(super) writer: Writer,
    pub(super) slot: String,
    /// For whom tables are claimed before they are written; `None`: for nobody.
    pipeline: Option<Pipeline>,
    url: DatabaseUrl,
    /// What texts the database can hold.
    pub(super) encoding: Encoding,
    /// What the session's role may do.
    pub(super) rights: Rights,
    /// The last durable checkpoint, if known.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) save_checkpoint: Statement,
    pub(super) add_accounting: Statement,
    pub(super) parking_log: ParkingLog,
}

impl Applier {
    /// Opens the session and takes the slot's lock.
    ///
    /// # Errors
    /// [`AgentError::Busy`] while another daemon has the lock; otherwise the connection failed, or schema `twinlog` is
    /// missing.
    pub async fn connect(url: &DatabaseUrl, slot: &str, settings: ApplierSettings) -> Result<Self, AgentError> {
        let mut session = Session::connect(url, &settings.application_name, settings.statement_limit).await?;
        let rights = Rights::probe(&session.client).await?;
        session.configure(rights.session_replication_role).await?;
        let client = &session.client;
        lock::take(client, slot).await?;
        let save_checkpoint = checkpoint::prepare(client).await?;
        let add_accounting = accounting::prepare(client).await?;
        let constraints = Constraints::read(client, &rights).await?;
        let encoding = Encoding::read(client).await?;
        let mut parked = ParkedKeys::new(
            slot,
            encoding,
            settings.max_failed_rows,
            settings.retry_initial,
            settings.retry_max,
        );
        parked.load(client).await?;
        for (table, rows) in parked.counts() {
            metrics::set_failed_rows(&table, rows);
        }
        Ok(Self {
            writer: Writer {
                session,
                targets: Targets::default(),
                parked,
                constraints,
                copying: HashSet::new(),
                held: HashSet::new(),
                copy_backoff: CopyBackoff::default(),
                slow: SlowTables::default(),
                late: LateRows::default(),
                looks_with_piece: false,
                locked_rows: None,
                lock_wait: LockWait::default(),
            },
            slot: slot.to_owned(),
            pipeline: None,
            url: url.clone(),
            encoding,
            rights,
            checkpoint: None,
            save_checkpoint,
            add_accounting,
            parking_log: ParkingLog::default(),
        })
    }

    /// From now on, a table is claimed for this pipeline before it is resolved, so before it is written.
    pub fn claim_for(&mut self, pipeline: Pipeline) {
        self.pipeline = Some(pipeline);
    }

    /// The other slots of the pipeline's source for which tables are claimed.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn other_claiming_slots(&self) -> Result<Vec<String>, AgentError> {
        match &self.pipeline {
            Some(pipeline) => pipeline.other_slots(&self.writer.session.client).await,
            None => Ok(Vec::new()),
        }
    }

    /// Removes the claims of a slot that does not exist any more, unless its daemon runs. Returns how many there were.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn remove_abandoned_claims(&self, slot: &str) -> Result<u64, AgentError> {
        claims::remove_abandoned(&self.writer.session.client, slot).await
    }

    /// Gives the claims of all other tables back.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn settle_claims<'t>(&self, tables: impl Iterator<Item = &'t TableName>) -> Result<(), AgentError> {
        match &self.pipeline {
            Some(pipeline) => pipeline.settle(&self.writer.session.client, tables).await,
            None => Ok(()),
        }
    }

    /// Adds to an error of a table what the configuration says about it.
    pub(super) fn named(&self, error: AgentError) -> AgentError {
        match &self.pipeline {
            Some(pipeline) => pipeline.named(error),
            None => error,
        }
    }

    /// Makes sure that tables are this pipeline's to write; of each, whether it is.
    async fn claim(&self, tables: &[TableName]) -> Result<Vec<Result<(), AgentError>>, AgentError> {
        let Some(pipeline) = &self.pipeline else {
            return Ok(tables.iter().map(|_| Ok(())).collect());
        };
        let claimed = pipeline.claim(&self.writer.session.client, &self.url, tables).await?;
        let of_table = tables.iter().zip(claimed);
        Ok(of_table.map(|(table, claimed)| claimed.allowed(table)).collect())
    }

    /// What the configuration says about a table that was looked up.
    fn allowed(&self, resolved: Result<Arc<Relation>, AgentError>) -> Result<Arc<Relation>, AgentError> {
        let relation = resolved.map_err(|error| self.named(error))?;
        if let Some(pipeline) = &self.pipeline
            && relation.counts_rows()
            && pipeline.tables.is_shared(&relation.table)
        {
            return Err(AgentError::SharedWithoutKey {
                table: relation.table.clone(),
            });
        }
        Ok(relation)
    }

    /// Matches a table of the stream with the Agent DB's, and claims it. The same description gives the same relation as
    /// long as the Agent DB's table stays the same.
    ///
    /// # Errors
    /// What is wrong with the table; the hint is the statement to paste. The session stays usable.
    pub async fn resolve(&mut self, description: &TableDescription) -> Result<Arc<Relation>, AgentError> {
        let writer = &mut self.writer;
        let resolved = writer.targets.resolve(&writer.session.client, description).await;
        let relation = self.allowed(resolved)?;
        for claimed in self.claim(std::slice::from_ref(&relation.table)).await? {
            claimed?;
        }
        let writer = &mut self.writer;
        writer.constraints = Constraints::read(&writer.session.client, &self.rights).await?;
        Ok(relation)
    }

    /// As [`Applier::resolve`] for many tables: what each is, or what is wrong with it.
    ///
    /// # Errors
    /// The connection's, or that of a query that is not about one table.
    pub async fn resolve_all(
        &mut self,
        descriptions: &[TableDescription],
    ) -> Result<Vec<Result<Arc<Relation>, AgentError>>, AgentError> {
        let writer = &mut self.writer;
        let resolved = writer.targets.resolve_all(&writer.session.client, descriptions).await;
        let resolved: Vec<_> = resolved.into_iter().map(|resolved| self.allowed(resolved)).collect();
        let names: Vec<TableName> = resolved
            .iter()
            .flatten()
            .map(|relation| relation.table.clone())
            .collect();
        let mut claimed = self.claim(&names).await?.into_iter();
        let writer = &mut self.writer;
        writer.constraints = Constraints::read(&writer.session.client, &self.rights).await?;
        let with_claim = |resolved: Result<Arc<Relation>, AgentError>| {
            let relation = resolved?;
            claimed.next().unwrap_or(Ok(())).map(|()| relation)
        };
        Ok(resolved.into_iter().map(with_claim).collect())
    }

    /// Has a table looked up again before it is written the next time, because it was changed in the Agent DB.
    ///
    /// # Errors
    /// [`AgentError::Claimed`]: it is not this pipeline's to write any more. Otherwise the statement's or the connection's.
    pub async fn agent_changed(&mut self, table: &TableName) -> Result<(), AgentError> {
        for claimed in self.claim(std::slice::from_ref(table)).await? {
            claimed?;
        }
        let writer = &mut self.writer;
        writer.targets.doubt(table);
        writer.constraints = Constraints::read(&writer.session.client, &self.rights).await?;
        Ok(())
    }

    /// The tables to which each table refers, where the database checks that their rows are there. Never in a circle.
    #[must_use]
    pub fn parents(&self) -> BTreeMap<TableName, BTreeSet<TableName>> {
        let mut parents: BTreeMap<TableName, BTreeSet<TableName>> = BTreeMap::new();
        if let Constraints::Checked(foreign_keys) = &self.writer.constraints {
            for (child, parent) in foreign_keys.pairs() {
                if foreign_keys.depth(parent) < foreign_keys.depth(child) {
                    parents.entry(child.clone()).or_default().insert(parent.clone());
                }
            }
        }
        parents
    }

    /// Adds columns as the Site DB declares them, nullable and without a default.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn add_columns(&mut self, table: &TableName, columns: &[MissingColumn]) -> Result<(), AgentError> {
        let Some(add) = add_columns(columns) else {
            return Err(AgentError::Internal(format!(
                "the types of new columns of {table} are not known"
            )));
        };
        let sql = format!("ALTER TABLE {} {add}", table.quoted());
        self.writer
            .session
            .client
            .batch_execute(&sql)
            .await
            .map_err(|source| AgentError::from_driver("add columns", Some(table), source))
    }

    /// Says how a table's changes are treated from here on; [`TableMode::Complete`] before the first call.
    pub fn set_mode(&mut self, table: &TableName, mode: TableMode) {
        self.writer.set_mode(table, mode);
    }

    /// The checkpoint, made durable before it is returned; `None` before the first. An earlier daemon's commit may be
    /// visible and not yet flushed; a synchronous commit of our own flushes it too (pitfall P43).
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn durable_checkpoint(&mut self) -> Result<Option<StoredCheckpoint>, AgentError> {
        let stored = checkpoint::make_durable(&self.writer.session.client, &self.slot).await?;
        self.checkpoint = stored.as_ref().map(|stored| stored.checkpoint.clone());
        Ok(stored)
    }

    /// Writes the slot's first checkpoint, or replaces one of another identity or a later position, after it was decided
    /// that this is right. A gap that is set stays set. Durable when it returns.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn initialise_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), AgentError> {
        checkpoint::save(&self.writer.session.client, &self.save_checkpoint, checkpoint)
            .await
            .map_err(|source| AgentError::from_driver("write the checkpoint", None, source))?;
        self.checkpoint = Some(checkpoint.clone());
        Ok(())
    }

    /// Stores that rows may be missing. The first reason stays until [`Applier::clear_gap`].
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn set_gap(&mut self, reason: &str) -> Result<(), AgentError> {
        checkpoint::set_gap(&self.writer.session.client, &self.slot, &self.encoding.shown(reason)).await
    }

    /// As [`Transaction::forget_parked`](super::transaction::Transaction::forget_parked).
    pub(super) async fn forget_parked(&mut self, table: &TableName) -> Result<(), AgentError> {
        let writer = &mut self.writer;
        writer.session.begin_call()?;
        writer.parked.begin_segment();
        writer.parked.clear(table);
        writer.parked.flush(&writer.session.client, Lsn::default()).await?;
        writer.session.mend();
        metrics::set_failed_rows(table, 0);
        Ok(())
    }

    /// Removes the entries of parked rows whose table is not replicated: under its new name, or should it come back, it is
    /// read as a whole, and nobody would try them again.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn forget_parked_of_others(
        &mut self,
        is_replicated: impl Fn(&TableName) -> bool,
    ) -> Result<(), AgentError> {
        for (table, rows) in self.writer.parked.counts() {
            if rows > 0 && !is_replicated(&table) {
                warn!(%table, rows, "entries of parked rows are removed: their table is not replicated any more under this name");
                self.forget_parked(&table).await?;
            }
        }
        Ok(())
    }

    /// Writes a table's state. Durable when it returns.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn write_table(&mut self, change: &TableChange) -> Result<(), AgentError> {
        if let TableChange::Forgotten(gone) = change {
            Box::pin(self.forget_parked_of_others(|table| table != gone)).await?;
        }
        Box::pin(tables::write(
            &self.writer.session.client,
            self.encoding,
            &self.slot,
            change,
        ))
        .await
    }

    /// Stores the shape that a table has when it is copied.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn remember_shape(&mut self, table: &TableName, shape: &Shape) -> Result<(), AgentError> {
        shapes::remember(&self.writer.session.client, &self.slot, table, shape).await
    }

    /// Removes the stored gap and ends the full resync after which no row is missing, if every table is read. Returns
    /// whether that was so.
    ///
    /// # Errors
    /// The statement or the connection failed.
    pub async fn clear_gap(&mut self, command: i64) -> Result<bool, AgentError> {
        checkpoint::clear_gap(&self.writer.session.client, &self.slot, command).await
    }
}
