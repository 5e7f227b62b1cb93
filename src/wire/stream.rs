//! The consumer's side of the stream: takes frames, reports the durable position.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::DropGuard;

use super::codec::Frame;
use super::error::WireError;
use super::socket::within;
use crate::lsn::Lsn;

/// Most bytes of frames that wait for the consumer or are being handled by it, not counting the batch that is being read. The
/// daemon applies batches of at most about this size, so one waits while one is applied; more would only take memory.
pub(super) const ROOM: usize = 8 << 20;
/// Longest wait for a stream to close: the pump's own limit for the server, plus a margin.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Frames that were read together, and how much of [`ROOM`] they take.
pub(super) struct FrameBatch {
    pub(super) frames: Vec<Frame>,
    pub(super) cost: u32,
}

/// The stream's frames, in order. Dropping it ends the connection at once.
pub struct FrameStream {
    pub(super) batches: mpsc::UnboundedReceiver<Result<FrameBatch, WireError>>,
    pub(super) room: Arc<Semaphore>,
    pub(super) close: Option<oneshot::Sender<()>>,
    pub(super) closed: oneshot::Receiver<Result<(), WireError>>,
    pub(super) over: bool,
    /// Room of the batch that was taken last, which is returned when the next one is asked for: until then its frames are
    /// in memory.
    pub(super) owed: u32,
    pub(super) _abort: DropGuard,
}

impl FrameStream {
    /// The next frames, at least one. After an error, `None`.
    ///
    /// Safe to cancel: the next call returns what this one did not.
    pub async fn next(&mut self) -> Option<Result<Vec<Frame>, WireError>> {
        if self.over {
            return None;
        }
        self.room.add_permits(std::mem::take(&mut self.owed) as usize);
        let batch = self.batches.recv().await;
        // The pump reports why it ends. If it could not, the connection is gone.
        self.took(batch.unwrap_or(Err(WireError::Closed)))
    }

    fn took(&mut self, batch: Result<FrameBatch, WireError>) -> Option<Result<Vec<Frame>, WireError>> {
        Some(match batch {
            Ok(batch) => {
                self.owed = batch.cost;
                Ok(batch.frames)
            }
            Err(error) => {
                self.over = true;
                Err(error)
            }
        })
    }

    /// Ends the stream: reports the last durable position, and waits at most two seconds until the server has released the
    /// slot. Frames that were not taken are dropped; the next stream sends them again.
    ///
    /// # Errors
    /// The stream had failed before, or the server did not end it in time. The connection is closed in both cases.
    pub async fn close(mut self) -> Result<(), WireError> {
        if let Some(close) = self.close.take() {
            // The pump may have ended already; `closed` tells how.
            let _ = close.send(());
        }
        match within(CLOSE_TIMEOUT, "closing the stream", &mut self.closed).await? {
            Ok(outcome) => outcome,
            // It failed before: its last batch is the error, unless that was taken already.
            Err(_) => {
                while let Some(batch) = self.batches.recv().await {
                    batch?;
                }
                Err(WireError::Closed)
            }
        }
    }
}

/// Reports the durable position to the pump. May be cloned, and may outlive the stream.
#[derive(Debug, Clone)]
pub struct Feedback {
    pub(super) durable: Arc<watch::Sender<Lsn>>,
}

impl Feedback {
    /// Everything up to this position is durable in the Agent DB, so the Site DB needs to keep it no longer. A lower position
    /// than before has no effect.
    ///
    /// Never blocks; the status update is sent within a tenth of a second.
    pub fn durable(&self, position: Lsn) {
        self.durable.send_if_modified(|durable| {
            let advanced = position > *durable;
            if advanced {
                *durable = position;
            }
            advanced
        });
    }
}
