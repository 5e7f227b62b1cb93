//! Where a reader and the stream meet: the chunks that are under way.
//!
//! A reader registers a chunk before it writes the low fence and delivers the rows before it writes the high fence; so
//! whatever fence the stream brings, what belongs to it is already here. The stream answers once the merged chunk is
//! durable in the Agent DB, or says why it has to be read again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::window::{ChunkRead, Void};
use crate::agent_db::TableProgress;
use crate::change::RelationId;
use crate::source::ChunkId;

/// What became of a chunk.
pub type Outcome = Result<(), Void>;

/// All chunks that are under way.
#[derive(Debug, Default, Clone)]
pub struct Board(Arc<Mutex<HashMap<ChunkId, Entry>>>);

#[derive(Debug)]
struct Entry {
    relation: RelationId,
    delivery: Option<Delivery>,
    reply: oneshot::Sender<Outcome>,
}

/// A chunk that was read whole.
#[derive(Debug)]
pub struct Delivery {
    /// What was read.
    pub read: ChunkRead,
    /// How far the table is once this chunk is merged; written with it. Healing moves no table on.
    pub progress: Option<TableProgress>,
}

impl Board {
    /// Announces a chunk of a table. The receiver ends without a word if the stream stops.
    pub fn register(&self, relation: RelationId) -> (ChunkId, oneshot::Receiver<Outcome>) {
        let id = ChunkId(Uuid::new_v4());
        let (reply, outcome) = oneshot::channel();
        self.lock().insert(
            id,
            Entry {
                relation,
                delivery: None,
                reply,
            },
        );
        (id, outcome)
    }

    /// Hands over what was read. Call it before the high fence is written.
    pub fn deliver(&self, id: ChunkId, delivery: Delivery) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.delivery = Some(delivery);
        }
    }

    /// Forgets a chunk whose read failed.
    pub fn withdraw(&self, id: ChunkId) {
        self.lock().remove(&id);
    }

    /// The stream brought the low fence: which table to watch. `None` for a chunk of another run.
    #[must_use]
    pub fn relation(&self, id: ChunkId) -> Option<RelationId> {
        self.lock().get(&id).map(|entry| entry.relation)
    }

    /// The stream brought the high fence: the rows, and whom to tell.
    #[must_use]
    pub fn take(&self, id: ChunkId) -> Option<(Option<Delivery>, oneshot::Sender<Outcome>)> {
        self.lock().remove(&id).map(|entry| (entry.delivery, entry.reply))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, Entry>> {
        // A panic elsewhere leaves the map whole: each step is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
