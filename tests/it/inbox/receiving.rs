//! Receiving a webhook: it is stored before the answer, or refused and not stored.

use super::*;

#[tokio::test]
async fn a_webhook_is_kept_byte_for_byte_before_it_is_answered() {
    let site = Site::at_rest().await;
    let body = br#"{"entry" : [ ],"x":"caf\u00e9 \/"}"#;
    let event = site.post(body).await;
    let kept = format!(
        "SELECT state || encode(body, 'escape') FROM webhook_events WHERE id = '{}'",
        event.0
    );
    // The format `escape` doubles a backslash.
    let expected = format!("received{}", String::from_utf8_lossy(body).replace('\\', "\\\\"));
    assert_eq!(site.text(&kept).await, Some(expected));
}

#[tokio::test]
async fn a_forged_webhook_leaves_nothing() {
    let site = Site::at_rest().await;
    let body = envelope(&[("messages", messages(&[text("w", "16505551234", "x")]))]);
    let other = signature::sign(&SecretString::from("other"), &body);
    for header in [None, Some("sha256=00"), Some(other.as_str())] {
        assert!(matches!(
            site.inbox.receive(header, Bytes::copy_from_slice(&body)).await,
            Err(ReceiveError::Forged(_))
        ));
    }
    assert_eq!(site.count("webhook_events").await, 0);
}

#[tokio::test]
async fn without_a_database_nothing_is_taken() {
    let pool = Pool::connect(&config::Site {
        url: "postgres://me@127.0.0.1:1/none".parse().unwrap(),
        max_connections: 1,
    });
    let inbox = Inbox::new(pool, settings());
    let body = Bytes::from_static(b"{}");
    let refused = inbox.receive(Some(&signature::sign(&secret(), b"{}")), body).await;
    assert!(matches!(refused, Err(ReceiveError::NotStored(_))), "{refused:?}");
}
