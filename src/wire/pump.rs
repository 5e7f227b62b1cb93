//! The pump: owns the socket while the stream runs, passes frames on in batches, sends status updates back.
//!
//! It does not look into the frames, and never waits for the consumer: if there is no room for a batch, it stops reading and
//! goes on reporting. One loop, whose branches have an order: close, report, hand out, read.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{self, Handle};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::codec::{self, Frame, StatusUpdate, Streamed};
use super::error::{Phase, ServerFault, WireError};
use super::pace::{Capacity, Pace};
use super::socket::{Socket, within};
use super::stream::{Feedback, FrameBatch, FrameStream, ROOM};
use crate::failpoint::{self, name::FEEDBACK_BEFORE_SEND};
use crate::lsn::Lsn;
use crate::timestamp::PgTimestamp;

/// Most bytes that are read together, and the size of the buffers that payloads are slices of: several quanta at any rate
/// that was measured, and small compared with [`ROOM`].
const READ_CHUNK: usize = 1 << 20;
/// A new buffer is taken when the old one has less room than this, which holds the content of a full socket.
const MIN_SPARE: usize = 64 * 1024;
/// Interval of status updates on a quiet stream: the default of `wal_receiver_status_interval`.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Silence after which the connection counts as dead if the server has no limit: the default of `wal_sender_timeout`.
const DEFAULT_SILENCE: Duration = Duration::from_secs(60);
/// The shortest silence after which a connection may count as dead, for a server that is busy or has a very short limit.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);
/// The shortest interval of status updates, for a server with a very short limit.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
/// A durable position that moved is reported after this long at most. Each report wakes the walsender, so not for each
/// batch. Ten a second cost nothing, and sooner is of no use: a restart resumes from the Agent DB's checkpoint, and the slot's
/// position only decides how much WAL is kept.
const PROMPT: Duration = Duration::from_millis(100);
/// A status update has some 40 bytes: if the kernel does not take them in this time, the server does not read any more.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to end the stream: it first sends the rest of the transaction that it is in.
const FINISH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Why a status update is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatusReason {
    /// The server asked for one.
    Asked,
    /// The durable position moved.
    Advanced,
    /// The interval has passed.
    Due,
    /// The stream ends.
    Closing,
}

/// The thread whose event loop drives the socket. It ends when this is dropped, or when its pump has ended.
pub(super) struct Reactor {
    handle: Handle,
    pump: oneshot::Sender<Pump>,
}

impl Reactor {
    /// Starts the thread. It drives the socket from the first byte on, also for other tasks that wait for it.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (pump, given) = oneshot::channel::<Pump>();
        thread::Builder::new().name("twinlog-wire".to_owned()).spawn(move || {
            runtime.block_on(async {
                if let Ok(pump) = given.await {
                    pump.run().await;
                }
            });
        })?;
        Ok(Self { handle, pump })
    }

    /// The event loop, to register a socket with.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Gives the channel to the reactor's thread and starts the stream there. `timeout` is the server's `wal_sender_timeout`, if it has one.
pub(super) fn start(reactor: Reactor, channel: Channel, timeout: Option<Duration>) -> (FrameStream, Feedback) {
    let (batches_in, batches) = mpsc::unbounded_channel();
    let (close, close_asked) = oneshot::channel();
    let (closed_in, closed) = oneshot::channel();
    let (durable_in, durable) = watch::channel(Lsn::INVALID);
    let room = Arc::new(Semaphore::new(ROOM));
    let abort = CancellationToken::new();
    let now = Instant::now();
    let capacity = match &channel.socket {
        Socket::Unix(_) => Capacity::UNIX,
        socket if socket.is_local() => Capacity::LOCAL_TCP,
        Socket::Tcp(_) | Socket::Tls(_) => Capacity::TCP,
    };
    let pump = Pump {
        channel,
        batches: batches_in,
        room: Arc::clone(&room),
        durable,
        durable_may_move: true,
        close: close_asked,
        closed: closed_in,
        abort: abort.clone(),
        pace: Pace::new(capacity, now),
        limits: Limits::from_timeout(timeout),
        frames: Vec::new(),
        cost: 1,
        received: Lsn::INVALID,
        reported: Lsn::INVALID,
        reported_at: now,
        heard_at: now,
        asked: false,
    };
    // The thread waits for exactly this, so it is gone only if the process is ending.
    let _ = reactor.pump.send(pump);
    let stream = FrameStream {
        batches,
        room,
        close: Some(close),
        closed,
        over: false,
        owed: 0,
        _abort: abort.drop_guard(),
    };
    let feedback = Feedback {
        durable: Arc::new(durable_in),
    };
    (stream, feedback)
}

