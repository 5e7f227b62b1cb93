//! Routes that front ends call already: the health of a number, and the log of a page.

use jsonwebtoken::{EncodingKey, Header, encode};
use twinlog::config::{CorsOrigins, Jwt, JwtNumbers, JwtUsers};

use super::*;

#[tokio::test]
async fn a_number_is_degraded_by_evidence_and_merely_quiet_without() {
    let (world, server) = World::served().await;
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    world.is_sent(&id).await;
    let health = async || server.get(&format!("/api/whatsapp/accounts/{NUMBER}/health")).await;
    let quiet = health().await;
    let account = world.db.site.value("SELECT id FROM whatsapp_accounts").await;
    assert_eq!(quiet.body["accountId"], account, "{quiet:?}");
    assert_eq!(
        (&quiet.body["status"], &quiet.body["connected"]),
        (&json!("active"), &json!(true))
    );
    assert_eq!(
        (&quiet.body["isDegraded"], &quiet.body["warning"]),
        (&json!(false), &Value::Null)
    );
    assert!(quiet.body["lastRealMessageMs"].is_null() && quiet.body["timeSinceLastRealMs"].is_null());

    world
        .db
        .on_site("UPDATE whatsapp_accounts SET last_real_message_at = now() - interval '1 day'")
        .await;
    let by_row = server
        .get(&format!("/api/whatsapp/accounts/{account}/health"))
        .await
        .body;
    let since = by_row["timeSinceLastRealMs"].as_i64().unwrap();
    assert!(
        (86_400_000..87_000_000).contains(&since) && by_row["isDegraded"] == json!(false),
        "{by_row}"
    );

    // What Meta took and never reported on.
    world.reaches(&id, &["delivered"]).await;
    world
        .db
        .on_site("UPDATE whatsapp_messages SET status = 'accepted', accepted_at = now() - interval '6 minutes'")
        .await;
    let unreported = health().await.body;
    assert!(
        unreported["isDegraded"] == json!(true) && unreported["warning"].to_string().contains("webhook"),
        "{unreported}"
    );
    world
        .db
        .on_site("UPDATE whatsapp_accounts SET status = 'held', hold_reason = 'token expired'")
        .await;
    let held = health().await.body;
    assert_eq!((&held["status"], &held["connected"]), (&json!("held"), &json!(false)));
    assert!(held["warning"].to_string().contains("token expired"), "{held}");
    for unknown in ["1", "%00"] {
        let path = format!("/api/whatsapp/accounts/{unknown}/health");
        assert_eq!(server.get(&path).await.status, 404);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_pages_log_goes_into_the_servers_without_what_may_be_a_persons() {
    let world = World::new().await;
    let binary = Binary::start(&world).await;
    let post = async |body: Value, token: &str| {
        let request = binary
            .http
            .post(binary.config.http("/api/logging/batch"))
            .bearer_auth(token);
        answer(request.body(body.to_string()).send().await.unwrap()).await
    };
    let record = json!({"level": "error", "message": "no answer for +4915112345678: \"secret text\"", "stack": "at x", "phone": "4915112345678"});
    assert_eq!(post(json!({"logs": [record]}), "x").await.status, 401);
    let mut logs = vec![record];
    logs.extend((0..150).map(|_| json!({"level": "debug", "message": "x"})));
    let taken = post(json!({ "logs": logs }), TOKEN).await;
    assert_eq!((taken.status, &taken.body["accepted"]), (200, &json!(100)), "{taken:?}");
    assert_eq!(post(json!([]), TOKEN).await.status, 200);
    assert_eq!(post(json!({"log": []}), TOKEN).await.status, 400);
    // A client's lines of this minute are all written; and no body is large.
    let more = post(json!([{"message": "x"}]), TOKEN).await;
    assert_eq!((more.status, &more.body["accepted"]), (200, &json!(0)), "{more:?}");
    assert_eq!(post(json!("x".repeat(300_000)), TOKEN).await.status, 413);
    let output = binary.process.output();
    let line = output
        .lines()
        .find(|line| line.contains("phone stack"))
        .unwrap_or_else(|| panic!("{output}"));
    assert!(line.contains("ERROR"), "{line}");
    assert!(
        !output.contains("15112345678") && !output.contains("secret text"),
        "{output}"
    );
}

#[tokio::test]
async fn a_supabase_front_end_sends_a_text_and_is_told_what_became_of_it() {
    let mut world = World::new().await;
    world.config.jwt = Some(Jwt {
        secret: Some("secret".into()),
        keys: None,
        audience: "authenticated".to_owned(),
        roles: vec!["authenticated".to_owned()],
        numbers: JwtNumbers::Configured,
        users: JwtUsers::Send,
    });
    world.config.http.cors_origins = CorsOrigins::Named(vec!["https://crm.example.com".to_owned()]);
    let server = world.serve().await;
    let token = |sub: &str| {
        let claims = json!({"exp": 4_000_000_000_u64, "aud": "authenticated", "role": "authenticated", "sub": sub});
        let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(b"secret")).unwrap();
        format!("Bearer {token}")
    };
    let path = "/functions/v1/whatsapp-send";
    let invoke = async |sub: &str, body: Value| {
        let headers = [
            ("authorization", &*token(sub)),
            ("apikey", "anon"),
            ("origin", "https://crm.example.com"),
        ];
        server.post(path, &headers, body.to_string()).await
    };
    let send = json!({"action": "send_message", "to": USER, "message": "hello", "user_id": "u1", "client_id": "c"});
    let sent = invoke("u1", send.clone()).await;
    assert_eq!((sent.status, &sent.body["success"]), (200, &json!(true)), "{sent:?}");
    assert_eq!(sent.headers["access-control-allow-origin"], "https://crm.example.com");
    let id = sent.body["message_id"].as_str().unwrap();
    world.is_sent(id).await;
    // The same call again sends nothing; another user's ids are other ones.
    assert_eq!(invoke("u1", send.clone()).await.body["message_id"], id);
    assert_ne!(invoke("u2", send.clone()).await.body["message_id"], id);
    world.until_accepted(2).await;

    // What can't be sent, and what Meta refuses, is an error with a reason.
    for (body, status, said) in [
        (
            json!({"action": "delete_message", "to": USER, "message": "x"}),
            400,
            "action",
        ),
        (json!({"action": "send_message", "to": USER}), 400, "message"),
        (json!({"action": "send_message", "to": "x", "message": "x"}), 422, ""),
    ] {
        let refused = invoke("u1", body).await;
        let error = refused.body["error"].as_str().unwrap_or_else(|| panic!("{refused:?}"));
        assert!(
            refused.status == status && error.contains(said) && refused.body["success"] == json!(false),
            "{refused:?}"
        );
    }
    world.fault_once(Fault::Error {
        code: 131_026,
        subcode: None,
    });
    let refused = invoke("u1", json!({"action": "send_message", "to": USER, "message": "y"})).await;
    assert_eq!(
        (refused.status, &refused.body["status"]),
        (422, &json!("failed")),
        "{refused:?}"
    );
    // What may have been sent is no success, and the same call again sends nothing.
    let before = world.accepted();
    world.meta.set_fault(NUMBER, Fault::Silent).unwrap();
    world.fault_once(Fault::AcceptThenReset);
    let lost = json!({"action": "send_message", "to": USER, "message": "lost"});
    let unknown = invoke("u1", lost.clone()).await;
    let again = invoke("u1", lost.clone()).await;
    for answer in [&unknown, &again] {
        let said = (answer.status, &answer.body["success"], &answer.body["code"]);
        assert_eq!(said, (409, &json!(false), &json!("outcome_unknown")), "{answer:?}");
    }
    assert_eq!(unknown.body["message_id"], again.body["message_id"]);
    assert_eq!(world.accepted(), before + 1);
    // Neither is what waits for a number that can't send: it will not be sent later.
    world.meta.expire_token(NUMBER).unwrap();
    let held = invoke("u1", json!({"action": "send_message", "to": USER, "message": "z"})).await;
    let said = (held.status, &held.body["success"], &held.body["code"]);
    assert_eq!(said, (422, &json!(false), &json!("number_held")), "{held:?}");
    assert_eq!(
        world.status(held.body["message_id"].as_str().unwrap()).await,
        "cancelled"
    );
    assert_eq!(server.post(path, &[], send.to_string()).await.status, 401);
    server.stop().await;

    world.config.jwt.as_mut().unwrap().users = JwtUsers::Look;
    let server = world.serve().await;
    let headers = [("authorization", &*token("u1"))];
    let refused = server.post(path, &headers, send.to_string()).await;
    assert!(
        refused.status == 403 && refused.body["error"].as_str().unwrap().contains("jwt_users"),
        "{refused:?}"
    );
    server.stop().await;
}
