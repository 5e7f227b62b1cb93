//! The hub: reads the rows of each event once, and hands the frames to all listeners of this process.
//!
//! A listener joins at a place and gets everything after it, once and in order: what is kept here at once, older events from the
//! Site DB, and then what happens. One that is too slow goes back to reading from the Site DB, at its own pace.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event_log::{EventLog, Heard};
use super::frame::{self, Filter, Frame};
use super::listening::{Begin, Listening};
use super::mailbox::Mailbox;
use super::place::Place;
use super::shared::Shared;
use crate::health::{Component, Standing};
use crate::metrics;
use crate::retry::backoff;
use crate::shutdown;
use crate::site_db::events::{self, Event, Position, Read};
use crate::site_db::{Pool, SiteError};

/// How long reading rows may take: the statement takes milliseconds.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest wait after an error.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Most events that are handed out at once.
const AT_ONCE: usize = 500;
/// How often the hub reports at least.
const REPORT: Duration = Duration::from_secs(5);

/// The listeners of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

impl Hub {
    /// Starts to hand out the events of the log. `heartbeat`: how often a quiet listener is told that it still hears.
    #[must_use]
    pub fn start(
        pool: Pool,
        log: &EventLog,
        heartbeat: Duration,
        health: Component,
        stop: CancellationToken,
    ) -> (Self, JoinSet<()>) {
        let shared = Arc::new(Shared::new(pool.clone(), heartbeat));
        let feeder = Feeder {
            shared: Arc::clone(&shared),
            pool,
            heard: log.subscribe(),
            position: log.position(),
            health,
            stop,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(feeder.run());
        (Self(shared), tasks)
    }

    /// A new listener.
    #[must_use]
    pub fn listen(&self, filter: Filter, begin: Begin) -> Listening {
        let mailbox = Arc::new(Mailbox::new(filter));
        let id = self.0.live().register(Arc::clone(&mailbox));
        Listening::new(Arc::clone(&self.0), mailbox, id, begin)
    }

    /// Everything up to here was handed out. `None`: nothing was read yet.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.0.place()
    }
}

/// Feeds the hub.
struct Feeder {
    shared: Arc<Shared>,
    pool: Pool,
    heard: Receiver<Heard>,
    /// The position up to which the log has handed out, or is about to.
    position: watch::Receiver<Option<Position>>,
    health: Component,
    stop: CancellationToken,
}

/// What comes next.
enum Next {
    Events(Vec<Event>),
    /// Some were missed for good.
    Missed,
    /// Some were not heard: they are in the Site DB.
    Unheard,
}

impl Feeder {
    async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.feed() => {}
        }
        self.shared.live().close();
    }

    async fn feed(&mut self) {
        let Ok(mut at) = self.position.wait_for(Option::is_some).await.map(|position| *position) else {
            return;
        };
        if let Some(begin) = at {
            self.shared.live().begin(Place::after(begin));
            self.shared.begun.notify_waiters();
        }
        while let Some(place) = at {
            self.report();
            let next = tokio::time::timeout(REPORT, next(&mut self.heard)).await;
            at = match next {
                Err(_) => at,
                Ok(None) => return,
                Ok(Some(Next::Events(mut events))) => {
                    // What was read before the beginning.
                    events.retain(|event| event.position > place);
                    Some(self.hand_out(events, place).await)
                }
                Ok(Some(Next::Missed)) => self.begin_anew(),
                Ok(Some(Next::Unheard)) => self.catch_up(place).await,
            };
        }
    }

    fn report(&self) {
        let listeners = self.shared.live().listeners();
        self.health.ready(json!({"listeners": listeners}));
    }

    fn begin_anew(&self) -> Option<Position> {
        let at = *self.position.borrow();
        if let Some(at) = at {
            self.shared.live().begin_anew(Place::after(at));
        }
        metrics::count_listener_events("reload", 1);
        at
    }

    /// Hands out what the log dropped because this was too slow.
    async fn catch_up(&self, mut at: Position) -> Option<Position> {
        loop {
            let read = async || {
                let read = tokio::time::timeout(READ_TIMEOUT, events::read_after(&self.pool, at)).await;
                read.unwrap_or(Err(SiteError::timed_out()))
            };
            match self.lasting(read).await {
                Read::Gone => return self.begin_anew(),
                Read::Events(found) if found.is_empty() => return Some(at),
                Read::Events(found) => at = self.hand_out(found, at).await,
            }
        }
    }

    async fn hand_out(&self, events: Vec<Event>, mut at: Position) -> Position {
        let mut rest = &events[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(frame::at_once(rest));
            let frames = self.lasting(|| frame::frames(&self.pool, now)).await;
            let frames: Vec<Arc<Frame>> = frames.into_iter().map(Arc::new).collect();
            if let Some(last) = now.last() {
                at = last.position;
            }
            let slow = self.shared.live().hand_out(&frames, Place::after(at));
            if slow > 0 {
                metrics::count_listener_events("behind", slow as u64);
            }
            if let Some(first) = frames.first() {
                let delay = OffsetDateTime::now_utc() - first.written_at;
                metrics::observe_listener_delay(delay.try_into().unwrap_or_default());
            }
            rest = later;
        }
        at
    }

    /// Tries until it succeeds, and says why it does not.
    async fn lasting<T, F: Future<Output = Result<T, SiteError>>>(&self, read: impl Fn() -> F) -> T {
        let mut failures = 0;
        loop {
            match read().await {
                Ok(read) => return read,
                Err(error) => {
                    failures += 1;
                    let trouble = error.trouble("the rows of events can't be read, listeners hear later");
                    self.health.stands(Standing::NotReady(trouble), json!(null));
                    // The stop ends the whole task.
                    let _ = shutdown::sleep(backoff(failures, RETRY.0, RETRY.1), &self.stop).await;
                }
            }
        }
    }
}

/// What the log says next, as much as there is; `None`: it has ended.
async fn next(heard: &mut Receiver<Heard>) -> Option<Next> {
    let mut events = match heard.recv().await {
        Ok(Heard::Event(event)) => vec![(*event).clone()],
        Ok(Heard::Missed) => return Some(Next::Missed),
        Err(RecvError::Lagged(_)) => return Some(Next::Unheard),
        Err(RecvError::Closed) => return None,
    };
    while events.len() < AT_ONCE && !heard.is_empty() {
        match heard.try_recv() {
            Ok(Heard::Event(event)) => events.push((*event).clone()),
            // The events before are told anew with all others.
            Ok(Heard::Missed) => return Some(Next::Missed),
            // These are in the Site DB as well.
            Err(TryRecvError::Lagged(_)) => return Some(Next::Unheard),
            Err(_) => break,
        }
    }
    Some(Next::Events(events))
}
