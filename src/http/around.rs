//! For every request: an id, a time limit, an answer even after a panic, and one log line without bodies, numbers or query
//! strings.
//!
//! One function and not tower-http's four layers: even after a panic or a time-out the answer must be in the shape that the
//! client knows, and the log line needs data from all four.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::limits::{REQUEST_TIMEOUT, UPLOAD_TIMEOUT};
use super::summed::{self, Line};
use super::{answer, media};

/// The header with the request's id: the caller's or the proxy's if it sends one, else ours; returned in the answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The middleware.
pub(super) async fn around(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=64).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        })
        .map_or_else(|| Uuid::new_v4().to_string(), ToOwned::to_owned);
    let method = request.method().clone();
    let uri = request.uri().clone();
    // The route, not the path: a sender can write anything into a path.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id = %id, %method, route);
    let limit = if media::is_upload(&route) {
        UPLOAD_TIMEOUT
    } else {
        REQUEST_TIMEOUT
    };
    let handled = tokio::time::timeout(limit, AssertUnwindSafe(next.run(request)).catch_unwind())
        .instrument(span.clone())
        .await;
    let mut response = match handled {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => {
            let _entered = span.enter();
            tracing::error!(panic = constant_text(panic.as_ref()), "a request's handler panicked");
            answer::broken(
                &uri,
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "an error of this server's; its log says more",
            )
        }
        Err(_) => answer::broken(
            &uri,
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "the request took too long",
        ),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    let _entered = span.enter();
    let (status, millis) = (response.status().as_u16(), started.elapsed().as_millis());
    if status >= 500 {
        let span = span.clone();
        summed::write(Line::Answered(status), move |times| {
            let _entered = span.enter();
            tracing::warn!(status, times, ms = millis, "answered");
        });
    } else {
        tracing::debug!(status, ms = millis, "answered");
    }
    response
}

/// A panic's message if it is a constant; a formatted one may quote values.
fn constant_text(panic: &(dyn Any + Send)) -> &'static str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(no constant text)")
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    fn fault() -> StatusCode {
        panic!("a fault")
    }

    async fn asked(path: &str, id: &str) -> (u16, String, Value) {
        let router = Router::new()
            .route("/here", get(|| async { "\"here\"" }))
            .route("/v1/panics", get(|| async { fault() }))
            .route("/v26.0/panics", get(|| async { fault() }))
            .route("/hangs", get(std::future::pending::<()>))
            .layer(axum::middleware::from_fn(around));
        let request = Request::get(path).header(REQUEST_ID, id).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, id, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_usable_request_id_is_given_back_and_any_other_replaced() {
        assert_eq!(asked("/here", "a-B_1.2").await.1, "a-B_1.2");
        for unusable in ["", "a b", "a/b", &"x".repeat(65)] {
            let given = asked("/here", unusable).await.1;
            assert!(Uuid::try_parse(&given).is_ok(), "{given}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_in_the_clients_shape() {
        let (status, id, body) = asked("/v1/panics", "one").await;
        assert_eq!(
            (status, id.as_str(), &body["error"]["code"]),
            (500, "one", &Value::from("internal"))
        );
        let (status, _, body) = asked("/v26.0/panics", "two").await;
        assert_eq!((status, &body["error"]["code"]), (500, &Value::from(131_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_in_time() {
        let started = tokio::time::Instant::now();
        let (status, _, body) = asked("/hangs", "x").await;
        assert_eq!((status, &body["error"]["code"]), (504, &Value::from("timeout")));
        assert_eq!(started.elapsed().as_secs(), REQUEST_TIMEOUT.as_secs());
    }
}
