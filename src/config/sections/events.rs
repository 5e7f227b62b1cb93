//! `[events]`: what listeners are told of.

use std::time::Duration;

use crate::config::reader::ValueReader;

/// What listeners are told of.
#[derive(Debug, Clone)]
pub struct Events {
    /// How long an event is kept: a listener that was away for less goes on where it stopped.
    pub keep: Duration,
    /// Most listeners at a time.
    pub max_listeners: usize,
    /// How often a quiet listener is told that it still hears.
    pub heartbeat: Duration,
}

pub(super) fn events(reader: &mut ValueReader<'_>) -> Option<Events> {
    let keep_hours: Option<u64> = reader.integer("events.keep_hours", 1..=8760);
    let max_listeners = reader.integer("events.max_listeners", 0..=1_000_000);
    // A connection that is quiet for longer than the upper bound is closed, by proxies too.
    let heartbeat = reader.milliseconds("events.heartbeat_ms", 100..=60_000);
    Some(Events {
        max_listeners: max_listeners?,
        heartbeat: heartbeat?,
        keep: Duration::from_secs(60 * 60 * keep_hours?),
    })
}
