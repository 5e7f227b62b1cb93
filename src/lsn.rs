//! Positions in a Postgres write-ahead log.
//!
//! An [`Lsn`] is a byte offset into the WAL of one cluster on one timeline; comparing positions of two clusters means
//! nothing. Only *commit* positions are ordered across transactions (row positions of concurrent transactions
//! interleave), which is why everything that resumes, skips or acknowledges uses a commit's `end_lsn`.
//!
//! Source: <https://www.postgresql.org/docs/current/datatype-pg-lsn.html>

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A WAL position: a byte offset, printed as Postgres prints it (`16/B374D848`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which Postgres never assigns to a record: "no position".
    pub const INVALID: Self = Self(0);

    /// Whether this is a real position.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Bytes of WAL from `earlier` to here, 0 where `earlier` is ahead.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a WAL position of the form `X/X`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position of the form X/X: {0:?}")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let part = |digits: &str| {
            // Postgres takes one to eight hexadecimal digits a side; from_str_radix alone would take a sign too.
            if (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                u64::from_str_radix(digits, 16).map_err(|_| invalid())
            } else {
                Err(invalid())
            }
        };
        Ok(Self(part(high)? << 32 | part(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_postgres_does() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x16_0000_0048).to_string(), "16/48");
        assert_eq!(Lsn::INVALID.to_string(), "0/0");
    }

    #[test]
    fn parses_what_it_prints_and_refuses_the_rest() {
        for position in [0, 1, u64::MAX, 0x16_B374_D848] {
            assert_eq!(Lsn(position).to_string().parse(), Ok(Lsn(position)));
        }
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "+1/0",
            "1/-2",
            "123456789/0",
            "0/0/0",
            "G/0",
            " 0/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_distance_never_wraps() {
        assert_eq!(Lsn(10).bytes_since(Lsn(4)), 6);
        assert_eq!(Lsn(4).bytes_since(Lsn(10)), 0);
    }
}
