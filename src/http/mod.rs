//! The public listener: routes, authentication, limits; and the server put together from its parts.
//!
//! | module | its job |
//! |---|---|
//! | [`server`] | the whole server: pool, outbox, inbox, listener, and their common end |
//! | `auth` | which client a request is from |
//! | `graph` | the Graph-compatible send |
//! | `passage` | other Graph calls, passed through |
//! | `plain` | the plain JSON API |
//! | `webhook` | Meta's handshake and events |
//! | `answer` | answers and errors in both shapes |
//! | `connections` | the listener's bounds |
//! | `layers` | around every request: id, log line, time-out, panics |
//!
//! It decides nothing about messages: it reads requests, asks the [`outbox`](crate::outbox) or the
//! [`inbox`](crate::inbox), and puts their words into the shape that the client knows. TLS is a proxy's job.

mod answer;
mod auth;
mod connections;
mod graph;
mod layers;
mod passage;
mod plain;
pub mod server;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::shutdown;
use crate::site_db::Pool;

pub use server::{ServerError, run_server};

/// Most requests to send that may wait at a time: each holds its body (a few KB as a rule) and a look at the Site DB
/// now and then. Beyond it clients are told to come back, before anything is stored.
const MAX_WAITING: usize = 2048;

/// What the routes share.
#[derive(Debug, Clone)]
pub struct State(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    pool: Pool,
    outbox: Outbox,
    inbox: Inbox,
    waiting: Semaphore,
}

impl State {
    /// Puts the parts together.
    #[must_use]
    pub fn new(config: Arc<Config>, pool: Pool, outbox: Outbox, inbox: Inbox) -> Self {
        Self(Arc::new(Shared {
            config,
            pool,
            outbox,
            inbox,
            waiting: Semaphore::new(MAX_WAITING),
        }))
    }
}

/// All routes of the public listener.
pub fn router(state: State) -> Router {
    let max_body_bytes = state.0.config.http.max_body_bytes;
    Router::new()
        .route("/{version}/{phone_number_id}/messages", post(graph::send))
        .route("/v1/messages", post(plain::send))
        .route("/v1/messages/{id}", get(plain::show))
        .route("/webhook", get(webhook::handshake).post(webhook::receive))
        .fallback(passage::call)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(axum::middleware::from_fn(layers::around))
        .with_state(state)
}

/// Serves the public listener until the stop; then requests under way have [`shutdown::GRACE`] to end.
pub async fn serve(listener: TcpListener, state: State, stop: CancellationToken) {
    let serving = connections::serve(listener, router(state), connections::SILENCE, stop.clone());
    let out_of_time = async {
        stop.cancelled().await;
        tokio::time::sleep(shutdown::GRACE + Duration::from_secs(1)).await;
    };
    tokio::select! {
        () = serving => {}
        () = out_of_time => {}
    }
}
