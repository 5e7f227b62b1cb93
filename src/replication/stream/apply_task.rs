//! The task that writes to the Agent DB: it applies one batch while the stream's loop fills the next one.
//!
//! Orders are executed one after another; the channel holds one more, so that normally neither side waits for the
//! other, and at most two batches are in memory. The first error ends the task: the server rolls the open transaction
//! back, and the next run resumes at the checkpoint.
//!
//! The tables' states are written here too ([`TableBook`]), in the order of the stream: those that follow from a chunk
//! together with its rows, others between two batches. The sender of an event gets its answer after the commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span, info, warn};

use crate::agent_db::{
    AgentError, Applied, Applier, Checkpoint, Committed, Item, PublishedChanges, Segment, SourceIdentity, TableChange,
    TableMode, Transaction,
};
use crate::change::{Hold, Relation, Shape, TableDescription, TableName};
use crate::copy::InvalidChunk;
use crate::lsn::Lsn;
use crate::replication::tables::book::TableBook;
use crate::replication::tables::life::{TableEvent, TransitionError};
use crate::timestamp::PgTimestamp;

use super::buffer::{MergedChunk, ReadyBatch};
use super::requests::StoreRequest;
use super::unanswered::Unanswered;

/// An order of the stream's loop to this task.
enum ApplyOrder {
    /// Apply the beginning of a transaction; keep the Agent transaction open.
    Apply(Segment),
    /// Apply whole transactions and commit them with their checkpoint.
    Commit(ReadyBatch),
    /// Move the checkpoint of an idle stream.
    Checkpoint(Lsn),
    /// Look up in the Agent DB how a table's rows are written.
    Resolve(TableDescription, oneshot::Sender<Result<Arc<Relation>, AgentError>>),
    /// Store a fact about a table or a gap, or compare.
    Store(StoreRequest),
}

/// The result of an order to apply or to commit.
#[derive(Debug)]
pub(in crate::replication) enum ApplyReport {
    /// A commit is durable.
    Durable {
        /// The new checkpoint and what was applied.
        committed: Committed,
        /// Commit times of its source transactions, by the Site DB's clock.
        commits: Vec<PgTimestamp>,
        /// The chunks whose rows it contains; their readers wait for this.
        chunks: Vec<MergedChunk>,
    },
    /// A part of a large source transaction is written, but not committed.
    Applied(Applied),
    /// The task has ended with this error.
    Failed(AgentError),
}

/// The handle through which the stream's loop uses the task.
#[derive(Debug)]
pub(in crate::replication) struct ApplyHandle {
    orders: mpsc::Sender<ApplyOrder>,
    reports: mpsc::UnboundedReceiver<ApplyReport>,
    /// Number of orders whose report was not read yet.
    in_flight: usize,
    task: JoinHandle<()>,
}

/// The task has ended; its last report is the error.
#[derive(Debug)]
pub(in crate::replication) struct ApplyEnded;

impl ApplyHandle {
    /// Starts the task.
    pub(in crate::replication) fn spawn(applier: Applier, identity: SourceIdentity, tables: TableBook) -> Self {
        let (orders, inbox) = mpsc::channel(1);
        // Unbounded in type only: one report an order, and two orders at most.
        let (outbox, reports) = mpsc::unbounded_channel();
        let task = ApplyTask {
            identity,
            tables,
            is_open: false,
            unanswered: Vec::new(),
        };
        let task = tokio::spawn(Box::pin(task.run(applier, inbox, outbox)).instrument(Span::current()));
        Self {
            orders,
            reports,
            in_flight: 0,
            task,
        }
    }

    /// Whether every order was reported.
    pub(in crate::replication) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Hands over the beginning of a transaction; waits while the task is two batches behind.
    pub(in crate::replication) async fn apply(&mut self, segment: Segment) -> Result<(), ApplyEnded> {
        self.reported_order(ApplyOrder::Apply(segment)).await
    }

    /// Hands over whole transactions; waits while the task is two batches behind.
    pub(in crate::replication) async fn commit(&mut self, batch: ReadyBatch) -> Result<(), ApplyEnded> {
        self.reported_order(ApplyOrder::Commit(batch)).await
    }

    /// Moves the checkpoint of an idle stream.
    pub(in crate::replication) async fn checkpoint(&mut self, position: Lsn) -> Result<(), ApplyEnded> {
        self.reported_order(ApplyOrder::Checkpoint(position)).await
    }

