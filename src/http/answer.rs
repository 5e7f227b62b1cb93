//! Answers in both shapes: Meta's for Graph clients, ours for the plain API.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use super::body::BodyError;
use super::listener::IfUnread;
use super::summed::{self, Line};
use crate::provider::ApiVersion;
use crate::provider::cloud::GraphError;
use crate::site_db::SiteError;

/// The header with the message's row id, in every answer about a message.
pub(super) const MESSAGE_ID: HeaderName = HeaderName::from_static("x-twinlog-message-id");

/// An error in Meta's shape.
pub(super) fn graph_error(status: StatusCode, error: &GraphError) -> Response {
    (status, Json(error.to_body())).into_response()
}

/// The token is missing or not one of ours, in Meta's shape.
pub(super) fn graph_unauthorized() -> Response {
    graph_error(
        StatusCode::UNAUTHORIZED,
        &GraphError::new(190, "Invalid OAuth access token - Cannot parse access token")
            .with_details("the token is not one of this server's API tokens"),
    )
}

/// An object that does not exist, or is not the client's: the same answer for both, in Meta's shape.
pub(super) fn graph_unknown_object(method: &str, id: &str) -> Response {
    let error = GraphError::new(
        100,
        &format!(
            "Unsupported {method} request. Object with ID '{id}' does not exist, cannot be loaded due to missing \
             permissions, or does not support this operation"
        ),
    );
    graph_error(StatusCode::BAD_REQUEST, &error.with_subcode(33))
}

/// Too much is under way, in Meta's shape.
pub(super) fn graph_overloaded() -> Response {
    graph_error(
        StatusCode::SERVICE_UNAVAILABLE,
        &GraphError::new(2, "Service temporarily unavailable").with_details("too much is under way; try again"),
    )
}

/// The body could not be read, in Meta's shape.
pub(super) fn graph_body_error(error: BodyError) -> Response {
    let details = GraphError::new(100, "Invalid parameter").with_details(error.message());
    soon_if_busy(graph_error(error.status(), &details))
}

/// An error in our shape: `{"error":{"code","message","field"?}}`.
pub(super) fn plain_error(status: StatusCode, code: &str, message: &str, field: Option<&str>) -> Response {
    let mut error = json!({"code": code, "message": message});
    if let Some(field) = field {
        error["field"] = json!(field);
    }
    (status, Json(json!({ "error": error }))).into_response()
}

/// The token is missing or not one of ours, in our shape.
pub(super) fn plain_unauthorized() -> Response {
    plain_error(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "send one of this server's API tokens as: Authorization: Bearer TOKEN",
        None,
    )
}

/// The body could not be read, in our shape.
pub(super) fn plain_body_error(error: BodyError) -> Response {
    soon_if_busy(plain_error(error.status(), "body", error.message(), None))
}

/// All places of the route's family are taken; nothing was stored or sent.
pub(super) fn busy(uri: &Uri) -> Response {
    soon_if_busy(shaped(
        uri,
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "too many requests wait; nothing was stored or sent; try again",
    ))
}

/// Says when to try again, if the answer is that there is no room: a place is usually free within a second.
pub(super) fn soon_if_busy(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Adds the header [`MESSAGE_ID`] to an answer.
pub(super) fn about(id: Uuid, mut response: Response) -> Response {
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(MESSAGE_ID, value);
    }
    response
}

/// Has this called if the connection is reset after the answer was written, before another request came on it.
pub(super) fn if_unread(mut response: Response, unread: impl Fn() + Send + Sync + 'static) -> Response {
    response.extensions_mut().insert(IfUnread(Arc::new(unread)));
    response
}

/// The Graph API's answer, unchanged.
pub(super) fn passed(status: u16, content_type: Option<&str>, body: impl Into<Bytes>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = (status, body.into()).into_response();
    let content_type = content_type.and_then(|value| HeaderValue::from_str(value).ok());
    response.headers_mut().insert(
        CONTENT_TYPE,
        content_type.unwrap_or(HeaderValue::from_static("application/json")),
    );
    response
}

/// The Site DB did not answer, so nothing was sent. The error is logged here, because it goes no further.
pub(super) fn graph_unavailable(error: &SiteError) -> Response {
    log_unavailable(error);
    graph_error(
        StatusCode::SERVICE_UNAVAILABLE,
        &GraphError::new(2, "Service temporarily unavailable")
            .with_details("the message could not be stored, so it was not sent; try again"),
    )
}

/// The same for the plain API.
pub(super) fn plain_unavailable(error: &SiteError) -> Response {
    log_unavailable(error);
    plain_error(
        StatusCode::SERVICE_UNAVAILABLE,
        "storage_unavailable",
        "the database is not available: nothing was stored or sent; try again",
        None,
    )
}

/// Logs that a request failed because of the Site DB.
pub(super) fn log_unavailable(error: &SiteError) {
    let (sqlstate, hint, error) = (
        error.sqlstate().to_owned(),
        error.hint().map(str::to_owned),
        error.to_string(),
    );
    summed::write(Line::Unavailable, move |times| {
        tracing::error!(
            sqlstate,
            times,
            hint = hint.as_deref(),
            "PERSISTENCE: a request was refused: {error}"
        );
    });
}

/// No such route.
pub(super) fn not_found(uri: &Uri) -> Response {
    shaped(uri, StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

/// The path exists, but not with this method.
pub(super) async fn method_not_allowed(uri: Uri) -> Response {
    shaped(
        &uri,
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take that method",
    )
}

/// The route gave no answer: a time-out or a panic.
pub(super) fn broken(uri: &Uri, status: StatusCode, code: &str, message: &str) -> Response {
    shaped(uri, status, code, message)
}

/// An error in Meta's shape if the path begins with a version or an id (Graph clients know no other), else in ours.
fn shaped(uri: &Uri, status: StatusCode, code: &str, message: &str) -> Response {
    let first = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let is_id = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    if ApiVersion::parse(first).is_some() || is_id {
        let error = if status == StatusCode::SERVICE_UNAVAILABLE {
            GraphError::new(2, "Service temporarily unavailable")
        } else if status.is_server_error() {
            GraphError::new(131_000, "Something went wrong")
        } else {
            GraphError::new(100, "Unsupported request")
        };
        let error = error.with_details(message);
        graph_error(status, &error)
    } else {
        plain_error(status, code, message, None)
    }
}
