//! Answers in both shapes: Meta's for Graph clients, ours for the plain API.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use crate::provider::cloud::GraphError;
use crate::site_db::SiteError;

/// Names our row in every answer about one.
pub(super) const MESSAGE_ID: HeaderName = HeaderName::from_static("x-twinlog-message-id");

/// An error in Meta's shape.
pub(super) fn graph_error(status: StatusCode, error: &GraphError) -> Response {
    (status, Json(error.to_body())).into_response()
}

/// An error in our shape: `{"error":{"code","message","field"?}}`.
pub(super) fn plain_error(status: StatusCode, code: &str, message: &str, field: Option<&str>) -> Response {
    let mut error = json!({"code": code, "message": message});
    if let Some(field) = field {
        error["field"] = json!(field);
    }
    (status, Json(json!({ "error": error }))).into_response()
}

/// The same, naming the message's row.
pub(super) fn about(id: Uuid, mut response: Response) -> Response {
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(MESSAGE_ID, value);
    }
    response
}

/// Somebody else's answer, as it came.
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

/// The Site DB could not be asked; nothing was sent. Logged here, where it ends.
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

/// One line for each request that the Site DB kept from being served.
pub(super) fn log_unavailable(error: &SiteError) {
    tracing::error!(
        sqlstate = error.sqlstate(),
        hint = error.hint(),
        "PERSISTENCE: a request was refused: {error}"
    );
}

/// A request's body, within the limit; else why it was not read.
pub(super) async fn body(request: Request) -> Result<Bytes, (StatusCode, &'static str)> {
    Bytes::from_request(request, &())
        .await
        .map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
            _ => (StatusCode::BAD_REQUEST, "the body could not be read"),
        })
}

/// No such route.
pub(super) fn not_found(uri: &Uri) -> Response {
    shaped(uri, StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

/// A route, but not with this method.
pub(super) async fn method_not_allowed(uri: Uri) -> Response {
    shaped(
        &uri,
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take that method",
    )
}

/// The request came to no end of its own.
pub(super) fn broken(uri: &Uri, status: StatusCode, code: &str, message: &str) -> Response {
    shaped(uri, status, code, message)
}

/// Graph clients know only Meta's shape.
fn shaped(uri: &Uri, status: StatusCode, code: &str, message: &str) -> Response {
    let version = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    if super::graph::is_version(version) {
        let error = if status.is_server_error() {
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
