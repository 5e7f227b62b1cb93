//! Our row's id in `biz_opaque_callback_data`, which Meta returns in the statuses of a message. A status so finds its row
//! even if the answer to the send was lost.
//!
//! Every app that is subscribed to the business account sees it, so it is only an id. Its 39 bytes are far below both
//! limits that Meta has published (512 characters, earlier 256 bytes).

use std::fmt;

use uuid::Uuid;

/// Marks our ids: other apps on the same account may set their own values.
const PREFIX: &str = "tl:";

/// A message row's id, sent to Meta as `tl:` and the uuid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpaqueId(pub Uuid);

impl OpaqueId {
    /// Reads a returned value; `None` if it is not one of ours.
    #[must_use]
    pub fn parse(echo: &str) -> Option<Self> {
        let id = echo.strip_prefix(PREFIX)?;
        // The hyphenated form only: what we write, and one spelling per id.
        if id.len() != uuid::fmt::Hyphenated::LENGTH {
            return None;
        }
        Uuid::try_parse(id).ok().map(Self)
    }
}

impl fmt::Display for OpaqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0.hyphenated())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_the_round_trip_and_strangers_are_no_ids() {
        let id = OpaqueId(Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0));
        assert_eq!(OpaqueId::parse(&id.to_string()), Some(id));
        assert!(id.to_string().len() <= 256);
        for stranger in [
            "",
            "tl:",
            "tl:1234",
            "order-17",
            "tl:123456789abcdef0123456789abcdef0",
            "{tl:}",
        ] {
            assert_eq!(OpaqueId::parse(stranger), None, "{stranger}");
        }
    }
}
