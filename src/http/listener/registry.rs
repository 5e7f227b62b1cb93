//! All open connections of a listener and what each is doing: decides which one is closed if there is no room for another.
//!
//! In this order: a connection without a request, the one that has been so for the longest time; one whose request's head is
//! incomplete, the oldest; one whose body is being read, the slowest. Never one whose request is being answered: how many of
//! those there are is bounded elsewhere, below the number of connections, so there is always one that can be closed.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many connections a listener has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most at a time.
    pub(crate) connections: usize,
    /// Most from one address.
    pub(crate) per_address: usize,
    /// A connection without a byte read or written for this long is closed.
    pub(crate) silence: Duration,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Doing {
    /// It has no request; set when it is accepted, and after each answer.
    Idle { since: Instant },
    /// A part of a request's head came; set with its first byte.
    Head { since: Instant },
    /// A request's body is awaited, `bytes` of which came; set by the reader of the body, which gives up at `until` if
    /// nothing more comes.
    Body {
        body: AwaitedBody,
        until: Instant,
        bytes: usize,
    },
    /// A request is being answered; set when its head is complete, and again when its body is.
    Answer,
}

/// Whose body is being read; each kind has its own budget of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum AwaitedBody {
    /// Anybody's: its signature is not checked yet.
    Unsigned,
    /// A client's, whose token was checked.
    Clients,
}

/// An open connection. Dropped, it makes room for another.
#[derive(Debug)]
pub(in crate::http) struct Tracked {
    registry: Arc<Registry>,
    id: u64,
    peer: IpAddr,
    doing: Mutex<Doing>,
    /// Whether it is counted among the listeners, and not among the connections of requests.
    listens: AtomicBool,
    /// Notified to close the connection, unless its request is being answered by then.
    close: Notify,
    /// Cancelled to end it, whatever it is doing.
    end: CancellationToken,
    /// Notified to give up reading its request's body.
    give_up: Notify,
    /// Of the last answer.
    if_unread: Mutex<Option<IfUnread>>,
}

/// Called if a connection is reset soon after this answer was written, before another request came on it. Then the client has
/// probably not read it: a system that closes a connection whose bytes were not read resets it.
#[derive(Clone)]
pub(in crate::http) struct IfUnread(pub(in crate::http) Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for IfUnread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IfUnread")
    }
}

/// All open connections of a listener.
#[derive(Debug)]
pub(in crate::http) struct Registry {
    bounds: Bounds,
    open: Mutex<Open>,
    /// Notified when a connection was closed.
    closed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    connections: HashMap<u64, Weak<Tracked>>,
    /// How many of them are listeners', which are bounded elsewhere.
    listeners: usize,
    of_peer: HashMap<IpAddr, usize>,
}

/// Why a connection cannot be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// There are as many as there may be.
    All,
    /// Its address has as many as it may have.
    Peer,
}

/// How long a new connection waits for the one that is closed for it.
const CLOSING: Duration = Duration::from_millis(20);
/// Most times that it tries: a chosen connection may have got its request's rest in the meantime.
const TRIES: u32 = 50;

