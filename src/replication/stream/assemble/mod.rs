//! Turns messages into events: keeps the relations, checks the order of the protocol, and computes each row's key.
//!
//! It has state but does no I/O: where it needs the Agent DB (for its primary keys) it returns [`Event::Relation`], and
//! the caller answers with [`Assembler::resolved`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::agent_db::PassedOver;
use crate::change::{
    Change, ColumnValue, Key, Operation, Origin, Relation, RelationId, Replaced, Row, RowKey, TableName, Truncate, Xid,
    overlay,
};
use crate::lsn::Lsn;
use crate::pgoutput::{self, Message, OldTuple, RelationMessage};
use crate::replication::stream_error::StreamError;
use crate::source::Fence;
use crate::timestamp::PgTimestamp;

/// What a message of the stream means for the loop.
#[derive(Debug)]
pub(in crate::replication) enum Event {
    /// A transaction begins.
    Begin {
        /// The position of its commit record.
        commit_lsn: Lsn,
        /// Commit time, by the Site DB's clock.
        committed_at: PgTimestamp,
    },
    /// A table has to be looked up in the Agent DB, under the name that it has now, before its changes can be understood;
    /// answer with [`Assembler::resolved`].
    Relation(RelationMessage, TableName),
    /// A row changed.
    Change(Change),
    /// A row whose table counts its rows changed: an [`Operation::ReplaceOne`].
    Replaced(Change),
    /// Tables were truncated; and, in the list, tables of the same statement whose changes are only counted.
    Truncate(Truncate, Vec<(Arc<Relation>, PassedOver)>),
    /// A change that is only counted.
    PassedOver(Arc<Relation>, PassedOver),
    /// A change that does not say which row of the table it is about.
    Unidentifiable(TableName),
    /// A fence, which a chunk's reader wrote into the log.
    Fence(Fence),
    /// The transaction ends.
    Commit {
        /// The transaction's id on the Site DB.
        xid: Xid,
        /// The position after its commit record.
        end_lsn: Lsn,
        /// Commit time, by the Site DB's clock.
        committed_at: PgTimestamp,
    },
    /// A message that needs no action.
    Nothing,
}

/// A relation of the stream.
#[derive(Debug)]
enum StreamRelation {
    /// Synchronised, with the message that described it.
    Synchronised(Arc<Relation>, RelationMessage),
    /// Synchronised, but not looked up in the Agent DB yet.
    Unresolved,
    /// The table is held, and must be looked up again before it is released. Its name, and the message.
    Held(Arc<Relation>, RelationMessage),
    /// Not synchronised: only the name that it had is kept.
    Other(Arc<Relation>),
}

/// The transaction that is being received.
#[derive(Debug, Clone, Copy)]
struct OpenTransaction {
    xid: Xid,
    commit_lsn: Lsn,
    /// It lies before the checkpoint, so it is durable already and must be skipped (pitfall P7).
    done_before: bool,
}

/// Tables that are not synchronised and are counted under their own names. A publication may have any number of them, and
/// each name is a label of the metrics and a row of the accounting; further ones are counted together.
const MOST_OTHERS: usize = 1000;

/// The state that is needed to understand the next message: the relations and the open transaction.
pub(in crate::replication) struct Assembler {
    resume_after: Lsn,
    name_now: Box<dyn Fn(RelationId) -> Option<TableName> + Send>,
    relations: HashMap<RelationId, StreamRelation>,
    /// How many of the relations are not synchronised.
    others: usize,
    /// Further ones, of which not even the name is kept.
    unnamed: HashSet<RelationId>,
    /// What all of those are.
    any_other: StreamRelation,
    open: Option<OpenTransaction>,
}

