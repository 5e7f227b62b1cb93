//! The inbox on a real Site DB: what is kept, what becomes of it, and what repetition, disorder and faults change (nothing).

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use twinlog::dev::graph_simulator::samples;
use twinlog::health::Health;
use twinlog::inbox::{EventId, Inbox, ReceiveError, Worker, WorkerSettings};
use twinlog::site_db::links::{Link, learn_recipient, link, link_group};
use twinlog::site_db::statuses;
use twinlog::whatsapp::{ContactIdentity, OpaqueId, UserId, WaId, Wamid, signature};
use uuid::Uuid;

use crate::harness::{Databases, SOON, databases, eventually, eventually_equal};

const NUMBER: &str = "106540352242922";

/// A migrated Site DB with an inbox, and a worker if the test wants one.
struct Site {
    db: Databases,
    pool: PgPool,
    inbox: Inbox,
    health: Health,
    stop: Option<DropGuard>,
}

impl Site {
    /// Without a worker: events stay as they came.
    async fn at_rest() -> Self {
        let db = databases().await;
        twinlog::migrations::apply_site(&db.site.database_url()).await.unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(12)
            .connect(&db.site.url)
            .await
            .unwrap();
        Self {
            inbox: Inbox::new(pool.clone(), vec![secret()]),
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
        let settings = WorkerSettings {
            concurrency: 4,
            poll: Duration::from_millis(20),
            retry_initial: Duration::from_millis(20),
            retry_max: Duration::from_millis(100),
            survey: Duration::from_millis(50),
        };
        let worker = Worker::new(self.inbox.clone(), settings, self.health.component("inbox"));
        tokio::spawn(worker.run(stop.clone()));
        self.stop = Some(stop.drop_guard());
    }

    async fn post(&self, body: &[u8]) -> EventId {
        self.inbox
            .receive(Some(&signature::sign(&secret(), body)), body)
            .await
            .unwrap()
    }

    /// Posts one change and waits until nothing is left to do.
    async fn deliver(&self, value: &Value) {
        self.post(&envelope(&[("messages", value.clone())])).await;
        self.settle().await;
    }

    async fn settle(&self) {
        eventually_equal("every event is processed", SOON, Some("0".to_owned()), || {
            self.db
                .site
                .text("SELECT count(*) FROM webhook_events WHERE state = 'received'")
        })
        .await;
    }

    async fn text(&self, query: &str) -> Option<String> {
        self.db.site.text(query).await
    }

    async fn count(&self, what: &str) -> usize {
        self.text(&format!("SELECT count(*) FROM {what}"))
            .await
            .unwrap()
            .parse()
            .unwrap()
    }

    async fn account(&self) -> Uuid {
        sqlx::query_scalar(
            "INSERT INTO whatsapp_accounts (phone_number_id) VALUES ($1)
             ON CONFLICT (phone_number_id) DO UPDATE SET updated_at = now() RETURNING id",
        )
        .bind(NUMBER)
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// A message of ours as the outbox leaves it.
    async fn outbound(&self, status: &str, wamid: Option<&str>) -> Uuid {
        let account_id = self.account().await;
        let mut tx = self.pool.begin().await.unwrap();
        let Link {
            lead_id,
            conversation_id,
        } = link(&mut tx, account_id, &contact("16505551234")).await.unwrap();
        let id = sqlx::query_scalar(
            "INSERT INTO whatsapp_messages (account_id, conversation_id, lead_id, direction, status, type, wamid)
             VALUES ($1, $2, $3, 'outbound', $4, 'text', $5) RETURNING id",
        )
        .bind(account_id)
        .bind(conversation_id)
        .bind(lead_id)
        .bind(status)
        .bind(wamid)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        id
    }

    async fn shown(&self, message: Uuid) -> Option<String> {
        self.text(&format!("SELECT status FROM whatsapp_messages WHERE id = '{message}'"))
            .await
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

#[tokio::test]
async fn a_webhook_is_kept_byte_for_byte_before_it_is_answered() {
    let site = Site::at_rest().await;
    let body = br#"{"entry" : [ ],"x":"caf\u00e9 \/"}"#;
    let event = site.post(body).await;
    let kept: (Vec<u8>, String) = sqlx::query_as("SELECT body, state FROM webhook_events WHERE id = $1")
        .bind(event.0)
        .fetch_one(&site.pool)
        .await
        .unwrap();
    assert_eq!((kept.0.as_slice(), kept.1.as_str()), (&body[..], "received"));
}

#[tokio::test]
async fn a_forged_webhook_leaves_nothing() {
    let site = Site::at_rest().await;
    let body = envelope(&[("messages", messages(&[text("w", "16505551234", "x")]))]);
    let other = signature::sign(&SecretString::from("other"), &body);
    for header in [None, Some("sha256=00"), Some(other.as_str())] {
        assert!(matches!(
            site.inbox.receive(header, &body).await,
            Err(ReceiveError::Forged(_))
        ));
    }
    assert_eq!(site.count("webhook_events").await, 0);
}

#[tokio::test]
async fn without_a_database_nothing_is_taken() {
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(200))
        .connect_lazy("postgres://nobody@127.0.0.1:1/none")
        .unwrap();
    let inbox = Inbox::new(pool, vec![secret()]);
    let refused = inbox.receive(Some(&signature::sign(&secret(), b"{}")), b"{}").await;
    assert!(
        matches!(refused, Err(ReceiveError::NotStored(_) | ReceiveError::TimedOut)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_text_becomes_a_message_a_lead_a_conversation_and_a_notification() {
    let site = Site::working().await;
    site.deliver(&value(json!({
        "contacts": [{"profile": {"name": "Sheena"}, "wa_id": "16505551234", "user_id": "US.13"}],
        "messages": [{"from": "16505551234", "id": "wamid.1", "timestamp": "1749416383", "type": "text",
            "text": {"body": "Grüße 😀"}, "referral": {"source_type": "ad", "source_id": "7"}}]})))
        .await;
    for (query, expected) in [
        (
            "SELECT direction || status || type || body FROM whatsapp_messages",
            "inboundreceivedtextGrüße 😀",
        ),
        ("SELECT payload->'text'->>'body' FROM whatsapp_messages", "Grüße 😀"),
        (
            "SELECT extract(epoch FROM provider_at)::bigint FROM whatsapp_messages",
            "1749416383",
        ),
        (
            "SELECT l.name || l.wa_id || l.user_id FROM whatsapp_messages m JOIN leads l ON l.id = m.lead_id",
            "Sheena16505551234US.13",
        ),
        ("SELECT referral->>'source_id' FROM leads", "7"),
        (
            "SELECT c.unread_count FROM whatsapp_messages m JOIN conversations c ON c.id = m.conversation_id",
            "1",
        ),
        (
            "SELECT extract(epoch FROM last_inbound_at)::bigint FROM conversations",
            "1749416383",
        ),
        (
            "SELECT n.kind FROM notifications n JOIN whatsapp_messages m ON m.id = n.message_id",
            "inbound_message",
        ),
        (
            "SELECT phone_number_id || waba_id || display_phone_number FROM whatsapp_accounts",
            "106540352242922WABA15550783881",
        ),
        (
            "SELECT last_real_message_at > now() - interval '1 minute' FROM whatsapp_accounts",
            "true",
        ),
        (
            "SELECT state || real_events || protocol_events FROM webhook_events",
            "processed10",
        ),
    ] {
        assert_eq!(site.text(query).await.as_deref(), Some(expected), "{query}");
    }
}

#[tokio::test]
async fn every_type_is_stored_and_linked_known_or_not() {
    let site = Site::working().await;
    let kinds: Vec<_> = samples::KINDS.iter().copied().chain(["hologram"]).collect();
    let parts: Vec<_> = kinds
        .iter()
        .map(|kind| {
            let mut message = samples::message(kind);
            message["from"] = json!("16505551234");
            message["id"] = json!(format!("wamid.{kind}"));
            message
        })
        .collect();
    site.deliver(&messages(&parts)).await;
    for kind in &kinds {
        let stored =
            format!("SELECT type FROM whatsapp_messages WHERE wamid = 'wamid.{kind}' AND payload->>'type' = type");
        assert_eq!(site.text(&stored).await.as_deref(), Some(*kind));
    }
    assert_eq!(site.count("whatsapp_messages").await, kinds.len());
    assert_eq!(site.count("leads").await, 1);
    // Not for the notice, nor for what concerns a message that was announced before.
    assert_eq!(site.count("notifications").await, kinds.len() - 4);
    assert_eq!(
        site.text("SELECT state FROM webhook_events").await.as_deref(),
        Some("processed")
    );
    // The notice said that the user has a new number.
    assert_eq!(
        site.text("SELECT phone || '>' || wa_id FROM leads").await.as_deref(),
        Some("16505551234>16505550999")
    );
}

#[tokio::test]
async fn repetition_changes_nothing() {
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.out")).await;
    let body = envelope(&[
        (
            "messages",
            messages(&[text("wamid.1", "16505551234", "a"), text("wamid.2", "16505551234", "b")]),
        ),
        (
            "messages",
            statuses_of(&[status("wamid.out", "sent", 1), status("wamid.out", "failed", 2)]),
        ),
    ]);
    let event = site.post(&body).await;
    site.settle().await;
    let picture = "SELECT string_agg(t, ' ' ORDER BY t) FROM (
        SELECT row_to_json(m)::text AS t FROM whatsapp_messages m UNION ALL SELECT row_to_json(c)::text FROM conversations c
        UNION ALL SELECT row_to_json(l)::text FROM leads l UNION ALL SELECT row_to_json(n)::text FROM notifications n
        UNION ALL SELECT row_to_json(e)::text FROM message_status_events e) AS rows";
    let before = site.text(picture).await;
    site.post(&body).await;
    // Regrouped, and the other way round.
    site.deliver(&statuses_of(&[status("wamid.out", "failed", 2)])).await;
    site.deliver(&messages(&[text("wamid.2", "16505551234", "b")])).await;
    assert!(site.inbox.replay(event).await.unwrap());
    site.settle().await;
    assert_eq!(site.text(picture).await, before);
    assert_eq!(site.shown(message).await.as_deref(), Some("failed"));
    assert!(!site.inbox.replay(EventId(Uuid::nil())).await.unwrap());
}

#[tokio::test]
async fn the_same_first_message_arriving_many_times_at_once_is_one() {
    let site = Arc::new(Site::working().await);
    let mut posts = JoinSet::new();
    for number in 0..24 {
        let site = Arc::clone(&site);
        posts.spawn(async move {
            // Each with a message of its own too, so that they compete for the lead and the conversation.
            let parts = [
                text("wamid.same", "16505551234", "x"),
                text(&format!("wamid.{number}"), "16505551234", "y"),
            ];
            site.post(&envelope(&[("messages", messages(&parts))])).await;
        });
    }
    posts.join_all().await;
    site.settle().await;
    assert_eq!(site.count("webhook_events WHERE state = 'processed'").await, 24);
    assert_eq!(site.count("leads").await, 1);
    assert_eq!(site.count("conversations").await, 1);
    assert_eq!(site.count("whatsapp_messages").await, 25);
    assert_eq!(
        site.text("SELECT unread_count FROM conversations").await.as_deref(),
        Some("25")
    );
}

#[tokio::test]
async fn statuses_move_a_message_on_in_any_order() {
    let site = Site::working().await;
    for (order, expected) in [
        (&["sent", "delivered", "read"][..], "read"),
        (&["read", "delivered", "sent"], "read"),
        (&["sent", "failed"], "failed"),
        (&["failed", "delivered"], "delivered"),
        (&["delivered", "failed"], "delivered"),
        (&["read", "played", "sent", "sent"], "played"),
    ] {
        let wamid = format!("wamid.{}", order.join("."));
        let message = site.outbound("accepted", Some(&wamid)).await;
        for (second, name) in (0..).zip(order) {
            site.deliver(&statuses_of(&[status(&wamid, name, second)])).await;
        }
        assert_eq!(site.shown(message).await.as_deref(), Some(expected), "{order:?}");
    }
    let gaps = "SELECT count(*) FROM whatsapp_messages WHERE status IN ('delivered', 'read', 'played')
                 AND (delivered_at IS NULL OR sent_at IS NULL OR (status = 'read' AND read_at IS NULL))";
    assert_eq!(site.text(gaps).await.as_deref(), Some("0"));
    let error = "SELECT error_code || error_class FROM whatsapp_messages WHERE status = 'failed'";
    assert_eq!(site.text(error).await.as_deref(), Some("131047window"));
    assert_eq!(site.count("notifications WHERE kind = 'message_failed'").await, 2);
}

#[tokio::test]
async fn the_echo_of_our_id_settles_a_message_whose_answer_was_lost() {
    let site = Site::working().await;
    for before in ["unknown", "sending", "pending"] {
        let message = site.outbound(before, None).await;
        let wamid = format!("wamid.{before}");
        let mut report = status(&wamid, "sent", 1);
        report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
        site.deliver(&statuses_of(&[report])).await;
        assert_eq!(site.shown(message).await.as_deref(), Some("sent"), "{before}");
        // The next report has no echo: the wamid is known by now.
        site.deliver(&statuses_of(&[status(&wamid, "read", 2)])).await;
        assert_eq!(site.shown(message).await.as_deref(), Some("read"), "{before}");
    }
    assert_eq!(site.count("whatsapp_messages WHERE accepted_at IS NULL").await, 0);
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

#[tokio::test]
async fn a_second_send_of_the_same_message_is_kept_apart() {
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.first")).await;
    let mut report = status("wamid.second", "read", 1);
    report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
    site.deliver(&statuses_of(&[report])).await;
    assert_eq!(site.shown(message).await.as_deref(), Some("accepted"));
    let trace = format!("message_status_events WHERE wamid = 'wamid.second' AND message_id = '{message}'");
    assert_eq!(site.count(&trace).await, 1);
}

#[tokio::test]
async fn reports_that_come_too_early_wait_for_their_message() {
    let site = Site::working().await;
    let message = site.outbound("sending", None).await;
    site.deliver(&statuses_of(&[
        status("wamid.early", "delivered", 2),
        status("wamid.early", "sent", 1),
    ]))
    .await;
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 2);
    let wamid = Wamid::parse("wamid.early").unwrap();
    let mut tx = site.pool.begin().await.unwrap();
    let shown = statuses::accept(&mut tx, message, &wamid, false, OffsetDateTime::now_utc())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(shown.as_deref(), Some("delivered"));
    assert_eq!(site.shown(message).await, shown);
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

#[tokio::test]
async fn an_outcome_and_its_reports_never_miss_each_other() {
    let site = Arc::new(Site::working().await);
    let mut races = JoinSet::new();
    for number in 0..60 {
        let site = Arc::clone(&site);
        races.spawn(async move {
            let message = site.outbound("sending", None).await;
            let wamid = Wamid::parse(&format!("wamid.race.{number}")).unwrap();
            let body = envelope(&[("messages", statuses_of(&[status(wamid.as_str(), "delivered", 1)]))]);
            let report = site.post(&body);
            let outcome = async {
                let mut tx = site.pool.begin().await.unwrap();
                statuses::accept(&mut tx, message, &wamid, false, OffsetDateTime::now_utc())
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            };
            tokio::join!(report, outcome);
        });
    }
    races.join_all().await;
    site.settle().await;
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
    assert_eq!(site.count("whatsapp_messages WHERE status <> 'delivered'").await, 0);
}

#[tokio::test]
async fn a_part_that_cannot_be_stored_never_takes_its_neighbours_down() {
    let site = Site::working().await;
    site.db
        .site
        .batch_execute("ALTER TABLE whatsapp_messages ADD CONSTRAINT no_poison CHECK (body <> 'poison')")
        .await
        .unwrap();
    let parts = [
        text("wamid.1", "16505551234", "before"),
        text("wamid.2", "16505550002", "poison"),
        json!({"id": "wamid.3", "type": "text"}),
        text("wamid.4", "16505550004", "after"),
    ];
    let event = site
        .post(&envelope(&[
            ("messages", messages(&parts)),
            ("brand_new_field", json!({"x": 1})),
        ]))
        .await;
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 2);
    // The refused part left nothing, not even its lead.
    assert_eq!(site.count("leads").await, 2);
    let failures = site
        .text("SELECT failures FROM webhook_events WHERE state = 'failed'")
        .await
        .unwrap();
    let failures: Value = serde_json::from_str(&failures).unwrap();
    assert_eq!(failures[0]["index"], 1);
    assert_eq!(failures[0]["reason"], "SQLSTATE 23514, constraint no_poison");
    assert_eq!(failures[1]["index"], 2);
    assert!(!failures.to_string().contains("16505550002"));

    site.db
        .site
        .batch_execute("ALTER TABLE whatsapp_messages DROP CONSTRAINT no_poison")
        .await
        .unwrap();
    site.inbox.replay(event).await.unwrap();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 3);
    assert_eq!(site.count("notifications").await, 3);
}

#[tokio::test]
async fn an_event_without_an_envelope_is_kept_as_failed() {
    let site = Site::working().await;
    site.post(b"[]").await;
    site.settle().await;
    let kept = "SELECT state || encode(body, 'escape') FROM webhook_events";
    assert_eq!(site.text(kept).await.as_deref(), Some("failed[]"));
}

#[tokio::test]
async fn a_missing_column_keeps_events_until_it_is_back() {
    let site = Site::working().await;
    site.db
        .site
        .batch_execute("ALTER TABLE whatsapp_messages RENAME COLUMN payload TO lost")
        .await
        .unwrap();
    site.post(&envelope(&[(
        "messages",
        messages(&[text("wamid.1", "16505551234", "x")]),
    )]))
    .await;
    eventually("the event was tried", SOON, || async {
        let tried = site
            .count("webhook_events WHERE state = 'received' AND attempts > 0")
            .await;
        if tried == 1 { Ok(()) } else { Err(tried) }
    })
    .await;
    assert_eq!(site.count("leads").await, 0);
    site.db
        .site
        .batch_execute("ALTER TABLE whatsapp_messages RENAME COLUMN lost TO payload")
        .await
        .unwrap();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages WHERE wamid = 'wamid.1'").await, 1);
}

#[tokio::test]
async fn events_of_a_dead_process_are_processed_by_the_next() {
    let mut site = Site::at_rest().await;
    for number in 0..20 {
        site.post(&envelope(&[(
            "messages",
            messages(&[text(&format!("wamid.{number}"), "16505551234", "x")]),
        )]))
        .await;
    }
    // Nobody wakes this worker: it finds them by itself.
    site.work();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 20);
    eventually("the inbox is ready", SOON, || async {
        if site.health.is_ready() { Ok(()) } else { Err(()) }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_updates_of_two_numbers_in_one_post_are_all_stored() {
    let site = Site::working().await;
    let mut changes = Vec::new();
    for number in 0..500 {
        let from = format!("1650555{:04}", number % 100);
        let mut change = messages(&[text(&format!("wamid.{number}"), &from, "x")]);
        if number % 2 == 1 {
            change["metadata"]["phone_number_id"] = json!("2");
        }
        changes.push(("messages", change));
        changes.push((
            "messages",
            statuses_of(&[status(&format!("wamid.out.{number}"), "sent", 1)]),
        ));
    }
    site.post(&envelope(&changes)).await;
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 500);
    assert_eq!(site.count("message_status_events").await, 500);
    assert_eq!(site.count("leads").await, 100);
    assert_eq!(site.count("whatsapp_accounts").await, 2);
    assert_eq!(
        site.text("SELECT state || ' ' || real_events || ' ' || protocol_events FROM webhook_events")
            .await
            .as_deref(),
        Some("processed 500 500")
    );
}

#[tokio::test]
async fn what_was_written_on_the_phone_is_ours_and_sent() {
    let site = Site::working().await;
    let echo = json!({"from": "15550783881", "to": "16505551234", "id": "wamid.echo", "timestamp": "1749416383",
        "type": "text", "text": {"body": "from the phone"}});
    let body = envelope(&[("smb_message_echoes", value(json!({"message_echoes": [echo]})))]);
    site.deliver(&statuses_of(&[status("wamid.echo", "delivered", 5)]))
        .await;
    site.post(&body).await;
    site.post(&body).await;
    site.settle().await;
    let stored = "SELECT direction || status || body || recipient FROM whatsapp_messages";
    assert_eq!(
        site.text(stored).await.as_deref(),
        Some("outbounddeliveredfrom the phone16505551234")
    );
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
    assert_eq!(site.count("notifications").await, 0);
    assert_eq!(
        site.text("SELECT unread_count FROM conversations").await.as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn history_is_kept_without_a_stir() {
    let site = Site::working().await;
    let history = value(
        json!({"history": [{"metadata": {"phase": 0}, "threads": [{"id": "16505551234",
        "context": {"wa_id": "16505551234", "user_id": "US.1"}, "messages": [
            {"from": "15550783881", "to": "16505551234", "id": "h1", "timestamp": "1700000000", "type": "text", "text": {"body": "a"}, "history_context": {"status": "READ"}},
            {"from": "15550783881", "to": "16505551234", "id": "h2", "timestamp": "1700000001", "type": "text", "text": {"body": "b"}, "history_context": {"status": "ERROR"}},
            {"from": "16505551234", "id": "h3", "timestamp": "1700000002", "type": "text", "text": {"body": "c"}, "history_context": {"status": "READ"}}]}]}]}),
    );
    site.post(&envelope(&[("history", history)])).await;
    site.settle().await;
    let stored = "SELECT string_agg(direction || ' ' || status, ', ' ORDER BY created_at) FROM whatsapp_messages
                   WHERE created_at < '2024-01-01'";
    assert_eq!(
        site.text(stored).await.as_deref(),
        Some("outbound read, outbound failed, inbound received")
    );
    assert_eq!(site.count("notifications").await, 0);
    assert_eq!(
        site.text("SELECT unread_count FROM conversations").await.as_deref(),
        Some("0")
    );
    assert_eq!(
        site.text("SELECT last_real_message_at FROM whatsapp_accounts").await,
        None
    );
}

#[tokio::test]
async fn a_user_who_hides_the_number_keeps_the_lead() {
    let site = Site::working().await;
    // We know the number only; a status tells the user id; then the user writes without the number.
    let message = site.outbound("accepted", Some("wamid.out")).await;
    let mut report = status("wamid.out", "delivered", 1);
    report["recipient_user_id"] = json!("US.13");
    site.deliver(&statuses_of(&[report])).await;
    assert_eq!(site.shown(message).await.as_deref(), Some("delivered"));
    site.deliver(&value(json!({"contacts": [{"profile": {"username": "@x"}, "user_id": "US.13"}],
        "messages": [{"from_user_id": "US.13", "id": "wamid.in", "timestamp": "1", "type": "text", "text": {"body": "hi"}}]})))
    .await;
    assert_eq!(site.count("leads").await, 1);
    assert_eq!(
        site.text("SELECT wa_id || user_id || username FROM leads")
            .await
            .as_deref(),
        Some("16505551234US.13@x")
    );
    assert_eq!(site.count("conversations").await, 1);
}

#[tokio::test]
async fn text_that_postgres_cannot_hold_is_stored_with_a_replacement() {
    let site = Site::working().await;
    let body = format!(
        r#"{{"entry":[{{"id":"W","changes":[{{"field":"messages","value":{{"metadata":{{"phone_number_id":"{NUMBER}"}},
           "contacts":[{{"wa_id":"16505551234","profile":{{"name":"n\u0000"}}}}],
           "messages":[{{"from":"16505551234","id":"wamid.1","type":"text","timestamp":"1","text":{{"body":"nul \u0000 cut \ud83d"}}}}]}}}}]}}]}}"#
    );
    site.post(body.as_bytes()).await;
    site.settle().await;
    assert_eq!(
        site.text("SELECT body || (payload->'text'->>'body') FROM whatsapp_messages")
            .await
            .as_deref(),
        Some("nul \u{fffd} cut \u{fffd}nul \u{fffd} cut \u{fffd}")
    );
    assert_eq!(
        site.text("SELECT state FROM webhook_events").await.as_deref(),
        Some("processed")
    );
}