impl Registry {
    pub(in crate::http) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            open: Mutex::default(),
            closed: Notify::new(),
        })
    }

    /// Makes room for a connection from this address, by closing another if need be. `None`: it is to be refused.
    pub(in crate::http) async fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Tracked>> {
        let peer = network(address);
        for _ in 0..TRIES {
            let full = match self.insert(peer) {
                Ok(tracked) => return Some(tracked),
                Err(full) => full,
            };
            let among = |other: &Tracked| full == Full::All || other.peer == peer;
            match self.least_needed(among) {
                Some(victim) => victim.close.notify_one(),
                // All of its requests are being answered: the others' connections must not wait for them.
                None if full == Full::Peer => return None,
                None => {}
            }
            let _ = tokio::time::timeout(CLOSING, self.closed.notified()).await;
        }
        None
    }

    fn insert(self: &Arc<Self>, peer: IpAddr) -> Result<Arc<Tracked>, Full> {
        let mut open = self.open();
        if open.connections.len() - open.listeners >= self.bounds.connections {
            return Err(Full::All);
        }
        let of_peer = open.of_peer.entry(peer).or_default();
        if *of_peer >= self.bounds.per_address {
            return Err(Full::Peer);
        }
        *of_peer += 1;
        let id = open.next_id;
        open.next_id += 1;
        let tracked = Arc::new(Tracked {
            registry: Arc::clone(self),
            id,
            peer,
            doing: Mutex::new(Doing::Idle { since: Instant::now() }),
            listens: AtomicBool::new(false),
            close: Notify::new(),
            end: CancellationToken::new(),
            give_up: Notify::new(),
            if_unread: Mutex::default(),
        });
        open.connections.insert(id, Arc::downgrade(&tracked));
        Ok(tracked)
    }

    /// The connection that can be closed best. None that is being answered.
    fn least_needed(&self, among: impl Fn(&Tracked) -> bool) -> Option<Arc<Tracked>> {
        let rank = |doing: Doing| match doing {
            Doing::Idle { since } => Some((0, since)),
            Doing::Head { since } => Some((1, since)),
            Doing::Body { until, .. } => Some((2, until)),
            Doing::Answer => None,
        };
        let candidates = self.all().into_iter().filter(|tracked| among(tracked));
        candidates
            .filter_map(|tracked| Some((rank(tracked.doing())?, tracked)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, tracked)| tracked)
    }

    /// The connection whose body of this kind comes most slowly: the one that is given up first.
    fn slowest(&self, kind: AwaitedBody) -> Option<Arc<Tracked>> {
        let rank = |doing: Doing| match doing {
            Doing::Body { body, until, bytes } if body == kind && bytes > 0 => Some(until),
            _ => None,
        };
        let candidates = self.all().into_iter();
        candidates
            .filter_map(|tracked| Some((rank(tracked.doing())?, tracked)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, tracked)| tracked)
    }

    fn all(&self) -> Vec<Arc<Tracked>> {
        // Upgraded under the lock and used outside it: dropping one takes the lock.
        self.open().connections.values().filter_map(Weak::upgrade).collect()
    }

    #[cfg(test)]
    pub(in crate::http) fn count(&self) -> usize {
        self.open().connections.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// One connection of the address less is counted.
    fn leaves(&mut self, peer: IpAddr) {
        if let Some(of_peer) = self.of_peer.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                self.of_peer.remove(&peer);
            }
        }
    }
}

impl Tracked {
    /// Where it comes from; of IPv6 the network.
    pub(in crate::http) const fn peer(&self) -> IpAddr {
        self.peer
    }

