//! A server that dies before or after each commit, as by `kill -9`, and another one that takes over.

use twinlog::dev::graph_simulator::{Settings, WebhookSettings};
use twinlog::failpoint::name;

use super::*;
use crate::harness::{ConfigFile, Process, databases};

/// A message is sent through a server that dies at the failpoint; then another one runs, and the client asks again.
/// Returns the world, the second server and the message's id.
async fn after_death_at(failpoint: &str) -> (World, Server, String) {
    // GIVEN a server that dies there
    let world = World::new().await;
    let leased = failpoint == name::SEND_AFTER_PENDING;
    if leased {
        // Another process has the number: this one must not claim the message between its commit and the death.
        let lease = format!(
            "INSERT INTO twinlog.number_leases VALUES ('{NUMBER}', gen_random_uuid(), now() + interval '1 hour')"
        );
        world.db.on_site(&lease).await;
    }
    // Meta delivers to the next server what this one did not acknowledge.
    let mut doomed = Binary::dying_at(&world, failpoint).await;
    let body = json!({"to": USER, "text": "survive", "client_id": "c1"});

    // WHEN a client sends a message and repeats it at the next server, since the first may die before or after its answer
    let _ = doomed.plain(&body).await;
    doomed.dies().await;
    if leased {
        world.db.on_site("DELETE FROM twinlog.number_leases").await;
    }
    let server = world.serve().await;
    let again = server.plain(&body).await;
    assert!(again.status < 300, "{again:?}");
    assert_eq!(again.body["duplicate"], true, "{again:?}");
    let id = again.id();
    (world, server, id)
}

