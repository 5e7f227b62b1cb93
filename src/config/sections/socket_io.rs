//! `[socket_io]`: the connections of Socket.IO's clients.

use std::time::Duration;

use crate::config::reader::ValueReader;

/// The connections of Socket.IO's clients.
#[derive(Debug, Clone)]
pub struct SocketIo {
    /// How often a client is asked whether it is there.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// How long it may take to send its token.
    pub connect_timeout: Duration,
    /// Largest message of a client, in bytes.
    pub max_bytes: usize,
}

pub(super) fn socket_io(reader: &mut ValueReader<'_>) -> Option<SocketIo> {
    // A connection that is quiet for longer than the upper bound is closed, by proxies too.
    let ping_interval = reader.milliseconds("socket_io.ping_interval_ms", 100..=60_000);
    let ping_timeout = reader.milliseconds("socket_io.ping_timeout_ms", 100..=600_000);
    let connect_timeout = reader.milliseconds("socket_io.connect_timeout_ms", 100..=60_000);
    let max_bytes = reader.integer("socket_io.max_bytes", 1024..=16_777_216);
    Some(SocketIo {
        ping_interval: ping_interval?,
        ping_timeout: ping_timeout?,
        connect_timeout: connect_timeout?,
        max_bytes: max_bytes?,
    })
}
