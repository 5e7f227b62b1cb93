//! Who may call: the token of a call, and what it gives access to.

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answers::{graph_error, unknown_object};
use super::query::parameter;
use crate::dev::graph_simulator::ids::fbtrace_id;
use crate::dev::graph_simulator::world::World;
use crate::provider::cloud::GraphError;

/// The answer to a call whose number does not exist, or whose token is not its own or has expired.
pub(super) fn unauthorised(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Option<Response> {
    let bearer = token(headers, query);
    let numbers = world.numbers();
    let known = numbers
        .values()
        .find(|number| bearer.as_deref() == Some(&number.account.access_token));
    let expired = match known {
        None => {
            let message = match &bearer {
                // Meta quotes the text if it cannot be a token at all.
                Some(token) if token.contains('|') => format!("Malformed access token {token}"),
                Some(_) => "Invalid OAuth access token - Cannot parse access token".to_owned(),
                None => "An access token is required to request this resource.".to_owned(),
            };
            return Some(graph_error(&GraphError::new(190, &message)));
        }
        Some(number) => number.expired,
    };
    if expired {
        let error = json!({"message": "Error validating access token: Session has expired on Sunday, 01-Nov-26 00:00:00 PST. The current time is Monday, 02-Nov-26 00:00:00 PST.",
            "type": "OAuthException", "code": 190, "error_subcode": 463, "fbtrace_id": fbtrace_id()});
        return Some((StatusCode::UNAUTHORIZED, Json(json!({ "error": error }))).into_response());
    }
    let token = bearer.unwrap_or_default();
    let reachable = numbers.values().any(|number| {
        number.account.access_token == token
            && (number.account.phone_number_id == node || number.account.waba_id == node)
    });
    (!reachable).then(|| unknown_object(node))
}

/// The token of a call: in the header, or in the query.
pub(super) fn token(headers: &HeaderMap, query: &str) -> Option<String> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(ToOwned::to_owned)
        .or_else(|| parameter(query, "access_token"))
}
