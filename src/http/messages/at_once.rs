//! A message that is sent while its client waits, or never: its client shows "sent" or "not sent", and nothing between.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::show;
use crate::http::answer;
use crate::http::state::State;
use crate::outbox::{Delivered, Submitted};
use crate::site_db::messages::MessageRow;
use crate::site_db::{MessageStatus, SiteError};

/// The answer once it is sent, or will not be.
pub(super) async fn answered(state: &State, submitted: Submitted) -> Response {
    let (id, duplicate) = (submitted.id, submitted.is_duplicate());
    let delivered = state.outbox.wait_or_cancel(submitted).await;
    let (id, mut response) = match delivered {
        Ok(Some(Delivered::Known(message))) => (message.id, known(&message, duplicate)),
        Ok(Some(Delivered::Cancelled(message))) => (message.id, cancelled(&message)),
        Ok(Some(Delivered::Held(message, hold))) => {
            let reason = format!(
                "Meta refuses to send for this number (code {}): {}",
                hold.code, hold.reason
            );
            let response = failed(&message, StatusCode::UNPROCESSABLE_ENTITY, "number_held", &reason);
            (message.id, response)
        }
        Ok(None) => (id, not_known(None, "its row was deleted")),
        Err(error) => (id, gone(&error)),
    };
    if response.status().is_server_error() {
        response = answer::soon_if_busy(response);
    }
    answer::about(id, response)
}

fn known(message: &MessageRow, duplicate: bool) -> Response {
    use MessageStatus::{Pending, Sending, Unknown};
    if matches!(message.status, Unknown | Pending | Sending) {
        let why = message.error_message.as_deref();
        return not_known(Some(message), why.unwrap_or("its answer is not there yet"));
    }
    let mut shown = show::message(message);
    if duplicate {
        shown["duplicate"] = json!(true);
    }
    Json(shown).into_response()
}

fn cancelled(message: &MessageRow) -> Response {
    let why = message
        .error_message
        .as_deref()
        .unwrap_or("it could not be sent in time");
    let said = format!("the message was not sent and will not be sent later ({why}): try again");
    failed(message, StatusCode::SERVICE_UNAVAILABLE, "not_sent", &said)
}

/// It may have been sent.
fn not_known(message: Option<&MessageRow>, why: &str) -> Response {
    let said = format!(
        "it is not known whether the message was sent ({why}); do not send it anew: the same call sends nothing for 15 minutes, while that \
         is not known"
    );
    match message {
        Some(message) => failed(message, StatusCode::CONFLICT, "outcome_unknown", &said),
        None => answer::plain_error(StatusCode::CONFLICT, "outcome_unknown", &said, None),
    }
}

fn gone(error: &Arc<SiteError>) -> Response {
    answer::log_unavailable(error);
    not_known(None, "the database went away while it was being sent")
}

fn failed(message: &MessageRow, status: StatusCode, code: &str, said: &str) -> Response {
    let mut shown = show::message(message);
    shown["error"] = json!({"code": code, "message": said});
    (status, Json(shown)).into_response()
}
