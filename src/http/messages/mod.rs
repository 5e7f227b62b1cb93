//! The plain JSON API: `POST /v1/messages` and `GET /v1/messages/{id}`.
//!
//! The request:
//!
//! | field | |
//! |---|---|
//! | `to` | the recipient: an international number in any usual format, or a business-scoped user id; may be left out with `lead_id` |
//! | `lead_id` | the lead that the message belongs to; without it the recipient's lead, found or created |
//! | `type` | Meta's type; `text` where there is a `text` |
//! | `text` | the text, or Meta's object for it |
//! | `template`, `image`, … | Meta's object for the type |
//! | `reply_to` | wamid of the quoted message |
//! | `client_id` | the caller's id for the message (or the `Idempotency-Key` header): the same request again sends nothing, another request with the same id is an error |
//! | `user_id` | the person who wrote the message: takes the conversation over |
//! | `phone_number_id` | the number to send from; may be left out if there is only one |
//! | `wait` | `true` or milliseconds: answer when the message is settled, at the latest after that time |
//!
//! The answer is the message: 200 if it is settled, 202 if it is on its way; a stored message is sent, however long that
//! takes. Errors are `{"error":{"code","message","field"?}}`, and leave no row.
//!
//! | file | its job |
//! |---|---|
//! | `post` | `POST /v1/messages` |
//! | `at_once` | the answer for a message that is sent while its client waits, or never |
//! | `read` | its request, field by field |
//! | `recipient` | who a message is for |
//! | `graph_body` | the request in Meta's format |
//! | `request_error` | why a request is refused |
//! | `show` | `GET /v1/messages/{id}`, and a message as the API shows it |

mod at_once;
mod graph_body;
mod post;
mod read;
mod recipient;
mod request_error;
mod show;

use axum::Router;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing;
use serde_json::Value;

use super::state::State;
use crate::config::ApiToken;

/// Sends what a request to the plain API says, for a client that waits: now or never. `Err`: the answer to a request that left no row.
pub(super) async fn send(state: &State, client: &ApiToken, request: &Value) -> Result<Response, Response> {
    let request = read::read(
        request.to_string().as_bytes(),
        &HeaderMap::new(),
        state.settings.send_wait,
    );
    let request = request.map_err(IntoResponse::into_response)?;
    post::take(state, client, request, post::Otherwise::Never).await
}

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/v1/messages", routing::post(post::post))
        .route("/v1/messages/{id}", routing::get(show::get))
}
