//! What writing a segment needs, and the parts that every way of writing uses.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::copy_backoff::CopyBackoff;
use super::late_rows::LateRows;
use super::slow::SlowTables;
use crate::agent_db::apply::ledger::Ledger;
use crate::agent_db::apply::limit::Work;
use crate::agent_db::apply::parked_keys::ParkedKeys;
use crate::agent_db::apply::plan::moved;
use crate::agent_db::apply::segment::PassedOver;
use crate::agent_db::apply::session::{LOCK_TIMEOUT, Session};
use crate::agent_db::apply::sql::StatementKind;
use crate::agent_db::apply::targets::{Prepared, Targets};
use crate::agent_db::bookkeeping::TableMode;
use crate::agent_db::bookkeeping::failed_rows::reason::ParkReason;
use crate::agent_db::catalog::{ForeignKeys, Rights, Sight, Target, has_deferred_triggers};
use crate::agent_db::error::AgentError;
use crate::change::{Change, Operation, Origin, Relation, TableName};

/// Checks the deferred constraints, and defers them again.
const CHECK_DEFERRED: &str = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED";

/// Ends a piece that was accepted.
pub(super) const RELEASE_PIECE: &str = "RELEASE SAVEPOINT piece";

/// Whether the Agent DB checks its foreign keys and fires its triggers for what the session writes.
#[derive(Debug)]
pub(in crate::agent_db::apply) enum Constraints {
    /// `session_replication_role = replica`: no, but for triggers that are enabled as ALWAYS or REPLICA.
    Silent {
        /// Some of those are deferred, and would fire with the commit.
        deferred_triggers: bool,
    },
    /// Yes: rows are written in the order of the foreign keys.
    Checked(ForeignKeys),
}

/// Writes rows. Lives as long as the session.
#[derive(Debug)]
pub(in crate::agent_db::apply) struct Writer {
    pub session: Session,
    pub targets: Targets,
    pub parked: ParkedKeys,
    pub constraints: Constraints,
    /// Tables of which rows may be missing, until their copy has ended.
    pub copying: HashSet<TableName>,
    /// Tables that are held: their changes are counted and passed over.
    pub held: HashSet<TableName>,
    pub copy_backoff: CopyBackoff,
    pub slow: SlowTables,
    pub late: LateRows,
    /// Deferred triggers fire with each piece, so the second look is done before anything of it is counted.
    pub looks_with_piece: bool,
    /// While rows that are locked are parked: how many were in this segment.
    pub locked_rows: Option<u32>,
    pub lock_wait: LockWait,
}

/// How long the statements of a segment wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::agent_db::apply) enum LockWait {
    /// As the session does.
    #[default]
    Usual,
    /// Shorter, since somebody was waited for in vain: with several tables that are locked, the others must not wait for the
    /// sum of it.
    Short,
}

impl Constraints {
    /// Reads what the catalog says of them, for a session whose role is `replica` or not.
    pub(in crate::agent_db::apply) async fn read(client: &Client, rights: &Rights) -> Result<Self, AgentError> {
        Ok(if rights.session_replication_role {
            Self::Silent {
                deferred_triggers: has_deferred_triggers(client).await?,
            }
        } else {
            Self::Checked(ForeignKeys::read(client).await?)
        })
    }
}

impl Writer {
    /// Whether constraints are checked, and may be deferred.
    pub(in crate::agent_db::apply) const fn checks_constraints(&self) -> bool {
        match self.constraints {
            Constraints::Checked(_) => true,
            Constraints::Silent { deferred_triggers } => deferred_triggers,
        }
    }

    /// Whether the table's changes are passed over.
    pub(super) fn is_held(&self, table: &TableName) -> bool {
        !self.held.is_empty() && self.held.contains(table)
    }

    /// Says how a table's changes are treated from here on.
    pub(in crate::agent_db::apply) fn set_mode(&mut self, table: &TableName, mode: TableMode) {
        self.copying.remove(table);
        self.held.remove(table);
        match mode {
            TableMode::Complete => {}
            TableMode::LacksRows => drop(self.copying.insert(table.clone())),
            TableMode::Held => drop(self.held.insert(table.clone())),
        }
    }

    /// How to write a relation.
    pub(super) async fn target(&mut self, relation: &Arc<Relation>) -> Result<Arc<Target>, AgentError> {
        if let Some(known) = self.targets.known(relation) {
            return Ok(known);
        }
        // If this fails in an open transaction, only the segment's savepoint leads back.
        self.session.open().await?;
        self.targets.look_up(&self.session.client, relation).await
    }

