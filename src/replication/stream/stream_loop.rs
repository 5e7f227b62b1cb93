//! One run of the stream: frames in, batches out, positions acknowledged.
//!
//! ```text
//! wire ──frames──▶ assemble ──events──▶ batch ──closed──▶ sink task ──durable──▶ progress ──▶ wire (feedback)
//!                      ▲                  ▲
//!                      └─ windows ◀─ board ◀── readers (copy, resync, healing)
//! ```
//!
//! Everything here happens in one task, so that the order of the log is the order of the code. It waits for the sink
//! only when two batches are ahead of it; the connection is read and kept alive elsewhere (`wire`), whatever happens here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent_db::{AgentError, Item, Segment, TableState};
use crate::change::{Identity, Relation, RelationId, TableDescription};
use crate::copy::{ChunkRegistry, Delivery, InvalidChunk, Windows};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::metrics;
use crate::pgoutput::{self, PgTimestamp, RelationMessage, ReplicaIdentity};
use crate::shutdown::GRACE;
use crate::source::{ChunkId, Fence};
use crate::wire::{Feedback, Frame, FrameStream};

use super::apply_task::{Report, SinkEnded, SinkHandle};
use super::assemble::{Assembler, Event, StreamError};
use super::buffer::{Batch, Boundary, age, same_shape};
use super::progress::Progress;
use crate::replication::error::SyncError;
use crate::replication::status::sync_status::SyncStatus;

/// How often an idle stream moves its checkpoint, at most. Each time costs the Agent DB one small commit; what it buys is
/// WAL that the Site DB may remove, of which a quiet publication on a busy server makes some megabytes in this time.
/// (A server that asks, as it does when it shuts down, is answered at once.)
const IDLE_CHECKPOINT: Duration = Duration::from_secs(5);

/// What readers ask of the stream.
#[derive(Debug)]
pub(in crate::replication) enum Request {
    /// How a table's rows look in the Agent DB.
    Describe(TableDescription, oneshot::Sender<Result<Arc<Relation>, AgentError>>),
    /// A table's first copy begins or ends.
    Copying(crate::change::TableName, bool),
    /// A full resync has shown that nothing is missing.
    ClearGap(oneshot::Sender<Result<(), AgentError>>),
}

/// See the module's header.
pub(in crate::replication) struct Pipeline {
    pub(in crate::replication) frames: FrameStream,
    pub(in crate::replication) feedback: Feedback,
    pub(in crate::replication) sink: SinkHandle,
    pub(in crate::replication) assembler: Assembler,
    pub(in crate::replication) chunks: ChunkRegistry,
    pub(in crate::replication) requests: mpsc::Receiver<Request>,
    pub(in crate::replication) view: Arc<SyncStatus>,
    pub(in crate::replication) batch: Batch,
    pub(in crate::replication) progress: Progress,
    windows: Windows,
    /// One `Arc` for each table, whoever described it, so that changes of one key meet in the sink.
    relations: HashMap<RelationId, Arc<Relation>>,
    /// Where the open transaction (or the last one) committed.
    open_lsn: Lsn,
    /// When the open transaction committed.
    open_committed_at: Option<PgTimestamp>,
    /// The oldest commit of each batch that the sink has.
    in_flight: VecDeque<Option<PgTimestamp>>,
    idle_checkpoint_at: Instant,
}

/// What a pipeline is made of.
pub(in crate::replication) struct Parts {
    pub(in crate::replication) frames: FrameStream,
    pub(in crate::replication) feedback: Feedback,
    pub(in crate::replication) sink: SinkHandle,
    pub(in crate::replication) assembler: Assembler,
    pub(in crate::replication) chunks: ChunkRegistry,
    pub(in crate::replication) requests: mpsc::Receiver<Request>,
    pub(in crate::replication) view: Arc<SyncStatus>,
    pub(in crate::replication) batch: Batch,
    pub(in crate::replication) resume_after: Lsn,
}

