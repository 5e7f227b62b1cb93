//! What happens now: the newest frames, and the mailboxes that they are put into.
//!
//! A frame is offered to the listeners of its conversations and to those that listen to no single one; nobody else costs anything.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use super::frame::Frame;
use super::mailbox::Mailbox;
use super::place::Place;

/// The newest frames are kept for listeners that come back: so many, and so many bytes.
const KEPT: (usize, usize) = (4096, 8 << 20);

/// The state of the hub.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// `None`: nothing was read yet.
    window: Option<Window>,
    mailboxes: HashMap<u64, Arc<Mailbox>>,
    /// Those of them that listen to single conversations, by these.
    of_conversation: HashMap<Uuid, Vec<u64>>,
    /// Those that don't.
    of_all: HashMap<u64, Arc<Mailbox>>,
    next_id: u64,
    /// How often the events have begun anew: a place that was known before then may be of events that are lost now.
    era: u64,
    closed: bool,
}

/// The frames between two places, without a gap.
#[derive(Debug)]
struct Window {
    from: Place,
    to: Place,
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
}

/// Whether a listener could join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// It hears what happens from now on, and has what happened since its place.
    Yes,
    /// Its place is older than what is kept here, or nobody here knows it: it must read from the Site DB first.
    Behind,
    /// Nothing was read yet: it has to wait.
    NotYet,
}

impl Live {
    /// Registers a listener, which has joined nothing yet.
    pub(super) fn register(&mut self, mailbox: Arc<Mailbox>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        match &mailbox.filter.conversations {
            Some(conversations) => {
                for conversation in conversations {
                    self.of_conversation.entry(*conversation).or_default().push(id);
                }
            }
            None => {
                self.of_all.insert(id, Arc::clone(&mailbox));
            }
        }
        if self.closed {
            mailbox.close();
        }
        self.mailboxes.insert(id, mailbox);
        id
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.of_all.remove(&id);
        let Some(mailbox) = self.mailboxes.remove(&id) else {
            return;
        };
        for conversation in mailbox.filter.conversations.iter().flatten() {
            if let Some(ids) = self.of_conversation.get_mut(conversation) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.of_conversation.remove(conversation);
                }
            }
        }
    }

    pub(super) fn listeners(&self) -> usize {
        self.mailboxes.len()
    }

    /// Everything up to here was handed out.
    pub(super) fn place(&self) -> Option<Place> {
        self.window.as_ref().map(|window| window.to)
    }

    /// Begins after a place; what was kept is forgotten.
    pub(super) fn begin(&mut self, place: Place) {
        self.window = Some(Window {
            from: place,
            to: place,
            frames: VecDeque::new(),
            bytes: 0,
        });
    }

    /// The same, and all listeners are told that they have missed something.
    pub(super) fn begin_anew(&mut self, place: Place) {
        self.begin(place);
        self.era += 1;
        for mailbox in self.mailboxes.values() {
            mailbox.missed();
        }
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        for mailbox in self.mailboxes.values() {
            mailbox.close();
        }
    }

    /// See the field.
    pub(super) const fn era(&self) -> u64 {
        self.era
    }

    /// Lets a listener hear what comes after a place. `known`: in this era the Site DB has said that the place is one of its own;
    /// otherwise it is compared with what is kept here.
    pub(super) fn join(&self, mailbox: &Mailbox, place: Place, known: Option<u64>) -> Joined {
        let Some(window) = &self.window else {
            return Joined::NotYet;
        };
        if place < window.from || !(known == Some(self.era) || window.knows(place)) {
            return Joined::Behind;
        }
        mailbox.open(place);
        if mailbox.put(&window.frames) {
            Joined::Yes
        } else {
            Joined::Behind
        }
    }

    /// Lets a listener hear what comes from now on; after which place that is.
    pub(super) fn join_now(&self, mailbox: &Mailbox) -> Option<Place> {
        let place = self.place()?;
        mailbox.open(place);
        Some(place)
    }

    /// Hands out the next frames; then everything up to `to` was. Returns how many listeners have become too slow.
    pub(super) fn hand_out(&mut self, frames: &[Arc<Frame>], to: Place) -> usize {
        let mut slow = 0;
        for mailbox in self.of_all.values() {
            slow += usize::from(!mailbox.put(frames));
        }
        for frame in frames {
            let ids = frame.conversations.iter().filter_map(|id| self.of_conversation.get(id));
            for mailbox in ids.flatten().filter_map(|id| self.mailboxes.get(id)) {
                slow += usize::from(!mailbox.put([frame]));
            }
        }
        if let Some(window) = &mut self.window {
            window.extend(frames, to);
        }
        slow
    }
}

impl Window {
    /// Whether a place is one of these events, and not of others that had their numbers before a failover or a restore.
    fn knows(&self, place: Place) -> bool {
        if place > self.to {
            return false;
        }
        let of = |round: i64| {
            let ends = [self.from.position, self.to.position].into_iter();
            let between = self.frames.iter().map(|frame| frame.place.position);
            ends.chain(between).find(|position| position.round == round)
        };
        of(place.position.round).is_some_and(|position| position.placed_at == place.position.placed_at)
    }

    fn extend(&mut self, frames: &[Arc<Frame>], to: Place) {
        for frame in frames {
            self.bytes += frame.text.len();
            self.frames.push_back(Arc::clone(frame));
        }
        self.to = to;
        while self.frames.len() > KEPT.0 || self.bytes > KEPT.1 {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.from = oldest.place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::frame::Filter;
    use crate::site_db::events::Position;

    fn place(round: i64, second: i64) -> Place {
        let placed_at = time::OffsetDateTime::from_unix_timestamp(second).unwrap();
        Place::after(Position {
            round,
            index: 1,
            placed_at,
        })
    }

    #[test]
    fn a_place_that_was_known_before_the_site_db_went_back_is_not_known_any_more() {
        let mut live = Live::default();
        live.begin(place(100, 100));
        let era = live.era();
        // A restored Site DB begins with a lower number.
        live.begin_anew(place(6, 200));
        let mailbox = Mailbox::new(Filter::default());
        assert_eq!(live.join(&mailbox, place(100, 100), Some(era)), Joined::Behind);
        assert_eq!(live.join(&mailbox, place(6, 100), None), Joined::Behind);
        assert_eq!(live.join(&mailbox, place(6, 200), None), Joined::Yes);
        assert_eq!(live.join(&mailbox, place(7, 300), Some(live.era())), Joined::Yes);
    }
}
