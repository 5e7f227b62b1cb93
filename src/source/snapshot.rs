//! What a Postgres snapshot sees, asked with the 32-bit transaction ids of the replication stream.
//!
//! Source: <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT>.

use std::str::FromStr;

use crate::change::Xid;

/// A snapshot as `pg_current_snapshot()` prints it: `xmin:xmax:xip_list`, with 64-bit ids of top-level transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// In progress at the time, sorted.
    in_progress: Vec<u64>,
}

/// The text is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of the form xmin:xmax:xip,…: {0:?}")]
pub struct ParseSnapshotError(String);

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseSnapshotError(text.to_owned());
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next()?.parse().ok();
        let (xmin, xmax) = (number().ok_or_else(invalid)?, number().ok_or_else(invalid)?);
        let list = parts.next().ok_or_else(invalid)?;
        let mut in_progress = list
            .split(',')
            .filter(|id| !id.is_empty())
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()
            .map_err(|_| invalid())?;
        in_progress.sort_unstable();
        Ok(Self {
            xmin,
            xmax,
            in_progress,
        })
    }
}

impl Snapshot {
    /// Whether a *committed* transaction's effects are seen: it had ended when the snapshot was taken.
    #[must_use]
    pub fn sees(&self, xid: Xid) -> bool {
        let id = self.widen(xid);
        id < self.xmin || (id < self.xmax && self.in_progress.binary_search(&id).is_err())
    }

    /// The 64-bit id for the stream's 32 bits: the one nearest to the snapshot, since Postgres stops before the ids of
    /// running transactions could be 2^31 apart.
    fn widen(&self, Xid(id): Xid) -> u64 {
        let distance = id.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_ended() {
        let snapshot: Snapshot = "10:20:10,14,15".parse().unwrap();
        let seen = |id| snapshot.sees(Xid(id));
        assert!(seen(9) && seen(11) && seen(19));
        assert!(!seen(10) && !seen(14) && !seen(15) && !seen(20) && !seen(21));
        let quiet: Snapshot = "7:7:".parse().unwrap();
        assert!(quiet.sees(Xid(6)) && !quiet.sees(Xid(7)));
    }

    #[test]
    fn sees_across_the_wrap_of_32_bits() {
        let wrap = 1_u64 << 32;
        let snapshot: Snapshot = format!("{}:{}:{}", wrap - 2, wrap + 3, wrap - 2).parse().unwrap();
        assert!(snapshot.sees(Xid(u32::MAX - 5)), "long ended, before the wrap");
        assert!(!snapshot.sees(Xid(u32::MAX - 1)), "in progress, before the wrap");
        assert!(
            snapshot.sees(Xid(u32::MAX)) && snapshot.sees(Xid(2)),
            "ended on both sides of it"
        );
        assert!(!snapshot.sees(Xid(3)), "not yet begun");
    }

    #[test]
    fn refuses_other_texts() {
        for text in ["", "1", "1:2", "a:2:", "1:b:", "1:2:x", "1:2:3,,x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
        }
    }
}
