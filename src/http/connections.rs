//! Connections of the public listener, bounded in number and in idle time: a peer that opens many, sends nothing, or sends a
//! byte at a time, must not use up the process's descriptors.
//!
//! Served by hyper itself and not by `axum::serve`, which sets no time limit for a request's head. HTTP/1.1 only: that is
//! what proxies use for the servers behind them, and a second protocol would add attacks of its own.
//!
//! The idle time-out is our own: `tokio-io-timeout` has separate timers for reading and writing, and so would cut a long
//! answer to a client that sends nothing more.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limits::MAX_CONNECTIONS;

/// Serves the routes until the stop, then until the requests under way have ended.
pub(super) async fn serve(listener: TcpListener, router: Router, idle_timeout: Duration, stop: CancellationToken) {
    let mut listener = Bounded::new(listener, idle_timeout);
    let service = TowerToHyperService::new(router.into_service::<Incoming>());
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(idle_timeout);
    let connections = TaskTracker::new();
    loop {
        let (connection, _) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let serving = protocol
            .serve_connection(TokioIo::new(connection), service.clone())
            .with_upgrades();
        let stop = stop.clone();
        connections.spawn(async move {
            let mut serving = std::pin::pin!(serving);
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            if let Err(error) = ended {
                // Clients may close at any time.
                tracing::trace!("a connection ended: {error}");
            }
        });
    }
    // From now on new connections are refused, or accepted by another server on the same port.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A listener with a bound on its open connections.
#[derive(Debug)]
struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    idle_timeout: Duration,
}

impl Bounded {
    fn new(listener: TcpListener, idle_timeout: Duration) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            idle_timeout,
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Never `None`: the semaphore is never closed.
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        // `Listener::accept` retries after errors.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are written as a whole, so delaying small packets gains nothing.
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            stream,
            idle_timeout: self.idle_timeout,
            idle: Box::pin(tokio::time::sleep(self.idle_timeout)),
            _slot: slot,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its slot; fails when no byte is read or written for too long.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// The longest time without a byte read or written.
    idle_timeout: Duration,
    /// Ends `idle_timeout` after the last byte.
    idle: Pin<Box<Sleep>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// Restarts the idle time if bytes were read or written; else fails if it is over.
    fn timed<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            let end = Instant::now() + self.idle_timeout;
            self.idle.as_mut().reset(end);
            return polled;
        }
        match self.idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.timed(polled, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timed(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.timed(polled, context)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::limits::SILENCE;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_and_gives_its_slot_back() {
        let mut bounded = Bounded::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), SILENCE);
        let address = bounded.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), bounded.accept());
        let (_client, mut connection) = (client.unwrap(), accepted.0);
        assert_eq!(bounded.slots.available_permits(), MAX_CONNECTIONS - 1);
        let begun = Instant::now();
        let error = connection.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= SILENCE);
        drop(connection);
        assert_eq!(bounded.slots.available_permits(), MAX_CONNECTIONS);
    }

    /// Serves one route; its address and what stops it.
    async fn served(silence: Duration) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let serving = tokio::spawn(serve(listener, router, silence, stop.clone()));
        (address, stop, serving)
    }

    #[tokio::test]
    async fn a_head_that_trickles_holds_its_connection_no_longer_than_silence_does() {
        let (address, stop, serving) = served(Duration::from_millis(500)).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        let (mut answers, mut questions) = client.split();
        let trickling = async {
            // Writing fails once the other side has gone.
            while questions.write_all(b"y").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = async {
            // An error of 408 first, or nothing.
            let _ = answers.read_to_end(&mut Vec::new()).await;
        };
        tokio::time::timeout(Duration::from_secs(20), async {
            tokio::select! { () = trickling => {}, () = ended => {} }
        })
        .await
        .expect("the connection ends");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_ends_idle_connections_and_takes_no_new_ones() {
        let (address, stop, serving) = served(SILENCE).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1024];
        let length = client.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
        stop.cancel();
        let ending = tokio::time::timeout(Duration::from_secs(20), serving);
        ending
            .await
            .expect("an idle connection does not delay the end")
            .unwrap();
        assert_eq!(client.read(&mut answer).await.unwrap(), 0);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
