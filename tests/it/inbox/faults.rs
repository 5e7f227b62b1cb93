//! Faults: single parts, events for a while, processes and databases.

use super::*;

/// Makes the Site DB refuse some messages.
const NO_POISON: &str = "ALTER TABLE whatsapp_messages ADD CONSTRAINT no_poison CHECK (body <> 'poison')";

#[tokio::test]
async fn a_part_that_cannot_be_stored_does_not_stop_the_other_parts() {
    // GIVEN an event with a part that is refused, one that cannot be parsed, and one of an unknown kind
    let site = Site::working().await;
    site.db.on_site(NO_POISON).await;
    let parts = [
        text("wamid.1", "16505551234", "before"),
        text("wamid.2", "16505550002", "poison"),
        json!({"id": "wamid.3", "type": "text"}),
        text("wamid.4", "16505550004", "after"),
    ];
    let event = site
        .post(&envelope(&[
            ("messages", messages(&parts)),
            ("brand_new_field", json!({"x": 1})),
        ]))
        .await;
    site.settle().await;

    // THEN the other parts are stored, and the failed ones are named
    assert_eq!(site.count("whatsapp_messages").await, 2);
    // The refused part left nothing, not even its lead.
    assert_eq!(site.count("leads").await, 2);
    let failures = site
        .value("SELECT failures FROM webhook_events WHERE state = 'failed'")
        .await;
    let failures: Value = serde_json::from_str(&failures).unwrap();
    assert_eq!(failures[0]["index"], 1);
    assert_eq!(failures[0]["reason"], "SQLSTATE 23514, constraint no_poison");
    assert_eq!(failures[1]["index"], 2);
    assert!(!failures.to_string().contains("16505550002"));

    // And stored as well once the cause is gone.
    site.db
        .on_site("ALTER TABLE whatsapp_messages DROP CONSTRAINT no_poison")
        .await;
    site.inbox.replay(event).await.unwrap();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 3);
    assert_eq!(site.count("notifications").await, 3);
}

#[tokio::test]
async fn a_refused_part_of_a_later_portion_is_named_by_its_place() {
    let site = Site::working().await;
    site.db.on_site(NO_POISON).await;
    let parts: Vec<_> = (0..130)
        .map(|number| {
            let body = if number == 77 { "poison" } else { "x" };
            text(&format!("wamid.{number}"), "16505551234", body)
        })
        .collect();
    site.deliver(&messages(&parts)).await;
    assert_eq!(site.count("whatsapp_messages").await, 129);
    assert_eq!(
        site.value("SELECT (failures->0->>'index') || ' ' || jsonb_array_length(failures) FROM webhook_events")
            .await,
        "77 1"
    );
    assert_eq!(site.value("SELECT unread_count FROM conversations").await, "129");
}

#[tokio::test]
async fn a_database_that_dies_again_and_again_loses_no_event_and_doubles_none() {
    let mut site = Site::on(private_databases(Settings::default().durable(), Settings::default()).await).await;
    site.work();
    let mut taken = 0;
    for number in 0..60 {
        if number % 20 == 10 {
            site.db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
        }
        let parts = [
            text(&format!("wamid.{number}"), &format!("1650555{number:04}"), "x"),
            text("wamid.same", "16505551234", "y"),
        ];
        let body = envelope(&[("messages", messages(&parts))]);
        // As Meta does: repeat until the answer is 200. An event without a 200 may be stored as well.
        eventually("the event is taken", SOON, || async {
            site.inbox
                .receive(Some(&signature::sign(&secret(), &body)), Bytes::copy_from_slice(&body))
                .await
        })
        .await;
        taken += 1;
    }
    site.db.site.reconnect().await;
    site.settle().await;
    assert!(site.count("webhook_events WHERE state = 'processed'").await >= taken);
    assert_eq!(site.count("whatsapp_messages").await, 61);
    assert_eq!(site.count("notifications").await, 61);
    assert_eq!(site.value("SELECT sum(unread_count) FROM conversations").await, "61");
}

#[tokio::test]
async fn an_event_without_an_envelope_is_kept_as_failed() {
    let site = Site::working().await;
    site.post(b"[]").await;
    site.settle().await;
    let kept = "SELECT state || encode(body, 'escape') FROM webhook_events";
    assert_eq!(site.value(kept).await, "failed[]");
}

#[tokio::test]
async fn a_missing_column_keeps_events_until_it_is_back() {
    let site = Site::working().await;
    site.db
        .on_site("ALTER TABLE whatsapp_messages RENAME COLUMN payload TO lost")
        .await;
    site.post_text("wamid.1").await;
    let tried = "webhook_events WHERE state = 'received' AND attempts > 0";
    eventually_equal("the event was tried", SOON, 1, || site.count(tried)).await;
    assert_eq!(site.count("leads").await, 0);
    site.db
        .on_site("ALTER TABLE whatsapp_messages RENAME COLUMN lost TO payload")
        .await;
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages WHERE wamid = 'wamid.1'").await, 1);
}

#[tokio::test]
async fn events_of_a_dead_process_are_processed_by_the_next() {
    let mut site = Site::at_rest().await;
    for number in 0..20 {
        site.post_text(&format!("wamid.{number}")).await;
    }
    // No notification wakes this worker: it finds the events by itself.
    site.work();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 20);
    eventually("the inbox is ready", SOON, || async {
        let ready = site.health.report().values().all(|status| status.ready);
        if ready { Ok(()) } else { Err(()) }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_updates_of_two_numbers_in_one_post_are_all_stored() {
    let site = Site::working().await;
    let mut changes = Vec::new();
    for number in 0..500 {
        let from = format!("1650555{:04}", number % 100);
        let mut change = messages(&[text(&format!("wamid.{number}"), &from, "x")]);
        if number % 2 == 1 {
            change["metadata"]["phone_number_id"] = json!("2");
        }
        changes.push(("messages", change));
        changes.push((
            "messages",
            statuses_of(&[status(&format!("wamid.out.{number}"), "sent", 1)]),
        ));
    }
    site.post(&envelope(&changes)).await;
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 500);
    assert_eq!(site.count("message_status_events").await, 500);
    assert_eq!(site.count("leads").await, 100);
    assert_eq!(site.count("whatsapp_accounts").await, 2);
    assert_eq!(
        site.value("SELECT state || ' ' || real_events || ' ' || protocol_events FROM webhook_events")
            .await,
        "processed 500 500"
    );
}
