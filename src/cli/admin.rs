//! The admin listener: `/healthz`, `/readyz`, `/health`, `/metrics`.
//!
//! No route asks a database or waits for another part: it answers from what the parts last reported ([`crate::health`]), so
//! it is quick even when everything else is stuck. For the loopback interface or a private network: it has no
//! authentication, and nothing that it shows is secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::{ComponentStatus, Health};
use crate::http;
use crate::http::listener::Bounds;
use crate::shutdown;

/// How often recorded histogram values are put into their buckets. Otherwise only a scrape does it, and a process that is
/// not scraped would collect them forever.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: PrometheusHandle,
    started: Instant,
}

/// Probes, Prometheus and a person are some connections; idle ones make room for new ones.
const BOUNDS: Bounds = Bounds {
    connections: 64,
    per_address: 64,
    silence: Duration::from_secs(90),
};

/// Serves the admin routes until `stop` is cancelled.
pub async fn serve(listener: TcpListener, health: Health, metrics: PrometheusHandle, stop: CancellationToken) {
    let upkeep = tokio::spawn(fold_histograms(metrics.clone(), stop.clone()));
    let app = router(health, metrics);
    let stopping = stop.clone();
    let serving = http::listener::serve(listener, app, BOUNDS, stop);
    tokio::select! {
        () = serving => {}
        // A client that does not read its answer must not keep the process from ending.
        () = async {
            stopping.cancelled().await;
            tokio::time::sleep(shutdown::GRACE).await;
        } => {}
    }
    upkeep.abort();
}

/// The routes, for a listener or a test.
fn router(health: Health, metrics: PrometheusHandle) -> Router {
    let state = Arc::new(Admin {
        health,
        metrics,
        started: Instant::now(),
    });
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/health", get(report))
        .route("/metrics", get(scrape))
        .with_state(state)
}

async fn fold_histograms(metrics: PrometheusHandle, stop: CancellationToken) {
    while shutdown::sleep(UPKEEP, &stop).await {
        metrics.run_upkeep();
    }
}

/// 200 if every part can do its work, otherwise 503 with the reasons.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let reasons: serde_json::Map<_, _> = admin
        .health
        .report()
        .into_iter()
        .filter(|(_, status)| !status.ready)
        .map(|(name, status)| (name, json!(status.reason)))
        .collect();
    let ready = reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "ready": ready, "reasons": reasons }))).into_response()
}

/// Everything that the parts report. Always 200: the verdict is `/readyz`.
async fn report(State(admin): State<Arc<Admin>>) -> Response {
    let components = admin.health.report();
    Json(json!({
        "status": if components.values().all(ComponentStatus::is_well) { "ok" } else { "degraded" },
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": admin.started.elapsed().as_secs(),
        "components": components,
    }))
    .into_response()
}

async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    // Here, so that they are true also if everything else is stuck.
    for (name, status) in admin.health.report() {
        crate::metrics::set_component_degraded(&name, !status.is_well());
    }
    // The text format's own type: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
    let content_type = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([content_type], admin.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(health: &Health, path: &str) -> (StatusCode, String) {
        let metrics = crate::metrics::prometheus().unwrap().build_recorder().handle();
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(health.clone(), metrics).oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_the_components_and_liveness_does_not() {
        let health = Health::default();
        let daemon = health.component("sync");
        health.component("admin").ready(json!(null));

        assert_eq!(get(&health, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
        let (status, body) = get(&health, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, r#"{"ready":false,"reasons":{"sync":"starting"}}"#);
        let (status, body) = get(&health, "/health").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("degraded")));
        assert_eq!(body["components"]["sync"]["reason"], "starting");
        assert_eq!(body["components"]["admin"]["ready"], true);
        assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));

        daemon.ready(json!({ "lag_bytes": 0 }));
        let (status, body) = get(&health, "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::OK, r#"{"ready":true,"reasons":{}}"#)
        );
        assert_eq!(get(&health, "/nothing").await.0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn durations_are_scraped_as_histograms_with_our_buckets() {
        let recorder = crate::metrics::prometheus().unwrap().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            crate::metrics::describe();
            crate::metrics::observe_commit_to_apply(Duration::from_millis(3));
            crate::metrics::observe_send(Duration::from_millis(300));
        });
        let text = metrics.render();
        assert!(
            text.contains("# TYPE twinlog_sync_commit_to_apply_seconds histogram"),
            "{text}"
        );
        assert!(
            text.contains("twinlog_sync_commit_to_apply_seconds_bucket{le=\"0.005\"} 1"),
            "{text}"
        );
        assert!(text.contains("twinlog_send_seconds_bucket{le=\"10\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn a_client_that_hangs_does_not_keep_the_listener_from_stopping() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let metrics = crate::metrics::prometheus().unwrap().build_recorder().handle();
        let serving = tokio::spawn(serve(listener, Health::default(), metrics, stop.clone()));

        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        // The next request never ends.
        client.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.unwrap();

        stop.cancel();
        let patience = shutdown::GRACE + Duration::from_secs(5);
        tokio::time::timeout(patience, serving).await.unwrap().unwrap();
    }
}
