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

use super::body::BodyError;
use super::budget::Family;
use super::state::State;
use super::summed::{self, Line};
use super::{answer, auth, limits};
use crate::inbox::ReceiveError;
use crate::metrics;
use crate::provider::callback::SignatureError;
use crate::provider::cloud::{probe, signature};
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
        let configured = expected.is_some();
        summed::write(Line::Handshake, move |times| {
            tracing::warn!(
                configured,
                times,
                hint = "compare whatsapp.verify_token with the verify token in Meta's dashboard",
                "WEBHOOK: a handshake was refused"
            );
        });
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
    let body = match state.bodies.read_unsigned(request).await {
        Ok(body) => body,
        Err(error) => return not_read(error),
    };
    let Ok(_place) = state.budgets.place(Family::Webhook) else {
        return busy();
    };
    // Milliseconds after the start: an event that is stored now would not be kept for a new subscriber.
    if !state.noted.all() {
        metrics::count_refused_webhook("starting");
        return refused_for_now();
    }
    let claimed = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
    if probe::is_probe(&body.bytes) {
        return probed(state.inbox.check_probe(claimed, &body.bytes));
    }
    match state.inbox.receive(claimed, body.bytes.clone()).await {
        Ok(_) => StatusCode::OK.into_response(),
        Err(ReceiveError::Forged(error)) => forged(error, body.bytes.len()),
        Err(ReceiveError::Busy) => busy(),
        Err(ReceiveError::NotStored(error)) => not_stored(&error),
    }
}

/// The answer to the probe of `twinlog doctor`, which is no event: nothing is stored, counted or logged.
fn probed(checked: Result<(), SignatureError>) -> Response {
    match checked {
        Ok(()) => probe::ANSWER.into_response(),
        Err(error) => answer::plain_error(StatusCode::UNAUTHORIZED, "signature", &error.to_string(), None),
    }
}

fn not_read(error: BodyError) -> Response {
    let (reason, hint) = match error {
        BodyError::TooLarge => (
            "too_large",
            "http.max_body_bytes must be above 3 MB, the most that Meta sends",
        ),
        BodyError::Unreadable => ("unreadable", "the connection broke; Meta sends the event again"),
        BodyError::TooSlow => ("too_slow", "this is not Meta, or a proxy holds its requests back"),
        BodyError::NoRoom => (
            "no_room",
            "somebody sends many large requests at once: let a proxy limit each address",
        ),
    };
    metrics::count_refused_webhook(reason);
    summed::write(Line::Webhook(reason), move |times| {
        tracing::error!(times, hint, "WEBHOOK: refused: {}", error.message());
    });
    answer::plain_body_error(error)
}

fn forged(error: SignatureError, bytes: usize) -> Response {
    let reason = match error {
        SignatureError::Missing => "no_signature",
        SignatureError::Malformed => "malformed_signature",
        SignatureError::Wrong => "wrong_signature",
        SignatureError::NoSecret => "no_app_secret",
    };
    metrics::count_refused_webhook(reason);
    summed::write(Line::Webhook(reason), move |times| {
        tracing::warn!(times, bytes, hint = error.hint(), "WEBHOOK: refused: {error}");
    });
    answer::plain_error(
        StatusCode::UNAUTHORIZED,
        "signature",
        "the signature is not right",
        None,
    )
}

fn busy() -> Response {
    metrics::count_refused_webhook("busy");
    summed::write(Line::Webhook("busy"), |times| {
        tracing::error!(
            times,
            "WEBHOOK: too many events wait to be stored; Meta will send this one again"
        );
    });
    refused_for_now()
}

fn not_stored(error: &SiteError) -> Response {
    metrics::count_refused_webhook("not_stored");
    let (sqlstate, hint, error) = (
        error.sqlstate().to_owned(),
        error.hint().map(str::to_owned),
        error.to_string(),
    );
    summed::write(Line::Webhook("not_stored"), move |times| {
        tracing::error!(
            sqlstate,
            times,
            hint = hint.as_deref(),
            "WEBHOOK: an event was not stored, Meta will send it again: {error}"
        );
    });
    refused_for_now()
}

/// 503, after which Meta sends the event again, for up to seven days.
fn refused_for_now() -> Response {
    answer::soon_if_busy(answer::plain_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "storage_unavailable",
        "the event was not stored; send it again",
        None,
    ))
}
