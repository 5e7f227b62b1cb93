//! The idle connections and the places for those in use. In memory, without any wait but that for a place.
//!
//! A connection is opened only by who has a place and finds none idle. So those in use and those idle are never more than
//! there are places.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// An idle connection is closed before a firewall drops it silently.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// A connection is closed after this time, so that one that has grown on the server gives its memory back.
const MAX_LIFETIME: Duration = Duration::from_secs(1800);
/// How long the farewell to the server may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open connection on which nothing runs.
pub(super) struct Connection {
    pub(super) driver: PgConnection,
    opened: Instant,
    /// When it was used last.
    pub(super) used: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("opened", &self.opened)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(driver: PgConnection) -> Self {
        let now = Instant::now();
        Self {
            driver,
            opened: now,
            used: now,
        }
    }

    /// One round trip.
    pub(super) async fn test(&mut self) -> Result<(), sqlx::Error> {
        self.driver.ping().await
    }
}

/// The right to use a connection.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) store: Arc<Store>,
    _permit: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

/// How many connections there are, and what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Places in all: `site.max_connections`.
    pub places: usize,
    /// Places that are taken: connections in use or being opened.
    pub in_use: usize,
    /// Connections that are idle.
    pub idle: usize,
    /// Callers that wait for a place.
    pub waiting: usize,
    /// Connections that were closed since the start because of a time-out, an error, or a caller that went away.
    pub dropped: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    places: usize,
    permits: Arc<Semaphore>,
    /// The one used last is at the end and is taken first.
    idle: Mutex<Vec<Connection>>,
    waiting: AtomicUsize,
    dropped: AtomicU64,
    /// Counts places and connections that are being closed.
    open: TaskTracker,
}

impl Store {
    pub(super) fn new(places: usize) -> Self {
        let places = places.max(1);
        Self {
            places,
            permits: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
            waiting: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            open: TaskTracker::new(),
        }
    }

    /// Waits for a place; `None` once the store is shut.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Place> {
        /// Counted also if the caller goes away.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(&self.waiting);
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        drop(waits);
        Some(Place {
            store: Arc::clone(self),
            _permit: permit,
            _open: self.open.token(),
        })
    }

    /// The idle connection that was used last.
    pub(super) fn take(&self) -> Option<Connection> {
        self.idle().pop()
    }

    /// Takes a connection back that is fit to be used again.
    pub(super) fn put(&self, mut connection: Connection) {
        let now = Instant::now();
        connection.used = now;
        let old: Vec<Connection> = {
            let mut idle = self.idle();
            if self.permits.is_closed() || now >= connection.opened + MAX_LIFETIME {
                vec![connection]
            } else {
                idle.push(connection);
                // The ones that were not used for longest are in front.
                let fresh = idle.partition_point(|one| now >= one.used + IDLE_TIMEOUT);
                idle.drain(..fresh).collect()
            }
        };
        self.close(old);
    }

    /// A connection was not fit to be used again, and is closed.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes the idle connections: they are not fit to be used.
    pub(super) fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.idle());
        // And the one that was tested.
        let count = u64::try_from(idle.len()).unwrap_or(0).saturating_add(1);
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Gives out no places any more, and closes the idle connections; those in use are closed when they come back.
    pub(super) fn shut(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        self.close(idle);
    }

    /// Waits until no connection is left, after [`shut`](Self::shut).
    pub(super) async fn emptied(&self) {
        self.open.close();
        self.open.wait().await;
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            places: self.places,
            in_use: self.places.saturating_sub(self.permits.available_permits()),
            idle: self.idle().len(),
            waiting: self.waiting.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Says farewell to the server, so that it need not wonder; in the background.
    fn close(&self, connections: Vec<Connection>) {
        for connection in connections {
            let closing = timeout(CLOSE_TIMEOUT, connection.driver.close());
            self.open.spawn(async move {
                // If it fails the connection is closed all the same.
                let _ = closing.await;
            });
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