    /// A table's statement; prepares it if needed.
    pub(super) async fn prepared(
        &mut self,
        target: &Arc<Target>,
        kind: &StatementKind,
    ) -> Result<Arc<Prepared>, AgentError> {
        if let Some(known) = self.targets.known_statement(target, kind) {
            return Ok(known);
        }
        // As above: the table may be locked.
        self.session.open().await?;
        self.targets.prepare(&self.session.client, target, kind).await
    }

    /// The change, or the parts of one that is not written as a whole: an update of a counted row whose table has nothing to
    /// keep of the row, or of which one part is parked.
    pub(super) async fn as_written<'c>(&mut self, change: &'c Change) -> Result<[Option<&'c Change>; 2], AgentError> {
        let Operation::ReplaceOne(replaced) = &change.operation else {
            return Ok([Some(change), None]);
        };
        let (old, new) = (&replaced.old, &replaced.new);
        let table = &change.relation.table;
        let is_parked = [old, new].iter().any(|part| self.parked.contains(table, &part.key));
        if !is_parked && self.target(&change.relation).await?.updates_in_place() && old.key != new.key {
            return Ok([Some(change), None]);
        }
        Ok([Some(old), Some(new)])
    }

    /// Whether a change was read from the Site DB because its key is parked.
    pub(super) fn heals(&self, change: &Change) -> bool {
        change.origin == Origin::Chunk && self.parked.contains(&change.relation.table, &change.key)
    }

    /// Folds a change of the stream into its key's entry if the key is parked. Returns whether it did.
    pub(super) fn fold_into_parked(&mut self, change: &Change, ledger: &mut Ledger) -> Result<bool, AgentError> {
        let table = &change.relation.table;
        let is_parked = change.origin == Origin::Stream
            && (self.parked.contains(table, &change.key)
                || moved(change).is_some_and(|(old, _)| self.parked.contains(table, old)));
        if is_parked {
            self.parked.fold_in(change)?;
            ledger.tally(change).parked += 1;
        }
        Ok(is_parked)
    }

    /// Parks a change that was refused.
    pub(super) fn park(&mut self, change: &Change, reason: &ParkReason, ledger: &mut Ledger) -> Result<(), AgentError> {
        self.parked.park(change, reason)?;
        if change.origin == Origin::Stream {
            ledger.tally(change).parked += 1;
        }
        Ok(())
    }

    /// Whether deletes reach the table's rows as they did when it was looked up.
    pub(super) async fn check_sight(&self, target: &Target) -> Result<(), AgentError> {
        let table = &target.relation.table;
        let sight = Sight::read(&self.session.client, table).await?;
        if let Some(role) = sight.hidden_from {
            return Err(AgentError::RowSecurity {
                table: table.clone(),
                role,
            });
        }
        if sight.guarded != target.guarded {
            return Err(AgentError::TableChanged { table: table.clone() });
        }
        Ok(())
    }

    /// Makes statements wait for a lock for this long, until the transaction or the savepoint is rolled back.
    pub(super) async fn set_lock_timeout(&mut self, timeout: Duration) -> Result<(), AgentError> {
        self.session
            .command(&format!("SET LOCAL lock_timeout = {}", timeout.as_millis()))
            .await
    }

    /// After a segment: its transaction goes on with the usual wait.
    pub(in crate::agent_db::apply) async fn end_short_lock_wait(&mut self) -> Result<(), AgentError> {
        if std::mem::take(&mut self.lock_wait) == LockWait::Short {
            self.session.open().await?;
            self.set_lock_timeout(LOCK_TIMEOUT).await?;
        }
        Ok(())
    }

    /// Checks the deferred constraints, which may fire triggers, and defers them again.
    pub(super) fn check(&self) -> String {
        format!("{CHECK_DEFERRED}; {}", self.session.pin_again())
    }

    /// Makes the server check the constraints that were deferred to the segment's end.
    pub(super) async fn check_deferred(&mut self) -> Result<(), AgentError> {
        if !self.checks_constraints() || self.session.has_opening() {
            return Ok(());
        }
        let check = if self.fires_later() {
            self.check()
        } else {
            CHECK_DEFERRED.to_owned()
        };
        let checked = self.session.command(&check);
        let checked = match self.session.limit.within(&Work::NONE, checked).await {
            (Err(_), Some(cancelled)) => Err(cancelled.of("the check of the constraints", None, 0)),
            (checked, _) => checked,
        };
        checked?;
        Box::pin(self.look_late()).await
    }
}

/// Counts a change of a held table. A row that was read from the Site DB counts for nothing: it is read again.
pub(super) fn pass_over(change: &Change, ledger: &mut Ledger) {
    if change.origin == Origin::Stream {
        ledger.pass_over(&change.relation.table, 1, PassedOver::Held);
    }
}
