//! A server that dies at every durability edge, as by `kill -9`, and another that takes over.

use super::*;
use crate::harness::{ConfigFile, Process};
use twinlog::dev::graph_simulator::Inbound;
use twinlog::failpoint::name;

/// `twinlog serve`, set to die, with Meta's webhooks going to it.
struct Doomed {
    process: Process,
    config: ConfigFile,
}

impl Doomed {
    async fn start(world: &World, failpoints: &str, log: &str) -> Self {
        let more = format!(
            "{}\n[log]\nfilter = \"{log}\"",
            sections(&world.meta.url(), "simulator-token")
        );
        let config = ConfigFile::new(&world.db, &more);
        let mut process = Process::start(&config, &["serve"], failpoints);
        process.wait_for_output("listening", SOON).await;
        let callback = config.http("/webhook").parse().unwrap();
        world.meta.set_callback(Some(callback));
        Self { process, config }
    }

    /// One that dies there.
    async fn at(world: &World, failpoint: &str) -> Self {
        Self::start(world, &format!("{failpoint}=return(abort)"), "info").await
    }

    async fn send(&self, body: &Value) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http.post(self.config.http("/v1/messages")).bearer_auth(TOKEN);
        // It may die before or after its answer.
        let _ = request.body(body.to_string()).send().await;
    }

    async fn dies(&mut self) {
        let status = self.process.wait(SOON).await;
        assert!(!status.success(), "{status}");
    }
}

/// A message is sent through a server that dies at the failpoint; then another one runs, and the client asks again.
/// Returns the world, the second server and the message's id.
async fn after_death_at(failpoint: &str) -> (World, Server, String) {
    let world = World::new().await;
    let leased = failpoint == name::SEND_AFTER_PENDING;
    if leased {
        // Another process has the number: this one must not claim the message between its commit and the death.
        let lease = format!(
            "INSERT INTO twinlog.number_leases VALUES ('{NUMBER}', gen_random_uuid(), now() + interval '1 hour')"
        );
        world.db.site.batch_execute(&lease).await.unwrap();
    }
    // What it can't take any more, Meta brings to the next one.
    let mut doomed = Doomed::at(&world, failpoint).await;
    let body = json!({"to": USER, "text": "survive", "client_id": "c1"});
    doomed.send(&body).await;
    doomed.dies().await;
    if leased {
        let gone = "DELETE FROM twinlog.number_leases";
        world.db.site.batch_execute(gone).await.unwrap();
    }
    let server = world.serve().await;
    let again = server.plain(&body).await;
    assert!(again.status < 300, "{again:?}");
    assert_eq!(again.body["duplicate"], true, "{again:?}");
    let id = again.body["id"].as_str().unwrap().to_owned();
    (world, server, id)
}

