//! Clients that send one message after the other and repeat each request, under the same key and at any server, until they
//! know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::people::dialled;
use super::servers::Servers;
use super::{NUMBERS, SETTLED, Size};
use crate::harness::{eventually, http_client_within, pace};
use crate::server::TOKEN;

/// A client's time limit for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// After this number of answers that the outcome is unknown, a client stops asking.
const TOLD_UNKNOWN: u32 = 2;

/// What a client knows of a message that it wanted sent.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) key: String,
    /// Whom it was for.
    pub(super) person: usize,
    /// The row's id, if an answer named it.
    pub(super) id: Option<Uuid>,
    /// Meta's, if an answer said that it was sent.
    pub(super) wamid: Option<String>,
}

pub(super) struct Clients {
    stop: CancellationToken,
    answered: Arc<AtomicU64>,
    /// Each with its messages in their order.
    tasks: JoinSet<Vec<Wanted>>,
}

impl Clients {
    pub(super) fn start(servers: &Servers, size: Size, seed: u64) -> Self {
        let (stop, answered) = (CancellationToken::new(), Arc::default());
        let mut tasks = JoinSet::new();
        for number in 0..size.clients {
            let client = Client {
                number,
                people: size.people,
                servers: servers.urls(),
                http: http_client_within(REQUEST_LIMIT),
                random: StdRng::seed_from_u64(seed.wrapping_add(number as u64)),
            };
            tasks.spawn(client.run(stop.clone(), Arc::clone(&answered)));
        }
        Self { stop, answered, tasks }
    }

    /// Waits until they have had so many answers more.
    pub(super) async fn more(&self, answers: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + answers;
        eventually("clients get answers", SETTLED, || async {
            let now = self.answered.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(goal - now) }
        })
        .await;
    }

    /// Ends after the requests under way: what each client asked for.
    pub(super) async fn end(self) -> Vec<Vec<Wanted>> {
        self.stop.cancel();
        tokio::time::timeout(SETTLED, self.tasks.join_all()).await.unwrap()
    }
}

struct Client {
    number: usize,
    people: usize,
    servers: Vec<String>,
    http: reqwest::Client,
    random: StdRng,
}

/// An answer: its status, the id of the row, its body.
type Answer = (u16, Option<Uuid>, Value);

impl Client {
    async fn run(mut self, stop: CancellationToken, answered: Arc<AtomicU64>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for count in 0_usize.. {
            if stop.is_cancelled() {
                break;
            }
            let key = format!("{}-{count}", self.number);
            let person = self.random.random_range(0..self.people);
            let number = NUMBERS[self.random.random_range(0..NUMBERS.len())];
            let message = if self.random.random_bool(0.6) {
                self.graph(number, key, person).await
            } else {
                self.plain(number, key, person).await
            };
            answered.fetch_add(1, Ordering::Relaxed);
            wanted.push(message);
        }
        wanted
    }

    async fn ask(&mut self, path: &str, key: &str, body: &Value) -> Option<Answer> {
        let server = &self.servers[self.random.random_range(0..self.servers.len())];
        let request = self.http.post(format!("{server}{path}")).bearer_auth(TOKEN);
        let request = request.header("idempotency-key", key).body(body.to_string());
        let answer = request.send().await.ok()?;
        let id = answer.headers().get("x-twinlog-message-id");
        let id = id.map(|id| id.to_str().unwrap().parse().unwrap());
        Some((answer.status().as_u16(), id, answer.json().await.ok()?))
    }

    async fn graph(&mut self, number: &str, key: String, person: usize) -> Wanted {
        let to = format!("+{}", dialled(person));
        let body = json!({"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": key}});
        let path = format!("/v26.0/{number}/messages");
        let mut told_unknown = 0;
        loop {
            let (id, wamid) = match self.ask(&path, &key, &body).await {
                Some((200, id, body)) => (id, Some(body["messages"][0]["id"].as_str().unwrap().to_owned())),
                Some((409, id, _)) => {
                    told_unknown += 1;
                    if told_unknown < TOLD_UNKNOWN {
                        continue;
                    }
                    (id, None)
                }
                // Refused by Meta, in Meta's words.
                Some((400..=499, Some(id), _)) => (Some(id), None),
                Some((500..=599, ..)) | None => {
                    pace(Duration::from_millis(50)).await;
                    continue;
                }
                other => panic!("{key} got {other:?}"),
            };
            return Wanted { key, person, id, wamid };
        }
    }

    async fn plain(&mut self, number: &str, key: String, person: usize) -> Wanted {
        let mut body = json!({"phone_number_id": number, "to": format!("+{}", dialled(person)), "text": key});
        if self.random.random_bool(0.5) {
            body["wait"] = json!(300);
        }
        loop {
            match self.ask("/v1/messages", &key, &body).await {
                Some((200 | 202, id, answer)) => {
                    assert_eq!(
                        answer["id"].as_str().map(ToOwned::to_owned),
                        id.map(|id| id.to_string())
                    );
                    let wamid = None;
                    return Wanted { key, person, id, wamid };
                }
                Some((503, ..)) | None => pace(Duration::from_millis(50)).await,
                other => panic!("{key} got {other:?}"),
            }
        }
    }
}
