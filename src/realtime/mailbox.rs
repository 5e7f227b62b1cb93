//! What one listener has not taken yet, bounded: frames are shared by all listeners, so that a slow one costs little.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::frame::{Filter, Frame};
use super::place::Place;

/// Most frames that wait for a listener. One that is slower has to read what it missed from the Site DB, at its own pace.
const MOST: usize = 1024;

/// A listener's mailbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) filter: Filter,
    waiting: Mutex<Waiting>,
    woken: Notify,
}

#[derive(Debug)]
struct Waiting {
    frames: VecDeque<Arc<Frame>>,
    state: State,
    /// Nothing up to here is put in (again).
    told: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is not in the stream of what happens now.
    Away,
    Open,
    /// Events were lost, or nobody knows whether some were.
    Missed,
    /// The process is stopping.
    Closed,
}

/// What a listener finds in its mailbox.
#[derive(Debug)]
pub(super) enum Found {
    /// The next frames.
    Frames(Vec<Arc<Frame>>),
    /// Nothing now.
    Nothing,
    /// It was too slow, and must read what it has missed.
    Away,
    /// It must load its rows anew.
    Missed,
    /// Nothing will come any more.
    Closed,
}

impl Mailbox {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            waiting: Mutex::new(Waiting {
                frames: VecDeque::new(),
                state: State::Away,
                told: None,
            }),
            woken: Notify::new(),
        }
    }

    /// From now on frames are put in, those after this place; unless the listener must be told something else first.
    pub(super) fn open(&self, after: Place) {
        let mut waiting = self.lock();
        waiting.frames.clear();
        if waiting.state == State::Away {
            waiting.state = State::Open;
        }
        waiting.told = Some(after);
    }

    /// Puts in those of these frames that the listener wants and has not had yet. False: it has become too slow.
    pub(super) fn put<'a>(&self, frames: impl IntoIterator<Item = &'a Arc<Frame>>) -> bool {
        let mut waiting = self.lock();
        if waiting.state != State::Open {
            return true;
        }
        let before = waiting.frames.len();
        for frame in frames {
            if waiting.told.is_some_and(|told| frame.place <= told) || !self.filter.wants(frame) {
                continue;
            }
            if waiting.frames.len() == MOST {
                waiting.frames.clear();
                waiting.state = State::Away;
                self.woken.notify_one();
                return false;
            }
            waiting.told = Some(frame.place);
            waiting.frames.push_back(Arc::clone(frame));
        }
        if waiting.frames.len() > before {
            self.woken.notify_one();
        }
        true
    }

    pub(super) fn missed(&self) {
        self.end_as(State::Missed);
    }

    pub(super) fn close(&self) {
        self.end_as(State::Closed);
    }

    fn end_as(&self, state: State) {
        let mut waiting = self.lock();
        if waiting.state != State::Closed {
            waiting.state = state;
        }
        if state == State::Missed {
            waiting.frames.clear();
        }
        self.woken.notify_one();
    }

    /// Takes what is there, in order.
    pub(super) fn take(&self) -> Found {
        let mut waiting = self.lock();
        if !waiting.frames.is_empty() {
            return Found::Frames(waiting.frames.drain(..).collect());
        }
        match waiting.state {
            State::Open => Found::Nothing,
            State::Away => Found::Away,
            State::Missed => {
                waiting.state = State::Away;
                Found::Missed
            }
            State::Closed => Found::Closed,
        }
    }

    /// Ends when something was put in, or the state has changed, since the last call.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
