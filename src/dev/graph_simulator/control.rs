//! `/_simulator/…`: the handle's switches as HTTP routes, for a person with curl or a test in another process.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::actions;
use super::fault::{ActiveFault, Fault};
use super::webhooks::{History, IdentityChange, Inbound, samples};
use super::world::World;

/// The control routes, for people: method, path, what it does and takes.
pub const CONTROL_ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/_simulator", "numbers, faults, callback, what is pending"),
    (
        "GET",
        "/_simulator/ledger",
        "every message that was accepted, with the statuses reported",
    ),
    (
        "POST",
        "/_simulator/inbound",
        r#"a user writes: {"phone_number_id": "…", "text": "Hello"}"#,
    ),
    (
        "POST",
        "/_simulator/faults",
        r#"sends fail: {"phone_number_id": "…", "fault": {"kind": "accept_then_hang"}, "times": 1}; "to": "…" for one recipient"#,
    ),
    (
        "POST",
        "/_simulator/identity",
        r#"a user has other ids: {"phone_number_id": "…", "from": "…", "to": "…", "previous_user_id": "…", "user_id": "…"}"#,
    ),
    (
        "POST",
        "/_simulator/history",
        r#"what was said before: {"phone_number_id": "…", "user": "…", "texts": 10}"#,
    ),
    ("DELETE", "/_simulator/faults", "sends work again: ?phone_number_id=…"),
    (
        "POST",
        "/_simulator/tokens",
        r#"its token expires: {"phone_number_id": "…"}; or gets a new one: "access_token": "…""#,
    ),
    (
        "POST",
        "/_simulator/callback",
        r#"webhooks go there: {"url": "http://127.0.0.1:8080/webhook"}"#,
    ),
    (
        "POST",
        "/_simulator/webhooks",
        r#"hold them back, or bundle them: {"paused": true, "batch": 100}"#,
    ),
    (
        "POST",
        "/_simulator/handshake",
        "verify the callback as Meta's dashboard does",
    ),
];

/// The control routes.
pub(super) fn router() -> Router<Arc<World>> {
    Router::new()
        .route("/_simulator", get(overview))
        .route("/_simulator/ledger", get(ledger))
        .route("/_simulator/faults", post(set_fault).delete(clear_faults))
        .route("/_simulator/inbound", post(inbound))
        .route("/_simulator/identity", post(change_identity))
        .route("/_simulator/history", post(history))
        .route("/_simulator/callback", post(set_callback))
        .route("/_simulator/webhooks", post(set_webhooks))
        .route("/_simulator/tokens", post(set_token))
        .route("/_simulator/handshake", post(handshake))
}

async fn overview(State(world): State<Arc<World>>) -> Json<Value> {
    let numbers: Vec<_> = world
        .numbers()
        .values()
        .map(|number| {
            json!({"phone_number_id": number.account.phone_number_id, "waba_id": number.account.waba_id,
                   "display_phone_number": number.account.display_phone_number,
                   "token_expired": number.expired, "faults": number.faults})
        })
        .collect();
    Json(
        json!({"numbers": numbers, "callback": world.callback().map(String::from), "updates_pending": world.pending(),
        "paused": *world.paused.borrow(), "accepted": world.ledger().messages.len(), "samples": samples::KINDS}),
    )
}

async fn ledger(State(world): State<Arc<World>>) -> Json<Value> {
    let ledger = world.ledger();
    Json(json!({"messages": ledger.messages, "received": ledger.received, "duplicates": ledger.duplicates()}))
}

#[derive(Deserialize)]
struct SetFault {
    phone_number_id: String,
    fault: Fault,
    to: Option<String>,
    times: Option<u32>,
}

async fn set_fault(State(world): State<Arc<World>>, Json(request): Json<SetFault>) -> Response {
    let active = ActiveFault {
        fault: request.fault,
        to: request.to,
        remaining: request.times,
    };
    done(actions::set_fault(&world, &request.phone_number_id, active))
}

#[derive(Deserialize)]
struct OfNumber {
    phone_number_id: String,
}

async fn clear_faults(State(world): State<Arc<World>>, Query(request): Query<OfNumber>) -> Response {
    done(actions::clear_faults(&world, &request.phone_number_id))
}

#[derive(Deserialize)]
struct FromUser {
    phone_number_id: String,
    from: Option<String>,
    user_id: Option<String>,
    name: Option<String>,
    /// Of a sample; with `text`, it is a text.
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    /// The whole message.
    message: Option<Value>,
}

async fn inbound(State(world): State<Arc<World>>, Json(request): Json<FromUser>) -> Response {
    let from = request.from.clone().unwrap_or_else(|| "16505551234".to_owned());
    let mut inbound = match (&request.text, &request.kind) {
        (None, Some(kind)) => Inbound::sample(&request.phone_number_id, &from, kind),
        (text, _) => Inbound::text(&request.phone_number_id, &from, text.as_deref().unwrap_or("Hello")),
    };
    if let Some(message) = request.message {
        inbound.message = message;
    }
    if request.user_id.is_some() {
        inbound.from = request.from;
    }
    inbound.user_id = request.user_id;
    inbound.name = request.name.or(inbound.name);
    Json(json!({"wamid": actions::inbound(&world, &inbound).await})).into_response()
}

#[derive(Deserialize)]
struct OfUser<T> {
    phone_number_id: String,
    #[serde(flatten)]
    what: T,
}

async fn change_identity(State(world): State<Arc<World>>, Json(request): Json<OfUser<IdentityChange>>) -> Json<Value> {
    let wamid = actions::change_identity(&world, &request.phone_number_id, &request.what).await;
    Json(json!({ "wamid": wamid }))
}

async fn history(State(world): State<Arc<World>>, Json(request): Json<OfUser<History>>) -> Response {
    done(actions::history(&world, &request.phone_number_id, &request.what).await)
}

#[derive(Deserialize)]
struct Callback {
    url: Option<String>,
}

async fn set_callback(State(world): State<Arc<World>>, Json(request): Json<Callback>) -> Response {
    match request.url.as_deref().map(Url::parse).transpose() {
        Ok(url) => {
            world.set_callback(url);
            done(Ok(()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({"error": error.to_string()}))).into_response(),
    }
}

#[derive(Deserialize)]
struct Webhooks {
    paused: Option<bool>,
    batch: Option<usize>,
}

async fn set_webhooks(State(world): State<Arc<World>>, Json(request): Json<Webhooks>) -> Response {
    if let Some(paused) = request.paused {
        world.paused.send_replace(paused);
    }
    if let Some(batch) = request.batch {
        world.set_batch(batch);
    }
    done(Ok(()))
}

#[derive(Deserialize)]
struct Token {
    phone_number_id: String,
    /// A new one; without it, the present one expires.
    access_token: Option<String>,
}

async fn set_token(State(world): State<Arc<World>>, Json(request): Json<Token>) -> Response {
    done(match request.access_token {
        Some(token) => actions::set_token(&world, &request.phone_number_id, &token),
        None => actions::expire_token(&world, &request.phone_number_id),
    })
}

async fn handshake(State(world): State<Arc<World>>) -> Response {
    match actions::handshake(&world).await {
        Ok(()) => Json(json!({"success": true})).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, Json(json!({"error": error.to_string()}))).into_response(),
    }
}

fn done(result: Result<(), actions::UnknownNumber>) -> Response {
    match result {
        Ok(()) => Json(json!({"success": true})).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, Json(json!({"error": error.to_string()}))).into_response(),
    }
}
