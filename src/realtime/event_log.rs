//! Reads events in their order and hands them on in this process.
//!
//! ```text
//! a commit of this process ─→ place ─→ NOTIFY ─→ every process: read after the last position ─→ subscribers
//! ```
//!
//! A commit of this process wakes the reader, which gives the new events their positions ([`events::place`]); that tells the
//! readers of all processes. What another program changed, and what a process left behind that died between its commit and
//! the placing, is placed at the next [`POLL`].

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::health::{Component, Standing};
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::events::{self, Event, Listener, PORTION, Position, Read};
use crate::site_db::{Pool, SiteError};

/// How often events of other programs are looked for, and what was not heard of.
const POLL: Duration = Duration::from_millis(500);
/// From the beginning of one round to that of the next, at least. Under load a round takes what has come meanwhile: 200
/// rounds a second cost the Site DB little, and 5 ms are little beside the round trips.
const PACE: Duration = Duration::from_millis(5);
/// How long one round may take: its two statements take milliseconds.
const ROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long starting to listen may take.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest wait after an error.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Events that are kept for a subscriber that is slower than the reader; one that is slower still is told that it has missed
/// some.
const KEPT: usize = 1024;
/// How often old events are deleted.
const CLEAN_EVERY: Duration = Duration::from_secs(60);
/// Pause between two deletions, so that they take a small share of the Site DB.
const CLEAN_PAUSE: Duration = Duration::from_millis(50);

/// The events of the Site DB, as this process hears them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    subscribers: broadcast::Sender<Heard>,
    position: watch::Receiver<Option<Position>>,
}

/// What a subscriber hears.
#[derive(Debug, Clone)]
pub enum Heard {
    /// The next event.
    Event(Arc<Event>),
    /// Events were missed: anything may have changed.
    Missed,
}

impl EventLog {
    /// Starts to read, beginning with the events after this moment. Events are deleted `keep` after they were written.
    #[must_use]
    pub fn start(pool: Pool, keep: Duration, health: Component, stop: CancellationToken) -> (Self, JoinSet<()>) {
        let (subscribers, _) = broadcast::channel(KEPT);
        let heard = Arc::new(Notify::new());
        let (read, position) = watch::channel(None);
        let reader = Reader {
            pool: pool.clone(),
            subscribers: subscribers.clone(),
            read,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(pool.clone(), Arc::clone(&heard), stop.clone()));
        tasks.spawn(clean(pool, keep, stop.clone()));
        tasks.spawn(reader.run(heard, health, stop));
        let log = Self { subscribers, position };
        (log, tasks)
    }

    /// The events from now on, in their order. Reading late gives [`broadcast::error::RecvError::Lagged`]: some were missed.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Heard> {
        self.subscribers.subscribe()
    }

    /// The position of the last event that subscribers were told, or are about to be told; `None`: nothing was read yet. So who
    /// subscribes first and looks at this then, hears of every event after it.
    #[must_use]
    pub fn position(&self) -> watch::Receiver<Option<Position>> {
        self.position.clone()
    }
}

struct Reader {
    pool: Pool,
    subscribers: broadcast::Sender<Heard>,
    /// The position up to which events were handed on.
    read: watch::Sender<Option<Position>>,
}

impl Reader {
    async fn run(self, heard: Arc<Notify>, health: Component, stop: CancellationToken) {
        let (mut failures, mut place) = (0_u32, true);
        while !stop.is_cancelled() {
            let began = tokio::time::Instant::now();
            let round = tokio::time::timeout(ROUND_TIMEOUT, self.round(place)).await;
            match round.unwrap_or(Err(SiteError::timed_out())) {
                Ok(()) => {
                    failures = 0;
                    health.ready(json!({"round": self.read().map(|position| position.round)}));
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let trouble = error.trouble("events can't be read, listeners hear later");
                    health.stands(Standing::NotReady(trouble), json!(null));
                    if !shutdown::sleep(backoff(failures, RETRY.0, RETRY.1), &stop).await {
                        return;
                    }
                    place = true;
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(began + PACE) => {}
            }
            place = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.pool.next_commit() => true,
                () = heard.notified() => false,
                () = tokio::time::sleep(POLL) => true,
            };
        }
    }

    fn read(&self) -> Option<Position> {
        *self.read.borrow()
    }

    async fn round(&self, place: bool) -> Result<(), SiteError> {
        let mut read = match self.read() {
            Some(read) => read,
            None => events::newest(&self.pool).await?,
        };
        self.read.send_replace(Some(read));
        if place {
            events::place(&self.pool).await?;
        }
        loop {
            let Read::Events(found) = events::read_after(&self.pool, read).await? else {
                tracing::warn!(
                    "events were missed: this process was away for longer than events.keep_hours, or the Site DB lost its last \
                     commits (a failover, a restore); listeners are told to load anew"
                );
                let newest = events::newest(&self.pool).await?;
                self.read.send_replace(Some(newest));
                let _ = self.subscribers.send(Heard::Missed);
                return Ok(());
            };
            let last = found.len() < PORTION;
            for event in found {
                read = event.position;
                self.read.send_replace(Some(read));
                // Fails if nobody listens.
                let _ = self.subscribers.send(Heard::Event(Arc::new(event)));
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// Tells the reader when events were placed, by this or another process. Without it, they are read at the next [`POLL`].
async fn listen(pool: Pool, heard: Arc<Notify>, stop: CancellationToken) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            started = tokio::time::timeout(LISTEN_TIMEOUT, Listener::start(&pool)) => started,
        };
        if let Ok(Ok(mut listener)) = started {
            failures = 0;
            // What was placed before.
            heard.notify_one();
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    result = listener.heard() => match result {
                        Ok(()) => heard.notify_one(),
                        Err(_) => break,
                    },
                }
            }
        }
        // The reader meets the same error, and says it.
        failures = failures.saturating_add(1);
        if !shutdown::sleep(backoff(failures, RETRY.0, RETRY.1), &stop).await {
            return;
        }
    }
}

/// Deletes old events, a few at a time.
async fn clean(pool: Pool, keep: Duration, stop: CancellationToken) {
    loop {
        // The reader meets the same error, and says it.
        let deleted = tokio::time::timeout(ROUND_TIMEOUT, events::delete_old(&pool, keep)).await;
        let more = matches!(deleted, Ok(Ok(deleted)) if deleted >= PORTION);
        if !shutdown::sleep(if more { CLEAN_PAUSE } else { CLEAN_EVERY }, &stop).await {
            return;
        }
    }
}
