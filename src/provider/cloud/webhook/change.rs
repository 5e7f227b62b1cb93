//! The notice that a user has another number or another business-scoped id: a message of the type `system`.
//!
//! Meta's members, where they are there: `system.user_id` is the new id and `system.previous_user_id` the old one;
//! `system.wa_id` (in older payloads `new_wa_id`) is the new number. `from` and `from_user_id` are the old ones, or the ones
//! that did not change.

use serde_json::Value;
use time::OffsetDateTime;

use crate::provider::cloud::members::scalar;
use crate::provider::event::IdentityChange;
use crate::provider::ids::{ContactIdentity, UserId, WaId};

/// Reads the message; `None` if it does not say that the user has other ids.
pub(super) fn read(raw: &Value, at: Option<OffsetDateTime>) -> Option<IdentityChange> {
    let string = |pointer: &str| raw.pointer(pointer).and_then(scalar);
    let number = |pointer: &str| string(pointer).and_then(|id| WaId::parse(&id));
    let user = |pointer: &str| string(pointer).and_then(|id| UserId::parse(&id));
    let number_changed = match string("/system/type")?.as_str() {
        "user_changed_number" => true,
        "user_changed_user_id" => false,
        _ => return None,
    };
    let (from, sender) = (number("/from"), user("/from_user_id"));
    let old_user = user("/system/previous_user_id");
    let new_user = user("/system/user_id").or_else(|| {
        let other = sender.clone().filter(|id| Some(id) != old_user.as_ref());
        other.filter(|_| old_user.is_some())
    });
    let new_number = number("/system/wa_id").or_else(|| number("/system/new_wa_id"));
    let old_number = number("/system/previous_wa_id").or_else(|| from.clone().filter(|_| number_changed));
    let replaced = |id: &WaId| Some(id) != new_number.as_ref();
    let mut change = IdentityChange {
        previous: ContactIdentity {
            wa_id: old_number.filter(replaced),
            user_id: old_user
                .or_else(|| sender.clone().filter(|_| new_user.is_some()))
                .filter(|id| Some(id) != new_user.as_ref()),
            ..ContactIdentity::default()
        },
        current: ContactIdentity {
            wa_id: new_number,
            user_id: new_user,
            ..ContactIdentity::default()
        },
        other: ContactIdentity::default(),
        at,
    };
    let named = |id: &WaId| change.previous.wa_id.as_ref() == Some(id) || change.current.wa_id.as_ref() == Some(id);
    let other_number = from.filter(|id| !named(id));
    let named =
        |id: &UserId| change.previous.user_id.as_ref() == Some(id) || change.current.user_id.as_ref() == Some(id);
    let other_user = sender.filter(|id| !named(id));
    (change.other.wa_id, change.other.user_id) = (other_number, other_user);
    (change.previous.is_known() || change.current.is_known()).then_some(change)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Old, new and other ids, as `number/user`.
    fn ids(raw: Value) -> Option<[String; 3]> {
        let show = |contact: &ContactIdentity| {
            let number = contact.wa_id.as_ref().map_or("-", |id| id.as_str());
            format!("{number}/{}", contact.user_id.as_ref().map_or("-", |id| id.as_str()))
        };
        let change = read(&raw, None)?;
        Some([&change.previous, &change.current, &change.other].map(show))
    }

    #[test]
    fn the_old_and_the_new_ids_are_told_apart_in_every_form_of_the_notice() {
        for (raw, expected) in [
            (
                json!({"from": "16505550001", "from_user_id": "US.1", "system": {"type": "user_changed_number",
                    "wa_id": "16505550002", "user_id": "US.2", "previous_user_id": "US.1"}}),
                ["16505550001/US.1", "16505550002/US.2", "-/-"],
            ),
            (
                json!({"from": "16505550001", "system": {"type": "user_changed_number", "new_wa_id": "16505550002"}}),
                ["16505550001/-", "16505550002/-", "-/-"],
            ),
            (
                json!({"from_user_id": "US.1", "system": {"type": "user_changed_number", "user_id": "US.2"}}),
                ["-/US.1", "-/US.2", "-/-"],
            ),
            (
                json!({"system": {"type": "user_changed_user_id", "user_id": "US.2", "previous_user_id": "US.1"}}),
                ["-/US.1", "-/US.2", "-/-"],
            ),
            (
                json!({"from": "16505550001", "from_user_id": "US.2", "system": {"type": "user_changed_user_id",
                    "previous_user_id": "US.1"}}),
                ["-/US.1", "-/US.2", "16505550001/-"],
            ),
            (
                json!({"from": "16505550002", "system": {"type": "user_changed_number", "wa_id": "16505550002",
                    "previous_user_id": "US.1", "user_id": "US.2"}}),
                ["-/US.1", "16505550002/US.2", "-/-"],
            ),
        ] {
            assert_eq!(ids(raw.clone()), Some(expected.map(str::to_owned)), "{raw}");
        }
        assert_eq!(
            ids(json!({"from": "1650555", "system": {"type": "customer_identity_changed"}})),
            None
        );
    }
}