    pub(in crate::http) fn doing(&self) -> Doing {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::http) fn set(&self, doing: Doing) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = doing;
    }

    /// From now on the connection is a listener's, whose answer does not end: it takes no place of the others, and is not to be used
    /// for another request.
    pub(in crate::http) fn listens(&self) {
        if !self.listens.swap(true, Ordering::Relaxed) {
            let mut open = self.registry.open();
            open.listeners += 1;
            open.leaves(self.peer);
            drop(open);
            self.registry.closed.notify_one();
        }
    }

    /// Replaces what is called if the connection is reset.
    pub(super) fn if_unread(&self, call: Option<IfUnread>) {
        *self.if_unread.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }

    /// The peer has reset the connection.
    pub(super) fn was_reset(&self) {
        let call = self.if_unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(IfUnread(call)) = call {
            call();
        }
    }

    /// Bytes were read: the first ones begin a request's head.
    pub(in crate::http) fn bytes_came(&self) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*doing, Doing::Idle { .. }) {
            *doing = Doing::Head { since: Instant::now() };
        }
    }

    /// Ends when the connection is to be closed to make room.
    pub(in crate::http) async fn chosen(&self) {
        loop {
            self.close.notified().await;
            if self.doing() != Doing::Answer {
                return;
            }
        }
    }

    /// Ends the connection, whatever it is doing, also if it goes on in another protocol.
    pub(in crate::http) fn end(&self) {
        self.end.cancel();
    }

    /// Ends when the connection is to end.
    pub(super) fn ended(&self) -> WaitForCancellationFutureOwned {
        self.end.clone().cancelled_owned()
    }

    /// Ends when the reading of the request's body is to be given up.
    pub(in crate::http) async fn given_up(&self) {
        self.give_up.notified().await;
    }

    /// Has the slowest body of this kind given up, to make room for another's bytes; never this one. (If there is none,
    /// those that have the bytes are about to give them back.)
    pub(in crate::http) fn give_up_slowest(&self, kind: AwaitedBody) {
        if let Some(slowest) = self.registry.slowest(kind).filter(|slowest| slowest.id != self.id) {
            slowest.give_up.notify_one();
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        {
            let mut open = self.registry.open();
            open.connections.remove(&self.id);
            if *self.listens.get_mut() {
                open.listeners -= 1;
            } else {
                open.leaves(self.peer);
            }
        }
        self.registry.closed.notify_one();
    }
}

/// What counts as one address: of IPv6 the first 64 bits, because everybody has that many to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn registry(connections: usize, per_address: usize) -> Arc<Registry> {
        Registry::new(Bounds {
            connections,
            per_address,
            silence: Duration::from_secs(90),
        })
    }

    /// Closes a connection when it is chosen, as the listener does.
    fn closes(tracked: Arc<Tracked>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { tracked.chosen().await })
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_is_needed_least_makes_room() {
        let registry = registry(4, 4);
        let mut tasks = Vec::new();
        let second = Duration::from_secs(1);
        for doing in [
            |until| Doing::Body {
                body: AwaitedBody::Unsigned,
                until,
                bytes: 10,
            },
            |since| Doing::Head { since },
            |since| Doing::Idle { since },
            |_| Doing::Answer,
        ] {
            let tracked = registry.admit(ONE).await.unwrap();
            tracked.set(doing(Instant::now()));
            tasks.push(closes(tracked));
            tokio::time::sleep(second).await;
        }
        let mut held = Vec::new();
        for ended in [2, 1, 0] {
            let newer = registry.admit(OTHER).await.unwrap();
            newer.set(Doing::Answer);
            held.push(newer);
            let gone: Vec<usize> = (0..4).filter(|&task| tasks[task].is_finished()).collect();
            assert!(gone.contains(&ended) && gone.len() == held.len(), "{gone:?}");
        }
        // What is being answered stays.
        assert!(registry.admit(OTHER).await.is_none());
        assert!(!tasks[3].is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_take_no_place_of_requests() {
        let registry = registry(1, 1);
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let tracked = registry.admit(ONE).await.unwrap();
            tracked.set(Doing::Answer);
            tracked.listens();
            tracked.listens();
            listeners.push(tracked);
        }
        let one = registry.admit(ONE).await.unwrap();
        one.set(Doing::Answer);
        assert!(registry.admit(ONE).await.is_none());
        drop(listeners);
        assert!(registry.admit(OTHER).await.is_none());
        drop(one);
        assert!(registry.admit(ONE).await.is_some());
        assert!(registry.open().of_peer.is_empty() && registry.open().listeners == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_as_many_as_it_may_have_makes_room_itself() {
        let registry = registry(4, 2);
        let of_other = registry.admit(OTHER).await.unwrap();
        let other = closes(of_other);
        let mut of_one = Vec::new();
        for _ in 0..3 {
            of_one.push(closes(registry.admit(ONE).await.unwrap()));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(of_one[0].is_finished() && !of_one[1].is_finished() && !other.is_finished());
        assert_eq!(registry.count(), 3);
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), ONE);
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
    }
}
