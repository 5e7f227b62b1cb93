//! One listener: what it hears, in order, and where it is.

use std::sync::Arc;
use std::time::Duration;

use super::frame::Frame;
use super::live::Joined;
use super::mailbox::{Found, Mailbox};
use super::past::Portion;
use super::place::Place;
use super::shared::Shared;
use crate::site_db::SiteError;

/// How long reading the past may take, with the wait for others that do.
const PAST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a listener waits before it tries again to read the past.
const PAST_RETRY: Duration = Duration::from_secs(1);

/// Where a listener begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It wants what happens from now on.
    Now,
    /// It has heard everything up to this place.
    After(Place),
    /// It has heard something, and nobody knows up to where.
    Unknown,
}

/// What a listener hears.
#[derive(Debug, Clone)]
pub enum Told {
    /// The next rows that it wants.
    Frames(Vec<Arc<Frame>>),
    /// Nothing that it wants happened up to here. Said at the beginning, and when it was quiet for a while.
    Quiet(Place),
    /// Events were lost for it: it must load its rows anew. Then everything after this place comes.
    Reload(Place),
}

/// A listener. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Listening {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    id: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// It wants to hear what happens from now on.
    FromNow,
    /// It has to hear everything after a place, which may not be one of this Site DB's.
    After(Place),
    /// The same; in this era (see [`Live::era`](super::live::Live::era)) the Site DB knew the place.
    AfterKnown(Place, u64),
    /// It has missed events and has to be told.
    Missed,
    /// It hears what happens; it has heard everything up to the place.
    Live(Place),
}

impl Listening {
    pub(super) const fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>, id: u64, begin: Begin) -> Self {
        let stage = match begin {
            Begin::Now => Stage::FromNow,
            Begin::After(place) => Stage::After(place),
            Begin::Unknown => Stage::Missed,
        };
        Self {
            shared,
            mailbox,
            id,
            stage,
        }
    }

    /// What it hears next; `None`: the process is stopping. Nothing is lost if the call is given up, or if the listener comes back
    /// to any process with the place of the last thing that it heard.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            let told = match self.stage {
                Stage::FromNow => self.join_now(Told::Quiet).await,
                Stage::Missed => self.join_now(Told::Reload).await,
                Stage::After(place) => self.join(place, None).await,
                Stage::AfterKnown(place, era) => self.join(place, Some(era)).await,
                Stage::Live(place) => self.live(place).await,
            };
            match told {
                Step::Told(told) => return Some(told),
                Step::Again => {}
                Step::Missed => self.stage = Stage::Missed,
                Step::Ended => return None,
            }
        }
    }

    async fn join_now(&mut self, tell: impl Fn(Place) -> Told) -> Step {
        let begun = self.shared.begun.notified();
        let joined = self.shared.live().join_now(&self.mailbox);
        match joined {
            Some(place) => {
                self.stage = Stage::Live(place);
                Step::Told(tell(place))
            }
            None => wait(&self.mailbox, begun).await,
        }
    }

    async fn join(&mut self, place: Place, known: Option<u64>) -> Step {
        let begun = self.shared.begun.notified();
        let (joined, era) = {
            let live = self.shared.live();
            (live.join(&self.mailbox, place, known), live.era())
        };
        match joined {
            Joined::Yes => {
                self.stage = Stage::Live(place);
                Step::Again
            }
            Joined::NotYet => wait(&self.mailbox, begun).await,
            Joined::Behind => {
                drop(begun);
                let read = tokio::time::timeout(PAST_TIMEOUT, self.shared.past.after(place, era)).await;
                self.read(place, read.unwrap_or(Err(SiteError::timed_out()))).await
            }
        }
    }

    async fn read(&mut self, place: Place, read: Result<Option<Arc<Portion>>, SiteError>) -> Step {
        match read {
            Ok(Some(portion)) => {
                let to = portion.to.max(place);
                self.stage = Stage::AfterKnown(to, portion.era);
                let wanted = |frame: &&Arc<Frame>| frame.place > place && self.mailbox.filter.wants(frame);
                let frames: Vec<_> = portion.frames.iter().filter(wanted).cloned().collect();
                if !frames.is_empty() {
                    Step::Told(Told::Frames(frames))
                } else if to > place {
                    Step::Told(Told::Quiet(to))
                } else {
                    Step::Again
                }
            }
            Ok(None) => {
                self.stage = Stage::Missed;
                Step::Again
            }
            // The hub meets the same error, and says it.
            Err(_) => wait(&self.mailbox, tokio::time::sleep(PAST_RETRY)).await,
        }
    }

    async fn live(&mut self, place: Place) -> Step {
        let found = self.mailbox.take();
        if !matches!(found, Found::Nothing) {
            return self.found(found, place);
        }
        if tokio::time::timeout(self.shared.heartbeat, self.mailbox.woken())
            .await
            .is_ok()
        {
            return Step::Again;
        }
        // Read before the mailbox is looked at: what is handed out in between is then in the mailbox.
        let to = self.shared.place().map_or(place, |to| to.max(place));
        let found = self.mailbox.take();
        self.found(found, to)
    }

    /// `place`: up to there nothing that it wants was handed out, if nothing is found.
    fn found(&mut self, found: Found, place: Place) -> Step {
        match found {
            Found::Frames(frames) => {
                self.stage = Stage::Live(frames.last().map_or(place, |last| last.place));
                Step::Told(Told::Frames(frames))
            }
            Found::Nothing => {
                self.stage = Stage::Live(place);
                Step::Told(Told::Quiet(place))
            }
            Found::Away => {
                // Not `place`: what was put in before it became too slow was taken out again.
                if let Stage::Live(heard) = self.stage {
                    self.stage = Stage::AfterKnown(heard, self.shared.live().era());
                }
                Step::Again
            }
            Found::Missed => {
                self.stage = Stage::Missed;
                Step::Again
            }
            Found::Closed => Step::Ended,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.live().remove(self.id);
    }
}

enum Step {
    Told(Told),
    Again,
    Missed,
    Ended,
}

/// Waits for something, unless the process stops.
async fn wait(mailbox: &Mailbox, something: impl Future<Output = ()>) -> Step {
    tokio::select! {
        biased;
        () = mailbox.woken() => match mailbox.take() {
            Found::Closed => Step::Ended,
            Found::Missed => Step::Missed,
            _ => Step::Again,
        },
        () = something => Step::Again,
    }
}
