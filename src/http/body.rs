//! Reads a request's body, bounded in bytes and in time: its own length, the rate at which it comes, and the bytes of all
//! bodies that are held at a time.
//!
//! Anybody may send an unsigned body, so many of them at once are many bytes. They share one budget; if it is used up, the
//! body that comes most slowly is given up with 503, so that a stranger who holds many open gives way to what comes at once.
//! The bodies of clients with a token have a budget of their own.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::listener::{AwaitedBody, Doing, Pace, Tracked};

/// How many of the longest bodies a budget holds: 32 MB with the default of `http.max_body_bytes`.
const LONGEST_BODIES: usize = 8;

/// How long a body waits for bytes of the budget that another gives up, and how often.
const WAIT_FOR_BYTES: Duration = Duration::from_millis(100);
const WAITS_FOR_BYTES: usize = 10;

/// Why a request's body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is longer than `http.max_body_bytes`.
    TooLarge,
    /// The connection broke, or the body is not what its headers say.
    Unreadable,
    /// It came too slowly.
    TooSlow,
    /// Too many bytes of other bodies are held.
    NoRoom,
}

impl BodyError {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::TooLarge => "the body is too large",
            Self::Unreadable => "the body could not be read",
            Self::TooSlow => "the body came too slowly",
            Self::NoRoom => "too many bytes of other requests are being read; try again",
        }
    }
}

/// A body, which keeps its place in the budget until it is dropped.
#[derive(Debug)]
pub(super) struct HeldBody {
    pub(super) bytes: Bytes,
    /// `None`: it is empty.
    _place: Option<OwnedSemaphorePermit>,
}

/// A longer body is parsed on a thread of its own: parsing so many bytes takes about a millisecond.
const LARGE: usize = 64 * 1024;