impl std::fmt::Debug for Assembler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembler")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Assembler {
    /// An assembler for a stream that begins after a checkpoint. `name_now`: which synchronised table an OID is now; `None`
    /// if it is none.
    pub(in crate::replication) fn new(
        resume_after: Lsn,
        name_now: impl Fn(RelationId) -> Option<TableName> + Send + 'static,
    ) -> Self {
        Self {
            resume_after,
            name_now: Box::new(name_now),
            relations: HashMap::new(),
            others: 0,
            unnamed: HashSet::new(),
            any_other: StreamRelation::Other(name_only(RelationId(0), TableName::new("*", "*"))),
            open: None,
        }
    }

    /// Answers [`Event::Relation`].
    pub(in crate::replication) fn resolved(&mut self, message: RelationMessage, relation: Arc<Relation>) {
        self.relations
            .insert(message.id, StreamRelation::Synchronised(relation, message));
    }

    /// The other answer to [`Event::Relation`]: this table can't be looked up, so it is held.
    pub(in crate::replication) fn unresolved(&mut self, message: RelationMessage, table: TableName) {
        let relation = name_only(message.id, table);
        self.relations
            .insert(message.id, StreamRelation::Held(relation, message));
    }

    /// Passes a table's changes over until it is looked up again. Returns its relation.
    pub(in crate::replication) fn hold(&mut self, table: &TableName) -> Option<Arc<Relation>> {
        self.relations.values_mut().find_map(|relation| match relation {
            StreamRelation::Synchronised(known, message) if known.table == *table => {
                let name = name_only(known.id, table.clone());
                *relation = StreamRelation::Held(Arc::clone(&name), message.clone());
                Some(name)
            }
            _ => None,
        })
    }

    /// The message of a table whose changes are passed over.
    pub(in crate::replication) fn held_message(&self, id: RelationId) -> Option<RelationMessage> {
        match self.relations.get(&id) {
            Some(StreamRelation::Held(_, message)) => Some(message.clone()),
            _ => None,
        }
    }

    /// The id of the transaction that is being received; `None` between transactions.
    #[must_use]
    pub(in crate::replication) fn open_xid(&self) -> Option<Xid> {
        self.open.map(|open| open.xid)
    }

    /// Turns the next message into an event.
    ///
    /// # Errors
    /// The message breaks the protocol: the run has to end.
    pub(in crate::replication) fn event_of(&mut self, message: Message) -> Result<Event, StreamError> {
        match self.understood(message) {
            Err(StreamError::Unidentifiable(table)) => Ok(Event::Unidentifiable(table)),
            other => other,
        }
    }

    fn understood(&mut self, message: Message) -> Result<Event, StreamError> {
        match message {
            Message::Begin(begin) => {
                if self.open.is_some() {
                    return Err(StreamError::Order {
                        what: "BEGIN",
                        place: "inside of a transaction",
                    });
                }
                // Records never overlap: a commit record that starts before the checkpoint ends at or before it.
                let done_before = begin.final_lsn < self.resume_after;
                self.open = Some(OpenTransaction {
                    xid: begin.xid,
                    commit_lsn: begin.final_lsn,
                    done_before,
                });
                Ok(Event::Begin {
                    commit_lsn: begin.final_lsn,
                    committed_at: begin.commit_time,
                })
            }
            Message::Commit(commit) => {
                let open = self.open.take().ok_or_else(|| outside("COMMIT"))?;
                if open.commit_lsn != commit.commit_lsn {
                    return Err(StreamError::CommitMismatch {
                        begun: open.commit_lsn,
                        committed: commit.commit_lsn,
                    });
                }
                Ok(Event::Commit {
                    xid: open.xid,
                    end_lsn: commit.end_lsn,
                    committed_at: commit.commit_time,
                })
            }
            Message::Relation(message) => Ok(self.relation_message(message)),
            Message::Insert(insert) => {
                let Some(relation) = self.changed(insert.relation, "INSERT")? else {
                    return Ok(self.skipped(insert.relation));
                };
                let key = relation.key_of(&insert.row).ok_or_else(|| unidentifiable(relation))?;
                Ok(Event::Change(change(relation, key, Operation::Insert(insert.row))))
            }
            Message::Update(update) => {
                let Some(relation) = self.changed(update.relation, "UPDATE")? else {
                    return Ok(self.skipped(update.relation));
                };
                if relation.counts_rows() {
                    return replaced(relation, update.old, update.row).map(Event::Replaced);
                }
                let (key, operation) = updated(relation, update.old, update.row)?;
                Ok(Event::Change(change(relation, key, operation)))
            }
            Message::Delete(delete) => {
                let Some(relation) = self.changed(delete.relation, "DELETE")? else {
                    return Ok(self.skipped(delete.relation));
                };
                deleted(relation, delete.old).map(Event::Change)
            }
            Message::Truncate(truncate) => self.truncate(&truncate),
            Message::Logical(message) => {
                if message.transactional && self.open.is_none() {
                    return Err(outside("a transactional message"));
                }
                if self.open.is_some_and(|open| open.done_before) {
                    return Ok(Event::Nothing);
                }
                Ok(Fence::parse(&message.prefix, &message.content).map_or(Event::Nothing, Event::Fence))
            }
            Message::Type(_) | Message::Origin(_) => Ok(Event::Nothing),
        }
    }

    fn relation_message(&mut self, message: RelationMessage) -> Event {
        if let Some(StreamRelation::Synchronised(_, known) | StreamRelation::Held(_, known)) =
            self.relations.get(&message.id)
            && *known == message
        {
            return Event::Nothing;
        }
        if let Some(table) = (self.name_now)(message.id) {
            self.relations.insert(message.id, StreamRelation::Unresolved);
            return Event::Relation(message, table);
        }
        self.other(message);
        Event::Nothing
    }

    /// A table that is not synchronised, or not any more.
    fn other(&mut self, message: RelationMessage) {
        let known = self.relations.remove(&message.id);
        if matches!(known, Some(StreamRelation::Other(_))) {
            self.others -= 1;
        }
        if self.others < MOST_OTHERS {
            self.others += 1;
            let relation = name_only(message.id, message.table);
            self.relations.insert(relation.id, StreamRelation::Other(relation));
        } else {
            self.unnamed.insert(message.id);
        }
    }

    /// What the stream has said of a relation last.
    fn relation(&self, id: RelationId) -> Option<&StreamRelation> {
        let is_unnamed = || self.unnamed.contains(&id).then_some(&self.any_other);
        self.relations.get(&id).or_else(is_unnamed)
    }

    /// The relation of a change that has to be applied; `None` if the table is not synchronised or the change is durable
    /// already.
    fn changed(&self, id: RelationId, what: &'static str) -> Result<Option<&Arc<Relation>>, StreamError> {
        let open = self.open.ok_or_else(|| outside(what))?;
        match self.relation(id) {
            Some(StreamRelation::Synchronised(relation, _)) => Ok((!open.done_before).then_some(relation)),
            Some(StreamRelation::Other(_) | StreamRelation::Held(..)) => Ok(None),
            Some(StreamRelation::Unresolved) | None => Err(StreamError::UnknownRelation(id.0)),
        }
    }

    /// A change whose row is not read: it is counted like one of a table that is held.
    ///
    /// # Errors
    /// The change breaks the protocol: the run has to end.
    pub(in crate::replication) fn passed_over(&self, id: RelationId) -> Result<Event, StreamError> {
        Ok(match self.changed(id, "a change")? {
            Some(relation) => Event::PassedOver(Arc::clone(relation), PassedOver::Held),
            None => self.skipped(id),
        })
    }

    fn skipped(&self, id: RelationId) -> Event {
        match (self.relation(id), self.open) {
            (Some(StreamRelation::Other(relation)), Some(OpenTransaction { done_before: false, .. })) => {
                Event::PassedOver(Arc::clone(relation), PassedOver::NotSelected)
            }
            (Some(StreamRelation::Held(relation, _)), Some(OpenTransaction { done_before: false, .. })) => {
                Event::PassedOver(Arc::clone(relation), PassedOver::Held)
            }
            _ => Event::Nothing,
        }
    }

    fn truncate(&self, truncate: &pgoutput::Truncate) -> Result<Event, StreamError> {
        let mut relations = Vec::new();
        let mut others = Vec::new();
        for &id in &truncate.relations {
            match self.changed(id, "TRUNCATE")? {
                Some(relation) => relations.push(Arc::clone(relation)),
                None => {
                    if let Event::PassedOver(relation, why) = self.skipped(id) {
                        others.push((relation, why));
                    }
                }
            }
        }
        let restart_identity = truncate.restart_identity;
        Ok(Event::Truncate(
            Truncate {
                relations,
                restart_identity,
            },
            others,
        ))
    }
}

