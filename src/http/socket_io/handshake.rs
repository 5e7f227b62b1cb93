//! Who connects: the token comes after the connection is open, so those who have not sent it yet are bounded.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State as Extract};
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use socketioxide::extract::SocketRef;
use uuid::Uuid;

use crate::http::access::{Denied, Viewer};
use crate::http::listener::{Doing, Tracked};
use crate::http::listener_places::Place;
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::metrics;
use crate::realtime::Begin;

/// What a client says when it connects.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Auth {
    token: Option<String>,
    position: Option<String>,
    /// As if it had joined them.
    join: Option<Ids>,
}

/// Those who have not sent their token yet. One too many makes the oldest one go, of the address that has the most.
#[derive(Debug, Clone)]
pub(super) struct Pending(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    most: usize,
    /// In the order in which they came.
    connections: Mutex<BTreeMap<u64, Arc<Tracked>>>,
    next: AtomicU64,
}

/// One of them, until it has sent its token, or is gone.
#[derive(Debug)]
struct PendingOne {
    of: Pending,
    id: u64,
}

/// The listener's place, once the token was checked: held as long as the connection is open, whatever the client does on it.
#[derive(Debug, Clone, Default)]
struct ListenerPlace(Arc<Mutex<Option<Place>>>);

/// A client whose token was checked.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) viewer: Viewer,
    pub(super) begin: Begin,
    /// The conversations that it has joined already.
    pub(super) joined: Option<Vec<Uuid>>,
}

/// An id, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(Uuid),
    Several(Vec<Uuid>),
}

impl Ids {
    pub(super) fn all(self) -> Vec<Uuid> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// Why a client may not connect.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("too many listen already; try again")]
    Full,
}

impl Pending {
    /// A sixteenth of the connections.
    pub(super) fn new(connections: usize) -> Self {
        Self(Arc::new(Waiting {
            most: (connections / 16).max(1),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
        }))
    }

    /// A connection is to be opened.
    fn enter(&self, connection: Arc<Tracked>) -> PendingOne {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        // Dropped outside the lock: the last use of a connection takes other locks.
        let mut left = Vec::new();
        {
            let mut connections = self.lock();
            connections.insert(id, connection);
            while connections.len() > self.0.most {
                let mut of_address: HashMap<_, (usize, Reverse<u64>)> = HashMap::new();
                for (id, connection) in connections.iter() {
                    of_address.entry(connection.peer()).or_insert((0, Reverse(*id))).0 += 1;
                }
                let Some((_, Reverse(oldest))) = of_address.into_values().max() else {
                    break;
                };
                left.extend(connections.remove(&oldest));
            }
        }
        for connection in left {
            metrics::count_listener_events("refused", 1);
            connection.end();
        }
        PendingOne { of: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Tracked>>> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingOne {
    fn leave(&self) {
        let left = self.of.lock().remove(&self.id);
        drop(left);
    }
}

impl Drop for PendingOne {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Notes who opens a connection to Socket.IO.
pub(super) async fn admit(Extract(pending): Extract<Pending>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/socket.io") {
        let Some(connection) = request.extensions().get::<Arc<Tracked>>().cloned() else {
            return answer::busy(request.uri());
        };
        let one = Arc::new(pending.enter(connection));
        request.extensions_mut().insert(one);
        request.extensions_mut().insert(ListenerPlace::default());
    }
    next.run(request).await
}

/// Checks a client's token, and gives it a listener's place.
pub(super) async fn check(state: &State, socket: &SocketRef, auth: Auth) -> Result<(), Refused> {
    let request = socket.req_parts();
    // Some front ends write the header's whole value.
    let of_auth = auth
        .token
        .map(|token| token.trim_start_matches("Bearer ").trim().to_owned());
    let token = of_auth.or_else(|| auth::bearer(&request.headers));
    let viewer = state.access.viewer(token.as_deref()).await?;
    let Some(place) = state.listeners.take(&viewer.who) else {
        metrics::count_listener_events("refused", 1);
        return Err(Refused::Full);
    };
    if let Some(ListenerPlace(of_connection)) = request.extensions.get() {
        *of_connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
    if let Some(connection) = request.extensions.get::<Arc<Tracked>>() {
        connection.set(Doing::Answer);
        connection.listens();
    }
    if let Some(one) = request.extensions.get::<Arc<PendingOne>>() {
        one.leave();
    }
    let begin = match auth.position.as_deref().map(str::trim) {
        None | Some("") => Begin::Now,
        Some(position) => position.parse().map_or(Begin::Unknown, Begin::After),
    };
    socket.extensions.insert(Session {
        viewer,
        begin,
        joined: auth.join.map(Ids::all),
    });
    Ok(())
}
