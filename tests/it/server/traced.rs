//! `twinlog trace`: a message's story, and what is missing in it.

use super::*;
use crate::harness::{ConfigFile, Process};

/// A server in this process, and a daemon as its own.
struct Whole {
    world: World,
    server: Server,
    config: ConfigFile,
    _daemon: Process,
}

impl Whole {
    async fn new() -> Self {
        let mut world = World::new().await;
        world.config.whatsapp.hold_probe = Duration::from_secs(3600);
        world.db.migrate().await;
        let server = world.serve().await;
        let config = ConfigFile::new(&world.db, "sync.retry_initial_ms = 60000");
        let mut daemon = Process::start(&config, &["sync"], "");
        daemon.wait_for_output("listening", SOON).await;
        Self {
            world,
            server,
            config,
            _daemon: daemon,
        }
    }

    /// Runs `twinlog trace --json`; returns whether it exits with 0, and the first message's story.
    async fn trace(&self, name: &str, more: &[&str]) -> (bool, Value) {
        let mut process = Process::start(&self.config, &[&["trace", name, "--json"], more].concat(), "");
        let status = process.wait(2 * SOON).await;
        let output = process.output();
        let line = output.lines().find(|line| line.starts_with('{'));
        let whole: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("no answer: {output}"))).unwrap();
        (status.success(), whole["messages"][0].clone())
    }

    /// Waits until the Agent DB has the message with the Site DB's status.
    async fn replicated(&self, id: &str) {
        let status = self.world.status(id).await;
        let there = format!("SELECT status FROM whatsapp_messages WHERE id = '{id}'");
        self.world.db.until_agent("the message is there", &there, &status).await;
    }
}

fn missing(story: &Value) -> String {
    story["missing"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_arrived_is_told_by_any_of_its_names_and_nothing_is_missing() {
    let whole = Whole::new().await;
    let body = json!({"to": USER, "text": "secret text", "client_id": "order 7"});
    let id = whole.server.takes(&body).await;
    whole.world.reaches(&id, &["delivered"]).await;
    whole.replicated(&id).await;

    let wamid = whole.world.value(&id, "wamid").await;
    for name in [&id, &format!("tl:{id}"), &wamid, "order 7"] {
        let (complete, story) = whole.trace(name, &[]).await;
        assert!(complete && story["id"] == json!(id), "{name}: {story}");
        assert_eq!(
            (&story["in_agent"], &story["missing"]),
            (&json!(true), &json!([])),
            "{story}"
        );
        let text = story.to_string();
        for step in [
            "submitted by crm",
            "attempt 1 began",
            "Meta has it as",
            "delivered, by Meta's clock",
            "stored",
        ] {
            assert!(text.contains(step), "{step}: {story}");
        }
        assert!(
            !text.contains("secret") && !text.contains(USER.trim_start_matches('+')),
            "{text}"
        );
    }
    let (_, story) = whole.trace(&id, &["--show-values"]).await;
    assert_eq!(story["body"], "secret text");
    let (complete, story) = whole.trace("nobody", &[]).await;
    assert!(!complete && story.is_null(), "{story}");
    whole.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_with_its_reason() {
    // GIVEN an Agent DB that refuses a message, one without a report, and one whose number is held
    let whole = Whole::new().await;
    let db = &whole.world.db;
    db.on_agent("ALTER TABLE whatsapp_messages ADD CONSTRAINT sound CHECK (client_id <> 'refused')")
        .await;
    let refused = json!({"to": "+16505551001", "text": "x", "client_id": "refused"});
    let refused = whole.server.takes(&refused).await;
    whole.world.reaches(&refused, &["delivered"]).await;
    whole.world.meta.pause_webhooks(true);
    let silent = whole.server.takes(&json!({"to": "+16505551002", "text": "x"})).await;
    whole.world.reaches(&silent, &["accepted"]).await;
    whole.world.fault_once(Fault::AcceptThenHang);
    let unknown = whole.server.takes(&json!({"to": "+16505551003", "text": "x"})).await;
    whole.world.reaches(&unknown, &["unknown"]).await;
    whole.world.meta.expire_token(NUMBER).unwrap();
    let held = whole.server.takes(&json!({"to": "+16505551004", "text": "x"})).await;
    whole
        .world
        .until_count(1, "status = 'pending' AND error_class = 'account'")
        .await;
    db.on_site(&format!(
        "UPDATE whatsapp_messages SET accepted_at = now() - interval '3 hours 1 minute' WHERE id = '{silent}';
         UPDATE whatsapp_messages SET created_at = now() - interval '5 minutes' WHERE id = '{held}'"
    ))
    .await;
    let parked = "SELECT count(*) FROM twinlog.failed_rows";
    db.until_agent("the refused one is parked", parked, "1").await;

    for (id, what) in [
        (&refused, "not in the Agent DB: parked since"),
        (&silent, "accepted, but no status for 3 h"),
        (&unknown, "it is not known whether it was sent"),
        (&held, "its number is held"),
    ] {
        let (complete, story) = whole.trace(id, &[]).await;
        assert!(!complete && missing(&story).contains(what), "{what}: {story}");
    }

    // WHEN a person settles one, THEN the story has the decision
    let resolve = ["outbox", "resolve", &unknown, "--as", "sent", "--reason", "she has it"];
    let mut process = Process::start(&whole.config, &resolve, "");
    assert!(process.wait(SOON).await.success(), "{}", process.output());
    let (_, story) = whole.trace(&unknown, &[]).await;
    assert!(
        story
            .to_string()
            .contains("resolve_sent, unknown → accepted: she has it"),
        "{story}"
    );
    whole.server.stop().await;
}
