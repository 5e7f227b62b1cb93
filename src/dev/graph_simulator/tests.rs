//! The simulator as its clients see it: over the socket, with a callback that records what it gets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::{Delays, Fault, HandshakeError, Inbound, Settings, Simulator, UnknownNumber, WebhookSettings, samples};
use crate::provider::cloud::signature;
use crate::provider::cloud::webhook::parse;
use crate::provider::event::Content;

const NUMBER: &str = "106540352242922";
const SOON: Duration = Duration::from_secs(10);

/// A callback: what it got, and what it answers next (200 when it has no orders).
#[derive(Default)]
struct Callback {
    bodies: Mutex<Vec<Vec<u8>>>,
    answers: Mutex<VecDeque<u16>>,
}

impl Callback {
    fn statuses(&self) -> Vec<String> {
        let bodies = self.bodies.lock().expect("not poisoned");
        let parts = bodies.iter().flat_map(|body| parse(body).expect("a webhook"));
        parts
            .filter_map(|part| match part.content {
                Content::Status(status) => Some(status.status.as_str().to_owned()),
                _ => None,
            })
            .collect()
    }
}

async fn callback() -> (Arc<Callback>, Url) {
    async fn receive(State(callback): State<Arc<Callback>>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let header = headers.get(signature::HEADER).and_then(|value| value.to_str().ok());
        signature::verify(&[SecretString::from("simulator-secret")], header, &body).expect("a genuine signature");
        assert!(body.is_ascii());
        let answer = callback
            .answers
            .lock()
            .expect("not poisoned")
            .pop_front()
            .unwrap_or(200);
        if answer == 200 {
            callback.bodies.lock().expect("not poisoned").push(body.to_vec());
        }
        StatusCode::from_u16(answer).expect("a status")
    }
    async fn challenge(Query(query): Query<std::collections::HashMap<String, String>>) -> (StatusCode, String) {
        if query["hub.verify_token"] == "simulator-verify-token" {
            (StatusCode::OK, query["hub.challenge"].clone())
        } else {
            (StatusCode::FORBIDDEN, String::new())
        }
    }
    let callback = Arc::new(Callback::default());
    let app = Router::new()
        .route("/webhook", get(challenge).post(receive))
        .with_state(Arc::clone(&callback));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/webhook", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (callback, Url::parse(&url).expect("a URL"))
}

async fn simulator() -> (Simulator, Arc<Callback>) {
    let (callback, url) = callback().await;
    let settings = Settings {
        callback_url: Some(url),
        delays: Delays {
            sent: Duration::ZERO,
            delivered: Some(Duration::from_millis(1)),
            read: Some(Duration::from_millis(2)),
        },
        webhooks: WebhookSettings {
            // In order, so that a test can tell what came first.
            concurrency: 1,
            batch: 1,
            ..WebhookSettings::default()
        },
        ..Settings::default()
    };
    (Simulator::start(settings).await.expect("a simulator"), callback)
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(SOON)
        .build()
        .expect("a client")
}

