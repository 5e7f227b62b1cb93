//! What the hub and its listeners share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::live::Live;
use super::past::Past;
use super::place::Place;
use crate::site_db::Pool;

/// See [`Hub`](super::Hub).
#[derive(Debug)]
pub(super) struct Shared {
    live: Mutex<Live>,
    pub(super) past: Past,
    /// Notified when the first events were read.
    pub(super) begun: Notify,
    /// How often a quiet listener is told that it still hears.
    pub(super) heartbeat: Duration,
}

impl Shared {
    pub(super) fn new(pool: Pool, heartbeat: Duration) -> Self {
        Self {
            live: Mutex::default(),
            past: Past::new(pool),
            begun: Notify::new(),
            heartbeat,
        }
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to here was handed out. `None`: nothing was read yet.
    pub(super) fn place(&self) -> Option<Place> {
        self.live().place()
    }
}
