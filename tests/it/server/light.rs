//! What is wrong with a server that runs alone shows by itself: in the health, the readiness, the metrics and the log, with
//! the remedy, and without any traffic.

use twinlog::health::ComponentStatus;

use super::*;
use crate::harness::Process;

impl Server {
    /// Waits until a part is in this trouble; its reason.
    pub(super) async fn is_in_trouble(&self, component: &str, kind: &str) -> String {
        eventually(&format!("{component} is in the trouble {kind}"), SOON, || async {
            // A part may not have begun yet.
            match self.health.report().remove(component) {
                Some(ComponentStatus {
                    trouble,
                    reason: Some(reason),
                    ..
                }) if trouble == Some(kind) => Ok(reason),
                other => Err(other),
            }
        })
        .await
    }

    pub(super) async fn all_is_well(&self) {
        eventually("all is well", SOON, || async {
            let report = self.health.report();
            if report.values().all(ComponentStatus::is_well) {
                Ok(())
            } else {
                Err(report)
            }
        })
        .await;
    }
}

fn number() -> String {
    format!("number {NUMBER}")
}

/// A web server that gives every request this answer.
async fn web_server(answer: &'static str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 4096]).await;
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    url
}

/// An address at which nothing listens.
async fn closed_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_graph_url_shows_before_anything_is_sent() {
    let html = web_server("HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>").await;
    let missing = web_server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let shows = async |url: String, why: &str| {
        let mut world = World::new().await;
        let right = std::mem::replace(&mut world.config.whatsapp.graph_url, url.parse().unwrap());
        let server = Server::start(world.config.clone()).await;
        let reason = server.is_in_trouble(&number(), "graph").await;
        assert!(
            reason.contains(why) && reason.contains("whatsapp.graph_url"),
            "{reason}"
        );
        server.stop().await;
        world.config.whatsapp.graph_url = right;
        let server = world.serve().await;
        server.all_is_well().await;
        server.stop().await;
    };
    tokio::join!(
        shows(closed_port().await, "the connection was refused"),
        shows(html, "HTTP 200 from something that is not the Graph API"),
        shows(missing, "HTTP 404 from something that is not the Graph API"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_shows_before_anything_is_sent_and_a_held_number_with_its_remedy() {
    let (world, server) = World::served().await;
    server.all_is_well().await;
    server.stop().await;
    world.meta.expire_token(NUMBER).unwrap();
    let server = Server::start(world.config.clone()).await;
    let reason = server.is_in_trouble(&number(), "refused").await;
    assert!(
        reason.contains("code 190") && reason.contains("access_token"),
        "{reason}"
    );
    server.takes(&json!({"to": USER, "text": "x"})).await;
    let reason = server.is_in_trouble(&number(), "held").await;
    assert!(
        reason.contains("code 190") && reason.contains("access_token"),
        "{reason}"
    );
    // It works for other numbers, and takes webhooks.
    server.ready().await;
    world.meta.set_token(NUMBER, "simulator-token").unwrap();
    server.all_is_well().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_pause_that_meta_asks_for_shows_and_a_short_one_does_not() {
    let (world, server) = World::served().await;
    world
        .meta
        .set_fault_times(NUMBER, Fault::TooManyRequests { retry_after_seconds: 1 }, 1)
        .unwrap();
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    world.is_sent(&id).await;
    server.all_is_well().await;
    world
        .meta
        .set_fault_times(
            NUMBER,
            Fault::TooManyRequests {
                retry_after_seconds: 1800,
            },
            1,
        )
        .unwrap();
    server.takes(&json!({"to": USER, "text": "y"})).await;
    let reason = server.is_in_trouble(&number(), "paused").await;
    assert!(reason.contains("until 20"), "{reason}");
    world
        .db
        .on_site("UPDATE whatsapp_accounts SET throttled_until = now(); UPDATE whatsapp_messages SET next_attempt_at = now() WHERE status = 'pending'")
        .await;
    world.until_accepted(2).await;
    server.all_is_well().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_meta_has_stopped_shows_and_the_mistake_of_one_request_does_not() {
    let (world, server) = World::served().await;
    for (code, shows) in [(132_001, false), (132_015, true)] {
        world.fault_once(Fault::Error { code, subcode: None });
        assert_ne!(server.graph(&text("a template")).await.status, 200);
        if shows {
            let reason = server.is_in_trouble(&number(), "template").await;
            assert!(
                reason.contains("132015") && reason.contains("WhatsApp Manager"),
                "{reason}"
            );
        } else {
            server.all_is_well().await;
        }
    }
    // The others go out.
    assert_eq!(server.graph(&text("hi")).await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_meta_stops_by_a_notice_shows_until_meta_approves_it() {
    let (world, server) = World::served().await;
    let tell = async |second: u32, field: &str, mut value: Value| {
        for (member, content) in [
            ("message_template_id", json!(594_425_479_261_596_u64)),
            ("message_template_name", json!("order_update")),
            ("message_template_language", json!("en_US")),
        ] {
            value[member] = content;
        }
        let change = json!({"field": field, "value": value});
        let entry = json!({"id": "102290129340398", "time": 1_790_000_000 + second, "changes": [change]});
        let body = json!({"object": "whatsapp_business_account", "entry": [entry]}).to_string();
        assert_eq!(world.meta.post_webhook(body.as_bytes()).await, Some(200));
    };
    // Told early is not stopped.
    tell(
        1,
        "message_template_quality_update",
        json!({"previous_quality_score": "GREEN", "new_quality_score": "RED"}),
    )
    .await;
    let reason = server.is_in_trouble("templates", "template_quality").await;
    assert!(reason.contains("order_update (en_US): RED"), "{reason}");
    tell(
        3,
        "message_template_status_update",
        json!({"event": "PAUSED", "reason": "NONE"}),
    )
    .await;
    let reason = server.is_in_trouble("templates", "template").await;
    assert!(
        reason.contains("order_update (en_US): PAUSED") && reason.contains("WhatsApp Manager"),
        "{reason}"
    );
    // A notice from before that comes late changes nothing.
    tell(
        2,
        "message_template_status_update",
        json!({"event": "APPROVED", "reason": null}),
    )
    .await;
    tell(
        4,
        "message_template_quality_update",
        json!({"new_quality_score": "GREEN"}),
    )
    .await;
    let processed = "SELECT count(*) FROM webhook_events WHERE state = 'processed'";
    world.db.until_site("all is processed", processed, "4").await;
    let stopped = "SELECT concat_ws(' ', stopped_by, quality) FROM twinlog.template_notices";
    assert_eq!(world.db.site.value(stopped).await, "PAUSED");
    tell(
        5,
        "message_template_status_update",
        json!({"event": "APPROVED", "reason": "NONE"}),
    )
    .await;
    server.all_is_well().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_column_is_looked_at_and_what_is_missing_is_named_with_the_statement_that_mends_it() {
    let (world, server) = World::served().await;
    let site = &world.db.site;
    // Derived from the migrations: all that the catalog has, but the table that is another program's.
    for (break_it, mend_it, why) in [
        (
            "ALTER TABLE whatsapp_messages RENAME COLUMN request_sha256 TO request_hash",
            "ALTER TABLE public.whatsapp_messages RENAME COLUMN",
            "the column \"request_sha256\"",
        ),
        (
            "ALTER TABLE leads RENAME COLUMN referral TO came_from",
            "ALTER TABLE \"public\".\"leads\" RENAME COLUMN \"came_from\" TO \"referral\";",
            "the column \"referral\" of \"public\".\"leads\" is missing",
        ),
        (
            "ALTER TABLE twinlog.number_leases DROP COLUMN lease_until",
            "ALTER TABLE \"twinlog\".\"number_leases\" ADD COLUMN \"lease_until\" timestamptz;",
            "the column \"lease_until\"",
        ),
    ] {
        site.run(break_it).await;
        let reason = server.is_in_trouble("site_db", "not_ready").await;
        assert!(reason.contains(why), "{reason}");
        if why.contains("request_sha256") {
            // Several columns have its type, so its new name is not guessed. `mend_it` is the statement's beginning.
            let begin = mend_it.replace("public.whatsapp_messages", "\"public\".\"whatsapp_messages\"");
            assert!(reason.contains(&begin), "{reason}");
            site.run("ALTER TABLE whatsapp_messages RENAME COLUMN request_hash TO request_sha256")
                .await;
        } else {
            assert!(reason.contains(mend_it), "{reason}");
            site.run(mend_it).await;
        }
        server.ready().await;
    }
    site.run("ALTER TABLE notifications RENAME TO notes").await;
    let reason = server.is_in_trouble("site_db", "not_ready").await;
    assert!(
        reason.contains("the table \"public\".\"notifications\" is missing"),
        "{reason}"
    );
    site.run("ALTER TABLE notes RENAME TO notifications").await;
    server.ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_are_all_refused_show_until_a_genuine_one_comes() {
    let (world, server) = World::served().await;
    server.all_is_well().await;
    let body = br#"{"object":"whatsapp_business_account","entry":[]}"#;
    for _ in 0..3 {
        let headers = [("x-hub-signature-256", &*format!("sha256={}", "0".repeat(64)))];
        let refused = server
            .post("/webhook", &headers, String::from_utf8_lossy(body).into_owned())
            .await;
        assert_eq!(refused.status, 401);
    }
    let reason = server.is_in_trouble("webhooks", "refused").await;
    assert!(
        reason.contains("3 webhooks were refused") && reason.contains("whatsapp.app_secrets"),
        "{reason}"
    );
    // Anybody can send what is refused: it does not keep anything from being sent or taken.
    server.ready().await;
    assert_eq!(world.meta.post_webhook(body).await, Some(200));
    server.all_is_well().await;
    server.stop().await;
}

/// `twinlog serve` with its log and its admin listener.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_one_line_for_a_trouble_and_one_when_it_is_over_and_the_metrics_show_it() {
    let world = World::new().await;
    world.meta.expire_token(NUMBER).unwrap();
    let server = Binary::start(&world).await;
    let lines = |process: &Process, text: &str| process.output().lines().filter(|line| line.contains(text)).count();
    let trouble = format!("HEALTH: number {NUMBER} is degraded");
    server.process.says(&trouble).await;
    let metrics = async || {
        let page = server.http.get(server.config.admin("/metrics")).send().await.unwrap();
        page.text().await.unwrap()
    };
    let degraded = |value: u8| format!("twinlog_component_degraded{{component=\"number {NUMBER}\"}} {value}");
    let page = metrics().await;
    assert!(page.contains(&degraded(1)), "{page}");
    let health: Value = {
        let page = server.http.get(server.config.admin("/health")).send().await.unwrap();
        page.json().await.unwrap()
    };
    assert_eq!(health["status"], "degraded", "{health}");
    world.meta.set_token(NUMBER, "simulator-token").unwrap();
    server
        .process
        .says(&format!("HEALTH: number {NUMBER} is well again"))
        .await;
    // The Site DB is gone for the server: one line for all its parts.
    world
        .db
        .on_site("ALTER TABLE whatsapp_messages RENAME COLUMN wamid TO w")
        .await;
    server.process.says("HEALTH: site_db is not ready").await;
    let ready = server.http.get(server.config.admin("/readyz")).send().await.unwrap();
    let (status, reasons) = (ready.status().as_u16(), ready.text().await.unwrap());
    assert!(status == 503 && reasons.contains("RENAME COLUMN"), "{status} {reasons}");
    world
        .db
        .on_site("ALTER TABLE whatsapp_messages RENAME COLUMN w TO wamid")
        .await;
    server.process.says("HEALTH: site_db is well again").await;
    let output = server.process.output();
    assert_eq!(lines(&server.process, &trouble), 1, "{output}");
    assert_eq!(lines(&server.process, "HEALTH: "), 4, "{output}");
    let page = metrics().await;
    assert!(page.contains(&degraded(0)), "{page}");
}

/// What `twinlog status` says on a machine that has only a server, and its exit code.
async fn status(world: &World, more: &[&str]) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let site = format!(
        "[site]\nurl = \"{}\"\n{}",
        world.db.site.url,
        sections(&world.meta.url(), "simulator-token")
    );
    std::fs::write(file.path(), site).unwrap();
    let mut process = Process::start_with(file.path(), &[&["status"], more].concat(), &[]);
    let ended = process.wait(SOON).await;
    (ended.code(), process.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_the_servers_where_there_is_no_daemon() {
    let world = World::new().await;
    let (code, said) = status(&world, &[]).await;
    assert!(code == Some(1) && said.contains("none runs"), "{said}");
    let server = world.serve().await;
    let says = async |expected: i32, text: &str| {
        eventually(&format!("the status says {text}"), SOON, || async {
            let (code, said) = status(&world, &[]).await;
            if code == Some(expected) && said.contains(text) {
                Ok(())
            } else {
                Err((code, said))
            }
        })
        .await;
    };
    says(0, ": well").await;
    world.meta.expire_token(NUMBER).unwrap();
    server.takes(&json!({"to": USER, "text": "x"})).await;
    says(1, &format!("number {NUMBER}: held")).await;
    let (_, json) = status(&world, &["--json"]).await;
    let json: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(json["server"]["numbers"][0]["phone_number_id"], NUMBER, "{json}");
    server.stop().await;
    says(1, "none runs").await;
}
