//! The Graph-compatible send: `POST /v{N}.{m}/{phone_number_id}/messages`, as Meta's own.
//!
//! An existing client changes its base URL and its token, nothing else: requests, answers and errors are Meta's. What is
//! ours beyond that, all of it in Meta's error shape:
//!
//! | case | answer |
//! |---|---|
//! | our token is missing or wrong | 401, code 190 |
//! | the number is not configured | 400, code 100, subcode 33 |
//! | the body can't be a message | 400, codes 100, 131008, 131009; no row is left |
//! | not sent within `http.send_wait_ms` (rate limit, number held, errors that pass) | 503, code 131016; the row is `cancelled` and will never be sent, so trying again can't duplicate |
//! | it is not known whether it was sent | 504, code 131000; the row is `unknown` |
//! | the Site DB is down | 503, code 2; nothing was stored or sent |
//! | `Idempotency-Key` used before for another request, or for a message that an operator cancelled | 409, code 100 |
//!
//! With an `Idempotency-Key` header, the same request again gives the same row's answer, whatever became of the first:
//! only a row that was cancelled as above is sent then.

use axum::body::Bytes;
use axum::extract::{Path, Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::Response;
use serde_json::json;
use uuid::Uuid;

use super::{State, answer, auth};
use crate::outbox::{Call, Delivered, NewMessage, SubmitError};
use crate::provider::cloud::GraphError;
use crate::provider::cloud::send::{self, Request};
use crate::site_db::MessageStatus;
use crate::site_db::messages::{Message, WAIT_ELAPSED};

/// The client's id for its request.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest such id: an index row has its limit, and a uuid has 36 characters.
pub(super) const MAX_CLIENT_ID: usize = 255;

/// Whether a path segment is a version of the Graph API, `v26.0`.
pub(super) fn is_version(segment: &str) -> bool {
    let digits = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    segment
        .strip_prefix('v')
        .and_then(|version| version.split_once('.'))
        .is_some_and(|(major, minor)| digits(major) && digits(minor))
}

/// Whether a client's id for a message is one that we can keep.
pub(super) fn is_client_id(id: &str) -> bool {
    !id.is_empty() && id.chars().count() <= MAX_CLIENT_ID && !id.contains(char::is_control)
}

/// The route.
pub(super) async fn send(
    Extract(state): Extract<State>,
    Path((version, phone_number_id)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    // Its body is read when we know from whom it is: strangers must not fill our memory.
    request: HttpRequest,
) -> Response {
    if !is_version(&version) {
        return answer::not_found(&uri);
    }
    let config = &state.0.config;
    let Some(client) = auth::client(&config.tokens, &headers, &uri) else {
        return unauthorized();
    };
    if !state.0.outbox.has_number(&phone_number_id) {
        return answer::graph_error(
            StatusCode::BAD_REQUEST,
            &GraphError::new(
                100,
                "Unsupported post request. Object does not exist, cannot be loaded due to missing permissions, or does \
                 not support this operation",
            )
            .with_subcode(33),
        );
    }
    let body = match answer::body(request).await {
        Ok(body) => body,
        Err((status, why)) => {
            return answer::graph_error(status, &GraphError::new(100, "Invalid parameter").with_details(why));
        }
    };
    let client_id = match headers.get(IDEMPOTENCY_KEY).map(|value| value.to_str()) {
        None => None,
        Some(Ok(id)) if is_client_id(id) => Some(id.to_owned()),
        Some(_) => {
            return bad_request(
                &GraphError::new(100, "Invalid parameter")
                    .with_details("the Idempotency-Key header must be 1 to 255 visible characters"),
            );
        }
    };
    let outbound = match send::read(&body) {
        Ok(Request::Message(outbound)) => outbound,
        Ok(Request::MarkAsRead { .. }) => return pass(&state, &phone_number_id, &version, body).await,
        Err(error) => return bad_request(&error),
    };
    let Ok(_waiting) = state.0.waiting.try_acquire() else {
        return answer::graph_error(
            StatusCode::SERVICE_UNAVAILABLE,
            &GraphError::new(2, "Service temporarily unavailable")
                .with_details("too many requests wait; nothing was stored or sent; try again"),
        );
    };
    let patience = config.http.send_wait;
    let submitted = state
        .0
        .outbox
        .submit(NewMessage {
            phone_number_id,
            request: body,
            outbound,
            client_name: client.to_owned(),
            client_id,
            lead_id: None,
            send_within: Some(patience),
            api_version: Some(version),
        })
        .await;
    let id = match submitted {
        Ok(submitted) => submitted.id,
        Err(SubmitError::ClientIdReused { id }) => {
            let error = GraphError::new(100, "Invalid parameter")
                .with_details("the Idempotency-Key was used for another request; use a new one for each message");
            return answer::about(id, answer::graph_error(StatusCode::CONFLICT, &error));
        }
        Err(SubmitError::Site(error)) => return answer::graph_unavailable(&error),
        // Neither can be here: the number was looked up, and no lead was named.
        Err(error @ (SubmitError::UnknownNumber | SubmitError::UnknownLead)) => {
            return bad_request(&GraphError::new(100, "Invalid parameter").with_details(error.to_string()));
        }
    };
    let response = match state.0.outbox.wait_or_cancel(id, patience).await {
        Ok(Some(Delivered::Known(message))) => known(&message),
        Ok(Some(Delivered::Cancelled(message))) => cancelled(&message),
        Ok(None) => unknown(id, "its row was deleted"),
        Err(error) => {
            answer::log_unavailable(&error);
            unknown(id, "the database went away while it was being sent")
        }
    };
    answer::about(id, response)
}

pub(super) fn unauthorized() -> Response {
    answer::graph_error(
        StatusCode::UNAUTHORIZED,
        &GraphError::new(190, "Invalid OAuth access token - Cannot parse access token")
            .with_details("the token is not one of this server's API tokens"),
    )
}

fn bad_request(error: &GraphError) -> Response {
    answer::graph_error(StatusCode::BAD_REQUEST, error)
}

/// Mark as read and typing: no message, so nothing is stored, and a lost answer does no harm.
async fn pass(state: &State, phone_number_id: &str, version: &str, body: Bytes) -> Response {
    let call = Call {
        method: Method::POST,
        path: format!("{version}/{phone_number_id}/messages"),
        content_type: Some("application/json".to_owned()),
        body,
    };
    passed_on(state, phone_number_id, call).await
}

pub(super) async fn passed_on(state: &State, phone_number_id: &str, call: Call) -> Response {
    match state.0.outbox.pass(phone_number_id, call).await {
        Ok(passed) => answer::passed(passed.status, passed.content_type.as_deref(), passed.body),
        Err(error) => {
            tracing::warn!(phone_number_id, "a call was not passed on: {error}");
            answer::graph_error(
                StatusCode::BAD_GATEWAY,
                &GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string()),
            )
        }
    }
}

/// The answer for a message that is settled, or was still under way at the end of all patience.
fn known(message: &Message) -> Response {
    use MessageStatus::{
        Accepted, Cancelled, Delivered, Failed, Held, Pending, Played, Read, Received, Sending, Sent, Unknown,
    };
    let stored = |success: bool| {
        let status = u16::try_from(message.response_status?).ok()?;
        let body = message.response.clone()?;
        let metas = if success {
            (200..300).contains(&status)
        } else {
            GraphError::from_body(body.as_bytes()).is_some()
        };
        metas.then(|| answer::passed(status, None, body))
    };
    match message.status {
        Accepted | Held | Sent | Delivered | Read | Played => stored(true).unwrap_or_else(|| echoed(message)),
        // It may have failed at once, or after Meta had taken it; then the answer to the send was a good one.
        Failed => stored(true)
            .or_else(|| stored(false))
            .unwrap_or_else(|| refused(message)),
        Cancelled => cancelled(message),
        Unknown | Pending | Sending | Received => unknown(
            message.id,
            message
                .error_message
                .as_deref()
                .unwrap_or("its answer is not there yet"),
        ),
    }
}

/// Meta's answer was lost, but its status webhook named the message.
fn echoed(message: &Message) -> Response {
    let body = json!({
        "messaging_product": "whatsapp",
        "contacts": [{"input": message.recipient}],
        "messages": [{"id": message.wamid}],
    });
    answer::passed(200, None, body.to_string())
}

/// Refused for good by something that is not the Graph API.
fn refused(message: &Message) -> Response {
    let error = GraphError::new(131_000, "Something went wrong").with_details(format!(
        "the message {} was not sent: {}",
        message.id,
        message.error_message.as_deref().unwrap_or("no reason was given")
    ));
    answer::graph_error(StatusCode::BAD_GATEWAY, &error)
}

fn cancelled(message: &Message) -> Response {
    if message.error_class.as_deref() != Some(WAIT_ELAPSED) {
        let error = GraphError::new(100, "Invalid parameter").with_details(format!(
            "The message {} was cancelled by an operator and will not be sent",
            message.id
        ));
        return answer::graph_error(StatusCode::CONFLICT, &error);
    }
    let why = match (message.error_code, &message.error_message) {
        (_, Some(reason)) => format!(" The last attempt brought: {reason}."),
        (Some(code), None) => format!(" The last attempt brought code {code}."),
        (None, None) => String::new(),
    };
    let error = GraphError::new(131_016, "Service unavailable").with_details(format!(
        "The message {} could not be sent in time. It is cancelled and will not be sent later: try again.{why}",
        message.id
    ));
    answer::graph_error(StatusCode::SERVICE_UNAVAILABLE, &error)
}

fn unknown(id: Uuid, why: &str) -> Response {
    let error = GraphError::new(131_000, "Something went wrong").with_details(format!(
        "It is not known whether the message {id} was sent: {why}. It is recorded and settled by its status webhook. Asking \
         again with the same Idempotency-Key is safe; sending it anew may duplicate it."
    ));
    answer::graph_error(StatusCode::GATEWAY_TIMEOUT, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_other_paths() {
        for version in ["v26.0", "v1.0", "v100.12"] {
            assert!(is_version(version), "{version}");
        }
        for other in [
            "v1", "26.0", "v26", "v.0", "v26.", "v26.0.1", "vx.y", "v2600.0", "", "webhook",
        ] {
            assert!(!is_version(other), "{other}");
        }
    }
}
