//! Clients that send until they know, users that write, and a Meta that has its moods.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twinlog::dev::graph_simulator::{Fault, Inbound, Simulator};

use super::SETTLED;
use super::processes::Twinlog;
use crate::harness::{SOON, eventually, http_client_within, pace};
use crate::server::{NUMBER, TOKEN};

/// Clients of each API.
const CLIENTS: usize = 3;
/// A client's time limit for one request; after it, the client repeats the request with the same key.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);
/// After this number of answers that the outcome is unknown, a client stops asking.
const TOLD_UNKNOWN: u32 = 3;
pub(super) fn client() -> reqwest::Client {
    http_client_within(REQUEST_LIMIT)
}

/// What a client knows of a message that it wanted sent.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) key: String,
    /// The row's id, if an answer named it.
    pub(super) id: Option<String>,
    /// Meta's, if an answer said that it was sent.
    pub(super) wamid: Option<String>,
}

/// Clients and users, until they are told to stop.
pub(super) struct Traffic {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Vec<Wanted>>,
    users: JoinSet<HashSet<String>>,
}

impl Traffic {
    pub(super) fn start(twinlog: &Twinlog, meta: &Arc<Simulator>) -> Self {
        let mut traffic = Self {
            stop: CancellationToken::new(),
            answered: Arc::default(),
            clients: JoinSet::new(),
            users: JoinSet::new(),
        };
        for number in 0..CLIENTS {
            for route in [Route::Graph, Route::Plain] {
                let person = Person {
                    route,
                    number,
                    base: twinlog.http(""),
                    http: client(),
                };
                let (stop, answered) = (traffic.stop.clone(), Arc::clone(&traffic.answered));
                traffic.clients.spawn(person.write(stop, answered));
            }
        }
        traffic.users.spawn(users(Arc::clone(meta), traffic.stop.clone()));
        traffic.users.spawn(repeats(Arc::clone(meta), traffic.stop.clone()));
        let (meta, stop) = (Arc::clone(meta), traffic.stop.clone());
        tokio::spawn(async move { moods(&meta, &stop).await });
        traffic
    }

    /// Waits until clients have had so many answers more.
    pub(super) async fn more(&self, answers: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + answers;
        eventually("clients get answers", SOON, || async {
            let now = self.answered.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(goal - now) }
        })
        .await;
    }

    /// Ends the traffic after the requests under way; returns what the clients asked for and what the users wrote.
    pub(super) async fn end(mut self) -> (Vec<Wanted>, HashSet<String>) {
        self.stop.cancel();
        let (mut wanted, mut written) = (Vec::new(), HashSet::new());
        let ending = async {
            while let Some(ended) = self.clients.join_next().await {
                wanted.extend(ended.unwrap());
            }
            while let Some(ended) = self.users.join_next().await {
                written.extend(ended.unwrap());
            }
        };
        tokio::time::timeout(SETTLED, ending).await.unwrap();
        (wanted, written)
    }
}

#[derive(Debug, Clone, Copy)]
enum Route {
    Graph,
    Plain,
}

/// A client that sends one message after the other and asks again, under the same key, until it knows.
struct Person {
    route: Route,
    number: usize,
    base: String,
    http: reqwest::Client,
}

impl Person {
    async fn write(self, stop: CancellationToken, answered: Arc<AtomicU64>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for count in 0_usize.. {
            if stop.is_cancelled() {
                break;
            }
            let key = format!("{:?}-{}-{count}", self.route, self.number);
            let to = format!("+1650555{}{:03}", self.number, count % 7);
            let message = match self.route {
                Route::Graph => self.graph(&key, &to).await,
                Route::Plain => self.plain(&key, &to).await,
            };
            answered.fetch_add(1, Ordering::Relaxed);
            wanted.push(message);
        }
        wanted
    }

