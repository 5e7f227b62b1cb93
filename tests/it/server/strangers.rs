//! Strangers, slow clients and a hostile database: what they can't take from Meta's webhooks and from sends.

use std::net::SocketAddr;
use std::time::Instant;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use twinlog::provider::cloud::signature;

use super::*;

/// More connections than the server has, and below the usual bound of 1024 descriptors of this process.
const MANY: usize = 150;
/// The server's connections, so that a test needs few.
const CONNECTIONS: usize = 64;
/// What a webhook or a send may take on a machine that runs other tests; it takes some milliseconds.
const IN_TIME: Duration = Duration::from_secs(3);

/// A Graph API that gives every request this answer, or none; its URL.
async fn graph(answer: Option<(u16, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some((status, body)) = &answer else {
                silent.push(stream);
                continue;
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.read(&mut [0; 64 * 1024]).await;
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    url
}

/// Opens a connection and sends the beginning of something.
async fn stranger(address: SocketAddr, beginning: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have closed it already, to make room.
    let _ = stream.write_all(beginning).await;
    stream
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

/// A signed webhook and a send pass, each in time.
async fn webhooks_and_sends_pass(world: &World, server: &Server, while_there_are: &str) {
    for round in 0..3 {
        let begun = Instant::now();
        let body = json!({"object": "whatsapp_business_account", "entry": [], "round": round}).to_string();
        let posted = tokio::time::timeout(SOON, world.meta.post_webhook(body.as_bytes())).await;
        assert_eq!(posted.ok().flatten(), Some(200), "{while_there_are}");
        let webhook = begun.elapsed();
        let begun = Instant::now();
        let taken = tokio::time::timeout(SOON, server.plain(&json!({"to": USER, "text": "hi"}))).await;
        let taken = taken.unwrap_or_else(|_| panic!("{while_there_are}"));
        assert_eq!(taken.status, 202, "{taken:?}");
        let send = begun.elapsed();
        eprintln!("{while_there_are}: a webhook took {webhook:?}, a send {send:?}");
        assert!(webhook < IN_TIME && send < IN_TIME, "{while_there_are}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_bad_clients_stop_neither_webhooks_nor_sends() {
    let mut world = World::new().await;
    world.config.http.max_connections = CONNECTIONS;
    world.config.http.max_connections_per_address = CONNECTIONS;
    world.config.whatsapp.graph_url = graph(None).await.parse().unwrap();
    world.config.whatsapp.send_timeout = Duration::from_secs(30);
    let server = world.serve().await;
    let at = address(&server.url);
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    let long = "content-length: 100000\r\n\r\n{";
    let kinds = [
        ("connections that say nothing", String::new()),
        (
            "heads that never end",
            "POST /webhook HTTP/1.1\r\nhost: x\r\nx-".to_owned(),
        ),
        (
            "unsigned bodies that never come",
            format!("POST /webhook HTTP/1.1\r\nhost: x\r\n{long}"),
        ),
        (
            "bodies of clients that never come",
            format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\n{bearer}{long}"),
        ),
        (
            "idle connections",
            "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        ),
    ];
    for (kind, beginning) in kinds {
        let mut strangers = Vec::new();
        for _ in 0..MANY {
            strangers.push(stranger(at, beginning.as_bytes()).await);
        }
        webhooks_and_sends_pass(&world, &server, kind).await;
    }

    // GIVEN clients that wait for Meta, which does not answer: for their sends, and for calls that are passed on
    let mut waiting = Vec::new();
    let (send, read) = (
        text("x").to_string(),
        format!("GET /v26.0/{NUMBER} HTTP/1.1\r\nhost: x\r\n{bearer}\r\n"),
    );
    let length = send.len();
    let send =
        format!("POST /v26.0/{NUMBER}/messages HTTP/1.1\r\nhost: x\r\n{bearer}content-length: {length}\r\n\r\n{send}");
    for _ in 0..MANY {
        waiting.push(stranger(at, send.as_bytes()).await);
        waiting.push(stranger(at, read.as_bytes()).await);
    }
    webhooks_and_sends_pass(&world, &server, "clients that wait").await;
    // THEN more than may wait are told so at once
    let refused = server.graph(&text("one more")).await;
    assert_eq!((refused.status, refused.code()), (503, 2), "{refused:?}");
    assert_eq!(refused.headers["retry-after"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_while_hundreds_of_connections_are_idle() {
    let world = World::new().await;
    let server = Binary::start(&world).await;
    let at = address(server.config.admin("").trim_end_matches('/'));
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(stranger(at, b"").await);
    }
    let begun = Instant::now();
    let answer = server.http.get(server.config.admin("/healthz")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    eprintln!(
        "/healthz took {:?} besides {} idle connections",
        begun.elapsed(),
        idle.len()
    );
    assert!(begun.elapsed() < IN_TIME);
}

/// A signed webhook, posted to the binary.
async fn post_signed(server: &Binary, body: String) -> u16 {
    let signature = signature::sign(&SecretString::from("simulator-secret"), body.as_bytes());
    let request = server.http.post(server.config.http("/webhook"));
    let request = request.header(signature::HEADER, signature).body(body);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn open_bodies_and_a_million_parts_take_little_memory_and_little_log() {
    let world = World::new().await;
    let server = Binary::start(&world).await;
    let Some(before) = server.process.peak_mb() else { return };
    let at = address(server.config.http("").trim_end_matches('/'));

    // GIVEN unsigned bodies of 4 MB that lack their last byte
    let mut beginning = b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n".to_vec();
    beginning.resize(beginning.len() + 3_999_999, b' ');
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(stranger(at, &beginning).await);
    }
    // WHEN there is no room for more, THEN one that came slowly has given way, and a webhook passes
    let small = json!({"object": "whatsapp_business_account", "entry": []}).to_string();
    let begun = Instant::now();
    assert_eq!(post_signed(&server, small.clone()).await, 200);
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    // The server reads them in an order of its own, so any of them may be the slowest.
    let answers = open.into_iter().map(|mut stream| {
        Box::pin(async move {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.map(|_| answer)
        })
    });
    let (first, _, others) = futures_util::future::select_all(answers).await;
    assert_eq!(&first.unwrap(), b"HTTP/1.1 503");
    drop(others);
    let with_bodies = server.process.peak_mb().unwrap();
    eprintln!("{before} MB before, {with_bodies} MB with 40 open bodies of 4 MB");
    assert!(with_bodies - before < 100, "{before} MB, {with_bodies} MB");

    // WHEN a signed one has a million parts
    let million = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{}]}}"#,
        vec!["{}"; 1_000_000].join(",")
    );
    assert_eq!(post_signed(&server, million).await, 200);
    let failed = "SELECT count(*)::text FROM webhook_events WHERE state = 'failed'";
    eventually_equal("it is tried", SOON, Some("1".to_owned()), || world.db.site.text(failed)).await;
    server.process.says("parts of a webhook could not be stored").await;
    // THEN what is kept and said of it is short
    let kept = world
        .db
        .site
        .value("SELECT max(length(failures::text)) FROM webhook_events")
        .await;
    assert!(kept.parse::<usize>().unwrap() < 50_000, "{kept}");
    let longest = server.process.output().lines().map(str::len).max();
    assert!(longest.unwrap() < 5_000, "{longest:?}");
    let peak = server.process.peak_mb().unwrap();
    eprintln!("{peak} MB after a million parts");
    assert!(peak - before < 150, "{before} MB, {peak} MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_outside_neither_forges_nor_feeds_the_log() {
    let world = World::new().await;
    let words = "\u{1b}[31mnumber\nERROR forged +1 650-555-1234 \u{202e}wamid.HBgLMTY1MDU1NTEyMzQVAgARGBI1";
    let expired = json!({"error": {"message": words, "code": 190}});
    let graph = graph(Some((401, expired.to_string()))).await;
    let server = Binary::on(&world, &sections(&graph, "t")).await;

    // GIVEN refused webhooks and paths that forge lines
    for _ in 0..50 {
        let refused = server
            .http
            .post(server.config.http("/webhook"))
            .body("{}")
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), 401);
    }
    let at = address(server.config.http("").trim_end_matches('/'));
    let _ = stranger(
        at,
        b"GET /%0aERROR%20forged?x=\x1b[31m HTTP/1.1\r\nhost: \x1b[2J\r\n\r\n",
    )
    .await;
    let page = server.http.get(server.config.admin("/metrics")).send().await.unwrap();
    let page = page.text().await.unwrap();
    let counted = "twinlog_webhooks_refused_total{reason=\"no_signature\"} 50";
    assert!(page.lines().any(|line| line == counted), "{page}");

    // WHEN Meta's own words hold a number, with everything that a terminal obeys
    server.plain(&json!({"to": USER, "text": "x"})).await.unwrap();
    server.process.says(&format!("number {NUMBER} is degraded: held")).await;
    // AND a webhook names its field so
    let change = json!({"field": format!("field\n\u{1b}[0m{USER}"), "value": 1});
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": vec![change; 100]}]});
    assert_eq!(post_signed(&server, body.to_string()).await, 200);
    server.process.says("further events without a message").await;

    // THEN each event is one line, without escapes and numbers
    let output = server.process.output();
    assert_eq!(output.matches("refused: the webhook carries no").count(), 1, "{output}");
    assert_eq!(output.matches("an event without a message").count(), 10, "{output}");
    for line in output.lines() {
        assert!(
            !line.starts_with("ERROR forged") && !line.contains(['\u{1b}', '\u{202e}']),
            "{line:?}"
        );
        assert!(
            !line.contains("650-555") && !line.contains("6505551234") && !line.contains("HBgL"),
            "{line:?}"
        );
    }
}

/// A server that takes every login and then never stops sending: notices, or parameters.
async fn floods(listener: TcpListener, message: Vec<u8>, stop: tokio::sync::watch::Receiver<bool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (message, stop) = (message.clone(), stop.clone());
        tokio::spawn(async move {
            let mut startup = [0; 1024];
            let _ = stream.read(&mut startup).await;
            // AuthenticationOk
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\0").await;
            let flood = message.repeat(64 * 1024 / message.len());
            while !*stop.borrow() && stream.write_all(&flood).await.is_ok() {}
            // Then it is silent.
            std::future::pending::<()>().await;
        });
    }
}

/// What a message of the server's begins with.
fn header(tag: u8, bytes: usize) -> Vec<u8> {
    let mut header = vec![tag];
    header.extend(u32::try_from(bytes + 4).unwrap().to_be_bytes());
    header
}

/// A server that takes every login, and answers the first statement without an end; each connection in another way.
async fn answers_without_end(listener: TcpListener) {
    const GIGABYTE: usize = 1_000_000_000;
    let mut connections = 0;
    while let Ok((mut stream, _)) = listener.accept().await {
        connections += 1;
        let way = connections % 5;
        tokio::spawn(async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            // AuthenticationOk, ReadyForQuery
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await;
            let _ = stream.read(&mut request).await;
            let row = [header(b'D', 6), b"\0\x01\xff\xff\xff\xff".to_vec()].concat();
            let mut parameter = 0_usize;
            let mut piece = match way {
                0 => header(b'D', GIGABYTE),
                1 => header(b'E', GIGABYTE),
                2 => header(b'T', GIGABYTE),
                _ => Vec::new(),
            };
            loop {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
                piece = match way {
                    0..=2 => vec![b'x'; 64 * 1024],
                    3 => row.repeat(5000),
                    _ => {
                        let names = (parameter..parameter + 1000).flat_map(|number| {
                            let text = format!("{number}\0{}\0", "x".repeat(60));
                            [header(b'S', text.len()), text.into_bytes()].concat()
                        });
                        parameter += 1000;
                        names.collect()
                    }
                };
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_answers_have_no_end_does_not_take_the_memory() {
    // GIVEN a server, and a database that answers with a row, an error or a description of a gigabyte, with rows or with parameters
    // without an end
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let database = tokio::spawn(answers_without_end(listener));
    let config = harness::ConfigFile::with_urls(
        &format!("postgres://x:x@127.0.0.1:{port}/x?sslmode=disable"),
        "postgres://x@127.0.0.1:9/x",
        "s",
        &sections("http://127.0.0.1:9", "t"),
    );
    let mut process = harness::Process::start(&config, &["serve"], "");
    process.wait_for_output("listening", SOON).await;
    let http = harness::http_client();

    // WHEN it asks THEN it answers all the same, and its memory is bounded
    harness::holds_for("it answers", Duration::from_secs(3), || async {
        let answer = http.get(config.admin("/healthz")).timeout(IN_TIME).send().await;
        answer.map(|answer| assert_eq!(answer.status(), 200))
    })
    .await;
    let peak = process.peak_mb();
    eprintln!("{peak:?} MB");
    assert!(peak.is_none_or(|peak| peak < 450), "{peak:?} MB");
    process.terminate();
    process.says("stopping").await;
    process.wait(SOON * 2).await;
    database.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_never_stops_sending_takes_neither_the_probes_nor_the_signals() {
    let notice = b"SWARNING\0VWARNING\0C01000\0Mcall +16505551234\0\0";
    let mut message = vec![b'N'];
    message.extend(u32::try_from(notice.len() + 4).unwrap().to_be_bytes());
    message.extend(notice);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (site, port) = ("postgres://x:x@127.0.0.1", listener.local_addr().unwrap().port());
    let (stopping, stop) = tokio::sync::watch::channel(false);
    tokio::spawn(floods(listener, message, stop));
    let more = format!("{}\n[site]\nmax_connections = 2", sections("http://127.0.0.1:9", "t"));
    let config = harness::ConfigFile::with_urls(
        &format!("{site}:{port}/x?sslmode=disable"),
        "postgres://x@127.0.0.1:9/x",
        "s",
        &more,
    );
    let mut process = harness::Process::start(&config, &["serve"], "");
    process.wait_for_output("listening", SOON).await;
    let http = harness::http_client();

    harness::holds_for("it answers", Duration::from_secs(2), || async {
        let answer = http.get(config.admin("/healthz")).timeout(IN_TIME).send().await;
        answer.map(|answer| assert_eq!(answer.status(), 200))
    })
    .await;
    // Neither a time-out nor a 200.
    let webhook = http
        .post(config.http("/webhook"))
        .body("{}")
        .timeout(SOON)
        .send()
        .await
        .unwrap();
    assert_eq!(webhook.status(), 401);
    process.terminate();
    process.says("stopping").await;
    stopping.send(true).unwrap();
    process.wait(SOON * 2).await;
    assert!(!process.output().contains("6505551234"));
}
