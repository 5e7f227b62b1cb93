//! How many may listen (`events.max_listeners`): beside the connections of requests, so that listeners take nothing from webhooks
//! and sends.
//!
//! Where there are several clients (API tokens, and all users together), none has more than three quarters of the places, and no
//! user more than [`OF_USER`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::Who;
use crate::metrics;

/// Most listeners of one user: browser tabs and phones.
const OF_USER: usize = 64;

/// The places.
#[derive(Debug)]
pub(super) struct ListenerPlaces {
    most: usize,
    most_of_client: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    users: usize,
    of: HashMap<Who, usize>,
}

/// A listener's place; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<ListenerPlaces>,
    who: Who,
}

impl ListenerPlaces {
    /// `clients`: how many there are, all users together counted as one.
    pub(super) fn new(most: usize, clients: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_client: if clients > 1 { (most * 3 / 4).max(1) } else { most },
            taken: Mutex::default(),
        })
    }

    pub(super) fn take(self: &Arc<Self>, who: &Who) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.of.get(who).copied().unwrap_or(0);
        let full = match who {
            Who::Client(_) => own >= self.most_of_client,
            Who::User(_) => own >= OF_USER || taken.users >= self.most_of_client,
        };
        if full || taken.all >= self.most {
            return None;
        }
        taken.all += 1;
        taken.users += usize::from(matches!(who, Who::User(_)));
        *taken.of.entry(who.clone()).or_default() += 1;
        metrics::set_listeners(taken.all);
        Some(Place {
            places: Arc::clone(self),
            who: who.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        taken.users -= usize::from(matches!(self.who, Who::User(_)));
        if let Some(own) = taken.of.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.who);
            }
        }
        metrics::set_listeners(taken.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_client_nor_a_user_takes_all_places() {
        let places = ListenerPlaces::new(100, 2);
        let take_all = |who: &Who| std::iter::from_fn(|| places.take(who)).collect::<Vec<_>>();
        let user = |name: &str| Who::User(name.to_owned());
        let one = take_all(&user("one"));
        assert_eq!(one.len(), OF_USER);
        let two = take_all(&user("two"));
        assert_eq!(two.len(), 75 - OF_USER);
        let client = Who::Client("crm".to_owned());
        assert_eq!(take_all(&client).len(), 25);
        drop((one, two));
        assert_eq!(take_all(&client).len(), 75);
        assert_eq!(places.lock().all, 0);
    }
}
