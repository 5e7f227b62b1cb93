//! A message of a webhook: from a user, to a user, or from the history.

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::change;
use super::people::{self, Thread};
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
pub(super) fn read_history(raw: &RawValue, with: &Thread, business: Option<&WaId>) -> Result<Content, &'static str> {
    let contact = with.contact();
    let mut message = read_any(raw, ["", ""], contact.as_slice())?;
    message.group = message.group.take().or_else(|| with.group().map(str::to_owned));
    let direction = direction(&message.raw, &contact.unwrap_or_default(), business);
    if message.group.is_some() {
        // In a group, the thread is not with the one who wrote.
        message.contact = ContactIdentity::default();
    }
    if direction == Direction::Inbound && !message.contact.is_known() {
        message.contact = named(&message.raw, ["from", "from_user_id"]);
    }
    if !message.contact.is_known() && message.group.is_none() {
        return Err("a message without a user");
    }
    Ok(of_history(message, direction))
}

/// A medium of the history: the message that a placeholder stands for. It may name no user.
pub(super) fn read_history_media(
    raw: &RawValue,
    people: &[ContactIdentity],
    business: Option<&WaId>,
) -> Result<Content, &'static str> {
    let from_us =
        value(raw).is_some_and(|raw| direction(&raw, &ContactIdentity::default(), business) == Direction::Outbound);
    let (members, direction) = if from_us {
        (["to", "to_user_id"], Direction::Outbound)
    } else {
        (["from", "from_user_id"], Direction::Inbound)
    };
    Ok(of_history(read_any(raw, members, people)?, direction))
}

fn of_history(message: Message, direction: Direction) -> Content {
    let status = message.raw.pointer("/history_context/status").and_then(scalar);
    Content::History {
        message: Box::new(message),
        direction,
        status: status.map(|status| history_status(&status.to_ascii_lowercase())),
    }
}

/// Who wrote a message of the history.
fn direction(raw: &Value, with: &ContactIdentity, business: Option<&WaId>) -> Direction {
    let string = |pointer: &str| raw.pointer(pointer).and_then(scalar);
    let from = named(raw, ["from", "from_user_id"]);
    match (&from.wa_id, business) {
        (Some(from), Some(business)) if from == business => Direction::Outbound,
        (Some(from), _) if Some(from) == with.wa_id.as_ref() => Direction::Inbound,
        _ if from.user_id.is_some() => Direction::Inbound,
        _ if string("/to").is_some() || string("/to_user_id").is_some() => Direction::Outbound,
        _ => Direction::Inbound,
    }
}

/// The ids in these two members.
fn named(raw: &Value, [number, user]: [&str; 2]) -> ContactIdentity {
    let string = |key: &str| raw.get(key).and_then(scalar).filter(|text| !text.is_empty());
    ContactIdentity {
        wa_id: string(number).and_then(|id| WaId::parse(&id)),
        user_id: string(user).and_then(|id| UserId::parse(&id)),
        ..ContactIdentity::default()
    }
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

/// Reads a message of a user, or of a group; the members have the user's ids.
fn read_as(raw: &RawValue, members: [&str; 2], known_people: &[ContactIdentity]) -> Result<Message, &'static str> {
    let message = read_any(raw, members, known_people)?;
    if !message.contact.is_known() && message.group.is_none() {
        return Err("a message without a user");
    }
    Ok(message)
}

/// The same for a message that may name no user.
fn read_any(raw: &RawValue, members: [&str; 2], known_people: &[ContactIdentity]) -> Result<Message, &'static str> {
    let raw = value(raw).ok_or("a message is not readable JSON")?;
    let string = |pointer: &str| raw.pointer(pointer).and_then(scalar).filter(|text| !text.is_empty());
    let wamid = string("/id")
        .and_then(|id| Wamid::parse(&id))
        .ok_or("a message without an id")?;
    let to_group = string("/recipient_type").is_some_and(|kind| kind.eq_ignore_ascii_case("group"));
    let recipient = string("/to").filter(|to| to_group || people::is_group(to));
    let group = ["/group_id", "/recipient_group_id"]
        .into_iter()
        .find_map(string)
        .or_else(|| recipient.clone())
        .filter(|id| id.len() <= 512 && !id.contains(char::is_control));
    let mut contact = named(&raw, members);
    if recipient.is_some() && members[0] == "to" {
        // The group's id, not a person's number.
        contact.wa_id = None;
    }
    if group.is_none() || contact.is_known() {
        people::complete(&mut contact, known_people);
    }
    let kind = string("/type")
        .filter(|kind| kind.len() <= 64 && !kind.contains(char::is_control))
        .unwrap_or_else(|| "unknown".to_owned());
    let at = string("/timestamp").and_then(|at| timestamp(&at));
    let change = Some(&raw)
        .filter(|_| kind == "system")
        .and_then(|raw| change::read(raw, at));
    if !contact.is_known() {
        // A system notice has no contacts, and if the user hides the number, no `from` either.
        let system = raw.get("system").unwrap_or(&Value::Null);
        contact = named(system, ["wa_id", "user_id"]);
        if !contact.is_known() {
            contact = change.as_ref().map_or(contact, |change| change.previous.clone());
        }
    }
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
        change,
        contact,
        text: text::of_message(&kind, &raw),
        group,
        kind,
        context,
        at,
        referral: raw.get("referral").filter(|referral| referral.is_object()).cloned(),
        raw,
    })
}

/// Meta's timestamps: Unix seconds, in a string or a number. Milliseconds are read as well: no message has been written in
/// the year 5000.
pub(super) fn timestamp(seconds: &str) -> Option<OffsetDateTime> {
    let seconds: i64 = seconds.trim().parse().ok()?;
    let seconds = if seconds.unsigned_abs() >= 100_000_000_000 {
        seconds / 1000
    } else {
        seconds
    };
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}
