//! A message of a webhook: from a user, to a user, or from the history.

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::people;
use crate::provider::cloud::members::{scalar, value};
use crate::provider::cloud::text;
use crate::provider::event::{Content, Direction, Message, ReportedStatus};
use crate::provider::ids::{ContactIdentity, UserId, WaId, Wamid};

/// A message from a user.
pub(super) fn read_inbound(raw: &RawValue, people: &[ContactIdentity]) -> Result<Message, &'static str> {
    read_as(raw, ["from", "from_user_id"], people)
}

/// A message of ours to a user.
pub(super) fn read_outbound(raw: &RawValue, people: &[ContactIdentity]) -> Result<Message, &'static str> {
    read_as(raw, ["to", "to_user_id"], people)
}

/// A message of a history thread, as [`Content::History`]: ours if it comes from the business's number or names a recipient.
pub(super) fn read_history(
    raw: &RawValue,
    thread: &ContactIdentity,
    business: Option<&WaId>,
) -> Result<Content, &'static str> {
    let mut message = read_as(raw, ["", ""], std::slice::from_ref(thread))?;
    let string = |pointer: &str| message.raw.pointer(pointer).and_then(scalar);
    let from = string("/from").and_then(|from| WaId::parse(&from));
    let direction = match (&from, business) {
        (Some(from), Some(business)) if from == business => Direction::Outbound,
        (Some(from), _) if Some(from) == thread.wa_id.as_ref() => Direction::Inbound,
        _ if string("/to").is_some() || string("/to_user_id").is_some() => Direction::Outbound,
        _ => Direction::Inbound,
    };
    let status = string("/history_context/status").map(|status| history_status(&status.to_ascii_lowercase()));
    if !message.contact.is_known() && direction == Direction::Inbound {
        message.contact.wa_id = from;
    }
    Ok(Content::History {
        message: Box::new(message),
        direction,
        status,
    })
}

/// A status in the history. `pending` means that the phone had not finished sending; as Meta has the message, it counts as
/// accepted.
fn history_status(text: &str) -> ReportedStatus {
    match text {
        "error" => ReportedStatus::Failed,
        "pending" => ReportedStatus::Accepted,
        other => ReportedStatus::parse(other),
    }
}

/// Reads a message; the members `number` and `user` have the user's ids.
fn read_as(
    raw: &RawValue,
    [number, user]: [&str; 2],
    known_people: &[ContactIdentity],
) -> Result<Message, &'static str> {
    let raw = value(raw).ok_or("a message is not readable JSON")?;
    let string = |pointer: &str| raw.pointer(pointer).and_then(scalar).filter(|text| !text.is_empty());
    let wamid = string("/id")
        .and_then(|id| Wamid::parse(&id))
        .ok_or("a message without an id")?;
    let mut contact = ContactIdentity {
        wa_id: string(&format!("/{number}")).and_then(|id| WaId::parse(&id)),
        user_id: string(&format!("/{user}")).and_then(|id| UserId::parse(&id)),
        ..ContactIdentity::default()
    };
    people::complete(&mut contact, known_people);
    if !contact.is_known() {
        // A system notice has no contacts, and if the user hides the number, no `from` either.
        contact.wa_id = string("/system/wa_id").and_then(|id| WaId::parse(&id));
        contact.user_id = string("/system/user_id").and_then(|id| UserId::parse(&id));
    }
    if !contact.is_known() {
        return Err("a message without a user");
    }
    let kind = string("/type")
        .filter(|kind| kind.len() <= 64 && !kind.contains(char::is_control))
        .unwrap_or_else(|| "unknown".to_owned());
    let context = [
        "/context/id",
        "/context/message_id",
        "/reaction/message_id",
        "/edit/original_message_id",
        "/revoke/original_message_id",
    ]
    .into_iter()
    .find_map(string)
    .and_then(|id| Wamid::parse(&id));
    Ok(Message {
        wamid,
        new_number: new_number(&kind, &raw, &contact),
        contact,
        text: text::of_message(&kind, &raw),
        group: string("/group_id").filter(|id| id.len() <= 512 && !id.contains(char::is_control)),
        kind,
        context,
        at: string("/timestamp").and_then(|at| timestamp(&at)),
        referral: raw.get("referral").filter(|referral| referral.is_object()).cloned(),
        raw,
    })
}

/// The number that a system notice says the user has now.
fn new_number(kind: &str, raw: &Value, contact: &ContactIdentity) -> Option<WaId> {
    let system = raw.get("system").filter(|_| kind == "system")?;
    if system.get("type").and_then(Value::as_str) != Some("user_changed_number") {
        return None;
    }
    let number = system.get("wa_id").or_else(|| system.get("new_wa_id"))?.as_str()?;
    WaId::parse(number).filter(|number| Some(number) != contact.wa_id.as_ref())
}

/// Meta's timestamps: Unix seconds, in a string or a number.
pub(super) fn timestamp(seconds: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds.parse().ok()?).ok()
}
