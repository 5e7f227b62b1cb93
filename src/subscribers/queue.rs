//! Which of a subscriber's webhooks may be delivered next. Pure: the caller says what time it is.
//!
//! The oldest webhooks are in memory. One may go when it is due and none before it shares a person with it. Of those that wait
//! behind one that was refused only the keys and persons are kept, so that others go on however many they are. Those that were
//! never tried go first, and those that were refused get half of the places. While the subscriber takes nothing, one webhook at a
//! time is tried, a new one each time, so that one that is refused for its content does not make the subscriber look down for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::retry::backoff;
use crate::site_db::deliveries::{Key, Window};

/// Most webhooks in memory whose bodies are there too.
const MOST_BODIES: usize = 2000;
/// Most bytes of bodies, beyond which no more are loaded.
const MOST_BYTES: usize = 8 << 20;
/// Most webhooks in memory, nearly all of them without bodies: some 400 bytes each.
const MOST: usize = 100_000;
/// How many keys are compared with the table at a time.
const WINDOW: usize = 2000;
/// Most deliveries at a time.
const AT_ONCE: usize = 16;
/// So many failures without a success between them: the subscriber takes nothing.
const DOWN: u32 = 3;
/// The same while it has taken something within [`LATELY`]: it may refuse many for their content.
const DOWN_LATELY: u32 = 20;
/// See [`DOWN_LATELY`].
const LATELY: Duration = Duration::from_secs(60);
/// First and longest wait before a webhook is tried again. Meta's grow to hours; a new success makes all due at once.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// First and longest wait between two tries while the subscriber takes nothing: it is known within a minute that it does again.
const DOWN_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A subscriber's next webhooks.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<Key, Entry>,
    /// Each person's webhooks, the oldest first.
    of: HashMap<u64, VecDeque<Key>>,
    /// Free ones (behind none that shares a person, and not under way) that are due and were never tried.
    fresh: BTreeSet<Key>,
    /// Free ones that are due again.
    again: BTreeSet<Key>,
    /// Free ones that are not due yet.
    later: BTreeSet<(Instant, Key)>,
    bodies: usize,
    bytes: usize,
    under_way: usize,
    /// Those under way that had been tried before.
    retries: usize,
    /// Since the last success.
    failures: u32,
    is_down: bool,
    last_success: Option<Instant>,
    paused_until: Option<Instant>,
}

/// A webhook that waits or is under way.
#[derive(Debug)]
pub(super) struct Entry {
    /// Whom it is about.
    pub(super) about: Vec<u64>,
    /// As the subscriber gets it; `None`: it has to be read again.
    pub(super) body: Option<Bytes>,
    /// Attempts so far.
    pub(super) attempts: u32,
    /// When it may be tried.
    pub(super) due: Instant,
    /// When it is given up.
    pub(super) until: Instant,
    /// Whether it waits behind one that was refused.
    pub(super) is_blocked: bool,
    /// Whether it is being delivered.
    pub(super) under_way: bool,
}

impl Queue {
    /// Adds one, unless it is there.
    pub(super) fn add(&mut self, key: Key, mut entry: Entry) {
        if self.entries.contains_key(&key) {
            return;
        }
        for whom in &entry.about {
            let keys = self.of.entry(*whom).or_default();
            let place = keys.partition_point(|other| *other < key);
            let before = place.checked_sub(1).and_then(|place| keys.get(place));
            entry.is_blocked |= before
                .and_then(|before| self.entries.get(before))
                .is_some_and(|before| before.is_blocked || before.attempts > 0);
            if keys.get(place) != Some(&key) {
                keys.insert(place, key);
            }
        }
        // The body is read again when its turn comes.
        if entry.is_blocked || entry.attempts > 0 {
            entry.body = None;
        }
        self.bodies += usize::from(entry.body.is_some());
        self.bytes += entry.body.as_ref().map_or(0, Bytes::len);
        // Later ones that were free are behind this one now.
        let behind = entry.about.iter().filter_map(|whom| self.next_of(*whom, key));
        let behind: Vec<Key> = behind.collect();
        let blocks = entry.is_blocked || entry.attempts > 0;
        self.entries.insert(key, entry);
        for key in behind {
            self.not_free(key);
        }
        if blocks {
            self.block_behind(key);
        }
        self.look_at(key);
    }

    /// The one after this one that is about the same person.
    fn next_of(&self, whom: u64, key: Key) -> Option<Key> {
        let keys = self.of.get(&whom)?;
        keys.get(keys.partition_point(|other| *other <= key)).copied()
    }

