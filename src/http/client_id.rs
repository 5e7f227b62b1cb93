//! The client's own id for a message: the same one again never sends twice.

use axum::http::{HeaderMap, HeaderName};

use super::limits::MAX_CLIENT_ID;

/// The header that carries it; the plain API takes it in a field as well.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header holds an id that we can't keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidClientId;

/// Whether a client's id for a message is one that we can keep.
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
