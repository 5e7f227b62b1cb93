//! When each event of a webhook was received: what a message's `created_at` becomes.
//!
//! Webhooks are processed by several workers of several processes, so the moment of processing says nothing about the order
//! in which a person wrote. What counts is the moment at which the webhook was committed (`webhook_events.received_at`); the
//! messages of one person in one webhook follow each other by a microsecond, the resolution of the column.

use std::collections::HashMap;

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
    // By each id that a person has, as not every message names all of them.
    let mut places: HashMap<String, i64> = HashMap::new();
    events
        .into_iter()
        .map(|event| {
            let ids = speakers(&event);
            let place = ids
                .iter()
                .filter_map(|id| places.get(id))
                .max()
                .map_or(0, |place| place + 1);
            places.extend(ids.into_iter().map(|id| (id, place)));
            TimedEvent {
                event,
                received_at: received_at + Duration::microseconds(place),
            }
        })
        .collect()
}

/// Who a message is with.
fn speakers(event: &Event) -> Vec<String> {
    match &event.content {
        Content::Message(message) | Content::Echo(message) | Content::History { message, .. } => {
            let contact = &message.contact;
            let person = [
                contact.wa_id.as_ref().map(|id| id.as_str()),
                contact.user_id.as_ref().map(|id| id.as_str()),
                message.group.as_deref(),
            ];
            person.into_iter().flatten().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
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
    fn the_messages_of_one_person_follow_each_other() {
        let text = |id: &str, from: &str| json!({"from": from, "id": id, "timestamp": "1749416383", "type": "text", "text": {"body": "x"}});
        let value = json!({"messaging_product": "whatsapp", "metadata": {"phone_number_id": "1"}, "messages": [
            text("a", "16505551234"), text("b", "16505551234"), text("c", "16505550002"), text("d", "16505551234")]});
        assert_eq!(microseconds(&value), [0, 1, 0, 2]);
    }
}
