//! A server that dies at every durability edge, as by `kill -9`, and another that takes over.
//!
//! The server that dies is this test binary once more, running [`child`] alone: failpoints and aborts are a process's.

use std::process::{Child, Command, Stdio};

use super::*;
use twinlog::dev::graph_simulator::Inbound;
use twinlog::failpoint::name;

/// Tells [`child`] its databases, Meta and port.
const SITE: &str = "TWINLOG_TEST_SITE";
const GRAPH: &str = "TWINLOG_TEST_GRAPH";
const PORT: &str = "TWINLOG_TEST_PORT";

/// The server in the process that dies; does nothing where nobody started it for that.
#[test]
#[ignore = "started by the other tests in a process of its own"]
fn child() {
    let (Ok(site), Ok(graph), Ok(port)) = (std::env::var(SITE), std::env::var(GRAPH), std::env::var(PORT)) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_env_filter("info,twinlog=trace")
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let _scenario = fail::FailScenario::setup();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
        let config = configuration(&site, &graph, "simulator-token");
        let stop = CancellationToken::new();
        run_server(Arc::new(config), Health::default(), listener, stop)
            .await
            .unwrap();
    });
}

/// A server in a process of its own.
struct Doomed {
    child: Child,
    log: tempfile::NamedTempFile,
    url: String,
}

impl Doomed {
    async fn start(world: &World, failpoint: &str) -> Self {
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["server::deaths::child", "--exact", "--ignored", "--nocapture"])
            .env(SITE, &world.db.site.url)
            .env(GRAPH, world.meta.url())
            .env(PORT, port.to_string())
            .env(
                "FAILPOINTS",
                if failpoint.is_empty() {
                    String::new()
                } else {
                    format!("{failpoint}=return(abort)")
                },
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        let doomed = Self {
            child,
            log,
            url: format!("http://127.0.0.1:{port}"),
        };
        eventually("the child listens", SOON, || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await
        })
        .await;
        doomed
    }

    async fn send(&self, body: &Value) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = http.post(format!("{}/v1/messages", self.url)).bearer_auth(TOKEN);
        // It may die before or after its answer.
        let _ = request.body(body.to_string()).send().await;
    }

    async fn dies(&mut self) {
        let end = std::time::Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(!status.success(), "{status}");
                return;
            }
            assert!(std::time::Instant::now() < end, "the failpoint was not reached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A message is sent through a server that dies at the failpoint; then another one runs, and the client asks again.
/// Returns the world, the second server and the message's id.
async fn after_death_at(failpoint: &str) -> (World, Server, String) {
    let world = World::new().await;
    let mut doomed = Doomed::start(&world, failpoint).await;
    // What it can't take any more, Meta brings to the next one.
    world
        .meta
        .set_callback(Some(format!("{}/webhook", doomed.url).parse().unwrap()));
    let body = json!({"to": USER, "text": "survive", "client_id": "c1"});
    doomed.send(&body).await;
    doomed.dies().await;
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
        let mut doomed = Doomed::start(&world, failpoint).await;
        world
            .meta
            .set_callback(Some(format!("{}/webhook", doomed.url).parse().unwrap()));
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
async fn the_log_tells_the_story_without_bodies_numbers_or_tokens() {
    let world = World::new().await;
    let doomed = Doomed::start(&world, "").await;
    world
        .meta
        .set_callback(Some(format!("{}/webhook", doomed.url).parse().unwrap()));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let graph = format!("{}/v26.0/{NUMBER}/messages?access_token={TOKEN}", doomed.url);
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
    let forger = secrecy::SecretString::from("not-the-secret");
    world.meta.post_forged(br#"{"x":"a-secret-body"}"#, &forger).await;
    let handshake = format!(
        "{}/webhook?hub.mode=subscribe&hub.verify_token=a-guess&hub.challenge=1",
        doomed.url
    );
    assert_eq!(http.get(handshake).send().await.unwrap().status(), 403);
    world.meta.expire_token(NUMBER).unwrap();
    assert_eq!(send(text("a-secret-body")).await.unwrap().status(), 503);

    let log = std::fs::read_to_string(doomed.log.path()).unwrap();
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
