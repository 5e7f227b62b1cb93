//! All routes of the public listener: merges the families, and adds the layers that all requests pass.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use socketioxide::SocketIo;

use super::state::State;
use super::{access, answer, around, events, front_end, media, messages, pages, passthrough, send, socket_io, webhook};

/// The routes, and Socket.IO beside them, which closes its connections when it is told to. A family's own layers (limits, time-outs) belong into its `router`.
pub(super) fn router(state: State) -> (Router, SocketIo) {
    let cors = access::cors(&state.settings.cors_origins);
    let router = Router::new()
        .merge(webhook::router())
        .merge(send::router())
        .merge(messages::router())
        .merge(events::router())
        .merge(front_end::router())
        .merge(pages::router())
        .merge(media::router())
        // All other paths: calls of the Graph API that are passed on, or 404.
        .fallback(passthrough::call)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(DefaultBodyLimit::max(state.settings.max_body_bytes))
        .layer(axum::middleware::from_fn(around::around))
        .with_state(state.clone());
    let (router, socket_io) = socket_io::beside(router, &state);
    // Outside of everything: a browser's question before a call has no token.
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    (router, socket_io)
}