/// A relation of which only the name is needed.
fn name_only(id: RelationId, table: TableName) -> Arc<Relation> {
    Arc::new(Relation {
        id,
        table,
        columns: Box::default(),
        key: RowKey::Columns(Box::default()),
    })
}

fn outside(what: &'static str) -> StreamError {
    StreamError::Order {
        what,
        place: "outside of a transaction",
    }
}

fn unidentifiable(relation: &Relation) -> StreamError {
    StreamError::Unidentifiable(relation.table.clone())
}

fn change(relation: &Arc<Relation>, key: Key, operation: Operation) -> Change {
    Change {
        relation: Arc::clone(relation),
        key,
        operation,
        origin: Origin::Stream,
    }
}

fn deleted(relation: &Arc<Relation>, old: OldTuple) -> Result<Change, StreamError> {
    let unidentifiable = || unidentifiable(relation);
    let (OldTuple::Key(row) | OldTuple::Full(row)) = old else {
        return Err(unidentifiable());
    };
    let key = relation.key_of(&row).ok_or_else(unidentifiable)?;
    let operation = if relation.counts_rows() {
        Operation::DeleteOne(row)
    } else {
        Operation::Delete
    };
    Ok(change(relation, key, operation))
}

/// An update of a row that is counted: the old row is one less, the new one is one more.
fn replaced(relation: &Arc<Relation>, old: OldTuple, row: Row) -> Result<Change, StreamError> {
    let unidentifiable = || unidentifiable(relation);
    let OldTuple::Full(old) = old else {
        return Err(unidentifiable());
    };
    let mut new = old.clone();
    overlay(&mut new, row);
    let (old_key, key) = (
        relation.key_of(&old).ok_or_else(unidentifiable)?,
        relation.key_of(&new).ok_or_else(unidentifiable)?,
    );
    let parts = Replaced {
        old: change(relation, old_key, Operation::DeleteOne(old)),
        new: change(relation, key.clone(), Operation::Insert(new)),
    };
    Ok(change(relation, key, Operation::ReplaceOne(Box::new(parts))))
}

