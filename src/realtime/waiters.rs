//! The messages that requests of this process wait for, and waking these requests after a commit.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use uuid::Uuid;

/// By message: how many requests wait, and what wakes them.
type All = HashMap<Uuid, (usize, Arc<Notify>)>;

/// The registry; bounded by the number of requests that wait. Clones share it.
#[derive(Debug, Default, Clone)]
pub struct Waiters(Arc<Mutex<All>>);

/// A place in the registry, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    id: Uuid,
    notify: Arc<Notify>,
    all: Arc<Mutex<All>>,
}

/// Ends when the message was changed.
pub type Changed = Pin<Box<OwnedNotified>>;

impl Waiters {
    /// Registers one more waiter of a message.
    #[must_use]
    pub fn register(&self, id: Uuid) -> Ticket {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, notify) = all.entry(id).or_default();
        *count += 1;
        Ticket {
            id,
            notify: Arc::clone(notify),
            all: Arc::clone(&self.0),
        }
    }

    /// Wakes everybody: any message may have changed.
    pub fn committed_any(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, notify) in all.values() {
            notify.notify_waiters();
        }
    }

    /// Wakes the message's waiters: a change of it was committed.
    pub fn committed(&self, id: Uuid) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, notify)) = all.get(&id) {
            notify.notify_waiters();
        }
    }
}

impl Ticket {
    /// Ends when [`Waiters::committed`] is called after this call, whether or not it is polled already.
    #[must_use]
    pub fn changed(&self) -> Changed {
        let mut changed = Box::pin(Arc::clone(&self.notify).notified_owned());
        changed.as_mut().enable();
        changed
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = all.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_between_the_registration_and_the_wait_is_not_missed() {
        let waiters = Waiters::default();
        let id = Uuid::from_u128(1);
        let (one, two) = (waiters.register(id), waiters.register(id));
        let (one_woken, two_woken) = (one.changed(), two.changed());
        waiters.committed(id);
        one_woken.await;
        two_woken.await;
        drop(one);
        assert_eq!(waiters.0.lock().unwrap().len(), 1);
        drop(two);
        assert!(waiters.0.lock().unwrap().is_empty());
        waiters.committed(id);
    }
}
