//! The chunks that are being read now: through it a chunk's reader passes rows to the stream's loop.
//!
//! A reader registers a chunk before it writes the low fence, and delivers the rows before it writes the high fence. So
//! when a fence arrives in the stream, its chunk is already registered, or its rows are already delivered. The stream
//! answers once the merged chunk is durable in the Agent DB, or says why the chunk has to be read again.
//!
//! A reader may also give a chunk up: its read fails, its high fence can't be written, its task is stopped. Then no high
//! fence ever comes, so the stream is told here which windows it need not keep open.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::chunk::{ChunkOutcome, Delivery};
use crate::change::RelationId;
use crate::source::ChunkId;

/// All chunks that are being read, shared by the readers and the stream.
#[derive(Debug, Default, Clone)]
pub struct ChunkRegistry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    chunks: Mutex<HashMap<ChunkId, OpenChunk>>,
    /// Chunks that were given up, until the stream has asked for them.
    withdrawn: Mutex<Vec<ChunkId>>,
    /// Whether there are any: the stream asks this often.
    any_withdrawn: AtomicBool,
}

/// A chunk that its reader has registered. Dropping it gives the chunk up, unless the stream has taken it.
#[derive(Debug)]
pub struct RegisteredChunk {
    registry: ChunkRegistry,
    /// Its identity in the log.
    pub id: ChunkId,
    /// Gets the outcome, or an error if the stream stops.
    pub outcome: oneshot::Receiver<ChunkOutcome>,
}

impl Drop for RegisteredChunk {
    fn drop(&mut self) {
        self.registry.withdraw(self.id);
    }
}

#[derive(Debug)]
struct OpenChunk {
    relations: Box<[RelationId]>,
    delivery: Option<Delivery>,
    outcome: oneshot::Sender<ChunkOutcome>,
}

impl ChunkRegistry {
    /// Registers a chunk of one table, or of several that are read together.
    #[must_use]
    pub fn register(&self, relations: &[RelationId]) -> RegisteredChunk {
        let id = ChunkId(Uuid::new_v4());
        let (outcome, receiver) = oneshot::channel();
        let chunk = OpenChunk {
            relations: relations.into(),
            delivery: None,
            outcome,
        };
        self.chunks().insert(id, chunk);
        RegisteredChunk {
            registry: self.clone(),
            id,
            outcome: receiver,
        }
    }

    /// Delivers the rows that were read. Call it before the high fence is written.
    pub fn deliver(&self, id: ChunkId, delivery: Delivery) {
        if let Some(chunk) = self.chunks().get_mut(&id) {
            chunk.delivery = Some(delivery);
        }
    }

    /// Forgets a chunk, with the rows that were delivered. Nothing happens if the stream has taken it.
    fn withdraw(&self, id: ChunkId) {
        if self.chunks().remove(&id).is_some() {
            self.withdrawn().push(id);
            self.0.any_withdrawn.store(true, Ordering::Release);
        }
    }

    /// The chunks that were given up since the last call: their windows can be closed.
    #[must_use]
    pub fn take_withdrawn(&self) -> Vec<ChunkId> {
        if !self.0.any_withdrawn.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        mem::take(&mut self.withdrawn())
    }

    /// For the stream's low fence: the tables to watch. `None` for a chunk of an earlier run.
    #[must_use]
    pub fn relations(&self, id: ChunkId) -> Option<Box<[RelationId]>> {
        self.chunks().get(&id).map(|chunk| chunk.relations.clone())
    }

    /// For the stream's high fence: what was read, and where to send the outcome.
    #[must_use]
    pub fn take(&self, id: ChunkId) -> Option<(Option<Delivery>, oneshot::Sender<ChunkOutcome>)> {
        self.chunks().remove(&id).map(|chunk| (chunk.delivery, chunk.outcome))
    }

    fn chunks(&self) -> MutexGuard<'_, HashMap<ChunkId, OpenChunk>> {
        // A poisoned lock is no problem: each change of the map is a single insert or remove.
        self.0.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn withdrawn(&self) -> MutexGuard<'_, Vec<ChunkId>> {
        self.0.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_is_given_up_is_named_once_and_one_that_was_taken_is_not() {
        let registry = ChunkRegistry::default();
        let given_up = registry.register(&[RelationId(1)]);
        let (id, taken) = (given_up.id, registry.register(&[RelationId(1)]));
        assert!(registry.take_withdrawn().is_empty());

        assert!(registry.take(taken.id).is_some());
        drop(taken);
        drop(given_up);

        assert_eq!(registry.take_withdrawn(), [id]);
        assert!(registry.take_withdrawn().is_empty(), "once");
        assert!(registry.relations(id).is_none());
    }
}