async fn assert_sent_once(world: World, server: Server, id: &str) {
    // A dead server's lease of the number must expire first.
    world.is_sent(id).await;
    assert_eq!(world.accepted(), 1);
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
    // Let the lease expire.
    let expire = "UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'";
    world.db.on_site(expire).await;
    world.reaches(&id, &["unknown"]).await;
    // Later messages of the conversation are sent although this one is unknown.
    let next = server.takes(&json!({"to": USER, "text": "next"})).await;
    world.is_sent(&next).await;
    assert_eq!(world.status(&id).await, "unknown");
    assert_eq!(world.accepted(), 1);
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
        let mut doomed = Binary::dying_at(&world, failpoint).await;
        let wamid = world.meta.inbound(Inbound::text(NUMBER, "16505551234", "hello?")).await;
        doomed.dies().await;
        let server = world.serve().await;
        world.until_count(1, &format!("wamid = '{wamid}'")).await;
        eventually_equal("events that Meta has no 200 for", SOON, 0, async || {
            world.meta.pending()
        })
        .await;
        let waiting = "SELECT count(*) FROM webhook_events WHERE state <> 'processed'";
        world.db.until_site("all events are processed", waiting, "0").await;
        assert_eq!(world.count("true").await, 1);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_the_commit_of_many_webhooks_and_their_answers_loses_and_doubles_no_message() {
    let settings = Settings {
        webhooks: WebhookSettings {
            batch: 1,
            concurrency: 30,
            ..WebhookSettings::default()
        },
        ..prompt()
    };
    let world = World::with(databases().await, settings).await;
    let mut doomed = Binary::dying_at(&world, name::WEBHOOK_AFTER_COMMIT).await;
    // Held back, so that they come at once.
    world.meta.pause_webhooks(true);
    for number in 0..60 {
        let from = format!("165055500{:02}", number % 20);
        world.meta.inbound(Inbound::text(NUMBER, &from, "hello?")).await;
    }
    world.meta.pause_webhooks(false);
    doomed.dies().await;
    let server = world.serve().await;
    eventually_equal("events that Meta has no 200 for", SOON, 0, async || {
        world.meta.pending()
    })
    .await;
    let waiting = "SELECT count(*) FROM webhook_events WHERE state <> 'processed'";
    world.db.until_site("all events are processed", waiting, "0").await;
    assert_eq!(world.count("true").await, 60);
    let repeated: i64 = world
        .db
        .site
        .value("SELECT count(*) FROM webhook_events")
        .await
        .parse()
        .unwrap();
    // What was committed and not answered came again.
    assert!(repeated > 60, "{repeated}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_servers_number_is_sent_for_again_within_seconds() {
    let world = World::new().await;
    let mut doomed = Binary::start(&world).await;
    let body = json!({"to": USER, "text": "its number now", "wait": true});
    doomed.plain(&body).await.unwrap();
    assert_eq!(world.accepted(), 1);
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
    // GIVEN triggers of the CRM's own, which may be talkative, and everything that every crate in the process has to say
    let world = World::new().await;
    world
        .db
        .on_site(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE WARNING 'stored: %', NEW.body; RETURN NEW; END $$;
             CREATE TRIGGER tell BEFORE INSERT ON whatsapp_messages FOR EACH ROW EXECUTE FUNCTION tell()",
        )
        .await;
    let filter = "debug,twinlog=trace,sqlx=trace,hyper=trace,reqwest=trace";
    let mut server = Binary::start_with(&world, "", filter).await;

    // WHEN messages are sent, refused and lost, webhooks arrive, and unauthorised requests are made
    messages_meet_everything(&world, &server).await;
    // Meta took a message twice: a second wamid under our id.
    let sent = "SELECT id FROM whatsapp_messages WHERE status IN ('sent', 'delivered') LIMIT 1";
    let id = world.db.site.value(sent).await;
    let status = json!([{"id": "wamid.SECOND", "status": "sent", "timestamp": "1750030073", "recipient_id": "16505551234",
        "biz_opaque_callback_data": format!("tl:{id}")}]);
    world
        .meta
        .update(NUMBER, "messages", json!({ "statuses": status }))
        .await;
    let told = server.process.wait_for_output("Meta took this message twice", SOON);
    told.await;
    let forger = secrecy::SecretString::from("not-the-secret");
    world.meta.post_forged(br#"{"x":"a-secret-body"}"#, &forger).await;
    let handshake = "/webhook?hub.mode=subscribe&hub.verify_token=a-guess&hub.challenge=1";
    let handshake = server.http.get(server.config.http(handshake)).send().await.unwrap();
    assert_eq!(handshake.status(), 403);
    world.meta.expire_token(NUMBER).unwrap();
    assert_eq!(send(&server, text("a-secret-body")).await, 401);
    server.process.terminate();
    assert!(server.process.wait(SOON).await.success());

    // THEN the log has the ids and the outcomes, but no bodies, numbers or tokens
    let log = server.process.output();
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

/// A send over the Graph route with the token in the address; the answer's status.
async fn send(server: &Binary, body: Value) -> u16 {
    let path = format!("/v26.0/{NUMBER}/messages?access_token={TOKEN}");
    let request = server.http.post(server.config.http(&path)).body(body.to_string());
    request.send().await.unwrap().status().as_u16()
}

async fn messages_meet_everything(world: &World, server: &Binary) {
    assert_eq!(send(server, text("a-secret-body")).await, 200);
    world.fault_once(Fault::Error {
        code: 131_026,
        subcode: None,
    });
    assert_eq!(send(server, text("a-secret-body")).await, 400);
    world.fault_once(Fault::AcceptThenHang);
    send(server, text("a-secret-body")).await;
    assert_eq!(send(server, text_to("a-secret-body", "x")).await, 400);
    let question = Inbound::text(NUMBER, "16505551234", "a-secret-body");
    let wamid = world.meta.inbound(question).await;
    world.until_count(1, &format!("wamid = '{wamid}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_log_holds_no_values_either() {
    let world = World::new().await;
    migrations::apply_agent(&world.db.agent.database_url()).await.unwrap();
    let talkative = "[log]\nfilter = \"debug,twinlog=trace,tokio_postgres=trace,tokio_postgres::query=trace\"";
    let config = ConfigFile::new(&world.db, talkative);
    let mut daemon = Process::start(&config, &["sync"], "");

    let lead = "INSERT INTO leads (phone, name) VALUES ('+49555999888', 'a-secret-name')";
    world.db.on_site(lead).await;
    let there = "SELECT count(*) FROM leads WHERE name = 'a-secret-name'";
    world.db.until_agent("the lead is on the other side", there, "1").await;
    // One more row, which comes through the stream (the first may come through the copy).
    let change = "UPDATE leads SET phone = '+49555999777', username = 'b-secret-name'";
    world.db.on_site(change).await;
    let changed = "SELECT count(*) FROM leads WHERE username = 'b-secret-name'";
    world.db.until_agent("its change is there", changed, "1").await;
    daemon.terminate();
    assert!(daemon.wait(SOON).await.success());

    let log = daemon.output();
    assert!(log.contains("DEBUG"), "the log was not at its most talkative");
    for secret in ["555999", "a-secret-name", "b-secret-name"] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}
