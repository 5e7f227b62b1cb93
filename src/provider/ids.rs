//! The ids of the Cloud API. Each kind is a type of its own, so that they cannot be mixed up.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::copied;

/// Longest id that we accept: Meta's are below 200 characters, and the size of an index row is limited.
const MAX_ID: usize = 512;

/// Meta's id of one of our business numbers; not the number itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PhoneNumberId(String);

/// Meta's id of a message. Opaque: neither its prefix nor its content means anything to us.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Wamid(String);

/// A user's phone number as WhatsApp knows it: digits with the country code, no sign.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct WaId(String);

/// A business-scoped user id (BSUID), such as `US.13491208655302741918`: the identity of a user who may hide the number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserId(String);

/// Who a message is from or for, as far as Meta says. To find a person, [`UserId`] counts before [`WaId`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContactIdentity {
    /// The number; `None` for users who hide it.
    pub wa_id: Option<WaId>,
    /// The business-scoped id; `None` in older payloads, and if a client named a number.
    pub user_id: Option<UserId>,
    /// The name in the user's profile.
    pub name: Option<String>,
    /// The WhatsApp user name.
    pub username: Option<String>,
}

impl PhoneNumberId {
    /// Accepts 1 to 64 characters that are safe in a path: letters, digits, `_`, `-` (Meta's ids are digits; emulators
    /// use others too).
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        (!id.is_empty() && id.len() <= 64 && id.bytes().all(plain)).then(|| Self(id.to_owned()))
    }

    /// An id that a row holds, as it stands there: another program may have written it in a form that [`Self::parse`] does
    /// not take.
    pub(crate) fn stored(id: &str) -> Self {
        Self(id.to_owned())
    }

    /// The id as Meta writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// So that a map by number can be asked with a text, such as a part of a path.
impl Borrow<str> for PhoneNumberId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Wamid {
    /// Accepts any id that is not empty, has no control characters and fits an index row.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        (!id.is_empty() && id.len() <= MAX_ID && !id.contains(char::is_control)).then(|| Self(id.to_owned()))
    }

    /// An id that a row holds, as it stands there: another program may have written it in a form that [`Self::parse`] does
    /// not take.
    pub(crate) fn stored(id: &str) -> Self {
        Self(id.to_owned())
    }

    /// The id as Meta writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl WaId {
    /// Normalises a phone number in any usual format: `+49 (151) 12-34`, `0049…`, `49151…`.
    ///
    /// Nothing is guessed: a national number stays what it is, as no country can be known here.
    #[must_use]
    pub fn parse(phone: &str) -> Option<Self> {
        let phone = copied::plain(phone);
        let mut digits = String::with_capacity(phone.len().min(MAX_ID));
        let mut signed = false;
        for character in phone.chars() {
            match character {
                '0'..='9' => digits.push(character),
                '+' if digits.is_empty() && !signed => signed = true,
                '-' | '(' | ')' | '.' | '/' | ' ' => {}
                _ => return None,
            }
        }
        let digits = digits.strip_prefix("00").unwrap_or(&digits);
        // E.164 ends at 15 digits; WhatsApp's own ids of test numbers and of short codes go a little beyond, both ways.
        (4..=20).contains(&digits.len()).then(|| Self(digits.to_owned()))
    }

    /// The digits, with the country code and without a sign.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The other way in which the same line is written, where a country added or dropped a digit and WhatsApp kept the older
    /// form for some users: Brazil's ninth digit of mobile numbers, Mexico's 1 and Argentina's 9 after the country code.
    #[must_use]
    pub fn other_form(&self) -> Option<Self> {
        let other = match self.0.split_at_checked(2)? {
            ("55", rest) => match (rest.len(), rest.split_at_checked(2)?) {
                // A line's old number began with 6 to 9; 2 to 5 are fixed lines, which got no digit.
                (10, (area, line)) if line.starts_with(['6', '7', '8', '9']) => format!("55{area}9{line}"),
                (11, (area, line)) => match line.strip_prefix('9') {
                    Some(old) if old.starts_with(['6', '7', '8', '9']) => format!("55{area}{old}"),
                    _ => return None,
                },
                _ => return None,
            },
            ("52", rest) => with_or_without("52", '1', rest)?,
            ("54", rest) => with_or_without("54", '9', rest)?,
            _ => return None,
        };
        Some(Self(other))
    }
}

/// A number of ten digits after its country code gets the digit between the two; one that has it loses it.
fn with_or_without(country: &str, digit: char, rest: &str) -> Option<String> {
    match rest.len() {
        10 => Some(format!("{country}{digit}{rest}")),
        11 => rest.strip_prefix(digit).map(|rest| format!("{country}{rest}")),
        _ => None,
    }
}

