//! One run of the stream: frames in, batches out, positions acknowledged.
//!
//! ```text
//! wire ──frames──▶ assemble ──events──▶ buffer ──batches──▶ apply task ──durable──▶ progress ──▶ wire (feedback)
//!                      ▲                  ▲
//!                      └─ windows ◀─ chunks ◀─ readers (copy, resync, healing)
//! ```
//!
//! Everything here happens in one task, so that the order of the log is the order of the code. It waits for the
//! Agent DB only when two batches are ahead of it; the connection is read and kept alive elsewhere (`wire`), whatever
//! happens here. What each event does is in [`super::stream_events`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent_db::{AgentError, Segment};
use crate::change::{Relation, RelationId, TableDescription};
use crate::copy::{ChunkRegistry, Windows};
use crate::lsn::Lsn;
use crate::metrics;
use crate::pgoutput::{self, PgTimestamp};
use crate::replication::error::SyncError;
use crate::replication::status::delay::age;
use crate::replication::status::sync_status::SyncStatus;
use crate::replication::stream_error::StreamError;
use crate::shutdown::GRACE;
use crate::wire::{Feedback, Frame, FrameStream};

use super::apply_task::{ApplyEnded, ApplyHandle, ApplyReport};
use super::assemble::Assembler;
use super::buffer::TransactionBuffer;
use super::progress::Progress;
use super::requests::StreamRequest;

/// How often an idle stream moves its checkpoint, at most. Each time costs the Agent DB one small commit; what it buys is
/// WAL that the Site DB may remove, of which a quiet publication on a busy server makes some megabytes in this time.
/// (A server that asks, as it does when it shuts down, is answered at once.)
const IDLE_CHECKPOINT: Duration = Duration::from_secs(5);

/// What the loop works with.
pub(in crate::replication) struct StreamParts {
    pub(in crate::replication) frames: FrameStream,
    pub(in crate::replication) feedback: Feedback,
    pub(in crate::replication) apply: ApplyHandle,
    pub(in crate::replication) assembler: Assembler,
    pub(in crate::replication) chunks: ChunkRegistry,
    pub(in crate::replication) requests: mpsc::Receiver<StreamRequest>,
    pub(in crate::replication) status: Arc<SyncStatus>,
    pub(in crate::replication) buffer: TransactionBuffer,
    /// The durable checkpoint, at which the stream begins.
    pub(in crate::replication) resume_after: Lsn,
}

/// See the module's header.
pub(in crate::replication) struct StreamLoop {
    frames: FrameStream,
    feedback: Feedback,
    pub(super) apply: ApplyHandle,
    pub(super) assembler: Assembler,
    pub(super) chunks: ChunkRegistry,
    requests: mpsc::Receiver<StreamRequest>,
    status: Arc<SyncStatus>,
    pub(super) buffer: TransactionBuffer,
    pub(super) progress: Progress,
    pub(super) windows: Windows,
    /// One `Arc` for each table, whoever described it, so that changes of one key meet in the Agent DB's statements.
    pub(super) relations: HashMap<RelationId, Arc<Relation>>,
    /// Where the open transaction (or the last one) committed.
    pub(super) open_lsn: Lsn,
    /// When the open transaction committed.
    pub(super) open_committed_at: Option<PgTimestamp>,
    /// The oldest commit of each batch that is being applied.
    in_flight: VecDeque<Option<PgTimestamp>>,
    idle_checkpoint_at: Instant,
}

impl StreamLoop {
    /// Puts the parts together, standing at the checkpoint.
    pub(in crate::replication) fn new(parts: StreamParts) -> Self {
        let StreamParts {
            frames,
            feedback,
            apply,
            assembler,
            chunks,
            requests,
            status,
            buffer,
            resume_after,
        } = parts;
        let progress = Progress::resume(resume_after);
        feedback.durable(progress.acknowledgeable());
        Self {
            frames,
            feedback,
            apply,
            assembler,
            chunks,
            requests,
            status,
            buffer,
            progress,
            windows: Windows::default(),
            relations: HashMap::new(),
            open_lsn: resume_after,
            open_committed_at: None,
            in_flight: VecDeque::new(),
            idle_checkpoint_at: Instant::now() + IDLE_CHECKPOINT,
        }
    }

