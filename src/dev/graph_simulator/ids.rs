//! Ids in the shapes that Meta gives them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;

/// A message's id: the recipient's digits and 16 random bytes, in base64.
pub(super) fn wamid(to: &str) -> String {
    let digits: String = to.chars().filter(char::is_ascii_digit).collect();
    let mut bytes = vec![0x1d, 0x05, 0x19, u8::try_from(digits.len()).unwrap_or(u8::MAX)];
    bytes.extend(digits.bytes());
    bytes.extend([0x15, 0x02, 0x00, 0x11, 0x18]);
    bytes.extend(uuid::Uuid::new_v4().as_bytes());
    format!("wamid.{}", STANDARD.encode(bytes))
}

/// A medium's id: 16 digits.
pub(super) fn media_id() -> String {
    rand::rng()
        .random_range(1_000_000_000_000_000_u64..10_000_000_000_000_000)
        .to_string()
}

/// The id by which Meta's support finds a failed call.
pub(super) fn fbtrace_id() -> String {
    format!("A{}", &uuid::Uuid::new_v4().simple().to_string()[..20])
}