impl Pipeline {
    /// Puts the parts together, standing at the checkpoint.
    pub(in crate::replication) fn new(parts: Parts) -> Self {
        let Parts {
            frames,
            feedback,
            sink,
            assembler,
            chunks,
            requests,
            view,
            batch,
            resume_after,
        } = parts;
        let progress = Progress::resume(resume_after);
        feedback.durable(progress.acknowledgeable());
        Self {
            frames,
            feedback,
            sink,
            assembler,
            chunks,
            requests,
            view,
            batch,
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
            let idle_checkpoint = self.sink.is_idle() && self.progress.idle_checkpoint().is_some();
            tokio::select! {
                biased;
                // PRIORITY 1: stop.
                () = stop.cancelled() => return self.drain().await,
                // PRIORITY 2: what is durable, so that the source may forget it.
                report = self.sink.report(), if !self.sink.is_idle() => self.reported(report)?,
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

    /// Gives the sink what is whole as soon as it has nothing to do: a lone change is applied at once, a backlog in
    /// batches as large as the time that the last one took.
    async fn hand_over(&mut self) -> Result<(), SyncError> {
        if self.sink.is_idle() {
            self.commit_whole().await?;
        }
        Ok(())
    }

    async fn commit_whole(&mut self) -> Result<(), SyncError> {
        if let Some(closed) = self.batch.take_whole() {
            self.in_flight.push_back(closed.commits.first().copied());
            let sent = self.sink.commit(closed).await;
            self.sent(sent).await?;
        }
        Ok(())
    }

    /// Makes room: whole transactions are committed, the beginning of a large one is applied without a commit.
    async fn make_room(&mut self) -> Result<(), SyncError> {
        self.commit_whole().await?;
        if self.batch.is_full() {
            let segment = Segment {
                items: self.batch.take_open(),
                lsn: self.open_lsn,
            };
            self.in_flight.push_back(self.open_committed_at);
            let sent = self.sink.apply(segment).await;
            self.sent(sent).await?;
        }
        Ok(())
    }

    /// Where the sink has ended, finds out why.
    async fn sent(&mut self, sent: Result<(), SinkEnded>) -> Result<(), SyncError> {
        if sent.is_ok() {
            return Ok(());
        }
        Err(self.why_ended().await)
    }

    /// The sink's last word.
    async fn why_ended(&mut self) -> SyncError {
        while let Some(report) = self.sink.report().await {
            if let Err(error) = self.reported(Some(report)) {
                return error;
            }
        }
        SyncError::SinkEnded
    }

    fn reported(&mut self, report: Option<Report>) -> Result<(), SyncError> {
        match report.ok_or(SyncError::SinkEnded)? {
            Report::Applied(applied) => {
                self.in_flight.pop_front();
                debug!(rows = applied.total().received, "part of a large transaction applied");
            }
            Report::Durable {
                committed,
                commits,
                chunks,
            } => {
                self.in_flight.pop_front();
                self.progress.durable(committed.end_lsn);
                self.feedback.durable(self.progress.acknowledgeable());
                self.idle_checkpoint_at = Instant::now() + IDLE_CHECKPOINT;
                let now = self.view.source_now();
                for commit in commits {
                    metrics::observe_commit_to_apply(age(commit, now));
                }
                self.view.applied(&committed.applied);
                for reader in chunks {
                    // A reader that no longer waits has been stopped.
                    let _ = reader.send(Ok(()));
                }
            }
            Report::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn requested(&mut self, request: Request) -> Result<(), SyncError> {
        match request {
            Request::Describe(description, reply) => {
                let id = description.id;
                let answer = match self.resolve(description).await? {
                    Ok(relation) => Ok(self.canonical(id, relation).await?),
                    Err(error) => Err(error),
                };
                // A reader that no longer waits has been stopped.
                let _ = reply.send(answer);
            }
            Request::ClearGap(reply) => {
                let sent = self.sink.clear_gap(reply).await;
                self.sent(sent).await?;
            }
            Request::Copying(table, copying) => {
                let sent = self.sink.copying(table, copying).await;
                self.sent(sent).await?;
            }
        }
        Ok(())
    }

    async fn resolve(&mut self, description: TableDescription) -> Result<Result<Arc<Relation>, AgentError>, SyncError> {
        match self.sink.resolve(description).await {
            Ok(answer) => Ok(answer),
            Err(SinkEnded) => Err(self.why_ended().await),
        }
    }

    /// The one `Arc` of a table. A new shape replaces it, after everything of the old one was handed over.
    async fn canonical(&mut self, id: RelationId, relation: Arc<Relation>) -> Result<Arc<Relation>, SyncError> {
        match self.relations.get(&id) {
            Some(known) if same_shape(known, &relation) && known.table == relation.table => {
                return Ok(Arc::clone(known));
            }
            Some(_) => {
                self.windows.relation_changed(id);
                self.commit_whole().await?;
                let items = self.batch.take_open();
                if !items.is_empty() {
                    self.in_flight.push_back(self.open_committed_at);
                    let sent = self
                        .sink
                        .apply(Segment {
                            items,
                            lsn: self.open_lsn,
                        })
                        .await;
                    self.sent(sent).await?;
                }
            }
            None => {}
        }
        self.relations.insert(id, Arc::clone(&relation));
        Ok(relation)
    }

    async fn take(&mut self, frames: Vec<Frame>) -> Result<(), SyncError> {
        for frame in frames {
            match frame {
                Frame::XLogData { wal_end, payload, .. } => {
                    self.view.received(wal_end);
                    let message = pgoutput::decode(payload).map_err(StreamError::from)?;
                    let event = self.assembler.take(message)?;
                    self.event(event).await?;
                    if self.batch.is_full() {
                        self.make_room().await?;
                    }
                }
                Frame::KeepAlive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    self.view.received(wal_end);
                    self.progress.keepalive(wal_end);
                    // A server that shuts down waits until everything is acknowledged.
                    if reply_requested && self.sink.is_idle() {
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
            let sent = self.sink.checkpoint(position).await;
            self.sent(sent).await?;
            self.idle_checkpoint_at = Instant::now() + IDLE_CHECKPOINT;
        }
        Ok(())
    }

    async fn event(&mut self, event: Event) -> Result<(), SyncError> {
        match event {
            Event::Change(change) => {
                if self.windows.watches(change.relation.id)
                    && let Some(xid) = self.assembler.open_xid()
                {
                    self.windows.observe(xid, &change);
                }
                self.progress.effect();
                self.batch.push(Item::Change(change));
            }
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
                self.batch.close_transaction(Boundary { end_lsn, committed_at });
                self.open_committed_at = None;
            }
            Event::Describe(message) => self.describe(message).await?,
            Event::Truncate(truncate, others) => {
                for relation in &others {
                    self.progress.effect();
                    self.batch.count_filtered(relation);
                }
                for relation in &truncate.relations {
                    self.windows.truncated(relation.id);
                }
                if !truncate.relations.is_empty() {
                    self.progress.effect();
                    self.batch.push(Item::Truncate(truncate));
                }
            }
            Event::Filtered(relation) => {
                self.progress.effect();
                self.batch.count_filtered(&relation);
            }
            Event::Fence(Fence::Low(id)) => {
                if let Some(relation) = self.chunks.relation(id) {
                    self.windows.open(id, relation);
                }
            }
            Event::Fence(Fence::High(id)) => self.merge(id).await?,
            Event::Nothing => {}
        }
        Ok(())
    }

    async fn describe(&mut self, message: RelationMessage) -> Result<(), SyncError> {
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
        let description = TableDescription {
            id: message.id,
            table: message.table.clone(),
            columns: message.columns.iter().map(|column| Arc::clone(&column.name)).collect(),
            identity,
        };
        let resolved = self.resolve(description).await??;
        let relation = self.canonical(message.id, resolved).await?;
        self.assembler.describe(message, relation);
        Ok(())
    }

    /// The high fence of a chunk: what was read takes its place in the stream.
    async fn merge(&mut self, id: ChunkId) -> Result<(), SyncError> {
        let Some((delivery, reader)) = self.chunks.take(id) else {
            // Another run's, or withdrawn: the window, if any, goes.
            let _ = self.windows.close(id, None);
            return Ok(());
        };
        let (read, progress) = match delivery {
            Some(Delivery { read, progress }) => (Some(read), progress),
            None => (None, None),
        };
        let shape = read.as_ref().and_then(|read| {
            let known = self.relations.get(&read.relation.id)?;
            Some((Arc::clone(known), same_shape(known, &read.relation)))
        });
        let merged = match (self.windows.close(id, read), &shape) {
            (Ok(_), Some((_, false))) => Err(InvalidChunk::RelationChanged),
            (merged, _) => merged,
        };
        let changes = match merged {
            Ok(changes) => changes,
            Err(void) => {
                debug!(reason = void.as_str(), "a chunk has to be read again");
                // A reader that no longer waits has been stopped.
                let _ = reader.send(Err(void));
                return Ok(());
            }
        };
        self.progress.effect();
        for mut change in changes {
            if let Some((relation, _)) = &shape {
                change.relation = Arc::clone(relation);
            }
            self.batch.push(Item::Change(change));
            if self.batch.is_full() {
                self.make_room().await?;
            }
        }
        if let Some(mut progress) = progress {
            if progress.state == TableState::Streaming {
                progress.copied_at_lsn = Some(self.open_lsn);
            }
            self.batch.push(Item::CopyProgress(progress));
        }
        self.batch.await_chunk(reader);
        failpoint::reach(failpoint::name::COPY_AFTER_MERGE);
        Ok(())
    }

    /// Stop intake, finish what is whole, acknowledge it, say goodbye.
    async fn drain(mut self) -> Result<(), SyncError> {
        let drained = timeout(GRACE.mul_f64(0.7), async {
            self.commit_whole().await?;
            while !self.sink.is_idle() {
                let report = self.sink.report().await;
                self.reported(report)?;
            }
            self.idle_checkpoint().await?;
            while !self.sink.is_idle() {
                let report = self.sink.report().await;
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

    /// Tells the monitor where we stand.
    fn publish(&self) {
        let oldest = self
            .in_flight
            .iter()
            .flatten()
            .chain(self.batch.oldest_commit().as_ref())
            .chain(self.open_committed_at.as_ref())
            .min()
            .copied();
        self.view
            .stand(self.progress.acknowledgeable(), self.progress.settled(), oldest);
    }
}
