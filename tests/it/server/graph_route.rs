//! The Graph-compatible route: it answers as Meta does, within our limits.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_client_gets_metas_answer_and_the_row_tells_the_same() {
    let (world, server) = World::served().await;
    let answer = server.graph(&text("hello")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["messaging_product"], "whatsapp");
    assert_eq!(answer.body["contacts"][0]["input"], USER);

    let (id, wamid) = (answer.id(), answer.wamid());
    assert_eq!(world.column(&id, "wamid").await.as_deref(), Some(wamid.as_str()));
    assert_eq!(world.value(&id, "body").await, "hello");
    assert_eq!(world.value(&id, "client_name").await, "crm");
    assert_eq!(world.value(&id, "attempt").await, "1");
    let request = world.column(&id, "convert_from(request, 'UTF8')").await;
    assert_eq!(request, Some(text("hello").to_string()));
    let steps = world
        .column(
            &id,
            "sending_at >= created_at AND accepted_at >= sending_at - interval '1 second'",
        )
        .await;
    assert_eq!(steps.as_deref(), Some("true"));
    let lead = world
        .column(&id, "(SELECT wa_id FROM leads WHERE leads.id = lead_id)")
        .await;
    assert_eq!(lead.as_deref(), Some("16505551234"));

    let ledger = world.meta.ledger();
    assert_eq!(ledger.messages.len(), 1);
    assert_eq!(ledger.messages[0].opaque, Some(format!("tl:{id}")));
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_token_works_and_a_wrong_one_gets_metas_190() {
    let (world, server) = World::served().await;
    let path = format!("/v21.0/{NUMBER}/messages");
    let answer = server
        .post(&format!("{path}?access_token={TOKEN}"), &[], text("x").to_string())
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for (query, headers) in [
        ("", vec![]),
        ("?access_token=simulator-token", vec![]),
        ("", vec![("authorization", "Bearer wrong")]),
    ] {
        let answer = server
            .post(&format!("{path}{query}"), &headers, text("x").to_string())
            .await;
        assert_eq!((answer.status, answer.code()), (401, 190), "{answer:?}");
        assert_eq!(answer.body["error"]["type"], "OAuthException");
    }
    assert_eq!(world.count("true").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_message_leaves_no_row() {
    let (world, server) = World::served().await;
    let bearer = format!("Bearer {TOKEN}");
    let of = |kind: &str, content: Value| {
        json!({"messaging_product": "whatsapp", "to": USER, "type": kind, (kind): content}).to_string()
    };
    for (body, code) in [
        (String::new(), 100),
        ("{".to_owned(), 100),
        ("[]".to_owned(), 100),
        (
            json!({"to": USER, "type": "text", "text": {"body": "x"}}).to_string(),
            100,
        ),
        (
            json!({"messaging_product": "whatsapp", "text": {"body": "x"}}).to_string(),
            131_008,
        ),
        (text_to("", "x").to_string(), 131_008),
        (text_to("no number", "x").to_string(), 131_009),
        (text("").to_string(), 131_008),
        (text(&"x".repeat(4097)).to_string(), 131_009),
        (
            json!({"messaging_product": "whatsapp", "to": USER, "type": "text"}).to_string(),
            131_008,
        ),
        (
            json!({"messaging_product": "whatsapp", "to": USER, "type": "text", "text": {}}).to_string(),
            131_008,
        ),
        // A number from a spreadsheet, whose last character is no digit.
        (
            json!({"messaging_product": "whatsapp", "to": 16_505_551_234.0, "text": {"body": "x"}}).to_string(),
            131_008,
        ),
        (of("image", json!({})), 131_008),
        (of("video", json!({"caption": "x"})), 131_008),
        (of("template", json!({"name": "order"})), 131_008),
        (of("template", json!({"language": {"code": "en"}})), 131_008),
        (of("reaction", json!({"emoji": "👍"})), 131_008),
        (of("location", json!({"latitude": "1.5"})), 131_008),
        (of("contacts", json!([])), 131_008),
        (of("interactive", json!({"body": {"text": "x"}})), 131_008),
        (
            json!({"messaging_product": "whatsapp", "to": USER, "type": {}, "text": {"body": "x"}}).to_string(),
            131_009,
        ),
    ] {
        let answer = server
            .post(
                &format!("/v26.0/{NUMBER}/messages"),
                &[("authorization", &bearer)],
                body.clone(),
            )
            .await;
        assert_eq!((answer.status, answer.code()), (400, code), "{body}");
    }

    // Nor do a request for another business number, a key that is too long, or a body that is too large.
    let stranger = server
        .post(
            "/v26.0/999/messages",
            &[("authorization", &bearer)],
            text("x").to_string(),
        )
        .await;
    assert_eq!((stranger.status, stranger.code()), (400, 100));
    assert_eq!(stranger.body["error"]["error_subcode"], 33);
    let key = server.graph_with(&text("x"), Some(&"k".repeat(256))).await;
    assert_eq!((key.status, key.code()), (400, 100));
    let huge = server.graph(&json!({"x": "y".repeat(5_000_000)})).await;
    assert_eq!(huge.status, 413);
    assert_eq!(world.count("true").await, 0);
    assert_eq!(world.db.site.value("SELECT count(*) FROM leads").await, "0");

    let nowhere = server.get("/nowhere").await;
    assert_eq!(
        (nowhere.status, &nowhere.body["error"]["code"]),
        (404, &json!("not_found"))
    );
    let method = server.get(&format!("/v26.0/{NUMBER}/messages")).await;
    assert_eq!((method.status, method.code()), (405, 100));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_valid_token_is_refused_before_its_body_is_read() {
    let (_world, server) = World::served().await;
    let address = server.url.trim_start_matches("http://");
    for path in [
        "/v1/messages",
        "/v26.0/106540352242922/messages",
        "/v26.0/106540352242922/media",
    ] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // The header announces a body that is never sent.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer guess\r\ncontent-length: 4000000\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let read = tokio::time::timeout(SOON, connection.read_exact(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("{path} waits for the body")).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401", "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn media_are_uploaded_looked_up_and_deleted_with_our_token() {
    let (_world, server) = World::served().await;
    let bearer = format!("Bearer {TOKEN}");
    let form = "--b\r\ncontent-disposition: form-data; name=\"messaging_product\"\r\n\r\nwhatsapp\r\n--b\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"x.png\"\r\ncontent-type: image/png\r\n\r\npixels\r\n--b--\r\n";
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "multipart/form-data; boundary=b"),
    ];
    let uploaded = server
        .post(&format!("/v26.0/{NUMBER}/media"), &headers, form.to_owned())
        .await;
    assert_eq!(uploaded.status, 200, "{uploaded:?}");
    let id = uploaded.body["id"].as_str().unwrap();
    let found = server.get(&format!("/v26.0/{id}")).await;
    assert_eq!(
        (found.status, &found.body["mime_type"]),
        (200, &json!("image/png")),
        "{found:?}"
    );
    assert_eq!(found.body["file_size"], 6);
    let sent = json!({"messaging_product": "whatsapp", "to": USER, "type": "image", "image": {"id": id}});
    assert_eq!(server.graph(&sent).await.status, 200);
    let delete = || {
        server
            .http
            .delete(format!("{}/v26.0/{id}", server.url))
            .bearer_auth(TOKEN)
    };
    assert_eq!(
        answer(delete().send().await.unwrap()).await.body,
        json!({"success": true})
    );
    assert_eq!(answer(delete().send().await.unwrap()).await.code(), 100);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metas_token_is_in_no_answer_and_in_no_row() {
    let mut world = World::new().await;
    let server = world.serve().await;
    // Meta's links to the next page carry the token of the request; ours carry none.
    let page = server.get("/v26.0/102290129340398/message_templates?limit=1").await;
    let next = page.body["paging"]["next"].as_str().unwrap();
    assert!(next.starts_with(&server.url) && !next.contains("token"), "{page:?}");
    server.stop().await;

    // An error quotes a token that Meta cannot read.
    world.config = configuration(&world.db.site.url, &world.meta.url(), "EAAmistyped|token");
    let server = world.serve().await;
    let refused = server.get(&format!("/v26.0/{NUMBER}")).await;
    assert_eq!((refused.status, refused.code()), (401, 190));
    assert!(refused.body.to_string().contains("Malformed"), "{refused:?}");
    assert!(!refused.body.to_string().contains("mistyped"), "{refused:?}");
    let held = server.graph(&text("x")).await;
    assert_eq!((held.status, held.code()), (401, 190), "{held:?}");
    assert!(held.body.to_string().contains("Malformed"), "{held:?}");
    assert!(!held.body.to_string().contains("mistyped"), "{held:?}");
    for table in ["whatsapp_messages", "whatsapp_accounts"] {
        let rows = format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%mistyped%'");
        assert_eq!(world.db.site.value(&rows).await, "0", "{table}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metas_refusal_is_passed_on_as_it_came() {
    let (world, server) = World::served().await;
    world.fault_once(Fault::Error {
        code: 131_026,
        subcode: None,
    });
    let answer = server.graph(&text("x")).await;
    assert_eq!((answer.status, answer.code()), (400, 131_026), "{answer:?}");
    let id = answer.id();
    assert_eq!(world.status(&id).await, "failed");
    assert_eq!(world.value(&id, "error_code").await, "131026");
    assert_eq!(world.value(&id, "error_class").await, "permanent");
    let told = world
        .db
        .site
        .text(&format!(
            "SELECT count(*) FROM notifications WHERE kind = 'message_failed' AND message_id = '{id}'"
        ))
        .await;
    assert_eq!(told.as_deref(), Some("1"));
    assert!(world.meta.ledger().messages.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mark_as_read_and_typing_pass_and_leave_no_row() {
    let (world, server) = World::served().await;
    let wamid = world
        .meta
        .inbound(twinlog::dev::graph_simulator::Inbound::text(
            NUMBER,
            "16505551234",
            "hi",
        ))
        .await;
    for body in [
        json!({"messaging_product": "whatsapp", "status": "read", "message_id": wamid}),
        json!({"messaging_product": "whatsapp", "status": "read", "message_id": wamid, "typing_indicator": {"type": "text"}}),
    ] {
        let answer = server.graph(&body).await;
        assert_eq!((answer.status, &answer.body), (200, &json!({"success": true})));
    }
    assert_eq!(world.count("direction = 'outbound'").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_with_one_key_are_one_message() {
    let world = World::new().await;
    let server = Arc::new(world.serve().await);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let server = Arc::clone(&server);
        requests.spawn(async move { server.graph_with(&text("once"), Some("order-17")).await });
    }
    let answers = requests.join_all().await;
    let wamid = answers[0].wamid();
    for answer in &answers {
        assert_eq!((answer.status, answer.wamid()), (200, wamid.clone()));
    }
    assert_eq!(world.accepted(), 1);
    assert_eq!(world.count("true").await, 1);

    // A different request with the same key is an error.
    let other = server.graph_with(&text("twice"), Some("order-17")).await;
    assert_eq!((other.status, other.code()), (409, 100));
    assert_eq!(other.id(), answers[0].id());
    // Without a key, the same body is another message.
    assert_ne!(server.graph(&text("once")).await.wamid(), wamid);
    assert_eq!(world.accepted(), 2);
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_sent_in_time_is_cancelled_and_a_retry_with_the_key_sends_it_once() {
    let mut world = World::new().await;
    world.config.http.send_wait = Duration::from_millis(400);
    let server = world.serve().await;
    world.fault(Fault::TooManyRequests { retry_after_seconds: 1 });
    let answer = server.graph_with(&text("patience"), Some("k1")).await;
    assert_eq!((answer.status, answer.code()), (503, 131_016), "{answer:?}");
    let id = answer.id();
    assert_eq!(world.status(&id).await, "cancelled");

    world.meta.clear_faults(NUMBER).unwrap();
    let again = eventually("the retry is sent", SOON, || async {
        let again = server.graph_with(&text("patience"), Some("k1")).await;
        if again.status == 200 { Ok(again) } else { Err(again) }
    })
    .await;
    assert_eq!(again.id(), id);
    assert_eq!(world.accepted(), 1);
    assert_eq!(world.count("true").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_message_is_never_sent_later() {
    let mut world = World::new().await;
    world.config.http.send_wait = Duration::from_millis(200);
    let server = world.serve().await;
    world.fault_once(Fault::Error {
        code: 131_056,
        subcode: None,
    });
    let answer = server.graph(&text("late")).await;
    assert_eq!((answer.status, answer.code()), (503, 131_016));
    // A later message of the same conversation is sent, and nothing else.
    let next = server.graph(&text("next")).await;
    assert_eq!(next.status, 200, "{next:?}");
    assert_eq!(world.accepted(), 1);
    assert_eq!(world.status(&answer.id()).await, "cancelled");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_bytes_go_out_untouched() {
    let (world, server) = World::served().await;
    let body = format!(
        "{{ \"messaging_product\":\"whatsapp\",\"to\" : \"{USER}\", \"type\":\"text\",\n\"text\":{{\"body\":\"caf\\u00e9 \\/ 1.0\"}},\
         \"biz_opaque_callback_data\":\"mine\", \"x\":1.50}}"
    );
    let bearer = format!("Bearer {TOKEN}");
    let answer = server
        .post(
            &format!("/v26.0/{NUMBER}/messages"),
            &[("authorization", &bearer)],
            body.clone(),
        )
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = body.replace("\"mine\"", &format!("\"tl:{}\"", answer.id()));
    assert_eq!(
        world.meta.ledger().messages[0].body_sha256,
        hex::encode(Sha256::digest(expected))
    );
    let kept = world.column(&answer.id(), "client_opaque").await;
    assert_eq!(kept.as_deref(), Some("mine"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_of_a_client_pass_with_our_token_and_no_other_route_sends() {
    let (world, server) = World::served().await;
    let number = server.get(&format!("/v26.0/{NUMBER}")).await;
    assert_eq!((number.status, &number.body["id"]), (200, &json!(NUMBER)), "{number:?}");
    let bearer = format!("Bearer {TOKEN}");
    for path in ["marketing_messages", "messages/", "%6dessages"] {
        let answer = server
            .post(
                &format!("/v26.0/{NUMBER}/{path}"),
                &[("authorization", &bearer)],
                text("x").to_string(),
            )
            .await;
        assert_eq!((answer.status, answer.code()), (405, 100), "{path}");
    }
    let stranger = server.http.get(format!("{}/v26.0/{NUMBER}", server.url));
    assert_eq!(answer(stranger.send().await.unwrap()).await.status, 401);
    assert!(world.meta.ledger().messages.is_empty());
    server.stop().await;
}
