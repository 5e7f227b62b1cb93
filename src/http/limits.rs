//! The bounds of the public listener, in one place: how many, how long, how much.
//!
//! Each family of routes is to have bounds that no other family can use up; today they share these.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;

/// Most connections at a time. Below systemd's usual soft limit of 1024 descriptors, with room for the pool, the calls to
/// Meta and the admin listener; connections beyond it wait in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 768;
/// A connection on which nothing moves for that long ends. Above [`REQUEST_TIMEOUT`], so that no answer is cut, and above
/// the 60 s after which proxies usually close idle connections themselves. A request's head has as long, from the end of
/// the request before: then bytes that trickle hold a connection no longer than silence does.
pub(super) const SILENCE: Duration = Duration::from_secs(90);
/// No request takes longer: the longest legitimate one waits for a send's time-out, its lease's slack and its answer
/// (4 + 10 + 20 s with the defaults); twice that, also for a client that trickles its body.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(70);
/// Most requests to send that may wait at a time: each holds its body (a few KB as a rule) and a look at the Site DB
/// now and then. Beyond it clients are told to come back, before anything is stored.
pub(super) const MAX_WAITING_SENDS: usize = 2048;
/// Longest that a client of the plain API may ask to wait.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest id that a client gives a message, in characters: an index row has its limit, and a uuid has 36.
pub(super) const MAX_CLIENT_ID: usize = 255;

/// Why a request's body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is longer than `http.max_body_bytes`.
    TooLarge,
    /// The connection broke, or the body is not what its headers say.
    Unreadable,
}

impl BodyError {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unreadable => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::TooLarge => "the body is too large",
            Self::Unreadable => "the body could not be read",
        }
    }
}

/// A request's body, within the limit.
pub(super) async fn body(request: Request) -> Result<Bytes, BodyError> {
    Bytes::from_request(request, &())
        .await
        .map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => BodyError::TooLarge,
            _ => BodyError::Unreadable,
        })
}