    async fn ask(&self, path: &str, key: &str, body: &Value) -> Option<(u16, Option<String>, Value)> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(TOKEN);
        let answer = request
            .header("idempotency-key", key)
            .body(body.to_string())
            .send()
            .await
            .ok()?;
        let id = answer.headers().get("x-twinlog-message-id");
        let id = id.and_then(|id| id.to_str().ok()).map(ToOwned::to_owned);
        Some((answer.status().as_u16(), id, answer.json().await.ok()?))
    }

    async fn graph(&self, key: &str, to: &str) -> Wanted {
        let body = json!({"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": key}});
        let path = format!("/v26.0/{NUMBER}/messages");
        let mut told_unknown = 0;
        loop {
            match self.ask(&path, key, &body).await {
                Some((200, id, body)) => {
                    let wamid = body["messages"][0]["id"].as_str().unwrap().to_owned();
                    return wanted(key, id, Some(wamid));
                }
                Some((409, id, _)) => {
                    told_unknown += 1;
                    if told_unknown == TOLD_UNKNOWN {
                        return wanted(key, id, None);
                    }
                }
                // Refused by Meta for good, in Meta's words.
                Some((400, id @ Some(_), _)) => return wanted(key, id, None),
                Some((503, ..)) | None => {}
                other => panic!("{key} got {other:?}"),
            }
            pace(Duration::from_millis(50)).await;
        }
    }

    async fn plain(&self, key: &str, to: &str) -> Wanted {
        let body = json!({"to": to, "text": key, "wait": 300});
        loop {
            match self.ask("/v1/messages", key, &body).await {
                Some((200 | 202, id, body)) => {
                    assert_eq!(body["id"].as_str(), id.as_deref());
                    return wanted(key, id, None);
                }
                Some((503, ..)) | None => {}
                other => panic!("{key} got {other:?}"),
            }
            pace(Duration::from_millis(50)).await;
        }
    }
}

fn wanted(key: &str, id: Option<String>, wamid: Option<String>) -> Wanted {
    Wanted {
        key: key.to_owned(),
        id,
        wamid,
    }
}

/// Users write, some of them first and some as an answer.
async fn users(meta: Arc<Simulator>, stop: CancellationToken) -> HashSet<String> {
    let mut written = HashSet::new();
    for count in 0_usize.. {
        if stop.is_cancelled() {
            break;
        }
        let from = format!("1650555{}{:03}", count % CLIENTS, count % 11);
        let kind = ["text", "image", "location", "button"][count % 4];
        let message = match kind {
            "text" => Inbound::text(NUMBER, &from, &format!("question {count}")),
            _ => Inbound::sample(NUMBER, &from, kind),
        };
        written.insert(meta.inbound(message).await);
        pace(Duration::from_millis(40)).await;
    }
    written
}

/// The same event again and again, though it had its 200: Meta does that.
async fn repeats(meta: Arc<Simulator>, stop: CancellationToken) -> HashSet<String> {
    let mut written = HashSet::new();
    for count in 0_usize.. {
        if stop.is_cancelled() {
            break;
        }
        let wamid = format!("wamid.repeated-{count}");
        let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [{
            "field": "messages",
            "value": {
                "messaging_product": "whatsapp",
                "metadata": {"display_phone_number": "15550783881", "phone_number_id": NUMBER},
                "contacts": [{"profile": {"name": "Twice"}, "wa_id": "16505559999"}],
                "messages": [{"id": wamid, "from": "16505559999", "timestamp": "1760000000", "type": "text",
                              "text": {"body": "did you get this?"}}],
            },
        }]}]});
        let body = body.to_string();
        let mut taken = 0;
        while taken < 3 {
            if meta.post_webhook(body.as_bytes()).await == Some(200) {
                taken += 1;
            } else {
                pace(Duration::from_millis(50)).await;
            }
        }
        written.insert(wamid);
        pace(Duration::from_millis(100)).await;
    }
    written
}

/// Meta's moods, one after the other; statuses always come twice.
async fn moods(meta: &Simulator, stop: &CancellationToken) {
    let moods = [
        Fault::AcceptThenReset,
        Fault::StatusBeforeAnswer,
        Fault::Error {
            code: 131_000,
            subcode: None,
        },
        Fault::AcceptThenBadGateway,
        Fault::ReversedStatuses,
        Fault::TooManyRequests { retry_after_seconds: 0 },
        Fault::ResetUnaccepted,
        Fault::SlowAnswer { delay_ms: 400 },
        Fault::Error {
            code: 131_026,
            subcode: None,
        },
        Fault::FailLater { code: 131_047 },
        Fault::AcceptThenHang,
        Fault::HeldThenReleased { after_ms: 200 },
        Fault::ServerError,
    ];
    meta.set_fault(NUMBER, Fault::DuplicateStatuses).unwrap();
    for mood in moods.iter().cycle() {
        if stop.is_cancelled() {
            return;
        }
        meta.set_fault_times(NUMBER, *mood, 1).unwrap();
        pace(Duration::from_millis(200)).await;
    }
}
