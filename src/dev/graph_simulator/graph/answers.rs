//! Meta's answers to calls that fail.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use serde_json::json;

use crate::dev::graph_simulator::codes::http_status;
use crate::dev::graph_simulator::ids::fbtrace_id;
use crate::dev::graph_simulator::reset::Reset;
use crate::provider::cloud::GraphError;

/// Meta's answer for an id that does not exist, or that the token may not see.
pub(super) fn unknown_object(id: &str) -> Response {
    let message = format!(
        "Unsupported post request. Object with ID '{id}' does not exist, cannot be loaded due to missing permissions, or does not support this operation."
    );
    let error = json!({"message": message, "type": "GraphMethodException", "code": 100, "error_subcode": 33, "fbtrace_id": fbtrace_id()});
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}

/// An error body, with the HTTP status of its code.
pub(super) fn graph_error(error: &GraphError) -> Response {
    let status = StatusCode::from_u16(http_status(error.code)).unwrap_or(StatusCode::BAD_REQUEST);
    let mut body = error.to_body();
    body["error"]["fbtrace_id"] = json!(fbtrace_id());
    (status, Json(body)).into_response()
}

/// No answer: the connection ends with a RST.
pub(super) fn reset(connection: &Reset) -> Response {
    connection.pull();
    StatusCode::OK.into_response()
}

/// What a proxy answers when it could not reach Meta: no JSON.
pub(super) fn bad_gateway() -> Response {
    (
        StatusCode::BAD_GATEWAY,
        Html("<html><body><h1>502 Bad Gateway</h1></body></html>"),
    )
        .into_response()
}

/// What Meta's own front end answers when it fails: no JSON.
pub(super) fn server_error() -> Response {
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        Html("<html><body>Sorry, something went wrong.</body></html>"),
    )
        .into_response()
}
