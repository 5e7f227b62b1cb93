//! All routes of the public listener: merges the families, and adds the layers that all requests pass.

use axum::Router;
use axum::extract::DefaultBodyLimit;

use super::state::State;
use super::{access, answer, around, events, media, messages, pages, passthrough, send, webhook};

/// The routes. A family's own layers (limits, time-outs) belong into its `router`.
pub(super) fn router(state: State) -> Router {
    let cors = access::cors(&state.settings.cors_origins);
    let router = Router::new()
        .merge(webhook::router())
        .merge(send::router())
        .merge(messages::router())
        .merge(events::router())
        .merge(pages::router())
        .merge(media::router())
        // All other paths: calls of the Graph API that are passed on, or 404.
        .fallback(passthrough::call)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(DefaultBodyLimit::max(state.settings.max_body_bytes))
        .layer(axum::middleware::from_fn(around::around))
        .with_state(state);
    // Outside of everything: a browser's question before a call has no token.
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}
