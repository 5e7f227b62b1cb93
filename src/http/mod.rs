//! The public listener: routes by family, authentication, limits; and the start of the whole server.
//!
//! | module | its job |
//! |---|---|
//! | [`server`] | starts and ends the whole server: pool, outbox, inbox, listener |
//! | `router` | all routes, and the layers that all requests pass |
//! | `webhook` | Meta's handshake and events |
//! | `send` | the Graph-compatible send |
//! | `messages` | the plain JSON API |
//! | `events` | what happens, as server-sent events |
//! | `socket_io` | the same for clients of Socket.IO |
//! | `front_end` | the health of a number, and the logs of pages |
//! | `pages` | conversations, messages and leads, in pages |
//! | `passthrough` | other Graph calls, passed through |
//! | `media` | media, streamed to and from Meta |
//! | `state` | the state that all routes share |
//! | `auth` | which client a request is from |
//! | `access` | who may look: a client, or a user with a JSON Web Token; and from which web pages |
//! | `quotes` | whether a client may answer or quote a message |
//! | `media_link` | links to media: signed, checked |
//! | `form` | forms with files, checked while they pass |
//! | `client_id` | the client's own id for a message |
//! | `limits` | bounds on number, time and size |
//! | `listener` | the connections, bounded in number and time: idle and slow ones make room |
//! | `listener_places` | how many may listen to events |
//! | `budget` | how many requests of each family are answered at a time |
//! | `body` | reads a request's body, bounded in bytes and time |
//! | `around` | layers for every request: id, log line, time-out, panics |
//! | `summed` | log lines that come at any rate, summed up |
//! | `answer` | answers and errors in both shapes |
//!
//! A family of routes is a module with a `router()` of its own, merged in `router`; new families (events, conversations,
//! subscribers, a second provider's webhook) go beside `messages`. Nothing is decided about messages here: a route reads a
//! request, calls the [`outbox`](crate::outbox) or the [`inbox`](crate::inbox), and puts the result into the shape that the
//! client knows. TLS is left to a proxy.

mod access;
mod answer;
mod around;
mod auth;
mod body;
mod budget;
mod client_id;
mod events;
mod form;
mod front_end;
mod limits;
mod line_rates;
pub(crate) mod listener;
mod listener_places;
mod media;
mod media_link;
mod messages;
mod pages;
mod passthrough;
mod quotes;
mod router;
mod send;
pub mod server;
mod socket_io;
mod state;
mod summed;
mod webhook;

pub use server::{ServerError, run_server};
