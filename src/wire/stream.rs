//! The consumer's side of the stream: frames in, the durable position out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::DropGuard;

use super::codec::Frame;
use super::error::WireError;
use super::socket::within;
use crate::lsn::Lsn;

/// Bytes of frames that wait for the consumer at most, besides the batch that is being read. The applier works on
/// batches of about this size, so one waits while one is applied; more would only be memory.
pub(super) const ROOM: usize = 16 << 20;
/// Longest wait for a stream to close: the pump's own limit for the server, and a margin.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Frames that were read together, and what they cost of [`ROOM`].
pub(super) struct Batch {
    pub(super) frames: Vec<Frame>,
    pub(super) cost: u32,
}

/// The stream's frames, in order. Dropping it ends the connection at once.
pub struct FrameStream {
    pub(super) batches: mpsc::UnboundedReceiver<Result<Batch, WireError>>,
    pub(super) room: Arc<Semaphore>,
    pub(super) close: Option<oneshot::Sender<()>>,
    pub(super) closed: oneshot::Receiver<Result<(), WireError>>,
    pub(super) over: bool,
    pub(super) _abort: DropGuard,
}

impl FrameStream {
    /// The next frames, never none of them. After an error there is nothing more.
    ///
    /// Safe to cancel: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Result<Vec<Frame>, WireError>> {
        if self.over {
            return None;
        }
        let batch = self.batches.recv().await;
        // The pump says why it ends; if it could not, the connection is gone all the same.
        self.took(batch.unwrap_or(Err(WireError::Closed)))
    }

    fn took(&mut self, batch: Result<Batch, WireError>) -> Option<Result<Vec<Frame>, WireError>> {
        Some(match batch {
            Ok(batch) => {
                self.room.add_permits(batch.cost as usize);
                Ok(batch.frames)
            }
            Err(error) => {
                self.over = true;
                Err(error)
            }
        })
    }

    /// Ends the stream in good order: reports the last durable position, and waits, at most two seconds, until the
    /// server has left the slot. Frames that were not taken are lost; they come again.
    ///
    /// # Errors
    /// The stream had failed before, or the server did not end it in time. The connection is closed in any case.
    pub async fn close(mut self) -> Result<(), WireError> {
        if let Some(close) = self.close.take() {
            // The pump may have ended already: then `closed` says how.
            let _ = close.send(());
        }
        match within(CLOSE_TIMEOUT, "closing the stream", &mut self.closed).await? {
            Ok(outcome) => outcome,
            // It failed before: its error is the last thing that it handed out, unless that was taken already.
            Err(_) => {
                while let Some(batch) = self.batches.recv().await {
                    batch?;
                }
                Err(WireError::Closed)
            }
        }
    }
}

/// Tells the pump what is durable. May be cloned and outlive the stream.
#[derive(Debug, Clone)]
pub struct Feedback {
    pub(super) durable: Arc<watch::Sender<Lsn>>,
}

impl Feedback {
    /// Everything up to here is durable in the Agent DB: the source may forget it. A lower position than before
    /// changes nothing.
    ///
    /// Never blocks; the report goes out within a tenth of a second.
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
