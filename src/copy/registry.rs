//! The chunks that are being read now: through it a chunk's reader passes rows to the stream's loop.
//!
//! A reader registers a chunk before it writes the low fence, and delivers the rows before it writes the high fence. So
//! when a fence arrives in the stream, its chunk is already registered, or its rows are already delivered. The stream
//! answers once the merged chunk is durable in the Agent DB, or says why the chunk has to be read again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::chunk::{ChunkOutcome, Delivery};
use crate::change::RelationId;
use crate::source::ChunkId;

/// All chunks that are being read, shared by the readers and the stream.
#[derive(Debug, Default, Clone)]
pub struct ChunkRegistry(Arc<Mutex<HashMap<ChunkId, OpenChunk>>>);

#[derive(Debug)]
struct OpenChunk {
    relations: Box<[RelationId]>,
    delivery: Option<Delivery>,
    outcome: oneshot::Sender<ChunkOutcome>,
}

impl ChunkRegistry {
    /// Registers a chunk of one table, or of several that are read together. The receiver gets the outcome, or an error if
    /// the stream stops.
    pub fn register(&self, relations: &[RelationId]) -> (ChunkId, oneshot::Receiver<ChunkOutcome>) {
        let id = ChunkId(Uuid::new_v4());
        let (outcome, receiver) = oneshot::channel();
        self.lock().insert(
            id,
            OpenChunk {
                relations: relations.into(),
                delivery: None,
                outcome,
            },
        );
        (id, receiver)
    }

    /// Delivers the rows that were read. Call it before the high fence is written.
    pub fn deliver(&self, id: ChunkId, delivery: Delivery) {
        if let Some(chunk) = self.lock().get_mut(&id) {
            chunk.delivery = Some(delivery);
        }
    }

    /// Forgets a chunk whose read failed.
    pub fn withdraw(&self, id: ChunkId) {
        self.lock().remove(&id);
    }

    /// For the stream's low fence: the tables to watch. `None` for a chunk of an earlier run.
    #[must_use]
    pub fn relations(&self, id: ChunkId) -> Option<Box<[RelationId]>> {
        self.lock().get(&id).map(|chunk| chunk.relations.clone())
    }

    /// For the stream's high fence: what was read, and where to send the outcome.
    #[must_use]
    pub fn take(&self, id: ChunkId) -> Option<(Option<Delivery>, oneshot::Sender<ChunkOutcome>)> {
        self.lock().remove(&id).map(|chunk| (chunk.delivery, chunk.outcome))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, OpenChunk>> {
        // A poisoned lock is no problem: each change of the map is a single insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
