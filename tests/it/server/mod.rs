//! The server in-process, on real Postgres and against the Graph simulator: promise 1 and the routes.

mod deaths;
mod faults;
mod graph_route;
mod holds;
mod observed;
mod outages;
mod plain_route;
mod several;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use twinlog::config::{self, Config, Needs};
use twinlog::dev::graph_simulator::{Delays, Fault, Settings, Simulator};
use twinlog::health::Health;
use twinlog::http::{ServerError, run_server};
use twinlog::migrations;

use crate::harness::{self, Databases, SOON, eventually};

/// The simulator's number.
pub(crate) const NUMBER: &str = "106540352242922";
/// A token of our API; its SHA-256 is in the configuration.
pub(crate) const TOKEN: &str = "crm-token";
/// A user.
const USER: &str = "+16505551234";

/// Databases, Meta, and how servers on them are configured.
struct World {
    db: Databases,
    meta: Simulator,
    config: Config,
}

/// A server that runs in this process.
struct Server {
    url: String,
    health: Health,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
    http: reqwest::Client,
}

/// An answer: status, headers, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn wamid(&self) -> String {
        self.body["messages"][0]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no wamid in {self:?}"))
            .to_owned()
    }

    fn code(&self) -> i64 {
        self.body["error"]["code"]
            .as_i64()
            .unwrap_or_else(|| panic!("no code in {self:?}"))
    }

    fn id(&self) -> String {
        self.headers["x-twinlog-message-id"].to_str().unwrap().to_owned()
    }
}

/// Statuses come at once, so that tests need not wait for them.
pub(crate) fn prompt() -> Settings {
    Settings {
        delays: Delays {
            sent: Duration::from_millis(5),
            delivered: Some(Duration::from_millis(10)),
            read: None,
        },
        ..Settings::default()
    }
}

impl World {
    async fn new() -> Self {
        Self::with(harness::databases().await, prompt()).await
    }

    async fn with(db: Databases, settings: Settings) -> Self {
        migrations::apply_site(&db.site.database_url()).await.unwrap();
        let meta = Simulator::start(settings).await.unwrap();
        let config = configuration(&db.site.url, &meta.url(), "simulator-token");
        Self { db, meta, config }
    }

    /// A server with the usual settings, to which Meta sends its webhooks.
    async fn serve(&self) -> Server {
        let server = Server::start(self.config.clone()).await;
        self.meta.set_callback(Some(server.callback()));
        server.ready().await;
        server
    }

    fn fault(&self, fault: Fault) {
        self.meta.set_fault(NUMBER, fault).unwrap();
    }

    fn fault_once(&self, fault: Fault) {
        self.meta.set_fault_times(NUMBER, fault, 1).unwrap();
    }

    /// One value of the message's row, as text.
    async fn column(&self, id: &str, column: &str) -> Option<String> {
        self.db
            .site
            .text(&format!("SELECT {column} FROM whatsapp_messages WHERE id = '{id}'"))
            .await
    }

    async fn status(&self, id: &str) -> String {
        self.column(id, "status").await.unwrap_or_default()
    }

    async fn count(&self, condition: &str) -> i64 {
        let count = self
            .db
            .site
            .text(&format!("SELECT count(*) FROM whatsapp_messages WHERE {condition}"))
            .await;
        count.unwrap().parse().unwrap()
    }

    async fn reaches(&self, id: &str, statuses: &[&str]) -> String {
        eventually(&format!("{id} becomes one of {statuses:?}"), SOON, || async {
            let status = self.status(id).await;
            if statuses.contains(&status.as_str()) {
                Ok(status)
            } else {
                Err(status)
            }
        })
        .await
    }

    /// Everything that Meta accepted is one row with its wamid, and nothing was accepted twice.
    async fn nothing_lost_or_doubled(&self) {
        let ledger = self.meta.ledger();
        assert_eq!(ledger.duplicates(), Vec::<&str>::new());
        for message in &ledger.messages {
            let rows = self.count(&format!("wamid = '{}'", message.wamid)).await;
            assert_eq!(rows, 1, "{message:?}");
        }
        assert_eq!(
            self.count("direction = 'outbound' AND (lead_id IS NULL OR conversation_id IS NULL)")
                .await,
            0
        );
    }
}

/// The server's part of a configuration.
fn configuration(site: &str, graph: &str, access_token: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[site]\nurl = \"{site}\"\n{}", sections(graph, access_token));
    std::fs::write(file.path(), text).unwrap();
    let needs = Needs {
        site: true,
        agent: false,
        whatsapp: true,
    };
    config::load(Some(file.path()), needs).unwrap()
}

/// What a server's configuration holds beside its databases and listeners.
pub(crate) fn sections(graph: &str, access_token: &str) -> String {
    let sha256 = hex::encode(Sha256::digest(TOKEN));
    format!(
        r#"
        [whatsapp]
        graph_url = "{graph}"
        app_secrets = ["simulator-secret"]
        verify_token = "simulator-verify-token"
        send_timeout_ms = 1000
        retry_initial_ms = 50
        retry_max_ms = 1000
        hold_probe_ms = 1000
        [[whatsapp.accounts]]
        phone_number_id = "{NUMBER}"
        waba_id = "102290129340398"
        access_token = "{access_token}"
        messages_per_second = 500
        [[auth.tokens]]
        name = "crm"
        sha256 = "{sha256}"
        "#
    )
}

impl Server {
    async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (health, stop) = (Health::default(), CancellationToken::new());
        let task = tokio::spawn(run_server(Arc::new(config), health.clone(), listener, stop.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            url,
            health,
            stop,
            task,
            http,
        }
    }

    fn callback(&self) -> url::Url {
        format!("{}/webhook", self.url).parse().unwrap()
    }

    async fn ready(&self) {
        eventually("the server is ready", SOON, || async {
            if self.health.is_ready() {
                Ok(())
            } else {
                Err(format!("{:?}", self.health.report()))
            }
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = self.http.post(format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send().await.unwrap()).await
    }

    /// A Graph send as a client of Meta's makes it.
    async fn graph(&self, body: &Value) -> Answer {
        self.graph_with(body, None).await
    }

    async fn graph_with(&self, body: &Value, key: Option<&str>) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let mut headers = vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        self.post(&format!("/v26.0/{NUMBER}/messages"), &headers, body.to_string())
            .await
    }

    /// A send over the plain API.
    async fn plain(&self, body: &Value) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        self.post("/v1/messages", &[("authorization", &bearer)], body.to_string())
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url)).bearer_auth(TOKEN);
        answer(request.send().await.unwrap()).await
    }
}

async fn answer(response: reqwest::Response) -> Answer {
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: {
            let bytes = response.bytes().await.unwrap();
            serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes)))
        },
    }
}

/// A text as Graph clients send it.
fn text(body: &str) -> Value {
    json!({"messaging_product": "whatsapp", "to": USER, "type": "text", "text": {"body": body}})
}

/// The same to another user.
fn text_to(to: &str, body: &str) -> Value {
    json!({"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": body}})
}
