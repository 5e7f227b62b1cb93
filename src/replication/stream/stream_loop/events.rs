//! What the stream's loop does with each event: buffer it, count it, merge a chunk, or look a table up in the Agent DB.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::agent_db::{Item, PassedOver};
use crate::change::{Change, Identity, Operation, Relation, RelationId, TableDescription, TableName, Truncate};
use crate::copy::{ChunkOutcome, CopyStep, Delivery, InvalidChunk, Merged, Purpose};
use crate::failpoint;
use crate::pgoutput::{RelationMessage, ReplicaIdentity};
use crate::replication::error::SyncError;
use crate::replication::stream_error::StreamError;
use crate::replication::tables::life::TableEvent;
use crate::source::{ChunkId, Fence};

use super::StreamLoop;
use crate::replication::stream::assemble::Event;
use crate::replication::stream::buffer::{Boundary, MergedChunk};
use crate::replication::stream::comparing::ComparedChunk;
use crate::replication::stream::requests::StoreRequest;

impl StreamLoop {
    pub(super) async fn event(&mut self, event: Event) -> Result<(), SyncError> {
        match event {
            Event::Change(change) => self.change(change),
            Event::Replaced(change) => self.replaced(change),
            Event::Begin {
                committed_at,
                commit_lsn,
            } => {
                self.progress.begin();
                self.open_lsn = commit_lsn;
                self.open_committed_at = Some(committed_at);
            }
            Event::Commit {
                xid,
                end_lsn,
                committed_at,
            } => {
                self.windows.committed(xid);
                self.progress.commit(end_lsn);
                self.buffer.close_transaction(Boundary { end_lsn, committed_at });
                self.open_committed_at = None;
            }
            Event::Relation(message, table) => self.relation_message(message, table).await?,
            Event::Truncate(mut truncate, others) => {
                for (relation, why) in &others {
                    self.progress.effect();
                    self.buffer.pass_over(relation, *why);
                }
                for relation in &truncate.relations {
                    self.windows.truncated(relation.id);
                }
                self.pass_shared_over(&mut truncate);
                if !truncate.relations.is_empty() {
                    self.progress.effect();
                    self.buffer.push(Item::Truncate(truncate));
                }
            }
            Event::PassedOver(relation, why) => {
                self.progress.effect();
                self.buffer.pass_over(&relation, why);
            }
            Event::Unidentifiable(table) => {
                if let Some(relation) = self.assembler.hold(&table) {
                    self.progress.effect();
                    self.buffer.pass_over(&relation, PassedOver::Held);
                }
                let error = StreamError::Unidentifiable(table.clone());
                self.hold(&table, error.hold()).await?;
            }
            Event::Fence(Fence::Low(id)) => {
                if let Some(relations) = self.chunks.relations(id) {
                    self.windows.open(id, &relations);
                }
            }
            Event::Fence(Fence::High(id)) => self.merge(id).await?,
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Takes the tables out of a TRUNCATE that another pipeline writes as well: it would delete the other's rows.
    fn pass_shared_over(&mut self, truncate: &mut Truncate) {
        let is_shared = |relation: &Arc<Relation>| self.settings.is_shared(&relation.table);
        let shared: Vec<_> = truncate
            .relations
            .extract_if(.., |relation| is_shared(relation))
            .collect();
        for relation in shared {
            warn!(table = %relation.table, "a TRUNCATE of a table of sync.shared_tables is not applied: the Agent DB keeps the rows that were there before it");
            self.progress.effect();
            self.buffer.pass_over(&relation, PassedOver::NotSelected);
        }
    }

    /// The windows see the two parts, as rows that are counted add up.
    fn replaced(&mut self, change: Change) {
        if self.windows.watches(change.relation.id)
            && let (Some(xid), Operation::ReplaceOne(replaced)) = (self.assembler.open_xid(), &change.operation)
        {
            self.windows.observe(xid, &replaced.old);
            self.windows.observe(xid, &replaced.new);
        }
        self.progress.effect();
        self.buffer.push(Item::Change(change));
    }

    fn change(&mut self, change: Change) {
        if self.windows.watches(change.relation.id)
            && let Some(xid) = self.assembler.open_xid()
        {
            self.windows.observe(xid, &change);
        }
        self.progress.effect();
        self.buffer.push(Item::Change(change));
    }

    /// The table as the message describes it, under the name that it has now.
    pub(super) fn description(&self, message: &RelationMessage, table: TableName) -> TableDescription {
        let identity = match message.replica_identity {
            ReplicaIdentity::Full => Identity::Full,
            _ => Identity::Columns(
                message
                    .columns
                    .iter()
                    .enumerate()
                    .filter_map(|(index, column)| column.part_of_key.then_some(index))
                    .collect(),
            ),
        };
        let facts = self.facts.get(&message.id).cloned().unwrap_or_default();
        let columns: Vec<Arc<str>> = message.columns.iter().map(|column| Arc::clone(&column.name)).collect();
        TableDescription {
            id: message.id,
            table,
            identity: facts.identity(identity, &columns),
            columns,
            facts,
        }
    }

    async fn relation_message(&mut self, message: RelationMessage, table: TableName) -> Result<(), SyncError> {
        if self.relations.contains_key(&message.id) {
            // What was received under the old description is applied before anything is decided under the new one.
            self.commit_whole().await?;
            self.apply_open().await?;
        }
        match self.resolve(self.description(&message, table.clone())).await? {
            Ok(resolved) => {
                let relation = self.canonical(message.id, resolved).await?;
                if !self.columns.are_all_in(&message) {
                    let why = "a column had another name or type when the next changes were made";
                    self.may_differ(&table, why).await?;
                }
                self.assembler.resolved(message, relation);
            }
            Err(error) if error.table_fault().is_some() => {
                self.assembler.unresolved(message, table.clone());
                self.hold(&table, error.hold()).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The changes that follow lack values that the table has now, or are passed over: reads the table again. Decided before
    /// they are applied, so that it is durable with them.
    pub(super) async fn may_differ(&mut self, table: &TableName, why: &str) -> Result<(), SyncError> {
        info!(%table, "a table is read again: {why}");
        // Nobody waits for the answer: a state that does not accept the event is one in which nothing is known to be right.
        let (reply, _) = oneshot::channel();
        let event = StoreRequest::Table(table.clone(), TableEvent::MayDiffer, reply);
        let sent = self.apply.store(event).await;
        self.check_sent(sent).await
    }

    /// The high fence of a chunk: merges the chunk's rows into the stream at this place.
    async fn merge(&mut self, id: ChunkId) -> Result<(), SyncError> {
        let Some((delivery, reader)) = self.chunks.take(id) else {
            // The chunk is of an earlier run, or its reader has withdrawn it: close its window, if there is one.
            let _ = self.windows.close(id, Vec::new());
            return Ok(());
        };
        let (reads, step) = delivery.map_or_else(Default::default, |Delivery { reads, step }| (reads, step));
        let read_as: Vec<_> = reads.iter().map(|read| Arc::clone(&read.relation)).collect();
        let heals = matches!(reads.first().map(|read| &read.purpose), Some(Purpose::Parked(_)));
        let compares = reads.first().is_some_and(|read| read.purpose.compares());
        let outdated = read_as.iter().any(|read_as| {
            let known = self.relations.get(&read_as.id);
            known.is_some_and(|known| !same_shape(known, read_as))
        });
        let Merged { mut changes, respelled } = match self.windows.close(id, reads) {
            Ok(merged) if !outdated => merged,
            result => {
                let invalid = result.err().unwrap_or(InvalidChunk::RelationChanged);
                debug!(
                    reason = invalid.as_str(),
                    "a chunk is not valid and has to be read again"
                );
                // A reader that no longer waits has been stopped.
                let _ = reader.send(Err(invalid));
                return Ok(());
            }
        };
        if let Some(relation) = read_as.first().filter(|_| compares) {
            self.to_known_relations(&mut changes);
            return self.compare(Arc::clone(relation), changes, reader).await;
        }
        self.progress.effect();
        if heals {
            self.to_known_relations(&mut changes);
            self.buffer.push(Item::Heal(std::mem::take(&mut changes)));
        }
        changes.extend(respelled);
        self.to_known_relations(&mut changes);
        for change in changes {
            self.buffer.push(Item::Change(change));
            if self.buffer.is_full() {
                self.make_room().await?;
            }
        }
        let chunk = MergedChunk {
            tables: read_as.iter().map(|relation| relation.table.clone()).collect(),
            event: step.map(|step| self.table_event(step)),
            reader,
        };
        self.buffer.push_chunk(chunk);
        failpoint::reach(failpoint::name::COPY_AFTER_MERGE);
        Ok(())
    }

    /// Has a chunk compared with what the Agent DB holds here: after everything that came before, and before what comes next.
    async fn compare(
        &mut self,
        relation: Arc<Relation>,
        changes: Vec<Change>,
        reader: oneshot::Sender<ChunkOutcome>,
    ) -> Result<(), SyncError> {
        self.commit_whole().await?;
        // Only a message of somebody else's, with our prefix, comes in a transaction with rows.
        if !self.buffer.is_empty() {
            let _ = reader.send(Err(InvalidChunk::Unknown));
            return Ok(());
        }
        let relation = self.relations.get(&relation.id).map_or(relation, Arc::clone);
        self.store(StoreRequest::Compare(ComparedChunk {
            relation,
            expected: changes,
            reader,
        }))
        .await
    }

    /// Gives changes the shared relations, by which the apply task groups them.
    fn to_known_relations(&self, changes: &mut [Change]) {
        for change in changes {
            if let Some(known) = self.relations.get(&change.relation.id) {
                change.relation = Arc::clone(known);
            }
        }
    }

    /// The event of the table that a merged chunk causes.
    fn table_event(&self, step: CopyStep) -> TableEvent {
        TableEvent::ChunkMerged {
            step,
            at: OffsetDateTime::now_utc(),
            lsn: self.open_lsn,
        }
    }

    /// The one shared `Arc` of a table's relation. If the shape has changed, everything received with the old shape is
    /// given to the apply task first, then the new one replaces it.
    pub(super) async fn canonical(
        &mut self,
        id: RelationId,
        relation: Arc<Relation>,
    ) -> Result<Arc<Relation>, SyncError> {
        match self.relations.get(&id) {
            Some(known) if same_shape(known, &relation) && known.table == relation.table => {
                return Ok(Arc::clone(known));
            }
            Some(_) => {
                self.windows.relation_changed(id);
                self.commit_whole().await?;
                self.apply_open().await?;
            }
            None => {}
        }
        self.relations.insert(id, Arc::clone(&relation));
        Ok(relation)
    }
}

/// Whether rows of both relations have the same columns and key.
fn same_shape(one: &Relation, other: &Relation) -> bool {
    one.columns == other.columns && one.key == other.key
}
