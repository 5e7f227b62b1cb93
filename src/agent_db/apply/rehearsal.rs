//! Trying parked rows in a transaction that is rolled back: what a retry would come to. Over a session of its own with the settings
//! of the one that writes, without the slot's lock, so it works beside a running daemon and without one.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::parked_keys::ParkedKeys;
use super::segment::{Item, Segment};
use super::session::Session;
use super::targets::Targets;
use super::write::{Constraints, CopyBackoff, LateRows, LockWait, SlowTables, Writer};
use crate::agent_db::bookkeeping::encoding::Encoding;
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::catalog::Rights;
use crate::agent_db::error::AgentError;
use crate::change::{Change, Key, Relation, TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::lsn::Lsn;

/// Refusals are counted by nobody here.
const NO_LIMIT: usize = usize::MAX;

/// What a retry of a parked key would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rehearsed {
    /// The row would be written, and would not be parked any more.
    Heals,
    /// It would be refused.
    Refused {
        /// The SQLSTATE, or `TW…`.
        sqlstate: String,
        /// The constraint that would refuse it, if it is one.
        constraint: Option<String>,
        /// The Agent DB's message.
        message: String,
    },
}

impl Rehearsed {
    fn by(reason: Option<&ParkReason>) -> Self {
        let Some(reason) = reason else { return Self::Heals };
        let (sqlstate, constraint, message) = reason.parts();
        Self::Refused {
            sqlstate: sqlstate.to_owned(),
            constraint: constraint.map(str::to_owned),
            message: message.to_owned(),
        }
    }
}

/// A session that tries, and commits nothing.
#[derive(Debug)]
pub struct Rehearsal {
    writer: Writer,
    rights: Rights,
}

impl Rehearsal {
    /// Opens the session.
    ///
    /// # Errors
    /// The connection failed, or schema `twinlog` is missing.
    pub async fn connect(url: &DatabaseUrl, slot: &str, statement_limit: Duration) -> Result<Self, AgentError> {
        let mut session = Session::connect(url, "twinlog rehearse", statement_limit).await?;
        let rights = Rights::probe(&session.client).await?;
        session.configure(rights.session_replication_role).await?;
        let client = &session.client;
        let constraints = Constraints::read(client, &rights).await?;
        let encoding = Encoding::read(client).await?;
        let mut parked = ParkedKeys::new(slot, encoding, NO_LIMIT, Duration::ZERO, Duration::ZERO);
        parked.load(client).await?;
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
            rights,
        })
    }

    /// Matches a table of the Site DB with the Agent DB's.
    ///
    /// # Errors
    /// What is wrong with the table.
    pub async fn resolve(&mut self, description: &TableDescription) -> Result<Arc<Relation>, AgentError> {
        let writer = &mut self.writer;
        writer.targets.resolve(&writer.session.client, description).await
    }

    /// Writes the present rows of parked keys as a retry would, and rolls back. `together`: those that may wait for each other;
    /// `alone`: those that are written after them one by one. Keys of which nothing is said were not reached.
    ///
    /// # Errors
    /// The connection's, or the whole database's. What is one table's fault is said of each of its keys.
    pub async fn rehearse(
        &mut self,
        together: &[Change],
        alone: &[Change],
    ) -> Result<Vec<(TableName, Key, Rehearsed)>, AgentError> {
        let mut refused: Vec<(TableName, Key, Rehearsed)> = Vec::new();
        let mut at_fault: BTreeSet<TableName> = BTreeSet::new();
        // Each round leaves one more table out, so this comes to an end.
        loop {
            let rows = |changes: &[Change]| -> Vec<Change> {
                let is_left = |change: &&Change| !at_fault.contains(&change.relation.table);
                changes.iter().filter(is_left).cloned().collect()
            };
            let heal = std::iter::once(Item::Heal(rows(together)));
            let segment = Segment {
                items: heal.chain(rows(alone).into_iter().map(Item::Change)).collect(),
                lsn: Lsn::default(),
            };
            let tried = Box::pin(self.try_segment(&segment)).await;
            // Whatever has happened, nothing of it stays.
            self.writer.session.rollback().await?;
            self.writer.session.mend();
            let error = match tried {
                Ok(()) => {
                    let outcomes = self.writer.parked.outcomes();
                    refused.extend(
                        outcomes.map(|(table, key, reason)| (table.clone(), key.clone(), Rehearsed::by(reason))),
                    );
                    self.writer.parked.take_back();
                    return Ok(refused);
                }
                Err(error) => error.for_role(&self.rights.role),
            };
            self.writer.parked.take_back();
            let Some(table) = error.table_fault().filter(|table| !at_fault.contains(*table)).cloned() else {
                return Err(error);
            };
            let rehearsed = of_table(&error);
            let keys = together
                .iter()
                .chain(alone)
                .filter(|change| change.relation.table == table);
            refused.extend(keys.map(|change| (table.clone(), change.key.clone(), rehearsed.clone())));
            at_fault.insert(table);
        }
    }

    async fn try_segment(&mut self, segment: &Segment) -> Result<(), AgentError> {
        let writer = &mut self.writer;
        let deferred = writer.checks_constraints();
        writer.session.begin_call()?;
        writer.session.begin_segment(deferred);
        writer.session.limit.begin_segment();
        Box::pin(writer.write(segment)).await.map(drop)
    }
}

/// A table's fault, as it would be said of each of its rows.
fn of_table(error: &AgentError) -> Rehearsed {
    let refusal = match error {
        AgentError::Refused { refusal, .. } | AgentError::TableRefused { refusal, .. } => Some(refusal),
        _ => None,
    };
    Rehearsed::Refused {
        sqlstate: refusal.map_or_else(|| "-".to_owned(), |refusal| refusal.sqlstate.clone()),
        constraint: refusal.and_then(|refusal| refusal.constraint.clone()),
        message: error.to_string(),
    }
}
