//! `[events]`: what listeners are told of.

use std::time::Duration;

use crate::config::reader::ValueReader;

/// What listeners are told of.
#[derive(Debug, Clone)]
pub struct Events {
    /// How long an event is kept: a listener that was away for less goes on where it stopped.
    pub keep: Duration,
}

pub(super) fn events(reader: &mut ValueReader<'_>) -> Option<Events> {
    let keep_hours: Option<u64> = reader.integer("events.keep_hours", 1..=8760);
    Some(Events {
        keep: Duration::from_secs(60 * 60 * keep_hours?),
    })
}
