//! How many requests of each family of routes may be answered at a time: none can take the places of another.
//!
//! The shares add up to less than `http.max_connections`, so that there are always connections on which a request can come.
//! A request takes its place after its token was checked and its body was read: who sends neither takes none. Beyond the
//! places a request is refused with 503 and `Retry-After` before anything is stored.
//!
//! | family | share of `http.max_connections` | |
//! |---|---|---|
//! | webhook | 7/16 | Meta's events: with 20 ms to the Site DB, 5,000 a second need 330 at a time |
//! | api | 6/16 | sends, and questions about messages |
//! | waiting | 4/16, of those of the api | sends whose clients wait for the outcome; the others always find a place |
//! | page | 2/16, of those of the api | people who leaf through conversations |
//! | passthrough | 1/16 | calls that are passed on to Meta, however long Meta takes |
//! | media | 1/16 | media on their way, up and down; each holds a few hundred KB in buffers |
//!
//! **No client can take all places of the others.** Where several tokens are configured, each has at most three quarters of the
//! places of a family. Fixed shares for each token would leave most places empty, as most clients are quiet most of the time;
//! a quarter is enough for a client that was quiet, and nothing has to be counted beside the places.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The routes that share places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Meta's events.
    Webhook,
    /// Sends, and questions about messages.
    Api,
    /// Sends whose clients wait for the outcome. They have a place of [`Family::Api`] as well.
    Waiting,
    /// Pages of conversations. They have a place of [`Family::Api`] as well.
    Page,
    /// Calls that are passed on to Meta.
    Passthrough,
    /// Media on their way, up and down.
    Media,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoPlace;

/// A place; dropped, it is free for another request.
#[derive(Debug)]
#[must_use = "a place that is dropped is free"]
pub(super) struct Place(
    #[expect(dead_code, reason = "dropping them frees the place, and the client's")] Vec<OwnedSemaphorePermit>,
);

/// The places of each family.
#[derive(Debug)]
pub(super) struct Budgets {
    all: Places,
    /// The most that each client may have of them, by the names of their tokens.
    clients: HashMap<String, Places>,
}

#[derive(Debug)]
struct Places {
    webhook: Arc<Semaphore>,
    api: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    page: Arc<Semaphore>,
    passthrough: Arc<Semaphore>,
    media: Arc<Semaphore>,
}

impl Places {
    /// This part of each family's places, in quarters.
    fn new(connections: usize, quarters: usize) -> Self {
        let share =
            |sixteenths: usize| Arc::new(Semaphore::new((connections * sixteenths * quarters / (16 * 4)).max(1)));
        Self {
            webhook: share(7),
            api: share(6),
            waiting: share(4),
            page: share(2),
            passthrough: share(1),
            media: share(1),
        }
    }

    fn take(&self, family: Family) -> Result<OwnedSemaphorePermit, NoPlace> {
        let places = match family {
            Family::Webhook => &self.webhook,
            Family::Api => &self.api,
            Family::Waiting => &self.waiting,
            Family::Page => &self.page,
            Family::Passthrough => &self.passthrough,
            Family::Media => &self.media,
        };
        Arc::clone(places).try_acquire_owned().map_err(|_| NoPlace)
    }
}

impl Budgets {
    /// Shares the connections. `clients` are the names of the tokens.
    pub(super) fn new<'a>(connections: usize, clients: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = clients.into_iter().collect();
        let quarters = if names.len() > 1 { 3 } else { 4 };
        let clients = names
            .into_iter()
            .map(|name| (name.to_owned(), Places::new(connections, quarters)));
        Self {
            all: Places::new(connections, 4),
            clients: clients.collect(),
        }
    }

    /// Takes a place for Meta, for as long as the request is answered.
    pub(super) fn place(&self, family: Family) -> Result<Place, NoPlace> {
        Ok(Place(vec![self.all.take(family)?]))
    }

    /// Takes a place for a client, for as long as the request is answered.
    pub(super) fn client_place(&self, family: Family, client: &str) -> Result<Place, NoPlace> {
        let own = self.clients.get(client).map(|own| own.take(family)).transpose()?;
        Ok(Place(own.into_iter().chain([self.all.take(family)?]).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_family_takes_the_places_of_another() {
        let budgets = Budgets::new(64, []);
        let take_all = |family| std::iter::from_fn(|| budgets.place(family).ok()).collect::<Vec<_>>();
        let taken: Vec<Vec<Place>> = [Family::Passthrough, Family::Waiting, Family::Api, Family::Webhook]
            .into_iter()
            .map(take_all)
            .collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16, 24, 28]);
        assert_eq!(budgets.place(Family::Webhook).unwrap_err(), NoPlace);
        drop(taken);
        assert!(budgets.place(Family::Webhook).is_ok());
    }

    #[test]
    fn one_client_leaves_places_for_the_others_and_a_lone_one_has_all() {
        let take = |budgets: &Budgets, family, client| {
            std::iter::from_fn(|| budgets.client_place(family, client).ok()).collect::<Vec<_>>()
        };
        let take_all = |budgets: &Budgets, client| take(budgets, Family::Waiting, client);
        let budgets = Budgets::new(64, ["crm", "bot"]);
        let crm = take_all(&budgets, "crm");
        let bot = take_all(&budgets, "bot");
        assert_eq!((crm.len(), bot.len()), (12, 4));
        let media = ["crm", "bot"].map(|client| take(&budgets, Family::Media, client));
        assert_eq!(media.map(|places| places.len()), [3, 1]);
        drop(crm);
        assert_eq!(take_all(&budgets, "crm").len(), 12);
        assert_eq!(take_all(&Budgets::new(64, ["crm"]), "crm").len(), 16);
    }
}
