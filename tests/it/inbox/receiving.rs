//! Taking a webhook: kept before it is answered, or refused without a trace.

use super::*;

#[tokio::test]
async fn a_webhook_is_kept_byte_for_byte_before_it_is_answered() {
    let site = Site::at_rest().await;
    let body = br#"{"entry" : [ ],"x":"caf\u00e9 \/"}"#;
    let event = site.post(body).await;
    let kept: (Vec<u8>, String) = sqlx::query_as("SELECT body, state FROM webhook_events WHERE id = $1")
        .bind(event.0)
        .fetch_one(&site.pool)
        .await
        .unwrap();
    assert_eq!((kept.0.as_slice(), kept.1.as_str()), (&body[..], "received"));
}

#[tokio::test]
async fn a_forged_webhook_leaves_nothing() {
    let site = Site::at_rest().await;
    let body = envelope(&[("messages", messages(&[text("w", "16505551234", "x")]))]);
    let other = signature::sign(&SecretString::from("other"), &body);
    for header in [None, Some("sha256=00"), Some(other.as_str())] {
        assert!(matches!(
            site.inbox.receive(header, &body).await,
            Err(ReceiveError::Forged(_))
        ));
    }
    assert_eq!(site.count("webhook_events").await, 0);
}

#[tokio::test]
async fn without_a_database_nothing_is_taken() {
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(200))
        .connect_lazy("postgres://nobody@127.0.0.1:1/none")
        .unwrap();
    let inbox = Inbox::new(pool, vec![secret()]);
    let refused = inbox.receive(Some(&signature::sign(&secret(), b"{}")), b"{}").await;
    assert!(
        matches!(refused, Err(ReceiveError::NotStored(_) | ReceiveError::TimedOut)),
        "{refused:?}"
    );
}
