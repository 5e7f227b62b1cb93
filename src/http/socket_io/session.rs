//! One client, from its connection to its end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::{SendError, SocketError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::handshake::Session;
use super::payload;
use crate::http::state::State;
use crate::realtime::{Filter, Listening, Told};

/// How long to wait for a connection that takes nothing more now. One that takes nothing for some seconds is closed.
const FULL: Duration = Duration::from_millis(10);
/// Most conversations that a client can join.
const JOINED: usize = 1000;
/// The longest time for which a token is looked at; a timer can't be set to the end of time.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The conversations that a client has joined.
type Joined = Arc<Mutex<HashSet<Uuid>>>;

/// An id, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(Uuid),
    Several(Vec<Uuid>),
}

impl Ids {
    fn all(self) -> Vec<Uuid> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// The client has gone.
struct Gone;

pub(super) async fn run(state: &State, socket: SocketRef) {
    let Some(session) = socket.extensions.remove::<Session>() else {
        return;
    };
    // Held as long as the client is served.
    let _place = session.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    let joined = Joined::default();
    let (joins, leaves) = (Arc::clone(&joined), Arc::clone(&joined));
    socket.on("join", async move |socket: SocketRef, TryData(ids): TryData<Ids>| {
        let ids = ids.into_iter().flat_map(Ids::all);
        say_joined(&socket, &joins, |joined| {
            for id in ids {
                if joined.len() < JOINED {
                    joined.insert(id);
                }
            }
        });
    });
    socket.on("leave", async move |socket: SocketRef, TryData(ids): TryData<Ids>| {
        let ids = ids.into_iter().flat_map(Ids::all);
        say_joined(&socket, &leaves, |joined| {
            for id in ids {
                joined.remove(&id);
            }
        });
    });
    let gone = CancellationToken::new();
    let going = gone.clone();
    socket.on_disconnect(async move || going.cancel());
    let filter = Filter {
        numbers: session.viewer.numbers.clone(),
        ..Filter::default()
    };
    let listening = state.hub.listen(filter, session.begin);
    let until = Instant::now() + session.viewer.valid_for.unwrap_or(LONGEST).min(LONGEST);
    tokio::select! {
        biased;
        () = gone.cancelled() => {}
        // The process is stopping, which closes the connection, so that clients come back; or the client has gone.
        () = tell_all(&socket, listening, &joined) => {}
        () = tokio::time::sleep_until(until) => {
            // Told so, a client does not come back with the same token.
            let _ = socket.disconnect();
        }
    }
}

/// Changes what the client has joined, and tells it what that is now.
fn say_joined(socket: &SocketRef, joined: &Joined, change: impl FnOnce(&mut HashSet<Uuid>)) {
    let mut joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
    change(&mut joined);
    let _ = socket.emit("joined", &json!({"conversations": *joined}));
}

async fn tell_all(socket: &SocketRef, mut listening: Listening, joined: &Joined) {
    while let Some(told) = listening.next().await {
        if tell(socket, told, joined).await.is_err() {
            return;
        }
    }
}

async fn tell(socket: &SocketRef, told: Told, joined: &Joined) -> Result<(), Gone> {
    match told {
        Told::Quiet(place) => emit(socket, "position", &json!({"position": place.to_string()})).await,
        Told::Reload(place) => {
            let reason = "events were missed: load what is shown anew; everything after that comes";
            let data = json!({"position": place.to_string(), "reason": reason});
            emit(socket, "reload", &data).await
        }
        Told::Frames(frames) => {
            for frame in frames {
                let wanted = {
                    let joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
                    joined.is_empty()
                        || !payload::is_of_room(frame.kind)
                        || frame.conversations.iter().any(|id| joined.contains(id))
                };
                if let Some((event, data)) = payload::of(&frame).filter(|_| wanted) {
                    emit(socket, event, &data).await?;
                }
            }
            Ok(())
        }
    }
}

async fn emit(socket: &SocketRef, event: &str, data: &Value) -> Result<(), Gone> {
    loop {
        match socket.emit(event, data) {
            Ok(()) => return Ok(()),
            Err(SendError::Socket(SocketError::InternalChannelFull)) => tokio::time::sleep(FULL).await,
            Err(_) => return Err(Gone),
        }
    }
}