impl HeldBody {
    /// Parses the body, a large one beside the runtime.
    pub(super) async fn parse<T: Send + 'static>(&self, parse: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
        let bytes = self.bytes.clone();
        if bytes.len() <= LARGE {
            return parse(&bytes);
        }
        match tokio::task::spawn_blocking(move || parse(&bytes)).await {
            Ok(parsed) => parsed,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process is ending, and with it this request.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// The budgets of bytes.
#[derive(Debug)]
pub(super) struct Bodies {
    /// Longest body, in bytes.
    longest: usize,
    unsigned: Arc<Semaphore>,
    clients: Arc<Semaphore>,
}

impl Bodies {
    pub(super) fn new(longest: usize) -> Self {
        let budget = || Arc::new(Semaphore::new(longest.saturating_mul(LONGEST_BODIES)));
        Self {
            longest,
            unsigned: budget(),
            clients: budget(),
        }
    }

    /// Reads a body that is not checked yet.
    pub(super) async fn read_unsigned(&self, request: Request) -> Result<HeldBody, BodyError> {
        self.read(AwaitedBody::Unsigned, request).await
    }

    /// Reads the body of a client whose token was checked.
    pub(super) async fn read_clients(&self, request: Request) -> Result<HeldBody, BodyError> {
        self.read(AwaitedBody::Clients, request).await
    }

    async fn read(&self, kind: AwaitedBody, request: Request) -> Result<HeldBody, BodyError> {
        let length = request.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let mut reader = Reader {
            kind,
            connection: request.extensions().get::<Arc<Tracked>>().cloned(),
            pace: Pace::new(),
            bytes: BytesMut::new(),
            place: None,
        };
        if let Some(connection) = &reader.connection {
            // What was meant for the request before.
            let _ = connection.given_up().now_or_never();
        }
        let read = reader.all(self, length, request.into_body()).await;
        if let Some(connection) = &reader.connection {
            connection.set(Doing::Answer);
        }
        read?;
        Ok(HeldBody {
            bytes: reader.bytes.freeze(),
            _place: reader.place,
        })
    }

    const fn budget(&self, kind: AwaitedBody) -> &Arc<Semaphore> {
        match kind {
            AwaitedBody::Unsigned => &self.unsigned,
            AwaitedBody::Clients => &self.clients,
        }
    }
}

/// A body that is being read.
struct Reader {
    kind: AwaitedBody,
    /// `None` in tests without a listener.
    connection: Option<Arc<Tracked>>,
    pace: Pace,
    bytes: BytesMut,
    place: Option<OwnedSemaphorePermit>,
}

impl Reader {
    async fn all(&mut self, bodies: &Bodies, length: Option<usize>, body: Body) -> Result<(), BodyError> {
        let mut body = body.into_data_stream();
        if length.is_some_and(|length| length > bodies.longest) {
            self.discard(&mut body, bodies.longest).await;
            return Err(BodyError::TooLarge);
        }
        while let Some(piece) = self.next(&mut body).await? {
            if self.bytes.len() + piece.len() > bodies.longest {
                (self.bytes, self.place) = (BytesMut::new(), None);
                self.discard(&mut body, bodies.longest).await;
                return Err(BodyError::TooLarge);
            }
            self.hold(bodies, piece.len()).await?;
            if self.bytes.is_empty() {
                // Once, so that growing does not copy. Memory that is not written to is not used.
                self.bytes.reserve(length.unwrap_or(piece.len()));
            }
            self.bytes.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Reads the rest of a body that is refused, up to twice the longest: a client that can't send its request to the end
    /// often does not read the answer.
    async fn discard(&mut self, body: &mut BodyDataStream, longest: usize) {
        let mut most = longest.saturating_mul(2);
        while let Ok(Some(piece)) = self.next(body).await {
            match most.checked_sub(piece.len()) {
                Some(left) => most = left,
                None => return,
            }
        }
    }

    /// The next piece. A body that came with its head is read without ever waiting.
    async fn next(&mut self, body: &mut BodyDataStream) -> Result<Option<Bytes>, BodyError> {
        let piece = match body.next().now_or_never() {
            Some(piece) => piece,
            None => self.awaited(body).await?,
        };
        match piece {
            None => Ok(None),
            Some(Ok(piece)) => {
                self.pace.moved(piece.len());
                Ok(Some(piece))
            }
            Some(Err(_)) => Err(BodyError::Unreadable),
        }
    }

    async fn awaited(&mut self, body: &mut BodyDataStream) -> Result<Option<Result<Bytes, axum::Error>>, BodyError> {
        let waiting = Instant::now();
        let piece = async {
            let Some(connection) = &self.connection else {
                return Ok(body.next().await);
            };
            connection.set(self.doing());
            tokio::select! {
                biased;
                piece = body.next() => Ok(piece),
                () = connection.given_up() => Err(BodyError::NoRoom),
            }
        };
        let piece = tokio::time::timeout(self.pace.left(), piece).await;
        self.pace.waited(waiting.elapsed());
        piece.unwrap_or(Err(BodyError::TooSlow))
    }

    fn doing(&self) -> Doing {
        Doing::Body {
            body: self.kind,
            until: Instant::now() + self.pace.left(),
            bytes: self.bytes.len(),
        }
    }

    /// Takes bytes from the budget, if need be those of the body that comes most slowly. If that is this one, the others
    /// may still give theirs back: they are read to the end, or their clients have gone.
    async fn hold(&mut self, bodies: &Bodies, bytes: usize) -> Result<(), BodyError> {
        let budget = bodies.budget(self.kind);
        let wanted = u32::try_from(bytes).map_err(|_| BodyError::TooLarge)?;
        let mut place = Arc::clone(budget).try_acquire_many_owned(wanted).ok();
        let mut waits = 0;
        while place.is_none() {
            if waits == WAITS_FOR_BYTES {
                return Err(BodyError::NoRoom);
            }
            waits += 1;
            let freed = tokio::time::timeout(WAIT_FOR_BYTES, Arc::clone(budget).acquire_many_owned(wanted));
            let freed = match &self.connection {
                None => freed.await,
                Some(connection) => {
                    connection.set(self.doing());
                    connection.give_up_slowest(self.kind);
                    tokio::select! {
                        freed = freed => freed,
                        () = connection.given_up() => return Err(BodyError::NoRoom),
                    }
                }
            };
            place = freed.ok().and_then(Result::ok);
        }
        match (&mut self.place, place) {
            (Some(held), Some(more)) => held.merge(more),
            (none, more) => *none = more,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// A request whose body comes in these pieces, each after a pause.
    fn request(pause: Duration, pieces: Vec<&'static [u8]>) -> Request {
        let pieces = stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(Bytes::from_static(piece))
        });
        Request::new(Body::from_stream(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_a_length_a_rate_and_a_place() {
        let bodies = Bodies::new(4);
        let moment = Duration::from_millis(1);
        let read = bodies.read_unsigned(request(moment, vec![b"ab", b"cd"])).await.unwrap();
        assert_eq!(&read.bytes[..], b"abcd");
        let longer = bodies.read_unsigned(request(moment, vec![b"ab", b"cde"])).await;
        assert_eq!(longer.unwrap_err(), BodyError::TooLarge);
        let begun = Instant::now();
        let dripping = bodies
            .read_unsigned(request(Duration::from_secs(2), vec![b"a"; 4]))
            .await;
        assert_eq!(dripping.unwrap_err(), BodyError::TooSlow);
        assert_eq!(begun.elapsed().as_secs(), 5);

        let mut held = vec![read];
        for _ in 1..LONGEST_BODIES {
            held.push(bodies.read_unsigned(request(moment, vec![b"abcd"])).await.unwrap());
        }
        let one_more = bodies.read_unsigned(request(moment, vec![b"a"])).await;
        assert_eq!(one_more.unwrap_err(), BodyError::NoRoom);
        // Clients with a token do not feel it.
        bodies.read_clients(request(moment, vec![b"a"])).await.unwrap();
        held.pop();
        bodies.read_unsigned(request(moment, vec![b"a"])).await.unwrap();
    }
}