    fn not_free(&mut self, key: Key) {
        self.fresh.remove(&key);
        self.again.remove(&key);
        if let Some(entry) = self.entries.get(&key) {
            self.later.remove(&(entry.due, key));
        }
    }

    /// Notes one as free, if it is.
    fn look_at(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let first = |whom: &u64| self.of.get(whom).and_then(VecDeque::front) == Some(&key);
        if !entry.under_way && entry.about.iter().all(first) {
            entry.is_blocked = false;
            self.later.insert((entry.due, key));
        }
    }

    /// Those whose time has come.
    fn come_due(&mut self, now: Instant) {
        while let Some(&(due, key)) = self.later.first().filter(|(due, _)| *due <= now) {
            self.later.remove(&(due, key));
            let tried = self.entries.get(&key).is_some_and(|entry| entry.attempts > 0);
            if tried { &mut self.again } else { &mut self.fresh }.insert(key);
        }
    }

    /// The newest part of the table: all of it, unless many are known. What is older was loaded before, unless it came late.
    pub(super) fn newest(&self) -> Window {
        let mut keys = self.entries.keys().rev();
        let known = keys.by_ref().take(WINDOW).map(|key| key.webhook_id).collect();
        Window {
            after: keys.next().copied(),
            until: None,
            known,
        }
    }

