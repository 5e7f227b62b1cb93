//! `POST /functions/v1/whatsapp-send`: what a Supabase front end calls as `supabase.functions.invoke("whatsapp-send", …)`, with
//! `{action: "send_message", to, message, user_id}`.
//!
//! The text goes the way of the plain API, and the answer comes when it is sent: `{success, message_id, status, …}`. An error has a
//! status that is none of success, as the library wants it, and `{success: false, error, code}`; also where Meta has refused the
//! message, where it could not be sent in time and is cancelled (503, `not_sent`), where Meta refuses the number's messages (422,
//! `number_held`), and where it is not known whether it was sent (409, `outcome_unknown`; the same call again sends nothing then). A library's `apikey` header is not looked at: the token is in `Authorization`.

use axum::Json;
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::access::{Denied, USERS, Viewer, Who};
use crate::http::budget::Family;
use crate::http::state::State;
use crate::http::{answer, auth, client_id, messages};

/// Longest answer of the plain API.
const ANSWER: usize = 256 * 1024;

/// What the front end says. Other members are its own.
#[derive(Debug, Deserialize)]
struct Call {
    action: String,
    to: Option<Value>,
    message: Option<String>,
    phone_number_id: Option<String>,
    lead_id: Option<String>,
    client_id: Option<String>,
    user_id: Option<Value>,
}

pub(super) async fn post(
    Extract(state): Extract<State>,
    uri: Uri,
    headers: HeaderMap,
    // The body is read only after the token was checked.
    request: Request,
) -> Response {
    let viewer = match state.access.viewer(auth::bearer(&headers).as_deref()).await {
        Ok(viewer) => viewer,
        Err(denied) => return shaped(Denied::into_response(denied)).await,
    };
    let Some(client) = state.access.sender(&viewer) else {
        let message = "users may look and not send; auth.jwt_users decides that";
        return shaped(answer::plain_error(StatusCode::FORBIDDEN, "forbidden", message, None)).await;
    };
    let body = match state.bodies.read_clients(request).await {
        Ok(body) => body,
        Err(error) => return shaped(answer::plain_body_error(error)).await,
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, &client.name) else {
        return shaped(answer::busy(&uri)).await;
    };
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let call = match serde_json::from_slice(&body.bytes) {
        Ok(call) => plain(call, &viewer, key),
        Err(_) => Err("the body must be as in {\"action\": \"send_message\", \"to\": \"+49…\", \"message\": \"…\"}"),
    };
    let call = match call {
        Ok(call) => call,
        Err(what) => return shaped(answer::plain_error(StatusCode::BAD_REQUEST, "malformed", what, None)).await,
    };
    match messages::send(&state, &client, &call).await {
        Ok(response) | Err(response) => shaped(response).await,
    }
}

/// The call as a request to the plain API.
fn plain(call: Call, viewer: &Viewer, key: Option<&str>) -> Result<Value, &'static str> {
    if call.action != "send_message" {
        return Err("the only action is \"send_message\"");
    }
    let Some(message) = call.message else {
        return Err("message, the text, is missing");
    };
    let own = call.client_id.as_deref().or(key);
    // All users are one client: their ids for messages are kept apart.
    let client_id = match (own, &viewer.who) {
        (Some(id), Who::User(user)) => Some(format!("{user}/{id}")),
        (id, _) => id.map(ToOwned::to_owned),
    };
    // A user's token says who writes; a server that calls for its users says it itself.
    let person = match (&viewer.who, call.user_id) {
        (Who::User(user), _) => Some(user.clone()),
        (Who::Client(_), None | Some(Value::Null)) => None,
        (Who::Client(_), Some(Value::String(user))) => Some(user).filter(|user| !user.is_empty()),
        (Who::Client(_), Some(user)) => Some(user.to_string()),
    };
    // Whatever the front end calls them, a person wrote it.
    let person = person.map(|person| {
        if client_id::is_valid(&person) {
            person
        } else {
            USERS.to_owned()
        }
    });
    Ok(json!({
        "user_id": person,
        "to": call.to,
        "text": message,
        "phone_number_id": call.phone_number_id,
        "lead_id": call.lead_id,
        "client_id": client_id,
        "wait": true,
    }))
}

/// An answer of the plain API in the shape of this route.
async fn shaped(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, ANSWER).await.unwrap_or_default();
    let mut said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let failed = ["failed", "cancelled"].contains(&said["status"].as_str().unwrap_or_default());
    let shown = if head.status.is_success() && !failed {
        said["success"] = json!(true);
        said["message_id"] = said["id"].clone();
        said
    } else {
        let message = said["error"]["message"]
            .as_str()
            .unwrap_or("the message was not sent")
            .to_owned();
        if head.status.is_success() {
            head.status = StatusCode::UNPROCESSABLE_ENTITY;
        }
        json!({
            "success": false,
            "error": message,
            "code": said["error"]["code"],
            "field": said["error"]["field"],
            "message_id": said["id"],
            "status": said["status"],
        })
    };
    // It has another length now.
    head.headers.remove(axum::http::header::CONTENT_LENGTH);
    head.headers.remove(axum::http::header::CONTENT_TYPE);
    (head.status, head.headers, Json(shown)).into_response()
}
