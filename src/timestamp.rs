//! A moment as Postgres's protocols carry it: microseconds since Postgres's own epoch.
//!
//! Source: "TimestampTz" in <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use time::OffsetDateTime;

/// 2000-01-01 00:00 UTC, the epoch of Postgres, in seconds since the Unix epoch: 30 years, 7 of them leap years
/// ((30 × 365 + 7) × 86,400).
const EPOCH_UNIX_SECONDS: i64 = 946_684_800;
/// Microseconds in a second.
const MICROS: i128 = 1_000_000;

/// Microseconds since 2000-01-01 00:00 UTC by the server's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// Now, by this machine's clock.
    #[must_use]
    pub fn now() -> Self {
        Self::from_datetime(OffsetDateTime::now_utc())
    }

    /// A moment, cut to whole microseconds.
    #[must_use]
    pub fn from_datetime(moment: OffsetDateTime) -> Self {
        let unix_micros = moment.unix_timestamp_nanos().div_euclid(1_000);
        let micros = unix_micros - i128::from(EPOCH_UNIX_SECONDS) * MICROS;
        // `time` ends in the year 9999: 253,402,300,800 s × 10⁶ fits an i64 with room for 30 such spans.
        Self(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The moment; `None` beyond the years -9999 to 9999, and for Postgres's `infinity`.
    #[must_use]
    pub fn to_datetime(self) -> Option<OffsetDateTime> {
        let unix_micros = i128::from(self.0) + i128::from(EPOCH_UNIX_SECONDS) * MICROS;
        OffsetDateTime::from_unix_timestamp_nanos(unix_micros * 1_000).ok()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_epoch_is_postgres_own() {
        assert_eq!(PgTimestamp(0).to_datetime(), Some(datetime!(2000-01-01 0:00 UTC)));
        assert_eq!(
            PgTimestamp(-1).to_datetime(),
            Some(datetime!(1999-12-31 23:59:59.999_999 UTC))
        );
        assert_eq!(
            PgTimestamp::from_datetime(datetime!(2026-11-21 6:04:00.000_001 UTC)),
            PgTimestamp(848_556_240_000_001)
        );
    }

    #[test]
    fn what_no_calendar_holds_is_none() {
        assert_eq!(PgTimestamp(i64::MAX).to_datetime(), None);
        assert_eq!(PgTimestamp(i64::MIN).to_datetime(), None);
    }
}
