//! A server in this process, and its clients.

use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twinlog::config::Config;
use twinlog::health::Health;
use twinlog::http::{ServerError, run_server};

use super::{NUMBER, TOKEN};
use crate::harness::{SOON, eventually, http_client};

/// A server that runs in this process.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) health: Health,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
    pub(super) http: reqwest::Client,
}

/// An answer: status, headers, body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn wamid(&self) -> String {
        self.body["messages"][0]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no wamid in {self:?}"))
            .to_owned()
    }

    pub(super) fn code(&self) -> i64 {
        self.body["error"]["code"]
            .as_i64()
            .unwrap_or_else(|| panic!("no code in {self:?}"))
    }

    pub(super) fn id(&self) -> String {
        self.headers["x-twinlog-message-id"].to_str().unwrap().to_owned()
    }
}

impl Server {
    pub(super) async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (health, stop) = (Health::default(), CancellationToken::new());
        let task = tokio::spawn(run_server(Arc::new(config), health.clone(), listener, stop.clone()));
        let http = http_client();
        Self {
            url,
            health,
            stop,
            task,
            http,
        }
    }

    pub(super) fn callback(&self) -> url::Url {
        format!("{}/webhook", self.url).parse().unwrap()
    }

    pub(super) async fn ready(&self) {
        eventually("the server is ready", SOON, || async {
            let report = self.health.report();
            if report.values().all(|status| status.ready) {
                Ok(())
            } else {
                Err(format!("{report:?}"))
            }
        })
        .await;
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub(super) async fn post(&self, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = self.http.post(format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send().await.unwrap()).await
    }

    /// A Graph send as a client of Meta's makes it.
    pub(super) async fn graph(&self, body: &Value) -> Answer {
        self.graph_with(body, None).await
    }

    pub(super) async fn graph_with(&self, body: &Value, key: Option<&str>) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let mut headers = vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        self.post(&format!("/v26.0/{NUMBER}/messages"), &headers, body.to_string())
            .await
    }

    /// A send over the plain API.
    pub(super) async fn plain(&self, body: &Value) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        self.post("/v1/messages", &[("authorization", &bearer)], body.to_string())
            .await
    }

    /// A message that the plain API must take; its id.
    pub(super) async fn takes(&self, body: &Value) -> String {
        let taken = self.plain(body).await;
        assert!([200, 202].contains(&taken.status), "{taken:?}");
        taken.id()
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        answer(request.send().await.unwrap()).await
    }
}

pub(super) async fn answer(response: reqwest::Response) -> Answer {
    try_answer(response).await.unwrap()
}

/// An answer of a server that may die before its end.
pub(super) async fn try_answer(response: reqwest::Response) -> reqwest::Result<Answer> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await?;
    Ok(Answer {
        status,
        headers,
        body: serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes))),
    })
}
