//! When each event of a webhook was received: what a message's `created_at` becomes.
//!
//! Webhooks are processed by several workers of several processes, so the moment of processing says nothing about the order
//! in which a person wrote. What counts is the moment at which the webhook was committed (`webhook_events.received_at`); the
//! messages of one webhook follow each other by a microsecond, the resolution of the column. Whoever they are from: one
//! message may name a person by the number, and the next one by the user id. A webhook that comes after this one's 200 is
//! later all the same: a message takes longer to be stored than a microsecond.

use time::{Duration, OffsetDateTime};

use crate::provider::event::{Content, Event};

/// An event, and when it was received.
#[derive(Debug)]
pub(super) struct TimedEvent {
    pub(super) event: Event,
    pub(super) received_at: OffsetDateTime,
}

/// Gives the events of a webhook their times.
pub(super) fn timed(received_at: OffsetDateTime, events: Vec<Event>) -> Vec<TimedEvent> {
    let mut messages = 0;
    events
        .into_iter()
        .map(|event| {
            let received_at = received_at + Duration::microseconds(messages);
            messages += i64::from(is_message(&event));
            TimedEvent { event, received_at }
        })
        .collect()
}

fn is_message(event: &Event) -> bool {
    matches!(
        event.content,
        Content::Message(_) | Content::Echo(_) | Content::History { .. }
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::provider::cloud::webhook;

    fn microseconds(value: &Value) -> Vec<i64> {
        let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "WABA", "changes": [
            {"field": "messages", "value": value}]}]});
        let events = webhook::parse(body.to_string().as_bytes()).unwrap();
        let start = OffsetDateTime::UNIX_EPOCH;
        (timed(start, events).iter())
            .map(|event| i64::try_from((event.received_at - start).whole_microseconds()).unwrap())
            .collect()
    }

    #[test]
    fn messages_follow_each_other_whoever_they_are_from() {
        let text = |id: &str, from: &str| json!({"from": from, "id": id, "timestamp": "1749416383", "type": "text", "text": {"body": "x"}});
        let value = json!({"messaging_product": "whatsapp", "metadata": {"phone_number_id": "1"}, "messages": [
            text("a", "16505551234"), text("b", "16505551234"), text("c", "16505550002"), text("d", "16505551234")]});
        assert_eq!(microseconds(&value), [0, 1, 2, 3]);
    }
}