/// How often to report, and how long a silence may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    status: Duration,
    silence: Duration,
}

impl Limits {
    /// Reports after two fifths of the server's limit, so that two fit into it and one may be late, and at least as often as
    /// by default. Each asks for an answer: after a silence as long as the limit, two answers are missing.
    fn from_timeout(timeout: Option<Duration>) -> Self {
        Self {
            status: timeout.map_or(STATUS_INTERVAL, |limit| {
                (limit * 2 / 5).clamp(SHORTEST_INTERVAL, STATUS_INTERVAL)
            }),
            silence: timeout.unwrap_or(DEFAULT_SILENCE).max(SHORTEST_SILENCE),
        }
    }
}

/// The state of a running stream.
struct Pump {
    channel: Channel,
    batches: mpsc::UnboundedSender<Result<FrameBatch, WireError>>,
    room: Arc<Semaphore>,
    /// The position that the consumer says is durable.
    durable: watch::Receiver<Lsn>,
    /// A [`Feedback`] still exists, so the position may move.
    durable_may_move: bool,
    close: oneshot::Receiver<()>,
    closed: oneshot::Sender<Result<(), WireError>>,
    abort: CancellationToken,
    pace: Pace,
    limits: Limits,
    /// Frames that wait for room. While there are any, nothing is read.
    frames: Vec<Frame>,
    /// The room that these frames take; 1 if there are none.
    cost: u32,
    /// The highest position that was received.
    received: Lsn,
    /// The durable position of the last report.
    reported: Lsn,
    /// When the last report was sent.
    reported_at: Instant,
    /// When the last bytes came, or when reading was resumed.
    heard_at: Instant,
    /// The server has asked for a report.
    asked: bool,
}

impl Pump {
    async fn run(mut self) {
        let abort = self.abort.clone();
        let outcome = tokio::select! {
            biased;
            () = abort.cancelled() => return,
            outcome = self.stream() => outcome,
        };
        match outcome {
            Ok(()) => {
                let outcome = tokio::select! {
                    biased;
                    () = abort.cancelled() => return,
                    outcome = self.finish() => outcome,
                };
                let _ = self.closed.send(outcome);
            }
            Err(error) => {
                // The frames before the error are complete and may be applied: they go first, with room or without.
                self.hand_out();
                // Fails only if the stream was dropped.
                let _ = self.batches.send(Err(error));
            }
        }
    }

    /// Streams until asked to close.
    async fn stream(&mut self) -> Result<(), WireError> {
        // Frames may have come together with CopyBothResponse.
        self.take_frames()?;
        self.hand_out_if_room();
        let room = Arc::clone(&self.room);
        loop {
            // Not while the consumer is at work on all that there is room for, as with one very long row.
            let reading = self.frames.is_empty() && room.available_permits() > 0;
            let mut began = Instant::now();
            if let Some(wait) = self.pace.wait().filter(|_| reading) {
                // Blocks this thread on purpose: it has no other task, and tokio's timers tick in milliseconds.
                thread::sleep(wait);
                // If the sleep took longer than this, the machine is busy, and the pace must know.
                began += wait;
            }
            let report_at = self.report_at(began);
            let deadline = if reading {
                report_at.min(self.heard_at + self.limits.silence)
            } else {
                report_at
            };
            tokio::select! {
                biased;
                asked = &mut self.close => return asked.map_err(|_| WireError::Closed),
                () = sleep_until(deadline) => self.deadline_passed(reading).await?,
                moved = self.durable.changed(), if self.durable_may_move => self.durable_may_move = moved.is_ok(),
                () = take_room(&room, self.cost), if !reading => {
                    if self.frames.is_empty() {
                        // There is room for the next batch, whatever it will take.
                        room.add_permits(self.cost as usize);
                    }
                    self.hand_out();
                    self.heard_at = Instant::now();
                }
                read = read_what_is_there(&mut self.channel.socket, &mut self.channel.inbox), if reading => {
                    let bytes = read.map_err(WireError::Io)?;
                    if bytes == 0 {
                        return Err(WireError::Closed);
                    }
                    let now = Instant::now();
                    self.heard_at = now;
                    self.take_frames()?;
                    self.pace.took(bytes, self.frames.len(), now.duration_since(began), now);
                    if self.asked {
                        self.report(StatusReason::Asked).await?;
                    }
                    self.hand_out_if_room();
                }
            }
        }
    }

