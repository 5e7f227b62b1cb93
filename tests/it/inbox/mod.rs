//! The inbox on a real Site DB: what is stored and processed. Repetition, disorder and faults do not change the result.

mod batches;
mod faults;
mod history;
mod identities;
mod kept;
mod lead_locks;
mod messages;
mod people;
mod receiving;
mod reports;

use crate::harness::{Databases, SOON, databases, eventually, eventually_equal, private_databases};
use bytes::Bytes;
use secrecy::SecretString;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use twinlog::config;
use twinlog::dev::graph_simulator::samples;
use twinlog::dev::postgres::{Settings, Shutdown};
use twinlog::health::Health;
use twinlog::inbox::{Inbox, InboxSettings, ReceiveError, WebhookId, Worker};
use twinlog::provider::cloud::signature;
use twinlog::provider::cloud::webhook;
use twinlog::provider::{Callback, ContactIdentity, OpaqueId, UserId, WaId, Wamid};
use twinlog::site_db::Pool;
use twinlog::site_db::conversations::{Link, link, link_group, link_recipient};
use twinlog::site_db::leads::learn_recipient;
use twinlog::site_db::locks::lock;
use twinlog::site_db::merging::settle_due;
use twinlog::site_db::status_events as statuses;
use uuid::Uuid;

const NUMBER: &str = "106540352242922";

/// A migrated Site DB with an inbox, and a worker if the test wants one.
struct Site {
    db: Databases,
    pool: Pool,
    inbox: Inbox,
    health: Health,
    stop: Option<DropGuard>,
}

impl Site {
    /// Without a worker: events are stored and not processed.
    async fn at_rest() -> Self {
        Self::on(databases().await).await
    }

    async fn on(db: Databases) -> Self {
        twinlog::migrations::apply_site(&db.site.database_url()).await.unwrap();
        let pool = Pool::connect(&config::Site {
            url: db.site.database_url(),
            max_connections: 12,
        });
        Self {
            inbox: Inbox::new(pool.clone(), settings()),
            db,
            pool,
            health: Health::default(),
            stop: None,
        }
    }

    async fn working() -> Self {
        let mut site = Self::at_rest().await;
        site.work();
        site
    }

    fn work(&mut self) {
        let stop = CancellationToken::new();
        let worker = Worker::new(self.inbox.clone(), self.health.component("inbox"));
        tokio::spawn(worker.run(stop.clone()));
        self.stop = Some(stop.drop_guard());
    }

    async fn post(&self, body: &[u8]) -> WebhookId {
        self.inbox
            .receive(Some(&signature::sign(&secret(), body)), Bytes::copy_from_slice(body))
            .await
            .unwrap()
    }

    /// Posts one change and waits until nothing is left to do.
    async fn deliver(&self, value: &Value) {
        self.post(&envelope(&[("messages", value.clone())])).await;
        self.settle().await;
    }

    /// Waits until nothing is left to do, also about people.
    async fn settle_people(&self) {
        self.settle().await;
        let statements = "SELECT count(*) FROM twinlog.lead_statements";
        self.db
            .until_site("all that is known of people is written", statements, "0")
            .await;
    }

    async fn settle(&self) {
        let received = "SELECT count(*) FROM webhook_events WHERE state = 'received'";
        self.db.until_site("every event is processed", received, "0").await;
    }

    /// Posts one text of one user.
    async fn post_text(&self, wamid: &str) -> WebhookId {
        let text = text(wamid, "16505551234", "x");
        self.post(&envelope(&[("messages", messages(&[text]))])).await
    }

    /// One value of a query, as text, which is not NULL.
    async fn value(&self, query: &str) -> String {
        self.db.site.value(query).await
    }

    async fn text(&self, query: &str) -> Option<String> {
        self.db.site.text(query).await
    }

    async fn count(&self, what: &str) -> usize {
        let count = format!("SELECT count(*) FROM {what}");
        self.value(&count).await.parse().unwrap()
    }

    async fn account(&self) -> Uuid {
        let made = format!(
            "INSERT INTO whatsapp_accounts (phone_number_id) VALUES ('{NUMBER}')
             ON CONFLICT (phone_number_id) DO UPDATE SET updated_at = now() RETURNING id"
        );
        self.db.site.client.query_one(&made, &[]).await.unwrap().get(0)
    }

    /// An outbound message as the outbox stores it.
    async fn outbound(&self, status: &str, wamid: Option<&str>) -> Uuid {
        let account_id = self.account().await;
        let mut tx = self.pool.begin().await.unwrap();
        let Link {
            lead_id,
            conversation_id,
        } = link(&mut tx, account_id, &contact("16505551234")).await.unwrap();
        tx.commit().await.unwrap();
        let wamid = wamid.map_or_else(|| "NULL".to_owned(), |wamid| format!("'{wamid}'"));
        let made = format!(
            "INSERT INTO whatsapp_messages (account_id, conversation_id, lead_id, direction, status, type, wamid)
             VALUES ('{account_id}', '{conversation_id}', '{lead_id}', 'outbound', '{status}', 'text', {wamid}) RETURNING id"
        );
        self.db.site.client.query_one(&made, &[]).await.unwrap().get(0)
    }

    /// The status of a message.
    async fn shown(&self, message: Uuid) -> String {
        let status = format!("SELECT status FROM whatsapp_messages WHERE id = '{message}'");
        self.value(&status).await
    }
}

fn settings() -> InboxSettings {
    InboxSettings {
        poll: Duration::from_millis(20),
        retry_initial: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        survey: Duration::from_millis(50),
        ..InboxSettings::new(Callback::Cloud {
            app_secrets: vec![secret()],
        })
    }
}

fn secret() -> SecretString {
    SecretString::from("app-secret")
}

fn contact(phone: &str) -> ContactIdentity {
    ContactIdentity::from_recipient(phone).unwrap()
}

fn value(rest: Value) -> Value {
    let mut value = json!({"messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550783881", "phone_number_id": NUMBER}});
    value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    value
}

fn text(wamid: &str, from: &str, body: &str) -> Value {
    json!({"from": from, "id": wamid, "timestamp": "1749416383", "type": "text", "text": {"body": body}})
}

fn messages(messages: &[Value]) -> Value {
    value(json!({ "messages": messages }))
}

fn status(wamid: &str, status: &str, second: i64) -> Value {
    let mut value = json!({"id": wamid, "status": status, "timestamp": (1_750_000_000 + second).to_string(), "recipient_id": "16505551234"});
    if status == "failed" {
        value["errors"] = json!([{"code": 131_047, "title": "Re-engagement message"}]);
    }
    value
}

fn statuses_of(statuses: &[Value]) -> Value {
    value(json!({ "statuses": statuses }))
}

fn envelope(changes: &[(&str, Value)]) -> Vec<u8> {
    let changes: Vec<_> = changes
        .iter()
        .map(|(field, value)| json!({"field": field, "value": value}))
        .collect();
    json!({"object": "whatsapp_business_account", "entry": [{"id": "WABA", "changes": changes}]})
        .to_string()
        .into_bytes()
}