    /// Runs until it is stopped (then everything whole is durable and acknowledged) or cannot go on.
    pub(in crate::replication) async fn run(mut self, stop: &CancellationToken) -> Result<(), SyncError> {
        loop {
            self.hand_over().await?;
            self.publish();
            let idle_checkpoint = self.apply.is_idle() && self.progress.idle_checkpoint().is_some();
            tokio::select! {
                biased;
                // PRIORITY 1: stop.
                () = stop.cancelled() => return self.drain().await,
                // PRIORITY 2: what is durable, so that the Site DB may remove it from its log.
                // Also that the task has failed at an order that is not reported otherwise (a table's state).
                report = self.apply.report() => self.reported(report)?,
                // PRIORITY 3: readers, who are few and wait.
                Some(request) = self.requests.recv() => self.requested(request).await?,
                // PRIORITY 4: the stream.
                frames = self.frames.next() => match frames {
                    Some(frames) => self.take(frames?).await?,
                    None => return Err(SyncError::StreamEnded),
                },
                // PRIORITY 5: an idle slot moves on.
                () = sleep_until(self.idle_checkpoint_at), if idle_checkpoint => self.idle_checkpoint().await?,
            }
        }
    }

    /// Hands over what is whole as soon as nothing is being applied: a lone change is applied at once, a backlog in
    /// batches as large as the time that the last one took.
    async fn hand_over(&mut self) -> Result<(), SyncError> {
        if self.apply.is_idle() {
            self.commit_whole().await?;
        }
        Ok(())
    }

    pub(super) async fn commit_whole(&mut self) -> Result<(), SyncError> {
        if let Some(batch) = self.buffer.take_whole() {
            self.in_flight.push_back(batch.commits.first().copied());
            let sent = self.apply.commit(batch).await;
            self.sent(sent).await?;
        }
        Ok(())
    }

    /// Makes room: whole transactions are committed, the beginning of a large one is applied without a commit.
    pub(super) async fn make_room(&mut self) -> Result<(), SyncError> {
        self.commit_whole().await?;
        if self.buffer.is_full() {
            self.apply_open().await?;
        }
        Ok(())
    }

    /// Applies what there is of the open transaction, without a commit.
    pub(super) async fn apply_open(&mut self) -> Result<(), SyncError> {
        let items = self.buffer.take_open();
        if items.is_empty() {
            return Ok(());
        }
        self.in_flight.push_back(self.open_committed_at);
        let lsn = self.open_lsn;
        let sent = self.apply.apply(Segment { items, lsn }).await;
        self.sent(sent).await
    }

    /// Where the task that applies has ended, finds out why.
    async fn sent(&mut self, sent: Result<(), ApplyEnded>) -> Result<(), SyncError> {
        if sent.is_ok() {
            return Ok(());
        }
        Err(self.why_ended().await)
    }

    /// The last report of the task that applies.
    async fn why_ended(&mut self) -> SyncError {
        while let Some(report) = self.apply.report().await {
            if let Err(error) = self.reported(Some(report)) {
                return error;
            }
        }
        SyncError::ApplyEnded
    }

