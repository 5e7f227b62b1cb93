//! `GET /v1/messages/{id}`, and a message as the API shows it.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::http::budget::Family;
use crate::http::state::State;
use crate::http::{answer, auth};
use crate::site_db::messages::{self, MessageRow};

/// `GET /v1/messages/{id}`: a message that this client submitted.
pub(super) async fn get(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(client) = auth::client(&state.settings.tokens, &headers, &uri) else {
        return answer::plain_unauthorized();
    };
    let not_found = || answer::plain_error(StatusCode::NOT_FOUND, "not_found", "there is no such message", None);
    let Ok(id) = Uuid::try_parse(&id) else {
        return not_found();
    };
    let Ok(_place) = state.budgets.client_place(Family::Api, &client.name) else {
        return answer::busy(&uri);
    };
    match messages::find(&state.pool, id).await {
        Ok(Some(found))
            if found.client_name.as_ref() == Some(&client.name) && client.may_use(found.phone_number_id.as_str()) =>
        {
            Json(message(&found)).into_response()
        }
        // Another client's message is answered as if it did not exist: this client must not learn its recipient.
        Ok(_) => not_found(),
        Err(error) => {
            answer::log_unavailable(&error);
            answer::plain_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "storage_unavailable",
                "the database is not available; try again",
                None,
            )
        }
    }
}

/// A message as the API shows it.
pub(super) fn message(message: &MessageRow) -> Value {
    let at = |at: Option<OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok());
    let mut shown = json!({
        "id": message.id,
        "status": message.status.as_str(),
        "direction": message.direction.as_str(),
        "type": message.kind,
        "phone_number_id": message.phone_number_id,
        "to": message.recipient,
        "wamid": message.wamid,
        "conversation_id": message.conversation_id,
        "lead_id": message.lead_id,
        "client_id": message.client_id,
        "attempt": message.attempt,
        "created_at": at(Some(message.created_at)),
    });
    for (step, time) in [
        ("sending_at", message.sending_at),
        ("accepted_at", message.accepted_at),
        ("held_at", message.held_at),
        ("sent_at", message.sent_at),
        ("delivered_at", message.delivered_at),
        ("read_at", message.read_at),
        ("played_at", message.played_at),
        ("failed_at", message.failed_at),
        ("unknown_at", message.unknown_at),
        ("cancelled_at", message.cancelled_at),
    ] {
        if let Some(time) = at(time) {
            shown[step] = json!(time);
        }
    }
    if !message.status.is_settled() {
        shown["next_attempt_at"] = json!(at(message.next_attempt_at));
    }
    if message.error_code.is_some() || message.error_class.is_some() {
        shown["error"] = json!({
            "code": message.error_code,
            "class": message.error_class,
            "message": message.error_message,
        });
    }
    shown
}