    /// The time of the next report.
    fn report_at(&self, now: Instant) -> Instant {
        if self.asked {
            return now;
        }
        let advanced = *self.durable.borrow() > self.reported;
        self.reported_at
            + if advanced {
                PROMPT.min(self.limits.status)
            } else {
                self.limits.status
            }
    }

    async fn deadline_passed(&mut self, reading: bool) -> Result<(), WireError> {
        let now = Instant::now();
        if reading && now >= self.heard_at + self.limits.silence {
            return Err(WireError::Timeout {
                doing: "listening to the stream",
                after: self.limits.silence,
            });
        }
        if now >= self.reported_at + self.limits.status {
            self.report(StatusReason::Due).await
        } else {
            self.report(StatusReason::Advanced).await
        }
    }

    /// Sends a status update.
    async fn report(&mut self, reason: StatusReason) -> Result<(), WireError> {
        failpoint::reach(FEEDBACK_BEFORE_SEND);
        let durable = *self.durable.borrow_and_update();
        let status = StatusUpdate {
            received: self.received,
            durable,
            // Our reports keep the server from asking, so a quiet stream says nothing about the server: ask it. Ask with the
            // first position too: the answer shows that the stream works, even if there is nothing to send.
            reply_requested: reason == StatusReason::Due
                || (reason == StatusReason::Advanced && self.reported == Lsn::INVALID),
        };
        codec::put_status(status, PgTimestamp::now(), self.channel.out());
        within(WRITE_TIMEOUT, "reporting progress", self.channel.flush()).await??;
        tracing::trace!(?reason, received = %self.received, %durable, "progress reported");
        self.reported = durable;
        self.reported_at = Instant::now();
        self.asked = false;
        Ok(())
    }

