//! The loop that reads the stream: takes frames, sends batches to the apply task, acknowledges positions.
//!
//! ```text
//! wire ──frames──▶ assemble ──events──▶ buffer ──batches──▶ apply task ──durable──▶ progress ──▶ wire (feedback)
//!                      ▲                  ▲
//!                      └─ windows ◀─ chunks ◀─ readers (copy, resync, healing)
//! ```
//!
//! Everything here happens in one task, so that changes, chunks and requests are handled in the order of the log. The
//! loop waits for the Agent DB only while two batches are unfinished there; meanwhile another task (`wire`) reads the
//! connection and keeps it alive. What happens with each event is in [`events`], how one table is held and released in
//! [`holding`], and how the stream gets past a row that can't be sent in [`passing`].

mod events;
mod holding;
mod passing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent_db::{AgentError, Segment, TableSettings};
use crate::change::{Relation, RelationId, SourceFacts, TableDescription};
use crate::copy::{ChunkRegistry, ChunkResult, Windows};
use crate::lsn::Lsn;
use crate::metrics;
use crate::pgoutput::{self, Message, PgTimestamp};
use crate::replication::error::SyncError;
use crate::replication::status::delay::age;
use crate::replication::status::sync_status::SyncStatus;
use crate::replication::stream_error::StreamError;
use crate::shutdown::GRACE;
use crate::wire::{Feedback, Frame, FrameStream};

use super::apply_task::{ApplyEnded, ApplyHandle, ApplyReport};
use super::assemble::Assembler;
use super::buffer::TransactionBuffer;
use super::described::CatalogColumns;
use super::flow::Flow;
use super::passed::Passing;
use super::progress::Progress;
use super::requests::StreamRequest;

/// Shortest interval between two checkpoints of an idle stream. Each costs the Agent DB one small commit, and allows
/// the Site DB to remove WAL: some megabytes in this time, if the server is busy with tables that are not published. (A
/// keepalive that requests a reply, as at the server's shutdown, is answered at once.)
const IDLE_CHECKPOINT: Duration = Duration::from_secs(5);

/// What [`StreamLoop::new`] needs.
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
    /// Where the Site DB's log ended at the start of the run.
    pub(in crate::replication) tip: Lsn,
    pub(in crate::replication) columns: CatalogColumns,
    /// Wakes the catalog watch.
    pub(in crate::replication) catalog_hint: Arc<Notify>,
    /// What the Site DB's catalog says about the synchronised tables.
    pub(in crate::replication) facts: HashMap<RelationId, Arc<SourceFacts>>,
    /// The stream sends values in binary form: all transactions up to this commit record are passed over.
    pub(in crate::replication) pass_until: Option<Lsn>,
    /// What the configuration says about tables.
    pub(in crate::replication) settings: Arc<dyn TableSettings>,
}

/// The stream's loop and its state, for one run.
pub(in crate::replication) struct StreamLoop {
    frames: FrameStream,
    feedback: Feedback,
    apply: ApplyHandle,
    assembler: Assembler,
    chunks: ChunkRegistry,
    requests: mpsc::Receiver<StreamRequest>,
    status: Arc<SyncStatus>,
    buffer: TransactionBuffer,
    progress: Progress,
    windows: Windows,
    /// One shared `Arc` for each table, used for the stream's changes and for chunks, so that the apply task can group
    /// them by pointer.
    relations: HashMap<RelationId, Arc<Relation>>,
    /// What the Site DB's catalog says about the synchronised tables.
    facts: HashMap<RelationId, Arc<SourceFacts>>,
    /// The commit position of the open transaction, or of the last one.
    open_lsn: Lsn,
    /// Commit time of the open transaction, by the Site DB's clock.
    open_committed_at: Option<PgTimestamp>,
    /// For each order that is not reported yet, the oldest commit time in it.
    in_flight: VecDeque<Option<PgTimestamp>>,
    idle_checkpoint_at: Instant,
    flow: Flow,
    /// Commits of changes before this run.
    commits_before: u64,
    columns: CatalogColumns,
    catalog_hint: Arc<Notify>,
    passing: Option<Passing>,
    settings: Arc<dyn TableSettings>,
}

