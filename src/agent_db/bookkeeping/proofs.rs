//! `twinlog.proofs`: what verifying has found of each table the last time.

use std::time::Duration;

use time::OffsetDateTime;

use super::control::{Control, failed};
use super::tables::TableRecord;
use super::verifications::VerifiedTable;
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// What the last verification has found of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The table.
    pub table: TableName,
    /// When the last verification began.
    pub verified_at: OffsetDateTime,
    /// When the last one began by which it was equal.
    pub proved_at: Option<OffsetDateTime>,
    /// Rows that the Agent DB lacked, and that were not repaired.
    pub missing: u64,
    /// Rows that only the Agent DB had.
    pub extra: u64,
    /// Rows that were not the same in both.
    pub different: u64,
}

impl Proof {
    /// Rows that differed and were not repaired.
    #[must_use]
    pub const fn differing(&self) -> u64 {
        self.missing + self.extra + self.different
    }

    /// Whether the whole table was read again since, so that what was found means nothing any more. A copy that had begun before
    /// may have read these rows before they differed.
    #[must_use]
    pub fn is_outdated(&self, record: &TableRecord) -> bool {
        let is_later = |at: Option<OffsetDateTime>| at.is_some_and(|at| at > self.verified_at);
        is_later(record.started_at) && is_later(record.finished_at)
    }

    /// Since when the table is proved to be equal: by the last verification, and not before its last copy ended. `None`: it is not
    /// proved.
    #[must_use]
    pub fn proves(&self, record: &TableRecord) -> Option<OffsetDateTime> {
        self.proved_at
            .filter(|proved| *proved >= self.verified_at && record.finished_at.is_some_and(|copied| *proved > copied))
    }
}

impl Control {
    /// Stores what a verification has found of a table. One that is older than what is stored, or could not verify the table,
    /// changes nothing.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn save_proof(&self, table: &TableName, found: &VerifiedTable, command: i64) -> Result<(), AgentError> {
        if found.held.is_some() {
            return Ok(());
        }
        let left = |rows: u64| {
            if found.repaired >= found.differing() {
                0
            } else {
                rows.cast_signed()
            }
        };
        let counts = [found.missing_rows, found.extra_rows, found.different_rows].map(left);
        // What is parked is not the same in both either.
        let proved = counts == [0; 3] && found.parked == 0;
        self.client
            .execute(
                "INSERT INTO twinlog.proofs AS p (slot, schema_name, table_name, verified_at, proved_at, missing, extra, different,
                     command_id)
                 VALUES ($1, $2, $3, $4::timestamptz, CASE WHEN $5 THEN $4::timestamptz END, $6, $7, $8, $9)
                 ON CONFLICT (slot, schema_name, table_name) DO UPDATE SET verified_at = EXCLUDED.verified_at,
                     proved_at = coalesce(EXCLUDED.proved_at, p.proved_at), missing = EXCLUDED.missing,
                     extra = EXCLUDED.extra, different = EXCLUDED.different, command_id = EXCLUDED.command_id
                 WHERE p.verified_at <= EXCLUDED.verified_at",
                &[
                    &self.slot,
                    &&*table.schema,
                    &&*table.name,
                    &found.began_at(),
                    &proved,
                    &counts[0],
                    &counts[1],
                    &counts[2],
                    &command,
                ],
            )
            .await
            .map_err(failed("store what a verification has found"))?;
        Ok(())
    }

    /// What verifying has found of each table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn proofs(&self) -> Result<Vec<Proof>, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, verified_at, proved_at, missing, extra, different FROM twinlog.proofs
                 WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(failed("read what verifying has found"))?;
        Ok(rows
            .iter()
            .map(|row| Proof {
                table: TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name")),
                verified_at: row.get("verified_at"),
                proved_at: row.get("proved_at"),
                missing: row.get::<_, i64>("missing").unsigned_abs(),
                extra: row.get::<_, i64>("extra").unsigned_abs(),
                different: row.get::<_, i64>("different").unsigned_abs(),
            })
            .collect())
    }

    /// Removes the rows of verifications that the daemon asked itself for and that are done, but for the last ones and those that
    /// have the keys of what `twinlog.proofs` says.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn forget_scheduled(&self) -> Result<(), AgentError> {
        self.client
            .execute(
                "DELETE FROM twinlog.commands c USING (
                     SELECT id FROM twinlog.commands WHERE slot = $1 AND kind = 'verify' AND arguments->>'by' = $2
                         AND state IN ('done', 'failed') ORDER BY id DESC OFFSET $3) old
                 WHERE c.id = old.id AND NOT EXISTS (
                     SELECT FROM twinlog.proofs p WHERE p.slot = $1 AND p.command_id = old.id)",
                &[&self.slot, &BY_SCHEDULE, &MOST_SCHEDULED],
            )
            .await
            .map_err(failed("remove old verifications"))?;
        Ok(())
    }

    /// How long ago the daemon asked itself for a verification; `None`: never.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn since_scheduled(&self) -> Result<Option<Duration>, AgentError> {
        let row = self
            .client
            .query_one(
                "SELECT extract(epoch FROM clock_timestamp() - max(requested_at))::float8 AS age FROM twinlog.commands
                 WHERE slot = $1 AND kind = 'verify' AND arguments->>'by' = $2",
                &[&self.slot, &BY_SCHEDULE],
            )
            .await
            .map_err(failed("look for the last verification"))?;
        let age: Option<f64> = row.get("age");
        Ok(age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()))
    }
}

/// Rows of verifications by the schedule that are kept: a month's, where there is one each day.
const MOST_SCHEDULED: i64 = 30;

/// Who asked, where the daemon asked itself.
pub const BY_SCHEDULE: &str = "sync.verify_every";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).unwrap()
    }

    #[test]
    fn only_a_whole_copy_that_began_later_makes_what_was_found_outdated() {
        let table = TableName::new("public", "t");
        let copied = |started: i64, finished: i64| TableRecord {
            started_at: Some(at(started)),
            finished_at: Some(at(finished)),
            ..TableRecord::new(table.clone())
        };
        let proof = Proof {
            table: table.clone(),
            verified_at: at(10),
            proved_at: Some(at(10)),
            missing: 1,
            extra: 0,
            different: 0,
        };
        assert!(proof.is_outdated(&copied(11, 12)));
        assert!(!proof.is_outdated(&copied(9, 12)), "it was found while the copy ran");
        assert!(!proof.is_outdated(&copied(11, 9)), "the copy has not ended");
        assert!(!proof.is_outdated(&TableRecord::new(table.clone())));
        assert_eq!(proof.proves(&copied(8, 9)), Some(at(10)));
        assert_eq!(proof.proves(&copied(8, 10)), None);
        let earlier = Proof {
            proved_at: Some(at(7)),
            ..proof
        };
        assert_eq!(
            earlier.proves(&copied(5, 6)),
            None,
            "the last verification did not prove it"
        );
    }
}