    /// The part after this key; `None`: the [newest](Self::newest) one contains it.
    pub(super) fn window(&self, after: Option<Key>) -> Option<Window> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let keys: Vec<Key> = self
            .entries
            .range((from, std::ops::Bound::Unbounded))
            .map(|(key, _)| *key)
            .take(WINDOW)
            .collect();
        Some(Window {
            after,
            until: keys.last().filter(|_| keys.len() == WINDOW).copied(),
            known: keys.iter().map(|key| key.webhook_id).collect(),
        })
        .filter(|window| window.until.is_some())
    }

    /// Whether more should be loaded.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MOST && self.bodies < MOST_BODIES && self.bytes < MOST_BYTES
    }

    /// Whether the subscriber takes nothing.
    pub(super) const fn is_down(&self) -> bool {
        self.is_down
    }

    /// How many more may be under way, and how many of them may have been refused before.
    fn places(&self) -> (usize, usize) {
        if self.is_down {
            let places = 1_usize.saturating_sub(self.under_way);
            return (places, places);
        }
        let places = AT_ONCE.saturating_sub(self.under_way);
        (places, places.min((AT_ONCE / 2).saturating_sub(self.retries)))
    }

    /// Those that are to be delivered now. They must be started with [`start`](Self::start), or have no body.
    pub(super) fn ready(&mut self, now: Instant) -> Vec<Key> {
        if self.paused_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        self.come_due(now);
        let (places, retries) = self.places();
        let again: Box<dyn Iterator<Item = &Key>> = if self.is_down {
            // The one that has waited for longest since it was tried.
            let due = |key: &&Key| self.entries.get(key).map(|entry| entry.due);
            Box::new(self.again.iter().min_by_key(due).into_iter())
        } else {
            Box::new(self.again.iter())
        };
        let again = again.take(retries);
        if self.is_down {
            return self.fresh.iter().chain(again).take(places).copied().collect();
        }
        // So that those that were refused are tried, however many new ones there are.
        let again: Vec<Key> = again.copied().collect();
        let fresh = self.fresh.iter().take(places.saturating_sub(again.len())).copied();
        fresh.chain(again.iter().copied()).collect()
    }

    /// Those that go soon, and whose bodies are not here.
    pub(super) fn lacking(&mut self, now: Instant) -> Vec<Key> {
        let soon = if self.is_down {
            self.ready(now)
        } else {
            self.come_due(now);
            let again = self.again.iter().take(AT_ONCE / 2);
            self.fresh.iter().take(AT_ONCE).chain(again).copied().collect()
        };
        soon.into_iter().filter(|key| self.body(*key).is_none()).collect()
    }

    /// When the next one may be due; `None`: when something comes or ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (places, retries) = self.places();
        if places == 0 {
            return None;
        }
        let again = self.again.first().filter(|_| retries > 0);
        let due = [self.fresh.first(), again].into_iter().flatten();
        let due = due.filter_map(|key| self.entries.get(key)).map(|entry| entry.due);
        let due = due.chain(self.later.first().map(|(due, _)| *due)).min()?;
        Some(self.paused_until.map_or(due, |until| until.max(due)))
    }

    /// The body of one that is to be delivered, if it is here.
    pub(super) fn body(&self, key: Key) -> Option<Bytes> {
        self.entries.get(&key)?.body.clone()
    }

    /// The body of one was read again.
    pub(super) fn put_body(&mut self, key: Key, body: Bytes) {
        if let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.body.is_none()) {
            self.bodies += 1;
            self.bytes += body.len();
            entry.body = Some(body);
        }
    }

    /// One is under way.
    pub(super) fn start(&mut self, key: Key) {
        self.not_free(key);
        self.drop_body(key);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.under_way = true;
            self.under_way += 1;
            self.retries += usize::from(entry.attempts > 0);
        }
    }

    fn drop_body(&mut self, key: Key) {
        if let Some(body) = self.entries.get_mut(&key).and_then(|entry| entry.body.take()) {
            self.bodies -= 1;
            self.bytes -= body.len();
        }
    }

    /// One that was under way has been taken.
    pub(super) fn delivered(&mut self, key: Key, now: Instant) {
        self.remove(key);
        if self.is_down {
            let waiting = self.entries.values_mut().filter(|entry| !entry.under_way);
            waiting.for_each(|entry| entry.due = entry.due.min(now));
            self.later = self.later.iter().map(|(due, key)| (*due.min(&now), *key)).collect();
        }
        self.failures = 0;
        self.is_down = false;
        self.last_success = Some(now);
        self.paused_until = None;
    }

    /// One that was under way has been refused. When to try it again; `None`: it is given up.
    pub(super) fn refused(&mut self, key: Key, now: Instant) -> Option<Duration> {
        let entry = self.entries.get_mut(&key)?;
        let tried_before = entry.attempts > 0;
        self.under_way = self.under_way.saturating_sub(usize::from(entry.under_way));
        self.retries = self
            .retries
            .saturating_sub(usize::from(entry.under_way && tried_before));
        entry.under_way = false;
        entry.attempts += 1;
        let wait = backoff(entry.attempts, RETRY.0, RETRY.1);
        entry.due = now + wait;
        let is_over = now >= entry.until;
        let lately = self.last_success.is_some_and(|at| now < at + LATELY);
        // That it refuses again what it has refused says nothing about others.
        if !(lately && tried_before && !self.is_down) {
            self.failures = self.failures.saturating_add(1);
        }
        let most = if lately { DOWN_LATELY } else { DOWN };
        if self.is_down || self.failures >= most {
            self.is_down = true;
            let tries = self.failures.saturating_sub(most).saturating_add(1);
            self.paused_until = Some(now + backoff(tries, DOWN_RETRY.0, DOWN_RETRY.1));
        }
        if is_over {
            self.remove(key);
            return None;
        }
        self.block_behind(key);
        self.look_at(key);
        Some(wait)
    }

    /// Those behind one that was refused, and those behind them, need no body for now.
    fn block_behind(&mut self, key: Key) {
        let mut refused = vec![key];
        while let Some(key) = refused.pop() {
            let about = self
                .entries
                .get(&key)
                .map(|entry| entry.about.clone())
                .unwrap_or_default();
            for whom in about {
                let Some(next) = self.next_of(whom, key) else { continue };
                let Some(entry) = self.entries.get_mut(&next) else {
                    continue;
                };
                // What is behind a blocked one is blocked already.
                if !std::mem::replace(&mut entry.is_blocked, true) {
                    self.drop_body(next);
                    refused.push(next);
                }
            }
        }
    }

    /// One goes.
    pub(super) fn remove(&mut self, key: Key) {
        self.not_free(key);
        self.drop_body(key);
        let Some(entry) = self.entries.remove(&key) else { return };
        self.under_way -= usize::from(entry.under_way);
        self.retries -= usize::from(entry.under_way && entry.attempts > 0);
        for whom in entry.about {
            let Some(keys) = self.of.get_mut(&whom) else { continue };
            if let Ok(place) = keys.binary_search(&key) {
                keys.remove(place);
            }
            match keys.front().copied() {
                Some(next) => self.look_at(next),
                None => {
                    self.of.remove(&whom);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn key(number: u16) -> Key {
        Key {
            received_at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(number.into()),
            webhook_id: Uuid::from_u128(number.into()),
        }
    }

    fn queue(now: Instant, about: &[&[u64]]) -> Queue {
        let mut queue = Queue::default();
        for (number, about) in (1..).zip(about) {
            let entry = Entry {
                about: about.to_vec(),
                body: Some(Bytes::from_static(b"{}")),
                attempts: 0,
                due: now,
                is_blocked: false,
                under_way: false,
                until: now + Duration::from_secs(3600),
            };
            queue.add(key(number), entry);
        }
        queue
    }

    fn started(queue: &mut Queue, now: Instant) -> Vec<u128> {
        let ready = queue.ready(now);
        for key in &ready {
            queue.start(*key);
        }
        ready.iter().map(|key| key.webhook_id.as_u128()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn webhooks_about_one_person_follow_each_other_and_others_overtake_one_that_fails() {
        let now = Instant::now();
        let mut queue = queue(now, &[&[1], &[2], &[1, 3], &[3], &[]]);
        assert_eq!(started(&mut queue, now), [1, 2, 5]);
        queue.delivered(key(2), now);
        queue.delivered(key(5), now);
        assert_eq!(started(&mut queue, now), [0; 0]);
        let wait = queue.refused(key(1), now).unwrap();
        assert_eq!(started(&mut queue, now), [0; 0]);
        assert_eq!(queue.next_due(), Some(now + wait));
        assert_eq!(started(&mut queue, now + wait), [1]);
        queue.delivered(key(1), now);
        assert_eq!(started(&mut queue, now), [3]);
        queue.delivered(key(3), now);
        assert_eq!(started(&mut queue, now), [4]);
        queue.delivered(key(4), now);
        assert_eq!((queue.entries.len(), queue.bytes, queue.under_way), (0, 0, 0));
        assert_eq!((queue.bodies, queue.retries, queue.of.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_takes_nothing_is_tried_with_one_webhook_at_a_time_and_another_each_time() {
        let mut now = Instant::now();
        let about: Vec<Vec<u64>> = (0..40).map(|whom| vec![whom]).collect();
        let about: Vec<&[u64]> = about.iter().map(Vec::as_slice).collect();
        let mut queue = queue(now, &about);
        assert_eq!(started(&mut queue, now).len(), AT_ONCE);
        for number in 1..=16 {
            queue.refused(key(number), now);
        }
        assert!(queue.is_down() && queue.ready(now).is_empty());
        // The ones that were never tried come before those that failed.
        for expected in 17..=20 {
            now = queue.next_due().unwrap();
            assert_eq!(started(&mut queue, now), [expected]);
            assert_eq!(started(&mut queue, now), [0; 0]);
            queue.refused(key(u16::try_from(expected).unwrap()), now);
        }
        // One success, and all are due at once.
        now = queue.next_due().unwrap();
        let [one] = started(&mut queue, now)[..] else { panic!() };
        queue.delivered(key(u16::try_from(one).unwrap()), now);
        assert_eq!(started(&mut queue, now).len(), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_that_were_refused_and_those_behind_them_leave_room_for_others() {
        let now = Instant::now();
        // Every second person's first webhook is refused; all of them have written again meanwhile.
        let about: Vec<Vec<u64>> = (0..8004).map(|number| vec![number % 4002]).collect();
        let about: Vec<&[u64]> = about.iter().map(Vec::as_slice).collect();
        let mut queue = queue(now, &about);
        for _ in 0..4002 {
            for number in started(&mut queue, now) {
                let key = key(u16::try_from(number).unwrap());
                if number % 2 == 0 {
                    queue.delivered(key, now);
                } else {
                    let _ = queue.refused(key, now);
                }
            }
        }
        // Left: those that were refused, and those behind them.
        assert_eq!((queue.entries.len(), queue.bodies, queue.bytes), (4002, 0, 0));
        assert!(queue.has_room() && !queue.is_down());
        let window = queue.newest();
        assert_eq!((window.known.len(), window.after.is_some()), (WINDOW, true));
        // The table is compared with all that is known, part by part.
        let first = queue.window(None).unwrap();
        let second = queue.window(first.until).unwrap();
        assert_eq!((first.known.len(), queue.window(second.until)), (WINDOW, None));
        // When they are due, they get half of the places, and their bodies are read again.
        let later = now + RETRY.1;
        assert_eq!(queue.lacking(later).len(), AT_ONCE / 2);
        assert_eq!(started(&mut queue, later).len(), AT_ONCE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_webhook_is_given_up_when_its_time_is_over_and_the_next_of_its_person_goes() {
        let now = Instant::now();
        let mut queue = queue(now, &[&[1], &[1]]);
        assert_eq!(started(&mut queue, now), [1]);
        let late = now + Duration::from_secs(3600);
        assert_eq!(queue.refused(key(1), late), None);
        assert_eq!(started(&mut queue, late), [2]);
    }
}