/// Shows the length only: a phone number does not belong in a log.
impl fmt::Debug for WaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WaId({} digits)", self.0.len())
    }
}

impl UserId {
    /// Accepts `<CC>.<id>` and `<CC>.ENT.<id>`, where `<CC>` is two capital letters.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let (country, rest) = id.split_once('.')?;
        let own = rest.strip_prefix("ENT.").unwrap_or(rest);
        let valid = country.len() == 2
            && country.bytes().all(|byte| byte.is_ascii_uppercase())
            && (1..=128).contains(&own.len())
            && own.bytes().all(|byte| byte.is_ascii_alphanumeric());
        valid.then(|| Self(id.to_owned()))
    }

    /// The id as Meta writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ContactIdentity {
    /// The identity behind a recipient as a client writes it: a BSUID or a phone number.
    #[must_use]
    pub fn from_recipient(recipient: &str) -> Option<Self> {
        let recipient = &copied::plain(recipient);
        if let Some(user_id) = UserId::parse(recipient) {
            return Some(Self {
                user_id: Some(user_id),
                ..Self::default()
            });
        }
        WaId::parse(recipient).map(|wa_id| Self {
            wa_id: Some(wa_id),
            ..Self::default()
        })
    }

    /// Whether it has an id to find the person by.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.wa_id.is_some() || self.user_id.is_some()
    }
}

macro_rules! display_as_written {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let id = String::deserialize(deserializer)?;
                Self::parse(&id).ok_or_else(|| serde::de::Error::custom(concat!("not a ", stringify!($id))))
            }
        }
    )*};
}
// Not `WaId`: a phone number must not slip into a format string.
display_as_written!(PhoneNumberId, Wamid, UserId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phone_number_is_normalised_from_any_format() {
        for phone in [
            "+16505551234",
            "16505551234",
            "+1 (650) 555-1234",
            "001 650 555 1234",
            " +1.650.555.1234 ",
            "+1\u{a0}650\u{2011}555\u{2011}1234",
            "\u{202a}+1 650-555-1234\u{202c}",
            "\u{200e}+1\u{200b}650\u{2060}5551234\u{feff}",
            "(+1) 650 555 1234",
            "１６５０５５５１２３４",
        ] {
            assert_eq!(
                WaId::parse(phone).as_ref().map(WaId::as_str),
                Some("16505551234"),
                "{phone}"
            );
        }
        for phone in [
            "",
            "+",
            "abc",
            "1650+5551234",
            "US.123",
            "123",
            "123456789012345678901",
            "++16505551234",
            "+1650é5551234",
        ] {
            assert_eq!(WaId::parse(phone), None, "{phone}");
        }
    }

    #[test]
    fn a_line_that_is_written_in_two_ways_has_another_form() {
        let other = |phone: &str| WaId::parse(phone).unwrap().other_form();
        for (one, two) in [
            ("551187654321", "5511987654321"),
            ("525512345678", "5215512345678"),
            ("541112345678", "5491112345678"),
        ] {
            assert_eq!(other(one), WaId::parse(two), "{one}");
            assert_eq!(other(two), WaId::parse(one), "{two}");
        }
        for only in [
            "551132654321",
            "55119326543210",
            "16505551234",
            "5255123456",
            "5491",
            "52155123456789",
        ] {
            assert_eq!(other(only), None, "{only}");
        }
    }

    #[test]
    fn a_business_scoped_user_id_has_a_country_and_an_id() {
        for id in ["US.13491208655302741918", "DE.ENT.abc123", "BR.a"] {
            assert_eq!(UserId::parse(id).as_ref().map(UserId::as_str), Some(id));
        }
        for id in ["", "US", "US.", "us.1", "USA.1", "US.ENT.", "US.a b", "US.é"] {
            assert_eq!(UserId::parse(id), None, "{id}");
        }
        assert_eq!(UserId::parse(&format!("US.{}", "1".repeat(129))), None);
    }

    #[test]
    fn a_phone_number_is_not_printed() {
        let shown = format!("{:?}", ContactIdentity::from_recipient("+16505551234"));
        assert!(!shown.contains("6505551234"), "{shown}");
    }

    #[test]
    fn an_emulators_message_id_is_taken_too() {
        assert!(Wamid::parse("mock_incoming_1").is_some());
        assert!(Wamid::parse("").is_none());
        assert!(Wamid::parse("wamid.\0").is_none());
    }
}