impl StreamLoop {
    /// A loop that begins at the checkpoint.
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
            tip,
            catalog_hint,
            facts,
            columns,
            pass_until,
            settings,
        } = parts;
        let progress = Progress::resume(resume_after);
        feedback.durable(progress.acknowledgeable());
        let commits_before = status.commits();
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
            facts,
            open_lsn: resume_after,
            open_committed_at: None,
            in_flight: VecDeque::new(),
            idle_checkpoint_at: Instant::now() + IDLE_CHECKPOINT,
            flow: Flow::new(resume_after, tip),
            commits_before,
            columns,
            catalog_hint,
            passing: pass_until.map(Passing::new),
            settings,
        }
    }

    /// Runs until it is stopped or an error ends it. When it is stopped, the transactions received completely are made
    /// durable and acknowledged before it returns.
    pub(in crate::replication) async fn run(mut self, stop: &CancellationToken) -> Result<(), SyncError> {
        loop {
            self.commit_when_idle().await?;
            self.publish_positions();
            let idle_checkpoint = self.apply.is_idle() && self.progress.idle_checkpoint().is_some();
            tokio::select! {
                biased;
                // PRIORITY 1: stop.
                () = stop.cancelled() => return self.drain().await,
                // PRIORITY 2: reports of commits, so that they are acknowledged soon. (Also while idle: an order without a
                // report of its own, such as a table's state, can fail.)
                report = self.apply.report() => self.handle_report(report)?,
                // PRIORITY 3: requests of the readers, which are few and wait for the answer.
                Some(request) = self.requests.recv() => self.handle_request(request).await?,
                // PRIORITY 4: the stream.
                frames = self.frames.next() => match frames {
                    Some(Ok(frames)) => self.handle_frames(frames).await?,
                    Some(Err(error)) => return Err(self.ended_by(error)),
                    None => return Err(SyncError::StreamEnded),
                },
                // PRIORITY 5: the checkpoint of an idle stream.
                () = sleep_until(self.idle_checkpoint_at), if idle_checkpoint => self.idle_checkpoint().await?,
            }
        }
    }

    /// Commits what was received completely as soon as the apply task is idle. So a single change is applied at once,
    /// and under load a batch contains what was received while the last one was applied.
    async fn commit_when_idle(&mut self) -> Result<(), SyncError> {
        if self.apply.is_idle() {
            self.commit_whole().await?;
        }
        Ok(())
    }

    async fn commit_whole(&mut self) -> Result<(), SyncError> {
        let is_wide = self.buffer.is_wide();
        if let Some(batch) = self.buffer.take_whole() {
            if is_wide {
                self.until_applied().await?;
            }
            self.in_flight.push_back(batch.commits.first().copied());
            let sent = self.apply.commit(batch).await;
            self.check_sent(sent).await?;
            if is_wide {
                self.until_applied().await?;
            }
        }
        Ok(())
    }

    /// Waits until the apply task has done everything that was handed over.
    async fn until_applied(&mut self) -> Result<(), SyncError> {
        while !self.apply.is_idle() {
            let report = self.apply.report().await;
            self.handle_report(report)?;
        }
        Ok(())
    }

    /// Empties a full buffer: commits whole transactions, and applies the beginning of a large one without a commit.
    async fn make_room(&mut self) -> Result<(), SyncError> {
        self.commit_whole().await?;
        if self.buffer.is_full() {
            self.apply_open().await?;
        }
        Ok(())
    }

    /// Applies the received part of the open transaction, without a commit.
    async fn apply_open(&mut self) -> Result<(), SyncError> {
        let is_wide = self.buffer.is_wide();
        let items = self.buffer.take_open();
        if items.is_empty() {
            return Ok(());
        }
        if is_wide {
            self.until_applied().await?;
        }
        self.in_flight.push_back(self.open_committed_at);
        let lsn = self.open_lsn;
        let sent = self.apply.apply(Segment { items, lsn }).await;
        self.check_sent(sent).await?;
        if is_wide {
            self.until_applied().await?;
        }
        Ok(())
    }

    /// Turns a failed send into the error with which the apply task ended.
    async fn check_sent(&mut self, sent: Result<(), ApplyEnded>) -> Result<(), SyncError> {
        if sent.is_ok() {
            return Ok(());
        }
        Err(self.why_ended().await)
    }

    /// The error in the last report of the apply task.
    async fn why_ended(&mut self) -> SyncError {
        while let Some(report) = self.apply.report().await {
            if let Err(error) = self.handle_report(Some(report)) {
                return error;
            }
        }
        SyncError::ApplyEnded
    }

    fn handle_report(&mut self, report: Option<ApplyReport>) -> Result<(), SyncError> {
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
                let has_changes = !commits.is_empty() || !chunks.is_empty();
                for commit in commits {
                    metrics::observe_commit_to_apply(age(commit, now));
                }
                self.status.applied(&committed.applied);
                self.status.committed(has_changes);
                for chunk in chunks {
                    // A reader that no longer waits has been stopped.
                    let _ = chunk.reader.send(Ok(ChunkResult::Durable));
                }
            }
            ApplyReport::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn handle_request(&mut self, request: StreamRequest) -> Result<(), SyncError> {
        match request {
            StreamRequest::Resolve(description, reply) => {
                let id = description.id;
                let answer = match self.resolve(description).await? {
                    Ok(relation) => Ok(self.canonical(id, relation).await?),
                    Err(error) => Err(error),
                };
                // A reader that no longer waits has been stopped.
                let _ = reply.send(answer);
            }
            StreamRequest::Release(table, reply) => {
                let released = Box::pin(self.release(&table)).await?;
                // A task that no longer waits has been stopped.
                let _ = reply.send(released);
            }
            StreamRequest::Store(request) => self.store(request).await?,
        }
        Ok(())
    }

    async fn resolve(&mut self, description: TableDescription) -> Result<Result<Arc<Relation>, AgentError>, SyncError> {
        match self.apply.resolve(description).await {
            Ok(answer) => Ok(answer),
            Err(ApplyEnded) => Err(self.why_ended().await),
        }
    }

    async fn handle_frames(&mut self, frames: Vec<Frame>) -> Result<(), SyncError> {
        self.flow.heard();
        for id in self.chunks.take_withdrawn() {
            self.windows.abandon(id);
        }
        for frame in frames {
            match frame {
                Frame::XLogData { wal_end, payload, .. } => {
                    self.status.received(wal_end);
                    let (received, before) = (payload.len(), self.buffer.bytes());
                    if self.passing.is_some()
                        && let Some(id) = pgoutput::changed_relation(&payload)
                    {
                        self.pass_change(id).await?;
                        continue;
                    }
                    let message = pgoutput::decode(payload).map_err(StreamError::from)?;
                    if matches!(message, Message::Relation(_)) {
                        // The server describes a table again after any change of its catalog entries.
                        self.catalog_hint.notify_one();
                    }
                    let event = self.assembler.event_of(message)?;
                    self.event(event).await?;
                    if self.passing.is_some() {
                        self.end_passing().await?;
                    }
                    let kept = self.buffer.bytes().saturating_sub(before);
                    self.buffer.received_besides(received.saturating_sub(kept));
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
                    // A server that shuts down requests a reply, and waits until everything is acknowledged.
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
            self.check_sent(sent).await?;
            self.idle_checkpoint_at = Instant::now() + IDLE_CHECKPOINT;
        }
        Ok(())
    }

    /// Reads nothing more, makes the whole transactions durable, acknowledges them, and closes the connection.
    async fn drain(mut self) -> Result<(), SyncError> {
        let drained = timeout(GRACE.mul_f64(0.7), async {
            self.commit_whole().await?;
            self.until_applied().await?;
            self.idle_checkpoint().await?;
            self.until_applied().await?;
            Ok::<_, SyncError>(())
        })
        .await;
        self.publish_positions();
        if let Err(error) = self.frames.close().await {
            debug!(%error, "the replication connection was not closed cleanly");
        }
        match drained {
            Ok(result) => result?,
            Err(_) => info!("stopped before the last batch was committed: it is applied again at the next start"),
        }
        Ok(())
    }

    /// Writes the stream's positions into the status, and tells once that the stream flows.
    fn publish_positions(&mut self) {
        let oldest = self
            .in_flight
            .iter()
            .flatten()
            .chain(self.buffer.oldest_commit().as_ref())
            .chain(self.open_committed_at.as_ref())
            .min()
            .copied();
        let settled = self.progress.settled();
        self.status
            .set_positions(self.progress.acknowledgeable(), settled, oldest);
        // What held the last run is probably met again: nothing is said before a change is through, or some time has passed.
        let is_doubtful = self.status.is_doubtful() && self.status.commits() == self.commits_before;
        if !is_doubtful && self.flow.is_news(settled) {
            self.status.proved();
            info!(position = %settled, "the stream flows");
        }
    }
}
