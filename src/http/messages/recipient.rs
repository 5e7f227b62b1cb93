//! Who a message is for, as a caller of the plain API writes it.

use super::request_error::RequestError;
use crate::provider::{ContactIdentity, UserId, WaId};

/// The recipient of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Phone(WaId),
    User(UserId),
    /// The provider's id of a group.
    Group(String),
}

/// The field `recipient_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecipientType {
    Individual,
    Group,
}

impl Recipient {
    /// Reads `to` strictly, so that Meta cannot read it as another number: without a `+`, Meta puts the business's country
    /// code in front.
    pub(super) fn parse(to: &str, kind: RecipientType) -> Result<Self, RequestError> {
        let to = to.trim();
        if kind == RecipientType::Group {
            return if to.is_empty() || to.len() > 255 || to.contains(char::is_control) {
                Err(RequestError::field("to", "must be the group's id"))
            } else {
                Ok(Recipient::Group(to.to_owned()))
            };
        }
        let to = to.strip_prefix("tel:").unwrap_or(to);
        // Dialled within the country only.
        let to = if to.contains(['+', '＋', '\u{fe62}']) || to.starts_with("00") {
            to.replacen("(0)", "", 1)
        } else {
            to.to_owned()
        };
        let contact = ContactIdentity::from_recipient(&to).unwrap_or_default();
        if let Some(user) = contact.user_id {
            return Ok(Recipient::User(user));
        }
        // No country code begins with 0: this is a national number, and its country is not known.
        contact
            .wa_id
            .filter(|number| !number.as_str().starts_with('0'))
            .map(Recipient::Phone)
            .ok_or_else(|| {
                RequestError::field(
                    "to",
                    "must be a phone number with its country code (+49…) or a business-scoped user id",
                )
            })
    }

    /// A lead's number, else its group, else its user id.
    pub(super) fn of_lead(phone: Option<&str>, user_id: Option<&str>) -> Option<Self> {
        let group = phone
            .and_then(|phone| phone.strip_prefix("group:"))
            .map(|group| Self::Group(group.to_owned()));
        phone
            .and_then(WaId::parse)
            .map(Self::Phone)
            .or(group)
            .or_else(|| user_id.and_then(UserId::parse).map(Self::User))
    }
}