    async fn reported_order(&mut self, order: ApplyOrder) -> Result<(), ApplyEnded> {
        self.order(order).await?;
        self.in_flight += 1;
        Ok(())
    }

    async fn order(&self, order: ApplyOrder) -> Result<(), ApplyEnded> {
        self.orders.send(order).await.map_err(|_| ApplyEnded)
    }

    /// Looks up in the Agent DB how a table's rows are written, after all earlier orders are done.
    pub(in crate::replication) async fn resolve(
        &self,
        description: TableDescription,
    ) -> Result<Result<Arc<Relation>, AgentError>, ApplyEnded> {
        let (reply, answer) = oneshot::channel();
        self.order(ApplyOrder::Resolve(description, reply)).await?;
        answer.await.map_err(|_| ApplyEnded)
    }

    /// Passes a request on. Its sender is answered once what it stores is committed.
    pub(in crate::replication) async fn store(&self, request: StoreRequest) -> Result<(), ApplyEnded> {
        self.order(ApplyOrder::Store(request)).await
    }

    /// The next report. Cancel-safe. `None` once the task has ended and all reports were read.
    pub(in crate::replication) async fn report(&mut self) -> Option<ApplyReport> {
        let report = self.reports.recv().await;
        self.in_flight = self.in_flight.saturating_sub(1);
        report
    }
}

impl Drop for ApplyHandle {
    fn drop(&mut self) {
        // The server rolls an open transaction back when the connection closes.
        self.task.abort();
    }
}

struct ApplyTask {
    identity: SourceIdentity,
    tables: TableBook,
    /// The beginning of a source transaction is applied but not committed.
    is_open: bool,
    unanswered: Vec<Unanswered>,
}