#[tokio::test]
async fn many_links_to_a_new_person_make_one_lead() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let mut links = JoinSet::new();
    for number in 0..40 {
        let pool = site.pool.clone();
        links.spawn(async move {
            let contact = ContactIdentity {
                wa_id: (number % 3 != 0).then(|| WaId::parse("16505551234").unwrap()),
                user_id: (number % 3 != 1).then(|| UserId::parse("US.13").unwrap()),
                ..ContactIdentity::default()
            };
            let mut tx = pool.begin().await.unwrap();
            let link = link(&mut tx, account_id, &contact).await.unwrap();
            tx.commit().await.unwrap();
            link.lead_id
        });
    }
    links.join_all().await;
    // Those who knew one id only may have come first, and nobody can say that the two are one person; but no more than two.
    let leads = site.count("leads").await;
    assert!((1..=2).contains(&leads), "{leads} leads");
    assert_eq!(site.count("conversations").await, leads);
    let mut tx = site.pool.begin().await.unwrap();
    let refused = link(&mut tx, account_id, &ContactIdentity::default()).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn the_number_that_whatsapp_knows_replaces_the_one_that_was_dialled() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let (dialled, actual) = (contact("+55 11 99999-8888"), contact("551199998888"));
    let mut tx = site.pool.begin().await.unwrap();
    let first = link(&mut tx, account_id, &dialled).await.unwrap();
    learn_recipient(&mut tx, first.lead_id, dialled.wa_id.as_ref(), &actual)
        .await
        .unwrap();
    // The answer comes from the real number, and the next message is dialled as before.
    assert_eq!(link(&mut tx, account_id, &actual).await.unwrap(), first);
    assert_eq!(link(&mut tx, account_id, &dialled).await.unwrap(), first);
    tx.commit().await.unwrap();
    assert_eq!(
        site.text("SELECT wa_id || ' ' || phone FROM leads").await.as_deref(),
        Some("551199998888 5511999998888")
    );

    // The real number wrote before anybody dialled the other.
    let (dialled, actual) = (contact("+52 1 55 1234 5678"), contact("525512345678"));
    let mut tx = site.pool.begin().await.unwrap();
    let real = link(&mut tx, account_id, &actual).await.unwrap();
    let second = link(&mut tx, account_id, &dialled).await.unwrap();
    assert_ne!(real, second);
    learn_recipient(&mut tx, second.lead_id, dialled.wa_id.as_ref(), &actual)
        .await
        .unwrap();
    assert_eq!(link(&mut tx, account_id, &dialled).await.unwrap(), real);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_group_has_a_lead_of_its_own() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let mut tx = site.pool.begin().await.unwrap();
    let first = link_group(&mut tx, account_id, "Y2FwaV9ncm91cA").await.unwrap();
    assert_eq!(link_group(&mut tx, account_id, "Y2FwaV9ncm91cA").await.unwrap(), first);
    assert_ne!(
        link_group(&mut tx, account_id, "other").await.unwrap().lead_id,
        first.lead_id
    );
    tx.commit().await.unwrap();
}
