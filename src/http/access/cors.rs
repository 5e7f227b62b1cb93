//! What browsers are told about calls from web pages.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::CorsOrigins;
use crate::http::answer::MESSAGE_ID;

/// How long a browser may remember what it was told; browsers themselves allow two hours at most.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The layer; `None`: no page may call.
///
/// Cookies are never looked at, so a page can't act as the user who is logged in: it has to send a token itself.
pub(in crate::http) fn cors(origins: &CorsOrigins) -> Option<CorsLayer> {
    let allowed = match origins {
        CorsOrigins::Any => AllowOrigin::any(),
        CorsOrigins::Named(origins) if origins.is_empty() => return None,
        CorsOrigins::Named(origins) => {
            AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
        }
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // supabase-js and others send headers of their own.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([RETRY_AFTER, MESSAGE_ID, HeaderName::from_static("x-request-id")])
            .max_age(REMEMBERED),
    )
}
