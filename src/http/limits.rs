//! The bounds of the public listener on time and size: all of them, also where only one route has the bound. The longest body
//! and the number of connections are keys of the configuration, `http.max_body_bytes` and `http.max_connections`; `budget` shares
//! the connections.

use std::time::Duration;

/// A connection without a byte read or written for this long is closed. Above [`REQUEST_TIMEOUT`], so that no answer is
/// cut, and above the 60 s after which proxies usually close idle connections themselves. If there is no room for another,
/// an idle connection is closed before that.
pub(super) const SILENCE: Duration = Duration::from_secs(90);
/// Longest time for a request. The longest legitimate one waits for `http.send_wait_ms`, a send's time-out and the lease's
/// slack (4 + 10 + 20 s with the defaults); this is twice that, for clients that send their body slowly.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(70);
/// Longest time for an upload, whose rate has limits of its own: what 100 MB take at the slowest.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Longest that a client of the plain API may ask to wait.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest client id of a message, in characters: the size of an index row is limited, and a uuid has 36.
pub(super) const MAX_CLIENT_ID: usize = 255;

/// Longest challenge of Meta's handshake that is echoed; Meta's have 10 digits.
pub(super) const MAX_CHALLENGE: usize = 256;
