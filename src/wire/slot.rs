//! Arguments and answers of the replication commands: a slot's name, a cluster's identity.

use std::fmt;
use std::str::FromStr;

use crate::lsn::Lsn;

/// Longest name of a slot: NAMEDATALEN - 1.
const MAX_NAME: usize = 63;

/// A replication slot's name, which may be only lower-case letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// The name, unquoted.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not a valid name of a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a slot's name is 1 to 63 lower-case letters, digits and underscores, not {0:?}")]
pub struct SlotNameError(String);

impl FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SlotNameError(text.to_owned()))
        }
    }
}

/// The cluster and its timeline: the answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identifier in decimal digits; its standbys and restored backups have the same.
    pub system_identifier: String,
    /// The timeline: it grows with each promotion and each restore to a point in time.
    pub timeline: u32,
    /// The end of the WAL that is flushed to disk.
    pub position: Lsn,
    /// The database that the connection is to.
    pub database: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_postgres_takes() {
        for name in ["twinlog", "a", "_1", &"x".repeat(63)] {
            assert_eq!(
                name.parse::<SlotName>().map(|slot| slot.to_string()),
                Ok(name.to_owned())
            );
        }
        for name in ["", "Twinlog", "a-b", "a b", "é", "a\"", &"x".repeat(64)] {
            assert!(name.parse::<SlotName>().is_err(), "{name:?}");
        }
    }
}
