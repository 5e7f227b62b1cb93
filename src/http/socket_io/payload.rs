//! What an event is called in Socket.IO, and what it says.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::realtime::Frame;
use crate::site_db::events::EventKind;

/// Whether an event is about one conversation, so that it comes to those alone who have joined it.
pub(super) const fn is_of_room(kind: EventKind) -> bool {
    matches!(kind, EventKind::MessageCreated | EventKind::MessageStatus)
}

pub(super) fn of(frame: &Frame) -> Option<(&'static str, Value)> {
    let told: Value = serde_json::from_str(frame.data()).ok()?;
    let mut data = match frame.kind {
        EventKind::MessageStatus => {
            let message = &told["message"];
            json!({
                "message_id": message["id"],
                "wamid": message["wamid"],
                "client_id": message["client_id"],
                "conversation_id": message["conversation_id"],
                "status": told["status"],
                "at": frame.written_at.format(&Rfc3339).ok(),
            })
        }
        EventKind::Other => return None,
        _ => told,
    };
    data["position"] = json!(frame.place.to_string());
    let event = match frame.kind {
        EventKind::MessageCreated => "new_message",
        EventKind::MessageStatus => "message_status",
        EventKind::ConversationUpdated => "conversation_updated",
        EventKind::LeadUpdated => "lead_updated",
        EventKind::NotificationCreated => "notification_created",
        EventKind::Other => return None,
    };
    Some((event, data))
}
