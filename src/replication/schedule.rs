//! Verifying by a schedule: when the daemon asks itself for it, and what its metrics say about what was found.

use std::time::Duration;

use time::OffsetDateTime;

use crate::agent_db::{AgentError, BY_SCHEDULE, Command, CommandKind, Control, TableRecords, Verify, VerifyArguments};
use crate::metrics;

use super::settings::VerificationSettings;

/// How often it is looked whether a verification is due, and what the metrics must show.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl VerificationSettings {
    /// How often to look.
    pub(super) fn look_every(&self) -> Duration {
        self.every.map_or(LOOK_EVERY, |every| every.min(LOOK_EVERY))
    }

    /// Asks for a verification of all tables if one is due. Returns whether it did.
    pub(super) async fn ask(&self, control: &Control, records: &TableRecords) -> Result<bool, AgentError> {
        let Some(every) = self.every else { return Ok(false) };
        if !is_due(control, records, every).await? {
            return Ok(false);
        }
        let command = CommandKind::verify(VerifyArguments {
            all: true,
            rate: Some(self.rows_per_second),
            by: Some(BY_SCHEDULE.to_owned()),
            ..VerifyArguments::default()
        });
        control.request(&command).await?;
        Ok(true)
    }
}

/// Whether the last verification by the schedule, or the end of the first copies, is so long ago.
async fn is_due(control: &Control, records: &TableRecords, every: Duration) -> Result<bool, AgentError> {
    if let Some(since) = control.since_scheduled().await? {
        return Ok(since >= every);
    }
    let is_copied = records.values().all(|record| !record.state.is_first_copy());
    let first = records.values().filter_map(|record| record.finished_at).min();
    Ok(is_copied && first.is_some_and(|first| OffsetDateTime::now_utc() - first >= every))
}

/// Sets the metrics as the last verifications say.
pub(super) async fn show(control: &Control, records: &TableRecords) -> Result<(), AgentError> {
    let mut lacking = 0;
    for proof in control.proofs().await? {
        let Some(record) = records.get(&proof.table) else {
            continue;
        };
        if let Some(proved) = proof.proved_at {
            metrics::set_verified_through(&proof.table, proved.unix_timestamp());
        }
        let is_outdated = proof.is_outdated(record);
        let differing = if is_outdated { 0 } else { proof.differing() };
        metrics::set_verified_differences(&proof.table, differing);
        if !is_outdated {
            lacking += proof.missing + proof.different;
        }
    }
    metrics::set_persistence_gap("rows_missing", lacking);
    Ok(())
}

/// Whether the daemon has asked itself.
pub(super) fn is_scheduled(verify: &Verify) -> bool {
    verify.arguments.by.as_deref() == Some(BY_SCHEDULE)
}

/// Whether a person has asked for a verification.
pub(super) fn is_of_person(command: &Command) -> bool {
    matches!(&command.kind, Ok(CommandKind::Verify(verify)) if !is_scheduled(verify))
}

/// Whether the daemon has asked itself for one.
pub(super) fn is_of_schedule(command: &Command) -> bool {
    matches!(&command.kind, Ok(CommandKind::Verify(verify)) if is_scheduled(verify))
}
