//! The history of a number, its media, its groups; and messages that we wrote on the phone in a group.

use super::*;

fn placeholder(id: &str) -> Value {
    value(
        json!({"history": [{"metadata": {"phase": 0}, "threads": [{"id": "16505551234",
        "context": {"wa_id": "16505551234", "user_id": "US.1"}, "messages": [{"from": "16505551234", "id": id,
        "timestamp": "1749416383", "type": "media_placeholder", "history_context": {"status": "READ"}}]}]}]}),
    )
}

#[tokio::test]
async fn a_medium_of_the_history_takes_the_place_of_its_placeholder_in_either_order() {
    let site = Site::working().await;
    let medium =
        |id: &str| value(json!({"messages": [{"id": id, "type": "image", "image": {"id": "7", "caption": "a view"}}]}));
    let with_sender = |id: &str| {
        let mut value = medium(id);
        value["messages"][0]["from"] = json!("16505551234");
        value
    };
    for parts in [
        [placeholder("h1"), medium("h1")],
        [medium("h2"), placeholder("h2")],
        [with_sender("h3"), placeholder("h3")],
        [placeholder("h4"), with_sender("h4")],
    ] {
        for part in &parts {
            site.post(&envelope(&[("history", part.clone())])).await;
            site.settle().await;
        }
        // Repeated, too.
        for part in &parts {
            site.post(&envelope(&[("history", part.clone())])).await;
        }
    }
    site.settle().await;
    let stored =
        "SELECT string_agg(concat_ws(' ', wamid, type, body, payload->'image'->>'id', direction), ', ' ORDER BY wamid)
        FROM whatsapp_messages";
    assert_eq!(
        site.value(stored).await,
        ["h1", "h2", "h3", "h4"]
            .map(|id| format!("{id} image a view 7 inbound"))
            .join(", ")
    );
    assert_eq!((site.count("leads").await, site.count("conversations").await), (1, 1));
    assert_eq!(site.count("notifications").await, 0);
    assert_eq!(site.count("webhook_events WHERE state <> 'processed'").await, 0);
    assert_eq!(site.count("twinlog.early_media").await, 0);
}

#[tokio::test]
async fn what_was_said_and_written_in_groups_is_filed_under_the_group() {
    let site = Site::working().await;
    let history = json!({"history": [{"threads": [{"id": "120363025246125486@g.us", "messages": [
        {"from": "16505551234", "id": "h1", "timestamp": "1749416383", "type": "text", "text": {"body": "a"}},
        {"from": "15550783881", "to": "120363025246125486@g.us", "id": "h2", "timestamp": "1749416384", "type": "text", "text": {"body": "b"}}]}]}]});
    let echo = json!({"message_echoes": [{"from": "15550783881", "group_id": "120363025246125486@g.us", "id": "e1",
        "timestamp": "1749416385", "type": "text", "text": {"body": "c"}}]});
    site.post(&envelope(&[
        ("history", value(history)),
        ("smb_message_echoes", value(echo)),
    ]))
    .await;
    site.settle().await;
    let filed = "SELECT string_agg(m.wamid || ' ' || m.direction || ' ' || l.phone, ', ' ORDER BY m.wamid)
        FROM whatsapp_messages m JOIN leads l ON l.id = m.lead_id";
    assert_eq!(
        site.value(filed).await,
        "e1 outbound group:120363025246125486@g.us, h1 inbound group:120363025246125486@g.us, \
         h2 outbound group:120363025246125486@g.us"
    );
    assert_eq!(site.count("conversations").await, 1);
    assert_eq!(site.value("SELECT state FROM webhook_events").await, "processed");
}

#[tokio::test]
async fn the_history_of_a_person_known_by_both_ids_joins_the_conversation() {
    let site = Site::working().await;
    site.deliver(&messages(&[text("wamid.1", "16505551234", "x")])).await;
    site.deliver(&messages(&[
        json!({"from_user_id": "US.1", "id": "wamid.2", "timestamp": "1749416383", "type": "text",
        "text": {"body": "x"}}),
    ]))
    .await;
    assert_eq!(site.count("leads").await, 2);
    site.post(&envelope(&[("history", placeholder("h1"))])).await;
    site.settle_people().await;
    assert_eq!(site.count("leads WHERE merged_into IS NULL").await, 1);
    assert_eq!(
        site.value("SELECT count(DISTINCT conversation_id) FROM whatsapp_messages")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_history_that_the_business_does_not_share_is_shown() {
    let site = Site::working().await;
    let declined = value(
        json!({"history": [{"errors": [{"code": 2_593_109, "title": "History sync is turned off by the business",
        "message": "History sharing is turned off by the business from the WhatsApp Business App"}]}]}),
    );
    let body = envelope(&[("history", declined)]);
    site.post(&body).await;
    site.settle().await;
    site.post(&body).await;
    site.settle().await;
    let shown =
        "SELECT kind || ' ' || (detail LIKE '%turned off%') || ' ' || (account_id IS NOT NULL) FROM notifications";
    assert_eq!(site.value(shown).await, "history_declined true true");
}