async fn assert_sent_once(world: World, server: Server, id: &str) {
    // A dead server's right to send for the number lasts a while.
    world.reaches(id, &["accepted", "sent", "delivered"]).await;
    assert_eq!(world.meta.ledger().messages.len(), 1);
    assert_eq!(world.count("true").await, 1);
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_with_a_pending_message_it_is_sent() {
    let (world, server, id) = after_death_at(name::SEND_AFTER_PENDING).await;
    assert_sent_once(world, server, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_before_the_call_it_is_unknown_and_not_sent_by_itself() {
    let (world, server, id) = after_death_at(name::SEND_AFTER_SENDING).await;
    assert_eq!(world.status(&id).await, "sending");
    // Let the lease's time pass.
    let expire = "UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'";
    world.db.site.batch_execute(expire).await.unwrap();
    world.reaches(&id, &["unknown"]).await;
    // The conversation goes on without it.
    let next = server.plain(&json!({"to": USER, "text": "next"})).await;
    world
        .reaches(next.body["id"].as_str().unwrap(), &["accepted", "sent", "delivered"])
        .await;
    assert_eq!(world.status(&id).await, "unknown");
    assert_eq!(world.meta.ledger().messages.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_between_answer_and_outcome_the_status_tells() {
    let (world, server, id) = after_death_at(name::SEND_BEFORE_OUTCOME).await;
    assert_sent_once(world, server, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_after_the_outcome_everything_is_there() {
    let (world, server, id) = after_death_at(name::SEND_AFTER_OUTCOME).await;
    assert_sent_once(world, server, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_a_webhook_loses_and_doubles_no_message() {
    for failpoint in [name::WEBHOOK_AFTER_COMMIT, name::INBOX_BEFORE_COMMIT] {
        let world = World::new().await;
        let mut doomed = Doomed::at(&world, failpoint).await;
        let wamid = world.meta.inbound(Inbound::text(NUMBER, "16505551234", "hello?")).await;
        doomed.dies().await;
        let server = world.serve().await;
        eventually(&format!("the message is there after {failpoint}"), SOON, || async {
            let rows = world.count(&format!("wamid = '{wamid}'")).await;
            if rows == 1 { Ok(()) } else { Err(rows) }
        })
        .await;
        eventually("Meta has its 200", SOON, || async {
            if world.meta.pending() == 0 {
                Ok(())
            } else {
                Err(world.meta.pending())
            }
        })
        .await;
        eventually("all events are processed", SOON, || async {
            let waiting = world
                .db
                .site
                .text("SELECT count(*) FROM webhook_events WHERE state <> 'processed'")
                .await;
            if waiting.as_deref() == Some("0") {
                Ok(())
            } else {
                Err(waiting)
            }
        })
        .await;
        assert_eq!(world.count("true").await, 1);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_servers_number_is_sent_for_again_within_seconds() {
    let world = World::new().await;
    let mut doomed = Doomed::start(&world, "", "info").await;
    doomed
        .send(&json!({"to": USER, "text": "its number now", "wait": true}))
        .await;
    assert_eq!(world.meta.ledger().messages.len(), 1);
    doomed.process.kill9();
    let killed = std::time::Instant::now();
    let server = world.serve().await;
    let taken = server.plain(&json!({"to": USER, "text": "x", "wait": 30_000})).await;
    assert_eq!(taken.status, 200, "{taken:?}");
    assert!(killed.elapsed() < Duration::from_secs(9), "{:?}", killed.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_the_story_without_bodies_numbers_or_tokens() {
    let world = World::new().await;
    // Triggers of the CRM's own may be talkative.
    world
        .db
        .site
        .batch_execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE WARNING 'stored: %', NEW.body; RETURN NEW; END $$; \
             CREATE TRIGGER tell BEFORE INSERT ON whatsapp_messages FOR EACH ROW EXECUTE FUNCTION tell()",
        )
        .await
        .unwrap();
    // Everything that every crate in the process has to say, and the driver's statements with it.
    let mut doomed = Doomed::start(&world, "", "debug,twinlog=trace,sqlx=trace,hyper=trace,reqwest=trace").await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let graph = doomed
        .config
        .http(&format!("/v26.0/{NUMBER}/messages?access_token={TOKEN}"));
    let send = |body: Value| http.post(&graph).body(body.to_string()).send();

    assert_eq!(send(text("a-secret-body")).await.unwrap().status(), 200);
    world.fault_once(Fault::Error {
        code: 131_026,
        subcode: None,
    });
    assert_eq!(send(text("a-secret-body")).await.unwrap().status(), 400);
    world.fault_once(Fault::AcceptThenHang);
    send(text("a-secret-body")).await.unwrap();
    assert_eq!(send(text_to("a-secret-body", "x")).await.unwrap().status(), 400);
    let wamid = world
        .meta
        .inbound(Inbound::text(NUMBER, "16505551234", "a-secret-body"))
        .await;
    eventually("the answer is there", SOON, || async {
        let rows = world.count(&format!("wamid = '{wamid}'")).await;
        if rows == 1 { Ok(()) } else { Err(rows) }
    })
    .await;
    // Meta took a message twice: a second wamid under our id.
    let sent = "SELECT id FROM whatsapp_messages WHERE status IN ('sent', 'delivered') LIMIT 1";
    let id = world.db.site.text(sent).await.unwrap();
    let status = json!([{"id": "wamid.SECOND", "status": "sent", "timestamp": "1750030073", "recipient_id": "16505551234",
        "biz_opaque_callback_data": format!("tl:{id}")}]);
    world
        .meta
        .update(NUMBER, "messages", json!({ "statuses": status }))
        .await;
    let told = doomed.process.wait_for_output("Meta took this message twice", SOON);
    told.await;
    let forger = secrecy::SecretString::from("not-the-secret");
    world.meta.post_forged(br#"{"x":"a-secret-body"}"#, &forger).await;
    let handshake = doomed
        .config
        .http("/webhook?hub.mode=subscribe&hub.verify_token=a-guess&hub.challenge=1");
    assert_eq!(http.get(handshake).send().await.unwrap().status(), 403);
    world.meta.expire_token(NUMBER).unwrap();
    assert_eq!(send(text("a-secret-body")).await.unwrap().status(), 503);

    doomed.process.terminate();
    assert!(doomed.process.wait(SOON).await.success());
    let log = doomed.process.output();
    assert!(log.contains("DEBUG"), "the log was not at its most talkative");
    for told in [
        "PERSISTENCE: the message was sent",
        "PERSISTENCE: the message failed",
        "the number is held",
        "WEBHOOK",
    ] {
        assert!(log.contains(told), "{told} is missing in {log}");
    }
    for secret in [
        "a-secret-body",
        "6505551234",
        TOKEN,
        "simulator-token",
        "simulator-secret",
        "a-guess",
        "wamid.",
    ] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_log_holds_no_values_either() {
    let world = World::new().await;
    migrations::apply_agent(&world.db.agent.database_url()).await.unwrap();
    let talkative = "[log]\nfilter = \"debug,twinlog=trace,tokio_postgres=trace,tokio_postgres::query=trace\"";
    let config = ConfigFile::new(&world.db, talkative);
    let mut daemon = Process::start(&config, &["sync"], "");
    let lead = "INSERT INTO leads (phone, name) VALUES ('+49555999888', 'a-secret-name')";
    world.db.site.batch_execute(lead).await.unwrap();
    let there = || {
        world
            .db
            .agent
            .text("SELECT count(*) FROM leads WHERE name = 'a-secret-name'")
    };
    crate::harness::eventually_equal("the lead is on the other side", SOON, Some("1".to_owned()), there).await;
    // And one that comes by the stream, whenever the first one came.
    world
        .db
        .site
        .batch_execute("UPDATE leads SET phone = '+49555999777', username = 'b-secret-name'")
        .await
        .unwrap();
    let changed = || {
        world
            .db
            .agent
            .text("SELECT count(*) FROM leads WHERE username = 'b-secret-name'")
    };
    crate::harness::eventually_equal("its change is there", SOON, Some("1".to_owned()), changed).await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());
    let log = daemon.output();
    assert!(log.contains("DEBUG"), "the log was not at its most talkative");
    for secret in ["555999", "a-secret-name", "b-secret-name"] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}
