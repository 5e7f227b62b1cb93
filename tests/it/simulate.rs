//! `twinlog simulate` as users run it: in a process of its own, used only through HTTP.

use std::path::Path;

use serde_json::{Value, json};
use twinlog::config::{self, Needs};
use twinlog::dev::graph_simulator::CONTROL_ROUTES;

use crate::harness::{self, ConfigFile, Process, SOON, http_client};

/// Starts it on a free port and returns its URL.
async fn simulate(arguments: &[&str]) -> (Process, String) {
    let arguments = [&["simulate", "--listen", "127.0.0.1:0"], arguments].concat();
    let mut process = Process::start_with(Path::new("/nonexistent"), &arguments, &[]);
    process.wait_for_output("Ctrl-C ends it.", SOON).await;
    let output = process.output();
    let url = output
        .split("graph_url = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    (process, url.to_owned())
}

#[tokio::test]
async fn it_accepts_a_message_offers_every_control_route_and_ends_on_ctrl_c() {
    // GIVEN the simulator with its defaults
    let (mut process, url) = simulate(&[]).await;
    let client = http_client();
    let send = || {
        client
            .post(format!("{url}/v26.0/106540352242922/messages"))
            .bearer_auth("simulator-token")
            .json(
                &json!({"messaging_product": "whatsapp", "to": "16505551234", "type": "text", "text": {"body": "Hi"}}),
            )
            .send()
    };

    // WHEN messages are sent, one of them with a fault switched on
    assert_eq!(send().await.unwrap().status(), 200);
    let fault = json!({"phone_number_id": "106540352242922", "fault": {"kind": "error", "code": 131_047}, "times": 1});
    let faults = format!("{url}/_simulator/faults");
    assert_eq!(client.post(&faults).json(&fault).send().await.unwrap().status(), 200);
    let answer: Value = send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"]["code"], 131_047);
    assert_eq!(send().await.unwrap().status(), 200);

    // THEN the ledger has the accepted ones
    let ledger: Value = client
        .get(format!("{url}/_simulator/ledger"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(ledger["messages"].as_array().unwrap().len(), 2);

    // THEN every control route that it prints exists
    for (method, path, _) in CONTROL_ROUTES {
        assert!(process.output().contains(&format!("{url}{path}")), "{path}");
        let answer = client
            .request(method.parse().unwrap(), format!("{url}{path}"))
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        let status = answer.status().as_u16();
        // Other paths go to the simulated Graph API, whose answers are 401, 404 or 400 with an error of Meta's.
        assert_ne!(status, 405, "{method} {path}");
        let body = answer.text().await.unwrap();
        assert!(
            !body.contains("OAuthException") && !body.contains("GraphMethodException"),
            "{method} {path}: {body}"
        );
    }

    // WHEN Ctrl-C is pressed, THEN it exits with 0
    process.signal(nix::sys::signal::Signal::SIGINT);
    assert!(process.wait(SOON).await.success(), "{}", process.output());
}

#[tokio::test]
async fn a_server_with_the_printed_configuration_receives_a_users_message() {
    // GIVEN a simulator that sends webhooks to the server's port
    let db = harness::databases().await;
    db.migrate().await;
    let server_port = ConfigFile::new(&db, "").http_port;
    let callback = format!("http://127.0.0.1:{server_port}/webhook");
    let (process, url) = simulate(&[
        "--callback",
        &callback,
        "--app-secret",
        "a \"secret\"",
        "--verify-token",
        "verify",
        "--account",
        "111=one",
        "--account",
        "222=two==",
    ])
    .await;

    // WHEN the configuration that it prints is pasted into the server's
    let printed = process.output();
    let pasted = printed.split("twinlog.toml:\n\n").nth(1).unwrap();
    let pasted = pasted.split("\n\nWebhooks go to ").next().unwrap();
    let more = format!(
        "[http]\nlisten = \"127.0.0.1:{server_port}\"\n{pasted}\n[[auth.tokens]]\nname = \"crm\"\nsha256 = \"{}\"\n",
        "ab".repeat(32)
    );
    let config = ConfigFile::new(&db, &more);
    let needs = Needs {
        site: true,
        agent: false,
        whatsapp: true,
    };
    let loaded = config::load(Some(&config.path()), needs).unwrap();
    assert_eq!(loaded.whatsapp.accounts.len(), 2);

    // THEN the server starts, passes the handshake, and receives a user's message
    let mut server = Process::start(&config, &["serve"], "");
    server.wait_for_output("listening", SOON).await;
    let client = http_client();
    let ok = |answer: reqwest::Result<reqwest::Response>| answer.is_ok_and(|answer| answer.status().is_success());
    harness::eventually("the handshake succeeds", SOON, || async {
        let asked = client.post(format!("{url}/_simulator/handshake")).send().await;
        ok(asked).then_some(()).ok_or(())
    })
    .await;
    let message = json!({"phone_number_id": "222", "from": "16505550001", "text": "hello from outside"});
    let written = client
        .post(format!("{url}/_simulator/inbound"))
        .json(&message)
        .send()
        .await;
    assert!(ok(written));
    harness::eventually_equal(
        "the message is in the Site DB",
        SOON,
        Some("hello from outside".to_owned()),
        || {
            db.site
                .text("SELECT max(body) FROM whatsapp_messages WHERE direction = 'inbound'")
        },
    )
    .await;
}

#[tokio::test]
async fn invalid_arguments_are_usage_errors() {
    for wrong in [
        ["--account", "one=token"],
        ["--account", "111"],
        ["--callback", "nowhere"],
        ["--listen", "here"],
    ] {
        let mut process = Process::start_with(Path::new("/nonexistent"), &["simulate", wrong[0], wrong[1]], &[]);
        assert_eq!(
            process.wait(SOON).await.code(),
            Some(2),
            "{wrong:?}: {}",
            process.output()
        );
    }
}
