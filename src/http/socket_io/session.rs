//! One client, from its connection to its end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::{SendError, SocketError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::handshake::{Ids, Session};
use super::payload;
use crate::http::listener::Tracked;
use crate::http::state::State;
use crate::realtime::{Filter, Listening, Told};

/// How long to wait for a connection that takes nothing more now. One that takes nothing for some seconds is closed.
const FULL: Duration = Duration::from_millis(10);
/// How long a client may take to hear that it is let go.
const SAID: Duration = Duration::from_secs(2);
/// Most conversations that a client can join.
const JOINED: usize = 1000;
/// The longest time for which a token is looked at; a timer can't be set to the end of time.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The conversations that a client has joined. `None`: it has never joined any, so it hears of all.
type Joined = Arc<Mutex<Option<HashSet<Uuid>>>>;

/// The client has gone.
struct Gone;

pub(super) async fn run(state: &State, socket: SocketRef) {
    let Some(session) = socket.extensions.remove::<Session>() else {
        return;
    };
    let first = (session.joined).map(|ids| ids.into_iter().take(JOINED).collect::<HashSet<_>>());
    let joined = Joined::new(Mutex::new(first));
    let (joins, leaves) = (Arc::clone(&joined), Arc::clone(&joined));
    socket.on("join", async move |socket: SocketRef, TryData(ids): TryData<Ids>| {
        let ids = ids.into_iter().flat_map(Ids::all);
        say_joined(&socket, &joins, |joined| {
            let joined = joined.get_or_insert_default();
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
            // Whoever has left the last one hears of none, and not of all.
            if let Some(joined) = joined {
                for id in ids {
                    joined.remove(&id);
                }
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
            let _ = socket.clone().disconnect();
            tokio::time::sleep(SAID).await;
        }
    }
    // Nobody serves it any more.
    if let Some(connection) = socket.req_parts().extensions.get::<Arc<Tracked>>() {
        connection.end();
    }
}

/// Changes what the client has joined, and tells it what that is now.
fn say_joined(socket: &SocketRef, joined: &Joined, change: impl FnOnce(&mut Option<HashSet<Uuid>>)) {
    let mut joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
    change(&mut joined);
    let _ = socket.emit(
        "joined",
        &json!({"conversations": joined.iter().flatten().collect::<Vec<_>>()}),
    );
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
                    !payload::is_of_room(frame.kind)
                        || (joined.as_ref())
                            .is_none_or(|joined| frame.conversations.iter().any(|id| joined.contains(id)))
                };
                if !wanted {
                    continue;
                }
                if let Some((event, data)) = payload::of(&frame) {
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
