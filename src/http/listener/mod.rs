//! A listener that strangers can't fill: its connections are bounded in number, for all and for each address, and in time.
//!
//! If there is no room for a new connection, the one that is needed least is closed: idle ones first, then those whose
//! request does not come. So a peer that opens hundreds of connections and sends nothing, or sends a byte at a time, closes
//! its own ones. Requests that are being answered are never cut; the [`budgets`](super::budget) keep their number below that of
//! the connections.
//!
//! Served by hyper itself and not by `axum::serve`, which has no such bounds. HTTP/1.1 only: that is what proxies use for the
//! servers behind them, and a second protocol would add attacks of its own.
//!
//! | file | its job |
//! |---|---|
//! | `registry` | all open connections, what each is doing, and which is closed to make room |
//! | `connection` | a connection's bytes, with their time limits |
//! | `pace` | the least rate at which a peer must move bytes |
//!
//! Not here: what a request may ask, how long its body may be, and who may be answered at a time.

mod connection;
mod pace;
mod registry;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
pub(super) use self::pace::Pace;
pub(crate) use self::registry::Bounds;
use self::registry::Registry;
pub(super) use self::registry::{AwaitedBody, Doing, IfUnread, Tracked};

/// Most bytes of a request's head, and of a body that are read at a time: each connection may hold as many. hyper's own
/// bound is seven times as much.
const BUFFER: usize = 64 * 1024;

/// Serves the routes until the stop, then until the requests under way have ended.
pub(crate) async fn serve(mut listener: TcpListener, router: Router, bounds: Bounds, stop: CancellationToken) {
    let registry = Registry::new(bounds);
    let service = TowerToHyperService::new(router.into_service::<Incoming>());
    let connections = TaskTracker::new();
    loop {
        let admitted = async {
            // `Listener::accept` retries after errors.
            let (stream, address) = Listener::accept(&mut listener).await;
            (registry.admit(address.ip()).await, stream)
        };
        let (tracked, stream) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            admitted = admitted => admitted,
        };
        // Refused: closed at once.
        let Some(tracked) = tracked else { continue };
        connections.spawn(serve_one(stream, tracked, service.clone(), bounds, stop.clone()));
    }
    // From now on new connections are refused, or accepted by another server on the same port.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Serves a connection until its end, the stop, or until it is closed to make room for another.
async fn serve_one(
    stream: TcpStream,
    tracked: Arc<Tracked>,
    service: TowerToHyperService<axum::routing::RouterIntoService<Incoming>>,
    bounds: Bounds,
    stop: CancellationToken,
) {
    // Answers are written as a whole, so delaying small packets gains nothing.
    let _ = stream.set_nodelay(true);
    let connection = Connection::new(stream, Arc::clone(&tracked), bounds.silence);
    let of_request = Arc::clone(&tracked);
    let answering = service_fn(move |mut request: Request<Incoming>| {
        let tracked = Arc::clone(&of_request);
        tracked.set(Doing::Answer);
        // It has read the last answer.
        tracked.if_unread(None);
        request.extensions_mut().insert(Arc::clone(&tracked));
        let answer = service.call(request);
        async move {
            let mut answer = answer.await?;
            tracked.if_unread(answer.extensions_mut().remove());
            // Its connection goes on in another protocol, and can't be closed from here.
            let goes_on = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
            let answer = answer.map(|body| Answer { body, tracked, goes_on });
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.silence)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(connection), answering)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = tracked.chosen() => return,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients may close at any time.
        tracing::trace!("a connection ended: {error}");
    }
}

/// An answer's body; when it has been handed over to the socket, the connection is idle.
struct Answer {
    body: Body,
    tracked: Arc<Tracked>,
    goes_on: bool,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.goes_on {
            self.tracked.set(Doing::Idle { since: Instant::now() });
        }
    }
}

#[cfg(test)]
mod tests;