    /// Takes all complete frames off the inbox.
    fn take_frames(&mut self) -> Result<(), WireError> {
        let before = self.channel.inbox.len();
        let outcome = loop {
            match codec::take_streamed(&mut self.channel.inbox) {
                Ok(Some(Streamed::Frame(frame))) => {
                    self.received = self.received.max(frame.position());
                    if let Frame::KeepAlive {
                        reply_requested: true, ..
                    } = frame
                    {
                        self.asked = true;
                    }
                    self.frames.push(frame);
                }
                Ok(Some(Streamed::Message(message))) => {
                    if let Err(error) = self.other_message(message) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let bytes = before - self.channel.inbox.len();
        // A batch that is larger than all the room takes all of it.
        self.cost = u32::try_from(bytes.clamp(1, ROOM)).unwrap_or(u32::MAX);
        outcome
    }

    /// Handles a message that is not a frame.
    fn other_message(&mut self, message: Message) -> Result<(), WireError> {
        match message {
            Message::ErrorResponse(body) => Err(codec::server_error(
                body.fields(),
                Phase::Stream,
                &self.channel.identity,
            )),
            Message::NoticeResponse(body) => {
                let notice = codec::server_error(body.fields(), Phase::Stream, &self.channel.identity);
                // No later position may be acknowledged: from 18 on the server goes on without the publication's changes.
                if notice.fault() == Some(ServerFault::PublicationMissing) {
                    return Err(notice);
                }
                self.channel.notices.log(&notice);
                Ok(())
            }
            Message::ParameterStatus(_) => Ok(()),
            Message::CopyDone | Message::CommandComplete(_) => Err(WireError::StreamEnded),
            _ => Err(WireError::Protocol("an unexpected message in the stream".to_owned())),
        }
    }

    /// Passes the frames on if there is room; otherwise the loop waits for it.
    fn hand_out_if_room(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        let there_is_room = self
            .room
            .try_acquire_many(self.cost)
            .map(SemaphorePermit::forget)
            .is_ok();
        if there_is_room {
            self.hand_out();
        }
    }

    /// Passes the frames on.
    fn hand_out(&mut self) {
        if self.frames.is_empty() {
            return;
        }
        // The next batch is probably as long as this one.
        let next = Vec::with_capacity(self.frames.len());
        let frames = std::mem::replace(&mut self.frames, next);
        let cost = std::mem::replace(&mut self.cost, 1);
        let _ = self.batches.send(Ok(FrameBatch { frames, cost }));
    }

    /// Sends the last report and CopyDone, and waits until the server has released the slot.
    async fn finish(&mut self) -> Result<(), WireError> {
        let ended = async {
            self.report(StatusReason::Closing).await?;
            frontend::copy_done(self.channel.out());
            self.channel.flush().await?;
            loop {
                match codec::take_streamed(&mut self.channel.inbox)? {
                    // The server releases the slot before it sends ReadyForQuery.
                    Some(Streamed::Message(Message::ReadyForQuery(_))) => break,
                    Some(Streamed::Message(Message::CopyDone | Message::CommandComplete(_)) | Streamed::Frame(_)) => {}
                    Some(Streamed::Message(message)) => self.other_message(message)?,
                    None => {
                        let read = read_what_is_there(&mut self.channel.socket, &mut self.channel.inbox);
                        if read.await.map_err(WireError::Io)? == 0 {
                            return Err(WireError::Closed);
                        }
                    }
                }
            }
            frontend::terminate(self.channel.out());
            self.channel.flush().await?;
            self.channel.socket.shutdown().await.map_err(WireError::Io)
        };
        within(FINISH_TIMEOUT, "ending the stream", ended).await?
    }
}

/// Waits for the room of a batch. The consumer returns room when it takes a batch; the semaphore is never closed.
async fn take_room(room: &Semaphore, cost: u32) {
    if let Ok(permits) = room.acquire_many(cost).await {
        permits.forget();
    }
}

/// Waits for bytes and reads all that are there, up to a chunk. 0: the server has closed the connection.
///
/// Safe to cancel: nothing is read before it is ready.
async fn read_what_is_there(socket: &mut Socket, inbox: &mut BytesMut) -> io::Result<usize> {
    std::future::poll_fn(|context| poll_what_is_there(socket, inbox, context)).await
}

fn poll_what_is_there(socket: &mut Socket, inbox: &mut BytesMut, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut taken = 0;
    while taken < READ_CHUNK {
        if inbox.capacity() - inbox.len() < MIN_SPARE {
            // For a message longer than a chunk the buffer grows with the bytes that came, not with the length it claims.
            inbox.reserve(READ_CHUNK.max(inbox.len()));
        }
        match pin!(socket.read_buf(inbox)).poll(context) {
            Poll::Ready(Ok(0)) => break,
            Poll::Ready(Ok(bytes)) => taken += bytes,
            // The next read meets the end or the error again; the bytes before it count first.
            Poll::Ready(Err(error)) if taken == 0 => return Poll::Ready(Err(error)),
            Poll::Ready(Err(_)) => break,
            Poll::Pending if taken == 0 => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_frequent_enough_for_the_servers_limit() {
        for (timeout, status, silence) in [
            (Some(60_000), 10_000, 60_000),
            (Some(10_000), 4_000, 10_000),
            (Some(1_000), 400, 2_000),
            (Some(1), 20, 2_000),
            (Some(3_600_000), 10_000, 3_600_000),
            (None, 10_000, 60_000),
        ] {
            assert_eq!(
                Limits::from_timeout(timeout.map(Duration::from_millis)),
                Limits {
                    status: Duration::from_millis(status),
                    silence: Duration::from_millis(silence),
                },
                "{timeout:?}"
            );
        }
    }
}
