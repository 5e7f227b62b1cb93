//! Which requests repeat another one whose client left without its answer, as far as this process knows.
//!
//! The Site DB knows it too (`unknown_at`), for all servers, but later: a client that closes its connection and repeats its request
//! at once is faster than a commit. So a message is looked for here before it is stored, while it waits, and before the provider
//! is called.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::site_db::messages::Submission;

/// How long an equal request is a repeat after its client left; in the Site DB it is as long.
const AFTER_LEAVING: Duration = Duration::from_secs(60);
/// The same if the answer was written, and the connection was reset afterwards: the client has probably not read it. Short, as a
/// client that has read its answer may reset its connection too, and mean another message soon after.
const AFTER_RESET: Duration = Duration::from_secs(2);

/// What equal requests have in common: the client, and a hash of what is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    client_name: String,
    request_sha256: String,
}

impl RequestKey {
    pub(super) fn of(submission: &Submission) -> Self {
        Self {
            client_name: submission.client_name.clone(),
            request_sha256: submission.request_sha256.clone(),
        }
    }
}

/// The requests of clients that wait, and for a while those of clients that left.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    requests: HashMap<RequestKey, Vec<Asked>>,
    keys: HashMap<Uuid, RequestKey>,
    /// When those whose time is over were removed last.
    swept: Option<Instant>,
}

/// A request that became a message.
#[derive(Debug)]
struct Asked {
    /// `whatsapp_messages.id`; the ids of a process are in the order of its requests.
    id: Uuid,
    /// False if it has a client id: then the client says what is a repeat.
    may_repeat: bool,
    /// Set when its client left: until then an equal request repeats it.
    repeated_until: Option<Instant>,
}

impl Repeats {
    /// A client waits for this message.
    pub(super) fn begins(&self, key: RequestKey, id: Uuid, may_repeat: bool) {
        let mut known = self.known();
        known.keys.insert(id, key.clone());
        known.requests.entry(key).or_default().push(Asked {
            id,
            may_repeat,
            repeated_until: None,
        });
    }

    /// The client has its answer.
    pub(super) fn ends(&self, id: Uuid) {
        let mut known = self.known();
        let waits = known.of(id).is_some_and(|asked| {
            asked
                .iter()
                .any(|asked| asked.id == id && asked.repeated_until.is_none())
        });
        if waits {
            known.remove(id);
        }
    }

    /// The client left before it had its answer. Returns the equal requests that wait.
    pub(super) fn left(&self, id: Uuid) -> Vec<Uuid> {
        let mut known = self.known();
        match known.keys.get(&id).cloned() {
            Some(key) => known.repeated(key, id, AFTER_LEAVING),
            None => Vec::new(),
        }
    }

    /// The connection was reset after the answer was written. Returns the equal requests that wait.
    pub(super) fn unread(&self, key: RequestKey, id: Uuid) -> Vec<Uuid> {
        self.known().repeated(key, id, AFTER_RESET)
    }

    /// The message that a message repeats.
    pub(super) fn repeated_by(&self, id: Uuid) -> Option<Uuid> {
        let known = self.known();
        let asked = known.of(id)?;
        let may_repeat = asked.iter().any(|asked| asked.id == id && asked.may_repeat);
        may_repeat.then(|| first(asked, id)).flatten()
    }

    /// The message that a request repeats which is about to become this one.
    pub(super) fn repeated_by_request(&self, key: &RequestKey, id: Uuid) -> Option<Uuid> {
        first(self.known().requests.get(key)?, id)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first one before this message whose client left lately.
fn first(asked: &[Asked], id: Uuid) -> Option<Uuid> {
    let now = Instant::now();
    let left = |asked: &&Asked| asked.repeated_until.is_some_and(|until| until > now);
    asked
        .iter()
        .filter(left)
        .map(|asked| asked.id)
        .find(|first| *first < id)
}

impl Known {
    fn of(&self, id: Uuid) -> Option<&Vec<Asked>> {
        self.requests.get(self.keys.get(&id)?)
    }

    fn remove(&mut self, id: Uuid) {
        let Some(key) = self.keys.remove(&id) else { return };
        if let Some(asked) = self.requests.get_mut(&key) {
            asked.retain(|asked| asked.id != id);
            if asked.is_empty() {
                self.requests.remove(&key);
            }
        }
    }

    /// From now on, and for so long, equal requests repeat this one. Returns those that wait.
    fn repeated(&mut self, key: RequestKey, id: Uuid, how_long: Duration) -> Vec<Uuid> {
        let now = Instant::now();
        self.sweep(now);
        self.keys.insert(id, key.clone());
        let asked = self.requests.entry(key).or_default();
        let until = Some(now + how_long);
        match asked.iter_mut().find(|asked| asked.id == id) {
            Some(asked) => asked.repeated_until = asked.repeated_until.max(until),
            None => asked.push(Asked {
                id,
                may_repeat: false,
                repeated_until: until,
            }),
        }
        asked
            .iter()
            .filter(|other| other.id > id && other.may_repeat)
            .map(|other| other.id)
            .collect()
    }

    /// Removes those whose time is over, once a second at most.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now < swept + Duration::from_secs(1)) {
            return;
        }
        self.swept = Some(now);
        let keys = &mut self.keys;
        self.requests.retain(|_, asked| {
            asked.retain(|asked| {
                let stays = asked.repeated_until.is_none_or(|until| until > now);
                if !stays {
                    keys.remove(&asked.id);
                }
                stays
            });
            !asked.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: &str) -> RequestKey {
        RequestKey {
            client_name: client.to_owned(),
            request_sha256: "x".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_came_after_a_request_whose_client_left_repeats_it_and_only_for_a_while() {
        let [first, second, keyed, third] = [1, 2, 3, 4].map(Uuid::from_u128);
        let repeats = Repeats::default();
        for (id, may_repeat) in [(first, true), (second, true), (keyed, false)] {
            repeats.begins(key("crm"), id, may_repeat);
        }
        assert_eq!(repeats.repeated_by(second), None);
        assert!(repeats.left(second).is_empty());
        assert_eq!(repeats.repeated_by(first), None);
        assert_eq!(repeats.left(first), [second]);
        assert_eq!(
            (repeats.repeated_by(second), repeats.repeated_by(keyed)),
            (Some(first), None)
        );
        assert_eq!(repeats.repeated_by_request(&key("crm"), third), Some(first));
        assert_eq!(repeats.repeated_by_request(&key("other"), third), None);
        tokio::time::advance(AFTER_LEAVING).await;
        assert_eq!(repeats.repeated_by_request(&key("crm"), third), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_read_is_forgotten_and_one_that_was_not_is_known_for_two_seconds() {
        let [first, second] = [1, 2].map(Uuid::from_u128);
        let repeats = Repeats::default();
        repeats.begins(key("crm"), first, true);
        repeats.ends(first);
        assert_eq!(repeats.repeated_by_request(&key("crm"), second), None);
        repeats.unread(key("crm"), first);
        assert_eq!(repeats.repeated_by_request(&key("crm"), second), Some(first));
        tokio::time::advance(AFTER_RESET).await;
        assert_eq!(repeats.repeated_by_request(&key("crm"), second), None);
        // What is over is removed.
        repeats.unread(key("other"), second);
        let known = repeats.known();
        assert_eq!((known.requests.len(), known.keys.len()), (1, 1));
    }
}
