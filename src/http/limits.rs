//! The bounds of the public listener on number, time and size: all of them, also where only one route has the bound. The
//! longest body is a key of the configuration, `http.max_body_bytes`.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;

/// Most connections at a time. Below systemd's usual soft limit of 1024 descriptors, with room for the pool, the calls to
/// Meta and the admin listener; connections beyond it wait in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 768;
/// A connection without a byte read or written for this long is closed. Above [`REQUEST_TIMEOUT`], so that no answer is
/// cut, and above the 60 s after which proxies usually close idle connections themselves. A request's head must be
/// complete within the same time after the previous request, so that a client that sends it byte by byte gains nothing.
pub(super) const SILENCE: Duration = Duration::from_secs(90);
/// Longest time for a request. The longest legitimate one waits for `http.send_wait_ms`, a send's time-out and the lease's
/// slack (4 + 10 + 20 s with the defaults); this is twice that, for clients that send their body slowly.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(70);
/// Most send requests that may wait at a time: each holds its body in memory (usually a few KB) and queries the Site DB
/// now and then. Further ones are refused with 503 before anything is stored.
pub(super) const MAX_WAITING_SENDS: usize = 2048;
/// Most media on their way at a time, up and down. Each holds a few hundred KB in buffers.
pub(super) const MAX_MEDIA: usize = 64;
/// Longest time for an upload, whose rate has limits of its own: what 100 MB take at the slowest.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Longest that a client of the plain API may ask to wait.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest client id of a message, in characters: the size of an index row is limited, and a uuid has 36.
pub(super) const MAX_CLIENT_ID: usize = 255;

/// Longest challenge of Meta's handshake that is echoed; Meta's have 10 digits.
pub(super) const MAX_CHALLENGE: usize = 256;

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
