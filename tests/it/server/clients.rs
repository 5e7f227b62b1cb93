//! What clients reach through the server: the calls of the table, and what their own numbers own.

use super::firms::{META_ONE, META_TWO, OTHER, OTHER_CLIENT, OTHER_WABA, WABA, firms, firms_with};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_table_never_reaches_meta() {
    let firms = firms(vec![]).await;
    for line in [
        format!("POST /v26.0/{NUMBER}//messages"),
        format!("POST //v26.0/{NUMBER}/register"),
        format!("POST /v26.0/{NUMBER}%2Fmessages"),
        format!("POST /v26.0/x/../{NUMBER}/register"),
        format!("POST /v26.0/{NUMBER}/./register"),
        format!("POST /v26.0/{NUMBER}/register/"),
        format!("POST /v26.0/{NUMBER}/Register"),
        format!("POST /V26.0/{NUMBER}/register"),
        format!("POST /v26.0/{NUMBER}/MESSAGES"),
        format!("POST /v26.0/{NUMBER}/marketing_messages"),
        format!("POST /v26.0/{WABA}/messages"),
        format!("POST /v26.0/{NUMBER}/calls"),
        "POST /v26.0/?batch=%5B%5D".to_owned(),
        "POST /v26.0?batch=%5B%5D".to_owned(),
        "POST /v26.0/me/messages".to_owned(),
        "GET /v26.0/me?fields=access_token".to_owned(),
        "GET /v26.0/debug_token?input_token=x".to_owned(),
        "GET /v26.0/oauth/access_token?grant_type=x".to_owned(),
        format!("GET /v26.0/{NUMBER}/messages?method=post"),
        format!("GET /v26.0/{NUMBER}?method=post"),
        format!("GET /v26.0/{NUMBER}?%20method=post"),
        format!("GET /v26.0/{NUMBER}?method[]=post"),
        format!("GET /v26.0/{NUMBER}?METHOD=post"),
        format!("GET /v26.0/{NUMBER}?batch=%5B%5D"),
        format!("GET /v26.0/{NUMBER}?ids={OTHER}"),
        format!("GET /v26.0/{NUMBER}?ACCESS_TOKEN=x"),
        format!("GET /v26.0/{NUMBER}?access_token%5B%5D=x"),
        format!("GET /v26.0/{NUMBER}?fields=access_token"),
        format!("GET /v26.0/{NUMBER}?fields=id.method(post)"),
        format!("DELETE /v26.0/{NUMBER}"),
        format!("DELETE /v26.0/{WABA}"),
        format!("DELETE /v26.0/{WABA}/subscribed_apps"),
        format!("PUT /v26.0/{NUMBER}"),
        format!("PATCH /v26.0/{NUMBER}/messages"),
    ] {
        let status = firms.raw(&line, "content-length: 0\r\n").await;
        assert!((400..500).contains(&status), "{line}: {status}");
    }
    let path = |edge: &str| format!("/v26.0/{NUMBER}/{edge}");
    for (edge, content_type, body) in [
        (
            "register",
            "application/json",
            r#"{"messaging_product":"whatsapp","pin":"1","batch":[]}"#,
        ),
        (
            "register",
            "application/json",
            r#"{"messaging_product":"whatsapp","pin":"1","\u0062atch":[]}"#,
        ),
        (
            "register",
            "application/json",
            r#"{"pin":"1","access_token":"crm-token"}"#,
        ),
        (
            "register",
            "application/json",
            r#"{"pin":"1","Access_Token":"crm-token"}"#,
        ),
        (
            "register",
            "application/x-www-form-urlencoded",
            "pin=1&%41CCESS_TOKEN=crm-token",
        ),
        ("register", "application/x-www-form-urlencoded", "pin=1&method=delete"),
        ("register", "text/plain", "method=delete"),
        (
            "register",
            "multipart/form-data; boundary=b",
            "--b\r\nContent-Disposition: form-data; name=\"access_token\"\r\n\r\nx\r\n--b--\r\n",
        ),
        (
            "media",
            "multipart/form-data; boundary=b",
            "--b\r\nContent-Disposition: form-data; name=\"method\"\r\n\r\ndelete\r\n--b--\r\n",
        ),
        (
            "media",
            "application/x-www-form-urlencoded",
            "messaging_product=whatsapp",
        ),
        ("media?method=delete", "multipart/form-data; boundary=b", "--b--"),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","to":"16505551234"}"#,
        ),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","text":{"body":"x"}}"#,
        ),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","template":{"name":"x"}}"#,
        ),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","status":"read","message_id":"wamid.X","typing_indicator":{"type":"text","to":"1"}}"#,
        ),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","to":"+16505551234","type":"text","text":{"body":"x"},"batch":[]}"#,
        ),
        (
            "messages",
            "application/json",
            r#"{"messaging_product":"whatsapp","to":"+16505551234","type":"text","text":{"body":"x"},"ACCESS_TOKEN":"crm-token"}"#,
        ),
    ] {
        let answer = firms.ask("POST", &path(edge), TOKEN, content_type, body).await;
        assert!((400..500).contains(&answer.status), "{body}: {answer:?}");
    }
    // A form that was refused in its middle may have begun; it never ended.
    for seen in firms.meta.take() {
        assert!(!seen.whole && !seen.text().contains("method"), "{seen:?}");
    }
    assert_eq!(firms.db.site.value("SELECT count(*) FROM whatsapp_messages").await, "0");
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_the_table_reaches_meta_with_its_token_and_nothing_of_the_clients() {
    let leaky = json!({"id": NUMBER, "a": format!("token {META_ONE}"), "b": "x?access_token=EAAtwo%7Csecret&y", "c": "EAA\u{7c}"});
    let firms = firms(vec![
        ("106540352242922", META_ONE, leaky),
        ("106540352242922/register", META_ONE, json!({"success": true})),
        ("106540352242922/messages", META_ONE, json!({"success": true})),
        ("102290129340398/subscribed_apps", META_ONE, json!({"success": true})),
        (
            "102290129340398/message_templates",
            META_ONE,
            json!({"id": "1", "status": "PENDING"}),
        ),
    ])
    .await;
    let number = firms
        .server
        .http
        .get(format!(
            "{}/v26.0/{NUMBER}?access_token={TOKEN}&fields=id,a",
            firms.server.url
        ))
        .header("x-http-method-override", "POST")
        .header("cookie", format!("access_token={TOKEN}"));
    let number = answer(number.send().await.unwrap()).await;
    assert_eq!(number.status, 200, "{number:?}");
    assert_eq!(number.body["a"], "token ACCESS_TOKEN");
    assert_eq!(number.body["b"], "x?access_token=ACCESS_TOKEN&y");
    let unknown = firms.get("/v26.0/4711", TOKEN).await;
    assert_eq!((unknown.status, unknown.code()), (400, 100));
    assert!(!unknown.body.to_string().contains("secret"), "{unknown:?}");
    for (path, body) in [
        (
            format!("/v26.0/{NUMBER}/register"),
            json!({"messaging_product": "whatsapp", "pin": "123456"}),
        ),
        (
            format!("/v26.0/{NUMBER}/messages"),
            json!({"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.X", "to": null}),
        ),
        (format!("/v26.0/{WABA}/subscribed_apps"), json!({})),
        (
            format!("/v26.0/{WABA}/message_templates"),
            json!({"name": "x", "language": "en", "category": "UTILITY", "components": [{"type": "BODY", "text": "x"}]}),
        ),
    ] {
        let answer = firms.post(&path, body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    let seen = firms.meta.take();
    assert_eq!(seen.len(), 6, "{seen:#?}");
    for call in &seen {
        let text = call.text().to_ascii_lowercase();
        assert!(
            !text.contains(TOKEN) && !text.contains("access_token") && !text.contains("override"),
            "{text}"
        );
        assert_eq!(call.headers["authorization"], format!("Bearer {META_ONE}"));
    }
    assert_eq!(seen[0].uri, format!("/v26.0/{NUMBER}?fields=id%2Ca"));
    let receipt = json!({"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.X"});
    assert_eq!(serde_json::from_slice::<Value>(&seen[3].body).unwrap(), receipt);
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reaches_only_what_its_numbers_own() {
    let firms = firms(vec![
        ("106540352242955", META_TWO, json!({"id": OTHER})),
        ("102290129340399/message_templates", META_TWO, json!({"data": []})),
        (
            "7001",
            META_ONE,
            json!({"id": "7001", "mime_type": "image/png", "url": "{stub}/bytes/x/1"}),
        ),
        (
            "7002",
            META_TWO,
            json!({"id": "7002", "mime_type": "image/png", "url": "{stub}/bytes/x/1"}),
        ),
    ])
    .await;
    // Numbers and accounts: another firm's is answered as one that does not exist.
    for (path, other, unknown) in [
        (format!("/v26.0/{OTHER}/message_history"), OTHER, "106540352242999"),
        (
            format!("/v26.0/{OTHER_WABA}/message_templates"),
            OTHER_WABA,
            "102290129340999",
        ),
        (format!("/v26.0/{OTHER}"), OTHER, "106540352242999"),
        (format!("/v26.0/{OTHER_WABA}"), OTHER_WABA, "102290129340999"),
        ("/v26.0/7002".to_owned(), "7002", "7009"),
        (format!("/v26.0/7001?phone_number_id={OTHER}"), "7001", "7001"),
    ] {
        let theirs = firms.get(&path, TOKEN).await;
        let nobodys = firms.get(&path.replace(other, unknown), TOKEN).await;
        assert_eq!((theirs.status, theirs.code()), (400, 100), "{path}: {theirs:?}");
        assert_eq!(theirs.body["error"]["error_subcode"], 33);
        let text = |answer: &Answer, id: &str| answer.body.to_string().replace(id, "ID");
        assert_eq!(text(&theirs, other), text(&nobodys, unknown), "{path}");
    }
    for call in firms.meta.take() {
        assert_eq!(call.headers["authorization"], format!("Bearer {META_ONE}"), "{call:?}");
    }
    // Each sees its own, also without a number in the call (B4).
    for (path, token, status) in [
        ("/v26.0/7001", TOKEN, 200),
        ("/v26.0/7002", OTHER_CLIENT, 200),
        ("/v26.0/7001", OTHER_CLIENT, 400),
    ] {
        assert_eq!(firms.get(path, token).await.status, status, "{path} {token}");
    }
    let deleted = firms.ask("DELETE", "/v26.0/7002", TOKEN, "", "").await;
    assert_eq!((deleted.status, deleted.code()), (400, 100));
    // Sends.
    let theirs = firms.post(&format!("/v26.0/{OTHER}/messages"), text("x")).await;
    let nobodys = firms.post("/v26.0/106540352242999/messages", text("x")).await;
    assert_eq!((theirs.status, theirs.code()), (400, 100));
    assert_eq!(
        theirs.body.to_string().replace(OTHER, "ID"),
        nobodys.body.to_string().replace("106540352242999", "ID")
    );
    let plain = |number: &str| json!({"to": USER, "text": "x", "phone_number_id": number});
    let theirs = firms.post("/v1/messages", plain(OTHER)).await;
    let nobodys = firms.post("/v1/messages", plain("106540352242999")).await;
    assert_eq!(theirs.status, 422);
    assert_eq!(theirs.body, nobodys.body);
    assert_eq!(firms.db.site.value("SELECT count(*) FROM whatsapp_messages").await, "0");
    // Without a number, the client's only one sends.
    let taken = firms.post("/v1/messages", json!({"to": USER, "text": "x"})).await;
    assert_eq!(taken.body["phone_number_id"], NUMBER, "{taken:?}");
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_answers_and_reads_only_messages_and_leads_of_its_numbers() {
    let firms = firms(vec![("106540352242922/messages", META_ONE, json!({"success": true}))]).await;
    // GIVEN a message of the other firm's, with a medium
    firms
        .db
        .site
        .run(&format!(
            "INSERT INTO whatsapp_accounts (phone_number_id) VALUES ('{OTHER}') ON CONFLICT DO NOTHING;
             INSERT INTO leads (id, wa_id) VALUES ('00000000-0000-0000-0000-000000000001', '491511234567');
             INSERT INTO conversations (id, account_id, lead_id)
               SELECT '00000000-0000-0000-0000-000000000002', id, '00000000-0000-0000-0000-000000000001'
                 FROM whatsapp_accounts WHERE phone_number_id = '{OTHER}';
             INSERT INTO whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, wamid, payload,
                                            client_name)
               SELECT '00000000-0000-0000-0000-000000000003', id, '00000000-0000-0000-0000-000000000002',
                      '00000000-0000-0000-0000-000000000001', 'inbound', 'received', 'image', 'wamid.THEIRS',
                      '{{\"image\": {{\"id\": \"7003\"}}}}', 'crm'
                 FROM whatsapp_accounts WHERE phone_number_id = '{OTHER}';"
        ))
        .await;
    let graph = format!("/v26.0/{NUMBER}/messages");
    let mut quoting = text("x");
    quoting["context"] = json!({"message_id": "wamid.THEIRS"});
    for body in [
        quoting,
        json!({"messaging_product": "whatsapp", "to": USER, "type": "reaction",
               "reaction": {"message_id": "wamid.THEIRS", "emoji": "x"}}),
        json!({"messaging_product": "whatsapp", "to": USER, "type": "image", "image": {"id": "7003"}}),
        json!({"messaging_product": "whatsapp", "status": "read", "message_id": "wamid.THEIRS"}),
    ] {
        let answer = firms.post(&graph, body.clone()).await;
        assert_eq!((answer.status, answer.code()), (400, 100), "{body}: {answer:?}");
    }
    // Bodies that some parsers read in another way; and one in which it can't be read what is named.
    let to = format!(r#""messaging_product":"whatsapp","to":"{USER}""#);
    let reaction = r#""type":"reaction","reaction":{"message_id":"wamid.THEIRS","emoji":"x""#;
    for rest in [
        format!(r#""x":"\ud83d",{reaction}}}"#),
        format!(r#""x":1e999,{reaction}}}"#),
        format!(r#""x":{}1{},{reaction}}}"#, "[".repeat(200), "]".repeat(200)),
        format!(r#"{reaction},"message_id":"nope"}}"#),
        r#""text":{"body":"x"},"context":"{\"message_id\":\"wamid.THEIRS\"}""#.to_owned(),
        r#""type":"image","image":{"id":"7003","caption":"cut \ud83d"}"#.to_owned(),
        r#""type":"image","image":"{\"id\":\"7003\"}""#.to_owned(),
    ] {
        let body = format!("{{{to},{rest}}}");
        let answer = firms.ask("POST", &graph, TOKEN, "application/json", &body).await;
        assert_eq!((answer.status, answer.code()), (400, 100), "{body}: {answer:?}");
    }
    for body in [
        json!({"to": USER, "text": "x", "reply_to": "wamid.THEIRS"}),
        json!({"lead_id": "00000000-0000-0000-0000-000000000001", "text": "x"}),
        json!({"to": USER, "lead_id": "00000000-0000-0000-0000-000000000001", "text": "x"}),
    ] {
        let answer = firms.post("/v1/messages", body.clone()).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
    }
    let shown = firms
        .get("/v1/messages/00000000-0000-0000-0000-000000000003", TOKEN)
        .await;
    assert_eq!(shown.status, 404, "{shown:?}");
    // Its medium is nobody's for this client, and Meta is not asked for it.
    let medium = firms.get("/v26.0/7003", TOKEN).await;
    assert_eq!((medium.status, medium.code()), (400, 100), "{medium:?}");
    assert!(firms.meta.take().iter().all(|call| !call.uri.contains("7003")));
    let sent = firms
        .db
        .site
        .value("SELECT count(*) FROM whatsapp_messages WHERE direction = 'outbound'")
        .await;
    assert_eq!(sent, "0");
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_two_firms_share_shows_a_client_only_media_of_its_number() {
    let firms = firms_with(
        vec![
            (
                "7001",
                META_ONE,
                json!({"id": "7001", "mime_type": "image/png", "url": "{stub}/bytes/x/1"}),
            ),
            ("7004", META_ONE, json!({"id": "7004", "name": "a template"})),
        ],
        |config| config.whatsapp.accounts[1].access_token = META_ONE.into(),
    )
    .await;
    assert_eq!(firms.get("/v26.0/7001", TOKEN).await.status, 200);
    let seen = firms.meta.take();
    assert_eq!(seen[0].uri, format!("/v26.0/7001?phone_number_id={NUMBER}"));
    assert_eq!(firms.get("/v26.0/7004", TOKEN).await.status, 400);
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_and_changes_its_groups_and_those_of_nobody_else() {
    const GROUP: &str = "Y2FwaV9ncm91cDoxOTUwNTU1MDA3OToxMjAzNjMzOTQzMjAdOTY0MTUZD";
    const PARTICIPANTS: &str = "Y2FwaV9ncm91cDoxOTUwNTU1MDA3OToxMjAzNjMzOTQzMjAdOTY0MTUZD/participants";
    let firms = firms(vec![
        (
            "106540352242922/groups",
            META_ONE,
            json!({"data": {"groups": [{"id": GROUP}]}}),
        ),
        (GROUP, META_ONE, json!({"id": GROUP, "subject": "us"})),
        (PARTICIPANTS, META_ONE, json!({"success": true})),
    ])
    .await;
    for (path, passes) in [
        (format!("/v26.0/{NUMBER}/groups?limit=25"), true),
        (format!("/v26.0/{GROUP}?fields=subject"), true),
        (format!("/v26.0/{GROUP}/participants"), false),
    ] {
        assert_eq!(firms.get(&path, TOKEN).await.status == 200, passes, "{path}");
    }
    for (method, path, body, passes) in [
        (
            "POST",
            GROUP.to_owned(),
            json!({"messaging_product": "whatsapp", "subject": "you"}),
            true,
        ),
        ("POST", GROUP.to_owned(), json!({"text": {"body": "hello"}}), false),
        (
            "DELETE",
            PARTICIPANTS.to_owned(),
            json!({"participants": [{"user": "16505551234"}]}),
            true,
        ),
        (
            "POST",
            PARTICIPANTS.to_owned(),
            json!({"participants": [{"user": "16505551234"}]}),
            false,
        ),
        (
            "POST",
            format!("{GROUP}/messages"),
            json!({"text": {"body": "hello"}}),
            false,
        ),
        ("DELETE", GROUP.to_owned(), json!({}), true),
    ] {
        let path = format!("/v26.0/{path}");
        let ask = async |token| {
            firms
                .ask(method, &path, token, "application/json", body.to_string())
                .await
        };
        let answer = ask(TOKEN).await;
        assert_eq!(answer.status == 200, passes, "{method} {path} {body}");
        // Another firm's client does not find it.
        let answer = ask(OTHER_CLIENT).await;
        assert!(
            answer.status == 400 || (!passes && answer.status == 405),
            "{path}: {}",
            answer.status
        );
    }
    assert_eq!(firms.get(&format!("/v26.0/{GROUP}"), OTHER_CLIENT).await.status, 400);
    firms.server.stop().await;
}
