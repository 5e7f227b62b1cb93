//! `GET /v1/events`: what happens, as server-sent events, in the order of the commits, to everybody who may see it.
//!
//! ```text
//! id: 81-3-4294967295-1767225600123456      where the listener is now
//! event: message.created                    message.status, conversation.updated, lead.updated, notification.created
//! data: {"message":{…},"conversation":{…}}
//! ```
//!
//! A browser that comes back sends the last `id`, and gets everything after it, from any server, as long as the events are kept
//! (`events.keep_hours`). If they are not, it gets the event `reload`: load the pages anew; everything after that comes. What is
//! told is the row as it is when it is read, so an older event may show a newer row; `status` is what the event itself says.
//!
//! | file | its job |
//! |---|---|
//! | `request` | the parameters |
//! | `stream` | the text of the events |

mod request;
mod stream;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing;
use std::sync::Arc;

use self::request::Listen;
use super::access::Denied;
use super::listener::Tracked;
use super::state::State;
use super::{answer, auth};
use crate::metrics;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new().route("/v1/events", routing::get(get))
}

async fn get(Extract(state): Extract<State>, uri: Uri, headers: HeaderMap, request: Request) -> Response {
    // Browsers can't set a header here.
    let token = auth::bearer(&headers).or_else(|| auth::query(&uri, "access_token"));
    let viewer = match state.access.viewer(token.as_deref()).await {
        Ok(viewer) => viewer,
        Err(denied) => return Denied::into_response(denied),
    };
    let listen = match Listen::read(&uri, &headers, &viewer) {
        Ok(listen) => listen,
        Err(wrong) => return wrong.into_response(),
    };
    let Some(place) = state.listeners.take(&viewer.who) else {
        metrics::count_listener_events("refused", 1);
        return answer::busy(&uri);
    };
    if let Some(connection) = request.extensions().get::<Arc<Tracked>>() {
        connection.listens();
    }
    let listening = state.hub.listen(listen.filter, listen.begin);
    let body = Body::from_stream(stream::events(listening, place, viewer.valid_for));
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        // It is not counted among the connections of requests, so it must not become one again.
        (CONNECTION, "close"),
        // Proxies that collect an answer before they pass it on (nginx) must not.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}