    fn reported(&mut self, report: Option<ApplyReport>) -> Result<(), SyncError> {
        match report.ok_or(SyncError::ApplyEnded)? {
            ApplyReport::Applied(applied) => {
                self.in_flight.pop_front();
                debug!(rows = applied.total().received, "part of a large transaction applied");
            }
            ApplyReport::Durable {
                committed,
                commits,
                chunks,
            } => {
                self.in_flight.pop_front();
                self.progress.durable(committed.end_lsn);
                self.feedback.durable(self.progress.acknowledgeable());
                self.idle_checkpoint_at = Instant::now() + IDLE_CHECKPOINT;
                let now = self.status.source_now();
                for commit in commits {
                    metrics::observe_commit_to_apply(age(commit, now));
                }
                self.status.applied(&committed.applied);
                for chunk in chunks {
                    // A reader that no longer waits has been stopped.
                    let _ = chunk.reader.send(Ok(()));
                }
            }
            ApplyReport::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn requested(&mut self, request: StreamRequest) -> Result<(), SyncError> {
        match request {
            StreamRequest::Describe(description, reply) => {
                let id = description.id;
                let answer = match self.resolve(description).await? {
                    Ok(relation) => Ok(self.canonical(id, relation).await?),
                    Err(error) => Err(error),
                };
                // A reader that no longer waits has been stopped.
                let _ = reply.send(answer);
            }
            StreamRequest::Table(table, event, reply) => {
                let sent = self.apply.table(table, event, reply).await;
                self.sent(sent).await?;
            }
            StreamRequest::ClearGap(reply) => {
                let sent = self.apply.clear_gap(reply).await;
                self.sent(sent).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn resolve(
        &mut self,
        description: TableDescription,
    ) -> Result<Result<Arc<Relation>, AgentError>, SyncError> {
        match self.apply.resolve(description).await {
            Ok(answer) => Ok(answer),
            Err(ApplyEnded) => Err(self.why_ended().await),
        }
    }

    async fn take(&mut self, frames: Vec<Frame>) -> Result<(), SyncError> {
        for frame in frames {
            match frame {
                Frame::XLogData { wal_end, payload, .. } => {
                    self.status.received(wal_end);
                    let message = pgoutput::decode(payload).map_err(StreamError::from)?;
                    let event = self.assembler.take(message)?;
                    self.event(event).await?;
                    if self.buffer.is_full() {
                        self.make_room().await?;
                    }
                }
                Frame::KeepAlive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    self.status.received(wal_end);
                    self.progress.keepalive(wal_end);
                    // A server that shuts down waits until everything is acknowledged.
                    if reply_requested && self.apply.is_idle() {
                        self.idle_checkpoint().await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn idle_checkpoint(&mut self) -> Result<(), SyncError> {
        if let Some(position) = self.progress.idle_checkpoint() {
            self.in_flight.push_back(None);
            let sent = self.apply.checkpoint(position).await;
            self.sent(sent).await?;
            self.idle_checkpoint_at = Instant::now() + IDLE_CHECKPOINT;
        }
        Ok(())
    }

    /// Stop intake, finish what is whole, acknowledge it, say goodbye.
    async fn drain(mut self) -> Result<(), SyncError> {
        let drained = timeout(GRACE.mul_f64(0.7), async {
            self.commit_whole().await?;
            while !self.apply.is_idle() {
                let report = self.apply.report().await;
                self.reported(report)?;
            }
            self.idle_checkpoint().await?;
            while !self.apply.is_idle() {
                let report = self.apply.report().await;
                self.reported(report)?;
            }
            Ok::<_, SyncError>(())
        })
        .await;
        self.publish();
        if let Err(error) = self.frames.close().await {
            debug!(%error, "the replication connection did not end in good order");
        }
        match drained {
            Ok(result) => result?,
            Err(_) => info!("stopped with a batch in flight: it is applied again at the next start"),
        }
        Ok(())
    }

    /// Shows where the stream stands.
    fn publish(&self) {
        let oldest = self
            .in_flight
            .iter()
            .flatten()
            .chain(self.buffer.oldest_commit().as_ref())
            .chain(self.open_committed_at.as_ref())
            .min()
            .copied();
        self.status
            .stand(self.progress.acknowledgeable(), self.progress.settled(), oldest);
    }
}
