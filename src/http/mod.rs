//! The public listener: routes by family, authentication, limits; and the server put together from its parts.
//!
//! | module | its job |
//! |---|---|
//! | [`server`] | the whole server: pool, outbox, inbox, listener, and their common end |
//! | `router` | all routes, and what is around every request |
//! | `webhook` | Meta's handshake and events |
//! | `send` | the Graph-compatible send |
//! | `messages` | the plain JSON API |
//! | `passthrough` | other Graph calls, passed through |
//! | `state` | what the routes share |
//! | `auth` | which client a request is from |
//! | `client_id` | the client's own id for a message |
//! | `limits` | how many, how long, how much |
//! | `connections` | the listener's connections, bounded in number and idle time |
//! | `around` | around every request: id, log line, time-out, panics |
//! | `forward` | a call handed on to the Graph API |
//! | `answer` | answers and errors in both shapes |
//!
//! A family of routes is a module with a `router()` of its own, merged in `router`; those to come (events, conversations,
//! subscribers, a second provider's webhook) are siblings of `messages`. It decides nothing about messages: it reads
//! requests, asks the [`outbox`](crate::outbox) or the [`inbox`](crate::inbox), and puts their words into the shape that the
//! client knows. TLS is a proxy's job.

mod answer;
mod around;
mod auth;
mod client_id;
mod connections;
mod forward;
mod limits;
mod messages;
mod passthrough;
mod router;
mod send;
pub mod server;
mod state;
mod webhook;

pub use server::{ServerError, run_server};
