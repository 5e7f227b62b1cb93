//! Passes a call on to the Graph API, and returns its answer to the client.

use axum::http::StatusCode;
use axum::response::Response;

use super::answer;
use crate::provider::cloud::client::PassedCall;
use crate::provider::cloud::{Account, GraphError};

/// Passes a call on. The caller has checked that the call sends no message.
pub(super) async fn forward(account: &Account, call: PassedCall) -> Response {
    match account.pass(call).await {
        Ok(passed) => answer::passed(passed.status, passed.content_type.as_deref(), passed.body),
        Err(error) => {
            tracing::warn!(phone_number_id = %account.phone_number_id(), "a call was not passed on: {error}");
            answer::graph_error(
                StatusCode::BAD_GATEWAY,
                &GraphError::new(2, "Service temporarily unavailable").with_details(error.to_string()),
            )
        }
    }
}
