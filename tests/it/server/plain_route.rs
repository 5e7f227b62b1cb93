//! The plain JSON API.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_taken_shown_and_sent() {
    let (world, server) = World::served().await;
    let taken = server
        .plain(&json!({"to": "0016505551234", "text": "hi", "client_id": "c1"}))
        .await;
    // 200 if the outcome was already known when the answer was made.
    assert!([200, 202].contains(&taken.status), "{taken:?}");
    let id = taken.body["id"].as_str().unwrap();
    for field in ["lead_id", "conversation_id"] {
        assert!(taken.body[field].is_string(), "{field}");
    }
    assert_eq!(taken.body["to"], USER);
    world.is_sent(id).await;
    let shown = server.get(&format!("/v1/messages/{id}")).await;
    assert_eq!((shown.status, &shown.body["id"]), (200, &json!(id)));
    assert!(shown.body["wamid"].is_string() && shown.body["accepted_at"].is_string());

    let again = server
        .plain(&json!({"to": USER, "text": "hi", "client_id": "c1", "wait": true}))
        .await;
    assert_eq!(
        (again.status, &again.body["id"], &again.body["duplicate"]),
        (200, &json!(id), &json!(true))
    );
    let other = server
        .plain(&json!({"to": USER, "text": "ho", "client_id": "c1"}))
        .await;
    assert_eq!(
        (other.status, &other.body["error"]["code"]),
        (409, &json!("client_id_reused"))
    );
    assert_eq!(world.accepted(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_id_of_another_program_hinders_neither_the_outcome_nor_the_answer() {
    let (world, server) = World::served().await;
    let odd = "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.wamid = ''; RETURN NEW; END $$; \
               CREATE TRIGGER odd BEFORE INSERT ON whatsapp_messages FOR EACH ROW EXECUTE FUNCTION odd()";
    world.db.on_site(odd).await;
    let taken = server.plain(&json!({"to": USER, "text": "hi"})).await;
    world.reaches(&taken.id(), &["accepted"]).await;
    let shown = server.get(&format!("/v1/messages/{}", taken.id())).await;
    assert_eq!((shown.status, &shown.body["wamid"]), (200, &json!("")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_what_it_had_sent_and_nothing_else() {
    let mut world = World::new().await;
    world.config.tokens.insert(
        0,
        twinlog::config::ApiToken {
            name: "bot".to_owned(),
            sha256: Sha256::digest("bot-token").into(),
            numbers: None,
            automation: false,
        },
    );
    let server = world.serve().await;
    let ask = async |token: &str, path: &str| {
        let request = server.http.get(format!("{}{path}", server.url)).bearer_auth(token);
        answer(request.send().await.unwrap()).await
    };

    let body = json!({"to": USER, "text": "hi", "client_id": "c1"});
    let path = format!("/v1/messages/{}", server.plain(&body).await.id());
    assert_eq!(ask(TOKEN, &path).await.status, 200);
    let strangers = ask("bot-token", &path).await;
    let unknown = ask("bot-token", &format!("/v1/messages/{}", uuid::Uuid::new_v4())).await;
    assert_eq!((strangers.status, &strangers.body), (404, &unknown.body));
    assert_eq!(ask("crm", &path).await.status, 401);

    // Two clients may use the same client id for different messages.
    let bearer = [("authorization", "Bearer bot-token")];
    let bots = server.post("/v1/messages", &bearer, body.to_string()).await;
    assert!(bots.status < 300 && bots.body["duplicate"].is_null(), "{bots:?}");
    assert_ne!(format!("/v1/messages/{}", bots.id()), path);
    // A user's message can be read in the Site DB, not through this API.
    let question = Inbound::text(NUMBER, "16505551234", "who are you?");
    let wamid = world.meta.inbound(question).await;
    let inbound = eventually("the answer is there", SOON, || async {
        let query = format!("SELECT min(id::text) FROM whatsapp_messages WHERE wamid = '{wamid}'");
        world.db.site.text(&query).await.ok_or("not yet")
    })
    .await;
    assert_eq!(ask(TOKEN, &format!("/v1/messages/{inbound}")).await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_gives_the_outcome_and_a_message_is_never_cancelled_by_it() {
    let (world, server) = World::served().await;
    let sent = server.plain(&json!({"to": USER, "text": "now", "wait": true})).await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert!(sent.body["wamid"].is_string());

    world.fault_once(Fault::TooManyRequests { retry_after_seconds: 1 });
    let waiting = server.plain(&json!({"to": USER, "text": "later", "wait": 300})).await;
    assert_eq!(waiting.status, 202, "{waiting:?}");
    let id = waiting.body["id"].as_str().unwrap();
    world.is_sent(id).await;
    // A throttled send is not counted as an attempt.
    assert_eq!(world.value(id, "attempt").await, "1");
    assert_eq!(world.value(id, "throttles").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_belongs_to_the_lead_that_was_named() {
    let (world, server) = World::served().await;
    world
        .db
        .on_site("INSERT INTO leads (id, phone) VALUES ('00000000-0000-0000-0000-000000000001', '+16505559999')")
        .await;
    let lead = "00000000-0000-0000-0000-000000000001";
    let sent = server
        .plain(&json!({"lead_id": lead, "text": "hi", "wait": true}))
        .await;
    assert_eq!(
        (sent.status, &sent.body["lead_id"], &sent.body["to"]),
        (200, &json!(lead), &json!("+16505559999"))
    );
    let other = server
        .plain(&json!({"lead_id": lead, "to": USER, "text": "hi", "wait": true}))
        .await;
    assert_eq!(
        (other.status, &other.body["lead_id"], &other.body["to"]),
        (200, &json!(lead), &json!(USER))
    );
    assert_eq!(sent.body["conversation_id"], other.body["conversation_id"]);
    let unknown_lead = server
        .plain(&json!({"lead_id": "00000000-0000-0000-0000-000000000002", "to": USER, "text": "hi"}))
        .await;
    assert_eq!(
        (unknown_lead.status, &unknown_lead.body["error"]["field"]),
        (422, &json!("lead_id"))
    );
    assert_eq!(world.count("true").await, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_says_why_and_leaves_no_row() {
    let (world, server) = World::served().await;
    for (body, status, field) in [
        (json!({"text": "x"}), 422, json!("to")),
        (json!({"to": "0151 1234567", "text": "x"}), 422, json!("to")),
        (json!({"to": USER, "text": ""}), 422, json!("text")),
        (json!({"to": USER, "type": "image"}), 422, json!("image")),
        (json!({"to": USER, "type": "image", "image": {}}), 422, json!("image")),
        (
            json!({"to": USER, "type": "template", "template": {"name": "x"}}),
            422,
            json!("template"),
        ),
        (json!({"to": 16_505_551_234.0, "text": "x"}), 422, json!("to")),
        (
            json!({"to": USER, "text": "x", "phone_number_id": "1"}),
            422,
            json!("phone_number_id"),
        ),
        (
            json!({"to": USER, "text": "x", "cleint_id": "1"}),
            422,
            json!("cleint_id"),
        ),
        (json!([]), 400, Value::Null),
    ] {
        let answer = server.plain(&body).await;
        assert_eq!(
            (answer.status, &answer.body["error"]["field"]),
            (status, &field),
            "{body}"
        );
    }

    let unauthorized = server
        .post("/v1/messages", &[], json!({"to": USER, "text": "x"}).to_string())
        .await;
    assert_eq!(unauthorized.status, 401);
    for id in ["x", "00000000-0000-0000-0000-000000000009"] {
        assert_eq!(server.get(&format!("/v1/messages/{id}")).await.status, 404);
    }
    assert_eq!(world.count("true").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_conversation_leave_in_order_and_others_pass_them() {
    let (world, server) = World::served().await;
    // The pair limit throttles the first one; no later message to the same user may be sent before it.
    world.fault_once(Fault::Error {
        code: 131_056,
        subcode: None,
    });
    let first = server.plain(&json!({"to": USER, "text": "1"})).await;
    let first_id = first.body["id"].as_str().unwrap();
    eventually("the first is sent back", SOON, || async {
        let throttles = world.column(first_id, "throttles").await;
        if throttles.as_deref() == Some("1") {
            Ok(())
        } else {
            Err(throttles)
        }
    })
    .await;
    for text in ["2", "3", "4"] {
        assert!(server.plain(&json!({"to": USER, "text": text})).await.status < 300);
    }
    let other = server
        .plain(&json!({"to": "+16505550000", "text": "other", "wait": true}))
        .await;
    assert_eq!(other.status, 200, "{other:?}");
    assert_eq!(world.status(first_id).await, "pending");
    world.until_accepted(5).await;
    let mut order = Vec::new();
    for message in world.meta.ledger().messages {
        let id = message.opaque.unwrap().trim_start_matches("tl:").to_owned();
        order.push(world.column(&id, "body").await.unwrap());
    }
    assert_eq!(order, ["other", "1", "2", "3", "4"]);
    server.stop().await;
}
