//! `/socket.io/`: the same events for front ends that speak Socket.IO already. WebSocket only; the fourth version of Engine.IO.
//!
//! | event | data |
//! |---|---|
//! | `new_message` | `message`, `conversation` |
//! | `message_status` | `message_id`, `wamid`, `client_id`, `status`, `at`, `conversation_id` |
//! | `conversation_updated` | `conversation` |
//! | `lead_updated`, `notification_created` | `lead`, `notification` |
//! | `joined` | the `conversations` that the client has joined; said after each `join` and `leave` |
//! | `position` | where the listener is; said at the beginning and when it was quiet for a while |
//! | `reload` | events were missed: load what is shown anew; everything after that comes |
//!
//! Each has a `position`. A client connects with `auth: {token, position}`, and gets everything after the position that it had last,
//! as with `/v1/events`. Once it has joined conversations (`join`, `leave`, with an id or a list of them, up to 1,000), `new_message`
//! and `message_status` come of these alone, and of none once it has left the last one. `auth: {join}` joins before anything is heard.
//! A client that leaves the namespace is disconnected.
//!
//! | file | its job |
//! |---|---|
//! | `handshake` | who connects; bounds on those who have not said it yet |
//! | `session` | one client, as long as it stays |
//! | `payload` | what an event is called, and what it says |

mod handshake;
mod payload;
mod session;

use axum::Router;
use socketioxide::extract::{SocketRef, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::{ParserConfig, SocketIo};

use self::handshake::{Auth, Pending};
use super::state::State;

/// Most packets that wait for a client's connection; the others wait in its mailbox.
const BUFFER: usize = 128;

/// Puts Socket.IO beside the routes. What is returned closes its connections.
pub(super) fn beside(router: Router, state: &State) -> (Router, SocketIo) {
    let settings = &state.settings.socket_io;
    // Clients send no attachments, and none is kept before a token was checked.
    let parser = ParserConfig::common()
        .max_incoming_binaries(1)
        .max_incoming_binary_buf_size(1024);
    let (layer, io) = SocketIo::builder()
        .req_path("/socket.io")
        .transports([socketioxide::TransportType::Websocket])
        .ping_interval(settings.ping_interval)
        .ping_timeout(settings.ping_timeout)
        .connect_timeout(settings.connect_timeout)
        .max_payload(settings.max_bytes as u64)
        .ws_max_message_size(settings.max_bytes)
        .ws_max_frame_size(settings.max_bytes)
        .with_parser(parser)
        .max_buffer_size(BUFFER)
        .build_layer();
    let (checking, joining) = (state.clone(), state.clone());
    let check = move |socket: SocketRef, TryData(auth): TryData<Auth>| {
        let state = checking.clone();
        async move { handshake::check(&state, &socket, auth.unwrap_or_default()).await }
    };
    let join = move |socket: SocketRef| {
        let state = joining.clone();
        async move { session::run(&state, socket).await }
    };
    io.ns("/", join.with(check));
    let pending = Pending::new(state.settings.connections.connections);
    let router = router
        .layer(layer)
        .layer(axum::middleware::from_fn_with_state(pending, handshake::admit));
    (router, io)
}