async fn send_with(simulator: &Simulator, token: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
    let answer = client()
        .post(format!("{}/v25.0/{NUMBER}/messages", simulator.url()))
        .bearer_auth(token)
        .body(body.to_string())
        .send()
        .await?;
    let status = answer.status().as_u16();
    let body = answer.text().await?;
    Ok((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
}

async fn send(simulator: &Simulator, body: &Value) -> reqwest::Result<(u16, Value)> {
    send_with(simulator, "simulator-token", body).await
}

fn text() -> Value {
    json!({"messaging_product": "whatsapp", "to": "+1 650 555 1234", "type": "text", "text": {"body": "hi"},
           "biz_opaque_callback_data": "ours"})
}

async fn quiet(simulator: &Simulator) {
    let start = Instant::now();
    while simulator.pending() > 0 {
        assert!(start.elapsed() < SOON, "{} updates are still due", simulator.pending());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_message_is_accepted_recorded_and_reported() {
    let (simulator, callback) = simulator().await;
    let (status, answer) = send(&simulator, &text()).await.expect("an answer");
    assert_eq!(status, 200);
    assert_eq!(
        answer["contacts"][0],
        json!({"input": "+1 650 555 1234", "wa_id": "16505551234"})
    );
    let wamid = answer["messages"][0]["id"].as_str().expect("a wamid");
    quiet(&simulator).await;
    assert_eq!(callback.statuses(), ["sent", "delivered", "read"]);
    let ledger = simulator.ledger();
    let entry = ledger.find(wamid).expect("in the ledger");
    assert_eq!((entry.opaque.as_deref(), entry.kind.as_str()), (Some("ours"), "text"));
    assert_eq!(entry.statuses.len(), 3);
    assert!(ledger.duplicates().is_empty());
    send(&simulator, &text()).await.expect("an answer");
    assert_eq!(simulator.ledger().duplicates(), ["ours"]);
    simulator.shutdown().await;
}

#[tokio::test]
async fn tokens_and_numbers_are_checked() {
    let (simulator, _) = simulator().await;
    let (status, answer) = send_with(&simulator, "wrong", &text()).await.expect("an answer");
    assert_eq!((status, &answer["error"]["code"]), (401, &json!(190)));
    simulator.expire_token(NUMBER).expect("our number");
    let (status, answer) = send(&simulator, &text()).await.expect("an answer");
    assert_eq!((status, &answer["error"]["error_subcode"]), (401, &json!(463)));
    simulator.set_token(NUMBER, "fresh").expect("our number");
    assert_eq!(send_with(&simulator, "fresh", &text()).await.expect("an answer").0, 200);
    let unknown = client()
        .post(format!("{}/v25.0/999/messages", simulator.url()))
        .bearer_auth("fresh")
        .send()
        .await
        .expect("an answer");
    let body: Value = serde_json::from_str(&unknown.text().await.expect("a body")).expect("JSON");
    assert_eq!(body["error"]["error_subcode"], json!(33));
    assert_eq!(simulator.ledger().messages.len(), 1);
}

#[tokio::test]
async fn an_accepted_message_may_go_unanswered() {
    let (simulator, callback) = simulator().await;
    for (fault, expected) in [
        (Fault::AcceptThenReset, None),
        (Fault::AcceptThenBadGateway, Some(502)),
        (Fault::AcceptThenServerError, Some(500)),
    ] {
        simulator.set_fault_times(NUMBER, fault, 1).expect("our number");
        assert_eq!(
            send(&simulator, &text()).await.ok().map(|answer| answer.0),
            expected,
            "{fault:?}"
        );
    }
    simulator
        .set_fault_times(NUMBER, Fault::AcceptThenHang, 1)
        .expect("our number");
    let body = text();
    let hanging = tokio::time::timeout(Duration::from_millis(300), send(&simulator, &body)).await;
    assert!(hanging.is_err(), "{hanging:?}");
    assert_eq!(simulator.ledger().messages.len(), 4);
    quiet(&simulator).await;
    assert_eq!(callback.statuses().len(), 12);
    simulator.shutdown().await;
}

#[tokio::test]
async fn a_refused_message_is_not_in_the_ledger() {
    let (simulator, _) = simulator().await;
    for (fault, expected) in [
        (Fault::ResetUnaccepted, None),
        (Fault::ServerError, Some((500, None))),
        (
            Fault::TooManyRequests { retry_after_seconds: 7 },
            Some((429, Some(130_429))),
        ),
        (
            Fault::Error {
                code: 131_056,
                subcode: None,
            },
            Some((400, Some(131_056))),
        ),
    ] {
        simulator.set_fault(NUMBER, fault).expect("our number");
        let answer = send(&simulator, &text()).await.ok();
        let seen = answer.map(|(status, body)| (status, body["error"]["code"].as_i64()));
        assert_eq!(seen, expected, "{fault:?}");
        simulator.clear_faults(NUMBER).expect("our number");
    }
    assert!(simulator.ledger().messages.is_empty());
    assert_eq!(simulator.set_fault("999", Fault::Silent), Err(UnknownNumber));
}

#[tokio::test]
async fn a_status_may_come_before_the_answer() {
    let (simulator, callback) = simulator().await;
    simulator
        .set_fault(NUMBER, Fault::StatusBeforeAnswer)
        .expect("our number");
    send(&simulator, &text()).await.expect("an answer");
    assert_eq!(callback.statuses().first().map(String::as_str), Some("sent"));
}

#[tokio::test]
async fn a_late_answer_delays_nothing_else() {
    let (simulator, callback) = simulator().await;
    simulator
        .set_fault(NUMBER, Fault::SlowAnswer { delay_ms: 60_000 })
        .expect("our number");
    let body = text();
    let waiting = async {
        while callback.statuses().len() < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        answer = send(&simulator, &body) => panic!("{answer:?}"),
        () = waiting => {}
    }
    assert_eq!(simulator.ledger().messages.len(), 1);
    simulator.shutdown().await;
}

#[tokio::test]
async fn statuses_come_twice_backwards_or_as_failures() {
    let (simulator, callback) = simulator().await;
    for (faults, expected) in [
        (&[Fault::ReversedStatuses][..], &["read", "delivered", "sent"][..]),
        (
            &[Fault::DuplicateStatuses, Fault::SkipDelivered],
            &["sent", "sent", "read", "read"],
        ),
        (&[Fault::FailLater { code: 131_047 }], &["failed"]),
        (&[Fault::HeldThenDropped { after_ms: 1 }], &["failed"]),
        (
            &[Fault::HeldThenReleased { after_ms: 1 }],
            &["sent", "delivered", "read"],
        ),
        (&[Fault::Silent], &[]),
    ] {
        for &fault in faults {
            simulator.set_fault_times(NUMBER, fault, 1).expect("our number");
        }
        let (_, answer) = send(&simulator, &text()).await.expect("an answer");
        quiet(&simulator).await;
        let held = answer["messages"][0]["message_status"] == "held_for_quality_assessment";
        assert_eq!(
            held,
            matches!(
                faults[0],
                Fault::HeldThenDropped { .. } | Fault::HeldThenReleased { .. }
            )
        );
        assert_eq!(callback.statuses(), expected);
        callback.bodies.lock().expect("not poisoned").clear();
    }
}

#[tokio::test]
async fn a_webhook_is_delivered_until_it_is_taken() {
    let (simulator, callback) = simulator().await;
    callback.answers.lock().expect("not poisoned").extend([503, 500, 204]);
    let wamid = simulator
        .inbound(Inbound::text(NUMBER, "16505550000", "Grüße 😀 a/b"))
        .await;
    quiet(&simulator).await;
    let bodies = callback.bodies.lock().expect("not poisoned");
    let [body] = bodies.as_slice() else {
        panic!("{} bodies", bodies.len())
    };
    let parts = parse(body).expect("a webhook");
    let Content::Message(message) = &parts[0].content else {
        panic!("{parts:?}")
    };
    assert_eq!(
        (message.wamid.as_str(), message.text.as_deref()),
        (wamid.as_str(), Some("Grüße 😀 a/b"))
    );
}

#[tokio::test]
async fn every_documented_type_can_come_in() {
    let (simulator, callback) = simulator().await;
    simulator.pause_webhooks(true);
    for kind in samples::KINDS.iter().copied().chain(["hologram"]) {
        simulator.inbound(Inbound::sample(NUMBER, "16505550000", kind)).await;
    }
    simulator.inbound(Inbound::hidden(NUMBER, "US.1", "who am I")).await;
    simulator.set_batch(1000);
    simulator.pause_webhooks(false);
    quiet(&simulator).await;
    let bodies = callback.bodies.lock().expect("not poisoned");
    let parts: Vec<_> = bodies.iter().flat_map(|body| parse(body).expect("a webhook")).collect();
    assert_eq!(parts.len(), samples::KINDS.len() + 2);
    assert!(parts.iter().all(|part| matches!(part.content, Content::Message(_))));
    // The first may have left alone before the rest was there.
    assert!(bodies.len() <= 2, "{} bodies", bodies.len());
}

#[tokio::test]
async fn the_handshake_asks_as_meta_does() {
    let (simulator, _) = simulator().await;
    simulator.handshake().await.expect("the challenge");
    simulator.set_callback(None);
    assert!(matches!(simulator.handshake().await, Err(HandshakeError::NoCallback)));
}

#[tokio::test]
async fn the_switches_are_on_the_socket_too() {
    let (simulator, callback) = simulator().await;
    let post = async |path: &str, body: Value| {
        let answer = client()
            .post(format!("{}/_simulator/{path}", simulator.url()))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .expect("an answer");
        answer.status().as_u16()
    };
    let fault = json!({"phone_number_id": NUMBER, "times": 1, "fault": {"kind": "error", "code": 131_000}});
    assert_eq!(post("faults", fault).await, 200);
    assert_eq!(send(&simulator, &text()).await.expect("an answer").0, 500);
    assert_eq!(send(&simulator, &text()).await.expect("an answer").0, 200);
    assert_eq!(post("tokens", json!({"phone_number_id": NUMBER})).await, 200);
    assert_eq!(send(&simulator, &text()).await.expect("an answer").0, 401);
    assert_eq!(post("tokens", json!({"phone_number_id": "999"})).await, 404);
    assert_eq!(post("callback", json!({"url": "no URL"})).await, 400);
    assert_eq!(post("handshake", json!({})).await, 200);
    assert_eq!(
        post("inbound", json!({"phone_number_id": NUMBER, "type": "image"})).await,
        200
    );
    quiet(&simulator).await;
    assert!(callback.bodies.lock().expect("not poisoned").len() >= 4);
    let ledger = client()
        .get(format!("{}/_simulator/ledger", simulator.url()))
        .send()
        .await
        .expect("an answer");
    let ledger: Value = serde_json::from_str(&ledger.text().await.expect("a body")).expect("JSON");
    assert_eq!(ledger["messages"].as_array().map(Vec::len), Some(1));
}
