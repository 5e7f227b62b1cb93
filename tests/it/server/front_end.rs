//! Routes that front ends call already: the health of a number, and the log of a page.

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
    assert_eq!(server.get("/api/whatsapp/accounts/1/health").await.status, 404);
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
    let output = binary.process.output();
    let line = output
        .lines()
        .find(|line| line.contains("front end: no answer"))
        .unwrap_or_else(|| panic!("{output}"));
    assert!(line.contains("phone stack") && line.contains("ERROR"), "{line}");
    assert!(
        !output.contains("15112345678") && !output.contains("secret text"),
        "{output}"
    );
}
