//! A connection's bytes, with their time limits: of silence, of a request's head, and of an answer that its peer does not read.
//!
//! Our own and not `tokio-io-timeout`: its timers for reading and writing are separate, and so would cut a long answer to a
//! client that sends nothing more; and both count from the last byte.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::pace::Pace;
use super::registry::{Doing, Tracked};

/// A request's head must be complete this long after its first byte: one packet, usually.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not read its answer resets the connection this long after it at most. One that is reset later was kept for
/// another request, and its client has read the answer.
pub(super) const UNREAD_WITHIN: Duration = Duration::from_secs(2);

/// A connection; fails when its time is over.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    tracked: Arc<Tracked>,
    /// The longest time without a byte read or written.
    silence: Duration,
    last_byte: Instant,
    /// The rate at which the peer takes its answers.
    writing: Pace,
    /// Since when the peer takes no more bytes of an answer.
    blocked: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Done when it is to end.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, tracked: Arc<Tracked>, silence: Duration) -> Self {
        let ended = Box::pin(tracked.ended());
        Self {
            stream,
            tracked,
            silence,
            last_byte: Instant::now(),
            writing: Pace::new(),
            blocked: None,
            timer: Box::pin(tokio::time::sleep(silence)),
            ended,
        }
    }

    /// When it fails if no byte is read or written until then.
    fn end(&self) -> Instant {
        let mut end = self.last_byte + self.silence;
        if let Doing::Head { since } = self.tracked.doing() {
            end = end.min(since + HEAD_TIMEOUT);
        }
        if let Some(blocked) = self.blocked {
            end = end.min(blocked + self.writing.left());
        }
        end
    }

    /// Nothing can be read or written now: fails if the time is over.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let end = self.end();
        if self.timer.deadline() != end {
            self.timer.as_mut().reset(end);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn look_for_reset(&self, error: Option<&io::Error>) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        if error.is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionReset)) {
            self.tracked.was_reset();
        }
    }

    fn written(&mut self, polled: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = polled else {
            self.blocked.get_or_insert_with(Instant::now);
            return self.wait(context);
        };
        self.last_byte = Instant::now();
        if let Some(blocked) = self.blocked.take() {
            self.writing.waited(blocked.elapsed());
        }
        self.writing.moved(written.as_ref().map_or(0, |bytes| *bytes));
        self.look_for_reset(written.as_ref().err());
        Poll::Ready(written)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending() {
            return self.wait(context);
        }
        if let Poll::Ready(Err(error)) = &polled
            && self.last_byte.elapsed() <= UNREAD_WITHIN
        {
            self.look_for_reset(Some(error));
        }
        self.last_byte = Instant::now();
        if buffer.filled().len() > before {
            self.tracked.bytes_came();
        }
        // A head that trickles must end, too.
        if self.end() <= self.last_byte {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
