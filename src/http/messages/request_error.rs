//! Why a request to the plain API is refused.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::http::answer;

/// The answer to a refused request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) field: Option<String>,
}

impl RequestError {
    /// The body is not what the API reads.
    pub(super) fn malformed(message: String) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "malformed",
            message,
            field: None,
        }
    }

    /// A field is missing or can't be used.
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "invalid_field",
            message: message.into(),
            field: Some(field.to_owned()),
        }
    }

    /// The number to send from is not one of ours.
    pub(super) fn unknown_number() -> Self {
        Self::field("phone_number_id", "this number is not configured")
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        answer::plain_error(self.status, self.code, &self.message, self.field.as_deref())
    }
}