/// An update's key and operation. Values that the new row leaves out (unchanged TOAST) are taken from the old row if it
/// has them (pitfalls P19, P22).
fn updated(relation: &Relation, old: OldTuple, row: Row) -> Result<(Key, Operation), StreamError> {
    let unidentifiable = || unidentifiable(relation);
    let (old_key, row) = match old {
        OldTuple::Absent => (None, row),
        OldTuple::Full(old) => {
            let old_key = relation.key_of(&old).ok_or_else(unidentifiable)?;
            let mut row = row;
            for (value, before) in row.0.iter_mut().zip(&old.0) {
                // NULL is what a partition with another identity than its table's does not bring: a value that is stored
                // apart is none.
                if *value == ColumnValue::Unchanged && *before != ColumnValue::Null {
                    *value = before.clone();
                }
            }
            (Some(old_key), row)
        }
        OldTuple::Key(old) => {
            let old_key = relation.key_of(&old).ok_or_else(unidentifiable)?;
            let mut row = row;
            for &index in relation.key_positions() {
                if let (Some(value), Some(before)) = (row.0.get_mut(index), old.0.get(index))
                    && *value == ColumnValue::Unchanged
                {
                    *value = before.clone();
                }
            }
            (Some(old_key), row)
        }
    };
    let key = relation.key_of(&row).ok_or_else(unidentifiable)?;
    let old_key = old_key.filter(|old_key| *old_key != key);
    Ok((key, Operation::Update { old_key, row }))
}

#[cfg(test)]
mod tests;
