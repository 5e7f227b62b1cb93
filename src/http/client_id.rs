//! The client's own id for a message: a second request with the same id sends nothing.

use axum::http::{HeaderMap, HeaderName};

use super::limits::MAX_CLIENT_ID;

/// The header with the client id; the plain API also accepts it as a field.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header's id is empty, too long, or has control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidClientId;

/// Whether a client id can be stored: 1 to [`MAX_CLIENT_ID`] characters, no control characters.
pub(super) fn is_valid(id: &str) -> bool {
    !id.is_empty() && id.chars().count() <= MAX_CLIENT_ID && !id.contains(char::is_control)
}

/// The id in the header.
pub(super) fn from_header(headers: &HeaderMap) -> Result<Option<String>, InvalidClientId> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(id) if is_valid(id) => Ok(Some(id.to_owned())),
        _ => Err(InvalidClientId),
    }
}