impl ApplyTask {
    async fn run(
        mut self,
        applier: Applier,
        mut inbox: mpsc::Receiver<ApplyOrder>,
        outbox: mpsc::UnboundedSender<ApplyReport>,
    ) {
        let mut transaction = applier.begin();
        for table in self.tables.records().keys() {
            transaction.set_mode(table, self.tables.mode(table));
        }
        while let Some(order) = inbox.recv().await {
            let result = match order {
                ApplyOrder::Resolve(description, reply) => {
                    self.resolve(&mut transaction, &description, reply).await.map(|()| None)
                }
                ApplyOrder::Store(StoreRequest::Table(table, event, reply)) => {
                    self.table(&mut transaction, &table, event, reply).await.map(|()| None)
                }
                ApplyOrder::Store(StoreRequest::Shape(table, shape, reply)) => {
                    self.shape(&mut transaction, &table, &shape, reply).await.map(|()| None)
                }
                ApplyOrder::Store(StoreRequest::ClearGap(command, reply)) => {
                    self.clear_gap(&mut transaction, command, reply).await.map(|()| None)
                }
                ApplyOrder::Store(StoreRequest::AgentChanged(table, reply)) => {
                    self.agent_changed(&mut transaction, &table, reply).await.map(|()| None)
                }
                ApplyOrder::Store(StoreRequest::Compare(chunk)) => {
                    chunk.compare(&mut transaction, &self.tables).await;
                    Ok(None)
                }
                ApplyOrder::Apply(segment) => self.apply(&mut transaction, segment).await.map(Some),
                ApplyOrder::Commit(batch) => match self.commit(transaction, batch).await {
                    Ok((next, report)) => {
                        transaction = next;
                        Ok(Some(report))
                    }
                    Err(error) => return end(&outbox, error),
                },
                ApplyOrder::Checkpoint(position) => match self.checkpoint(transaction, position).await {
                    Ok((next, report)) => {
                        transaction = next;
                        Ok(Some(report))
                    }
                    Err(error) => return end(&outbox, error),
                },
            };
            match result {
                Ok(Some(report)) => {
                    // The stream's loop has ended, so this task ends as well.
                    if outbox.send(report).is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => return end(&outbox, error),
            }
        }
    }

    /// Looks a table up, and remembers by what its rows are told apart.
    async fn resolve(
        &mut self,
        transaction: &mut Transaction,
        description: &TableDescription,
        reply: oneshot::Sender<Result<Arc<Relation>, AgentError>>,
    ) -> Result<(), AgentError> {
        let resolved = transaction.resolve(description).await;
        if let Ok(relation) = &resolved {
            let (table, key) = (&relation.table, relation.key_text());
            let before = self.tables.records().get(table).cloned();
            let parked = transaction.parked_rows(table) > 0;
            let published = if description.identity.is_none() {
                PublishedChanges::Inserts
            } else {
                PublishedChanges::All
            };
            let notes = transaction.notes(table);
            let chosen = TableEvent::KeyChosen {
                key: key.clone(),
                published,
                notes: notes.clone(),
                parked,
            };
            // A table that nothing is stored about yet accepts no event.
            if let Ok(Some(change)) = self.tables.apply(table, chosen) {
                transaction.write_table(&change).await?;
                transaction.set_mode(table, self.tables.mode(table));
                let known = before.as_ref().and_then(|record| record.key.as_ref());
                if known.is_some_and(|known| *known != key) && parked {
                    transaction.forget_parked(table).await?;
                }
                if relation.counts_rows() && known != Some(&key) {
                    info!(%table, "no unique key tells the table's rows apart in both databases: they are counted, so updates and deletes read the Agent DB's whole table; a primary key on both sides is faster");
                }
                if let Some(notes) =
                    notes.filter(|notes| before.as_ref().and_then(|record| record.notes.as_deref()) != Some(notes))
                {
                    warn!(%table, notes, "the Agent DB can't have everything as the Site DB has it");
                }
                if published == PublishedChanges::Inserts
                    && before.as_ref().is_some_and(|record| record.published != published)
                {
                    info!(%table, "the table has no replica identity: the Site DB refuses updates and deletes, inserts are replicated (ALTER TABLE … REPLICA IDENTITY FULL allows all)");
                }
                if !self.is_open {
                    self.committed();
                }
            }
        }
        // A reader that no longer waits has been stopped with the run.
        let _ = reply.send(resolved);
        Ok(())
    }

    /// A table was changed in the Agent DB: it is looked up again; held, where it is another pipeline's now.
    async fn agent_changed(
        &mut self,
        transaction: &mut Transaction,
        table: &TableName,
        reply: oneshot::Sender<()>,
    ) -> Result<(), AgentError> {
        match transaction.agent_changed(table).await {
            Err(error @ (AgentError::Claimed { .. } | AgentError::PartOf { .. })) => {
                let (ignored, _) = oneshot::channel();
                self.table(transaction, table, TableEvent::Held(error.hold()), ignored)
                    .await?;
            }
            other => other?,
        }
        // The watch may have been stopped with the run.
        let _ = reply.send(());
        Ok(())
    }

    async fn apply(&mut self, transaction: &mut Transaction, segment: Segment) -> Result<ApplyReport, AgentError> {
        self.is_open = true;
        let applied = transaction.apply(segment).await?;
        self.hold(transaction, &applied).await?;
        Ok(ApplyReport::Applied(applied))
    }

    async fn commit(
        &mut self,
        mut transaction: Transaction,
        batch: ReadyBatch,
    ) -> Result<(Transaction, ApplyReport), AgentError> {
        let ReadyBatch {
            mut items,
            boundary,
            commits,
            mut chunks,
        } = batch;
        let changes = self.apply_chunk_events(&mut chunks);
        items.extend(changes.values().cloned().map(Item::Table));
        let segment = Segment {
            items,
            lsn: boundary.end_lsn,
        };
        let applied = transaction.apply(segment).await?;
        self.hold(&mut transaction, &applied).await?;
        let chunks = self.tell_readers_of_held_tables(chunks);
        let checkpoint = Checkpoint {
            identity: self.identity.clone(),
            end_lsn: boundary.end_lsn,
            source_commit_at: boundary.committed_at.to_datetime(),
        };
        let (applier, committed) = transaction.commit(checkpoint).await?;
        let mut next = applier.begin();
        for table in changes.keys() {
            next.set_mode(table, self.tables.mode(table));
        }
        self.committed();
        let report = ApplyReport::Durable {
            committed,
            commits,
            chunks,
        };
        Ok((next, report))
    }

    /// Applies the chunks' events to their tables. The changes have to be written together with the chunks' rows.
    fn apply_chunk_events(&mut self, chunks: &mut [MergedChunk]) -> BTreeMap<TableName, TableChange> {
        let mut changes = BTreeMap::new();
        for chunk in chunks {
            let (Some(table), Some(event)) = (chunk.tables.first(), chunk.event.take()) else {
                continue;
            };
            match self.tables.apply(table, event) {
                Ok(Some(change)) => {
                    changes.insert(table.clone(), change);
                }
                Ok(None) => {}
                // Its rows are passed over too.
                Err(_) if self.tables.mode(table) == TableMode::Held => {}
                // The table's state changed while this chunk was on its way. Its rows are still correct.
                Err(refused) => warn!(%table, %refused, "a chunk is applied, but not counted for the table's copy"),
            }
        }
        changes
    }

    /// Writes the state of the tables whose fault showed itself, in the transaction that passes their changes over.
    async fn hold(&mut self, transaction: &mut Transaction, applied: &Applied) -> Result<(), AgentError> {
        for (table, hold) in &applied.held {
            let event = TableEvent::Held(hold.clone());
            // Every state accepts this event.
            if let Ok(Some(change)) = self.tables.apply(table, event) {
                transaction.write_table(&change).await?;
            }
            log_held(table, hold);
        }
        Ok(())
    }

    /// The rows of a held table's chunk were passed over: its copy has to begin anew. (Parked rows just stay parked.)
    /// Returns the other chunks.
    fn tell_readers_of_held_tables(&self, chunks: Vec<MergedChunk>) -> Vec<MergedChunk> {
        let (held, others) = chunks.into_iter().partition(
            |chunk| matches!(chunk.tables.as_slice(), [table] if self.tables.mode(table) == TableMode::Held),
        );
        for chunk in Vec::<MergedChunk>::into_iter(held) {
            // A reader that no longer waits has been stopped.
            let _ = chunk.reader.send(Err(InvalidChunk::TableHeld));
        }
        others
    }

    async fn checkpoint(
        &mut self,
        transaction: Transaction,
        position: Lsn,
    ) -> Result<(Transaction, ApplyReport), AgentError> {
        let checkpoint = Checkpoint {
            identity: self.identity.clone(),
            end_lsn: position,
            source_commit_at: None,
        };
        let (applier, committed) = transaction.commit(checkpoint).await?;
        self.committed();
        let report = ApplyReport::Durable {
            committed,
            commits: Vec::new(),
            chunks: Vec::new(),
        };
        Ok((applier.begin(), report))
    }

    async fn table(
        &mut self,
        transaction: &mut Transaction,
        table: &TableName,
        event: TableEvent,
        reply: oneshot::Sender<Result<(), TransitionError>>,
    ) -> Result<(), AgentError> {
        let held = match &event {
            TableEvent::Held(hold) => Some(hold.clone()),
            _ => None,
        };
        let outdates_parked = event == TableEvent::KeyOutdated;
        match self.tables.apply(table, event) {
            Ok(change) => {
                if let Some(change) = change {
                    if let Some(hold) = held {
                        log_held(table, &hold);
                    }
                    transaction.write_table(&change).await?;
                    transaction.set_mode(table, self.tables.mode(table));
                }
                if outdates_parked {
                    transaction.forget_parked(table).await?;
                }
                self.answer(Unanswered::Table(reply));
            }
            Err(refused) => {
                // The sender may have been stopped with the run.
                let _ = reply.send(Err(refused));
            }
        }
        Ok(())
    }

    async fn shape(
        &mut self,
        transaction: &mut Transaction,
        table: &TableName,
        shape: &Shape,
        reply: oneshot::Sender<()>,
    ) -> Result<(), AgentError> {
        transaction.remember_shape(table, shape).await?;
        self.answer(Unanswered::Done(reply));
        Ok(())
    }

    async fn clear_gap(
        &mut self,
        transaction: &mut Transaction,
        command: i64,
        reply: oneshot::Sender<bool>,
    ) -> Result<(), AgentError> {
        let cleared = transaction.clear_gap(command).await?;
        self.answer(Unanswered::Gap(reply, cleared));
        Ok(())
    }

    /// Answers now, or, if a source transaction is partly applied, with its commit.
    fn answer(&mut self, answer: Unanswered) {
        self.unanswered.push(answer);
        if !self.is_open {
            self.committed();
        }
    }

    /// To be called after a commit: publishes the tables' states and sends the replies that wait for it.
    fn committed(&mut self) {
        self.is_open = false;
        self.tables.publish();
        for answer in self.unanswered.drain(..) {
            answer.send();
        }
    }
}

/// The one log line of a table that is held.
fn log_held(table: &TableName, hold: &Hold) {
    warn!(%table, cause = hold.cause.as_str(), reason = %hold, "a table is held: its changes are passed over until the reason is gone, then it is read again");
}

/// Reports why the task ends.
fn end(outbox: &mpsc::UnboundedSender<ApplyReport>, error: AgentError) {
    // The stream's loop may have ended first.
    let _ = outbox.send(ApplyReport::Failed(error));
}
