//! A report about a message of ours, or about the account.

use serde_json::value::RawValue;

use super::{message, people};
use crate::provider::cloud::error::GraphError;
use crate::provider::cloud::members::{scalar, value};
use crate::provider::event::{Content, ReportedStatus, StatusReport};
use crate::provider::ids::{ContactIdentity, UserId, WaId, Wamid};

/// Errors in webhooks have no HTTP status. This one stands in for it: it never makes an error transient.
const NO_HTTP_STATUS: u16 = 400;

/// A status of a message.
pub(super) fn read(raw: &RawValue, known_people: &[ContactIdentity]) -> Result<StatusReport, &'static str> {
    let raw = value(raw).ok_or("a status is not readable JSON")?;
    let string = |key: &str| raw.get(key).and_then(scalar).filter(|text| !text.is_empty());
    let mut contact = ContactIdentity {
        wa_id: string("recipient_id").and_then(|id| WaId::parse(&id)),
        user_id: string("recipient_user_id").and_then(|id| UserId::parse(&id)),
        ..ContactIdentity::default()
    };
    people::complete(&mut contact, known_people);
    let status = string("status").ok_or("a status without a status")?;
    if status.len() > 64 || status.contains(char::is_control) {
        return Err("a status with an unusable status");
    }
    Ok(StatusReport {
        wamid: string("id")
            .and_then(|id| Wamid::parse(&id))
            .ok_or("a status without an id")?,
        status: ReportedStatus::parse(&status.to_ascii_lowercase()),
        at: string("timestamp").and_then(|at| message::timestamp(&at)),
        recipient: ["recipient_participant_id", "recipient_id", "recipient_user_id"]
            .into_iter()
            .find_map(string)
            .filter(|recipient| recipient.len() <= 512)
            .unwrap_or_default(),
        contact,
        opaque: string("biz_opaque_callback_data"),
        refusal: raw
            .pointer("/errors/0")
            // An object where a list was meant.
            .or_else(|| raw.get("errors"))
            .and_then(GraphError::from_value)
            .map(|error| error.refusal(NO_HTTP_STATUS, None)),
        raw,
    })
}

/// An error without a message.
pub(super) fn read_error(raw: &RawValue) -> Content {
    value(raw)
        .as_ref()
        .and_then(GraphError::from_value)
        .map_or(Content::Malformed("an error without a code"), |error| {
            Content::AccountError(Box::new(error.refusal(NO_HTTP_STATUS, None)))
        })
}
