//! Meta's handshake and events.
//!
//! Meta gets a 200 only after the event's exact bytes are committed; after any other answer it tries again for seven days.

use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::ExposeSecret;

use super::state::State;
use super::{answer, auth, limits};
use crate::inbox::ReceiveError;
use crate::provider::cloud::signature;
use crate::site_db::SiteError;

/// The routes.
pub(super) fn router() -> Router<State> {
    Router::new().route("/webhook", get(handshake).post(receive))
}

/// `GET`: Meta checks that this server knows the verify token from its dashboard.
async fn handshake(Extract(state): Extract<State>, uri: Uri) -> Response {
    let expected = state.settings.verify_token.as_ref();
    let asked = |name| auth::query(&uri, name).unwrap_or_default();
    let genuine = expected.is_some_and(|token| auth::same(token.expose_secret(), &asked("hub.verify_token")));
    let challenge = asked("hub.challenge");
    if !genuine || asked("hub.mode") != "subscribe" || challenge.len() > limits::MAX_CHALLENGE {
        tracing::warn!(
            configured = expected.is_some(),
            hint = "compare whatsapp.verify_token with the verify token in Meta's dashboard",
            "WEBHOOK: a handshake was refused"
        );
        return answer::plain_error(
            StatusCode::FORBIDDEN,
            "forbidden",
            "the verify token is not this server's",
            None,
        );
    }
    tracing::info!("WEBHOOK: Meta's handshake succeeded");
    // The challenge alone, unquoted, and as plain text: a browser must not read it as HTML.
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], challenge).into_response()
}

/// `POST`: an event. The signature is over the exact bytes, so nothing parses them before it is checked.
async fn receive(Extract(state): Extract<State>, headers: HeaderMap, request: Request) -> Response {
    let body = match limits::body(request).await {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(
                status = error.status().as_u16(),
                hint = "http.max_body_bytes must be above 3 MB, the most that Meta sends",
                "WEBHOOK: {}",
                error.message()
            );
            return answer::plain_body_error(error);
        }
    };
    let claimed = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
    match state.inbox.receive(claimed, body.clone()).await {
        Ok(_) => StatusCode::OK.into_response(),
        Err(ReceiveError::Forged(error)) => {
            tracing::warn!(hint = error.hint(), bytes = body.len(), "WEBHOOK: refused: {error}");
            answer::plain_error(
                StatusCode::UNAUTHORIZED,
                "signature",
                "the signature is not right",
                None,
            )
        }
        Err(ReceiveError::Busy) => {
            tracing::error!("WEBHOOK: too many events wait to be stored; Meta will send this one again");
            refused_for_now()
        }
        Err(ReceiveError::NotStored(error)) => not_stored(&error),
    }
}

fn not_stored(error: &SiteError) -> Response {
    tracing::error!(
        sqlstate = error.sqlstate(),
        hint = error.hint(),
        "WEBHOOK: an event was not stored, Meta will send it again: {error}"
    );
    refused_for_now()
}

/// 503, after which Meta sends the event again, for up to seven days.
fn refused_for_now() -> Response {
    answer::plain_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "storage_unavailable",
        "the event was not stored; send it again",
        None,
    )
}
