//! Which of a subscriber's webhooks may be delivered next. Pure: the caller says what time it is.
//!
//! The oldest webhooks are in memory. One may go when it is due and none before it shares a person with it. While the subscriber
//! refuses everything, one webhook at a time is tried, a new one each time, so that one that is refused for its content does not
//! make the subscriber look down for ever.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use crate::retry::backoff;
use crate::site_db::deliveries::Key;

/// Most webhooks in memory: those that wait behind one that fails have no body there.
const MOST: usize = 2000;
/// Most bytes of bodies, beyond which no more are loaded.
const MOST_BYTES: usize = 8 << 20;
/// Most deliveries at a time.
const AT_ONCE: usize = 8;
/// So many failures without a success between them: the subscriber takes nothing.
const DOWN: u32 = 3;
/// First and longest wait before a webhook is tried again. Meta's grow to hours; a new success makes all due at once.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// First and longest wait between two tries while the subscriber takes nothing: it is known within a minute that it does again.
const DOWN_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A subscriber's next webhooks.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<Key, Entry>,
    bytes: usize,
    under_way: usize,
    /// Since the last success.
    failures: u32,
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
    /// Whether it is being delivered.
    pub(super) under_way: bool,
    /// When it is given up.
    pub(super) until: Instant,
}

impl Queue {
    pub(super) fn add(&mut self, key: Key, entry: Entry) {
        self.bytes += entry.body.as_ref().map_or(0, Bytes::len);
        self.entries.insert(key, entry);
    }

    pub(super) fn ids(&self) -> Vec<Uuid> {
        self.entries.keys().map(|key| key.webhook_id).collect()
    }

    /// Whether more should be loaded.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MOST && self.bytes < MOST_BYTES
    }

    /// Whether the subscriber takes nothing.
    pub(super) const fn is_down(&self) -> bool {
        self.failures >= DOWN
    }

    /// How many more may be under way.
    const fn places(&self) -> usize {
        let most = if self.is_down() { 1 } else { AT_ONCE };
        most.saturating_sub(self.under_way)
    }

    /// Those that are to be delivered now. They must be started with [`start`](Self::start).
    pub(super) fn ready(&self, now: Instant) -> Vec<Key> {
        if self.paused_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let due = self.free().filter(|(_, entry)| entry.due <= now);
        if self.is_down() {
            let mut due: Vec<_> = due.map(|(key, entry)| (entry.due, *key)).collect();
            due.sort_unstable();
            return due.into_iter().take(self.places()).map(|(_, key)| key).collect();
        }
        due.take(self.places()).map(|(key, _)| *key).collect()
    }

    /// When the next one may be due; `None`: when something comes or ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.places() == 0 {
            return None;
        }
        let due = self.free().map(|(_, entry)| entry.due).min()?;
        Some(self.paused_until.map_or(due, |until| until.max(due)))
    }

    /// Those that wait, and behind none that shares a person.
    fn free(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        let mut before: HashSet<u64> = HashSet::new();
        self.entries.iter().filter(move |(_, entry)| {
            let free = entry.about.iter().all(|whom| !before.contains(whom));
            before.extend(&entry.about);
            free && !entry.under_way
        })
    }

    /// The body of one that is to be delivered, if it is here.
    pub(super) fn body(&self, key: Key) -> Option<Bytes> {
        self.entries.get(&key)?.body.clone()
    }

    /// The body of one was read again.
    pub(super) fn put_body(&mut self, key: Key, body: Bytes) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.bytes += body.len();
            entry.body = Some(body);
        }
    }

    /// One is under way.
    pub(super) fn start(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.under_way = true;
            self.under_way += 1;
            self.bytes -= entry.body.take().map_or(0, |body| body.len());
        }
    }

    /// One that was under way has been taken.
    pub(super) fn delivered(&mut self, key: Key, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        self.remove(key);
        if self.is_down() {
            for entry in self.entries.values_mut() {
                entry.due = now;
            }
        }
        self.failures = 0;
        self.paused_until = None;
    }

    /// One that was under way has been refused. When to try it again; `None`: it is given up.
    pub(super) fn refused(&mut self, key: Key, now: Instant) -> Option<Duration> {
        self.under_way = self.under_way.saturating_sub(1);
        self.failures = self.failures.saturating_add(1);
        if self.is_down() {
            let wait = backoff(self.failures - DOWN + 1, DOWN_RETRY.0, DOWN_RETRY.1);
            self.paused_until = Some(now + wait);
        }
        let entry = self.entries.get_mut(&key)?;
        entry.attempts += 1;
        entry.under_way = false;
        if now >= entry.until {
            self.remove(key);
            return None;
        }
        let wait = backoff(entry.attempts, RETRY.0, RETRY.1);
        entry.due = now + wait;
        Some(wait)
    }

    /// One goes without having been delivered.
    pub(super) fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.body.map_or(0, |body| body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn key(number: u8) -> Key {
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
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_takes_nothing_is_tried_with_one_webhook_at_a_time_and_another_each_time() {
        let mut now = Instant::now();
        let about: Vec<Vec<u64>> = (0..20).map(|whom| vec![whom]).collect();
        let about: Vec<&[u64]> = about.iter().map(Vec::as_slice).collect();
        let mut queue = queue(now, &about);
        assert_eq!(started(&mut queue, now).len(), AT_ONCE);
        for number in 1..=8 {
            queue.refused(key(number), now);
        }
        assert!(queue.is_down() && queue.ready(now).is_empty());
        // The ones that were never tried come before those that failed.
        for expected in 9..=12 {
            now = queue.next_due().unwrap();
            assert_eq!(started(&mut queue, now), [expected]);
            assert_eq!(started(&mut queue, now), [0; 0]);
            queue.refused(key(u8::try_from(expected).unwrap()), now);
        }
        // One success, and all are due at once.
        now = queue.next_due().unwrap();
        let [one] = started(&mut queue, now)[..] else { panic!() };
        queue.delivered(key(u8::try_from(one).unwrap()), now);
        assert_eq!(started(&mut queue, now).len(), AT_ONCE);
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
