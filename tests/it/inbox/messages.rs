//! Messages, and the leads and conversations that they belong to.

use super::*;

#[tokio::test]
async fn a_text_becomes_a_message_a_lead_a_conversation_and_a_notification() {
    let site = Site::working().await;

    site.deliver(&value(json!({
        "contacts": [{"profile": {"name": "Sheena"}, "wa_id": "16505551234", "user_id": "US.13"}],
        "messages": [{"from": "16505551234", "id": "wamid.1", "timestamp": "1749416383", "type": "text",
            "text": {"body": "Grüße 😀"}, "referral": {"source_type": "ad", "source_id": "7"}}]})))
        .await;

    for (query, expected) in [
        (
            "SELECT direction || status || type || body FROM whatsapp_messages",
            "inboundreceivedtextGrüße 😀",
        ),
        ("SELECT payload->'text'->>'body' FROM whatsapp_messages", "Grüße 😀"),
        (
            "SELECT extract(epoch FROM provider_at)::bigint FROM whatsapp_messages",
            "1749416383",
        ),
        (
            "SELECT l.name || l.wa_id || l.user_id FROM whatsapp_messages m JOIN leads l ON l.id = m.lead_id",
            "Sheena16505551234US.13",
        ),
        ("SELECT referral->>'source_id' FROM leads", "7"),
        (
            "SELECT c.unread_count FROM whatsapp_messages m JOIN conversations c ON c.id = m.conversation_id",
            "1",
        ),
        (
            "SELECT extract(epoch FROM last_inbound_at)::bigint FROM conversations",
            "1749416383",
        ),
        (
            "SELECT n.kind FROM notifications n JOIN whatsapp_messages m ON m.id = n.message_id",
            "inbound_message",
        ),
        (
            "SELECT phone_number_id || waba_id || display_phone_number FROM whatsapp_accounts",
            "106540352242922WABA15550783881",
        ),
        (
            "SELECT last_real_message_at > now() - interval '1 minute' FROM whatsapp_accounts",
            "true",
        ),
        (
            "SELECT state || real_events || protocol_events FROM webhook_events",
            "processed10",
        ),
    ] {
        assert_eq!(site.value(query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn every_type_is_stored_and_linked_known_or_not() {
    let site = Site::working().await;
    let kinds: Vec<_> = samples::KINDS.iter().copied().chain(["hologram"]).collect();
    let parts: Vec<_> = kinds
        .iter()
        .map(|kind| {
            let mut message = samples::message(kind);
            message["from"] = json!("16505551234");
            message["id"] = json!(format!("wamid.{kind}"));
            message
        })
        .collect();
    site.deliver(&messages(&parts)).await;
    for kind in &kinds {
        let stored =
            format!("SELECT type FROM whatsapp_messages WHERE wamid = 'wamid.{kind}' AND payload->>'type' = type");
        assert_eq!(site.text(&stored).await.as_deref(), Some(*kind));
    }
    assert_eq!(site.count("whatsapp_messages").await, kinds.len());
    assert_eq!(site.count("leads").await, 1);
    // No notification for the system message, nor for events about an earlier message.
    assert_eq!(site.count("notifications").await, kinds.len() - 4);
    assert_eq!(site.value("SELECT state FROM webhook_events").await, "processed");
    // The system message said that the user has a new number.
    assert_eq!(
        site.value("SELECT phone || '>' || wa_id FROM leads").await,
        "16505551234>16505550999"
    );
}

#[tokio::test]
async fn repetition_changes_nothing() {
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.out")).await;
    let body = envelope(&[
        (
            "messages",
            messages(&[text("wamid.1", "16505551234", "a"), text("wamid.2", "16505551234", "b")]),
        ),
        (
            "messages",
            statuses_of(&[status("wamid.out", "sent", 1), status("wamid.out", "failed", 2)]),
        ),
    ]);
    let event = site.post(&body).await;
    site.settle().await;
    let picture = "SELECT string_agg(t, ' ' ORDER BY t) FROM (
        SELECT row_to_json(m)::text AS t FROM whatsapp_messages m UNION ALL SELECT row_to_json(c)::text FROM conversations c
        UNION ALL SELECT row_to_json(l)::text FROM leads l UNION ALL SELECT row_to_json(n)::text FROM notifications n
        UNION ALL SELECT row_to_json(e)::text FROM message_status_events e) AS rows";
    let before = site.text(picture).await;
    site.post(&body).await;
    // In other groups, and in reverse order.
    site.deliver(&statuses_of(&[status("wamid.out", "failed", 2)])).await;
    site.deliver(&messages(&[text("wamid.2", "16505551234", "b")])).await;
    assert!(site.inbox.replay(event).await.unwrap());
    site.settle().await;
    assert_eq!(site.text(picture).await, before);
    assert_eq!(site.shown(message).await, "failed");
    assert!(!site.inbox.replay(WebhookId(Uuid::nil())).await.unwrap());
}

#[tokio::test]
async fn the_same_first_message_arriving_many_times_at_once_is_one() {
    let site = Arc::new(Site::working().await);
    let mut posts = JoinSet::new();
    for number in 0..24 {
        let site = Arc::clone(&site);
        posts.spawn(async move {
            // Each post also has a message of its own, so that they compete for the lead and the conversation.
            let parts = [
                text("wamid.same", "16505551234", "x"),
                text(&format!("wamid.{number}"), "16505551234", "y"),
            ];
            site.post(&envelope(&[("messages", messages(&parts))])).await;
        });
    }
    posts.join_all().await;
    site.settle().await;
    assert_eq!(site.count("webhook_events WHERE state = 'processed'").await, 24);
    assert_eq!(site.count("leads").await, 1);
    assert_eq!(site.count("conversations").await, 1);
    assert_eq!(site.count("whatsapp_messages").await, 25);
    assert_eq!(site.value("SELECT unread_count FROM conversations").await, "25");
}

#[tokio::test]
async fn a_message_written_on_the_phone_is_stored_as_ours_and_sent() {
    let site = Site::working().await;
    let echo = json!({"from": "15550783881", "to": "16505551234", "id": "wamid.echo", "timestamp": "1749416383",
        "type": "text", "text": {"body": "from the phone"}});
    let body = envelope(&[("smb_message_echoes", value(json!({"message_echoes": [echo]})))]);
    site.deliver(&statuses_of(&[status("wamid.echo", "delivered", 5)]))
        .await;
    site.post(&body).await;
    site.post(&body).await;
    site.settle().await;
    let stored = "SELECT direction || status || body || recipient FROM whatsapp_messages";
    assert_eq!(site.value(stored).await, "outbounddeliveredfrom the phone16505551234");
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
    assert_eq!(site.count("notifications").await, 0);
    assert_eq!(site.value("SELECT unread_count FROM conversations").await, "0");
}

#[tokio::test]
async fn history_is_stored_without_notifications() {
    let site = Site::working().await;
    let history = value(
        json!({"history": [{"metadata": {"phase": 0}, "threads": [{"id": "16505551234",
        "context": {"wa_id": "16505551234", "user_id": "US.1"}, "messages": [
            {"from": "15550783881", "to": "16505551234", "id": "h1", "timestamp": "1700000000", "type": "text", "text": {"body": "a"}, "history_context": {"status": "READ"}},
            {"from": "15550783881", "to": "16505551234", "id": "h2", "timestamp": "1700000001", "type": "text", "text": {"body": "b"}, "history_context": {"status": "ERROR"}},
            {"from": "16505551234", "id": "h3", "timestamp": "1700000002", "type": "text", "text": {"body": "c"}, "history_context": {"status": "READ"}}]}]}]}),
    );
    site.post(&envelope(&[("history", history)])).await;
    site.settle().await;
    let stored = "SELECT string_agg(direction || ' ' || status, ', ' ORDER BY created_at) FROM whatsapp_messages
                   WHERE created_at < '2024-01-01'";
    assert_eq!(
        site.value(stored).await,
        "outbound read, outbound failed, inbound received"
    );
    assert_eq!(site.count("notifications").await, 0);
    assert_eq!(site.value("SELECT unread_count FROM conversations").await, "0");
    assert_eq!(
        site.text("SELECT last_real_message_at FROM whatsapp_accounts").await,
        None
    );
}

#[tokio::test]
async fn text_that_postgres_cannot_hold_is_stored_with_a_replacement() {
    let site = Site::working().await;
    let body = format!(
        r#"{{"entry":[{{"id":"W","changes":[{{"field":"messages","value":{{"metadata":{{"phone_number_id":"{NUMBER}"}},
           "contacts":[{{"wa_id":"16505551234","profile":{{"name":"n\u0000"}}}}],
           "messages":[{{"from":"16505551234","id":"wamid.1","type":"text","timestamp":"1","text":{{"body":"nul \u0000 cut \ud83d"}}}}]}}}}]}}]}}"#
    );
    site.post(body.as_bytes()).await;
    site.settle().await;
    assert_eq!(
        site.value("SELECT body || (payload->'text'->>'body') FROM whatsapp_messages")
            .await,
        "nul \u{fffd} cut \u{fffd}nul \u{fffd} cut \u{fffd}"
    );
    assert_eq!(site.value("SELECT state FROM webhook_events").await, "processed");
}

#[tokio::test]
async fn a_repeated_webhook_that_is_processed_before_the_first_one_changes_no_order() {
    // GIVEN two messages of a person, of which Meta repeats the first because its 200 was lost
    let mut site = Site::at_rest().await;
    let WebhookId(first) = site.post_text("wamid.1").await;
    site.post_text("wamid.2").await;
    site.post_text("wamid.1").await;

    // WHEN the first webhook is processed last: its worker died, say
    let due = |at: &str| format!("UPDATE webhook_events SET next_attempt_at = {at} WHERE id = '{first}'");
    site.db.on_site(&due("now() + interval '1 hour'")).await;
    site.work();
    let stored = "SELECT count(*) FROM whatsapp_messages";
    site.db.until_site("both messages are stored", stored, "2").await;
    site.db.on_site(&due("now()")).await;
    site.settle().await;

    // THEN the messages are in the order of their arrival
    let order = "SELECT string_agg(wamid, ' ' ORDER BY created_at) FROM whatsapp_messages";
    assert_eq!(site.value(order).await, "wamid.1 wamid.2");
    let times = "SELECT count(*) FROM whatsapp_messages m JOIN webhook_events w ON w.received_at = m.received_at";
    assert_eq!(site.value(times).await, "2");
}
