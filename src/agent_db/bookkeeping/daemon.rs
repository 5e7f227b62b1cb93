//! `twinlog.daemon`: the daemon's last word about itself.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;

/// The daemon's word about itself, for `twinlog status`.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonReport {
    /// This process.
    pub instance: Uuid,
    /// Its host.
    pub hostname: String,
    /// Its process id.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: OffsetDateTime,
    /// connecting, copying, streaming, held, gap, stopped.
    pub state: String,
    /// Why, where that needs a word.
    pub detail: Option<String>,
    /// Figures.
    pub report: serde_json::Value,
}

/// The daemon's last word, and how old it is.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDaemon {
    /// What it said.
    pub report: DaemonReport,
    /// How long ago, by the Agent DB's clock.
    pub age: Duration,
}

impl Control {
    /// Writes the daemon's word about itself.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn report(&self, report: &DaemonReport) -> Result<(), AgentError> {
        self.client
            .execute(
                "INSERT INTO twinlog.daemon
                     (slot, instance, hostname, pid, version, started_at, reported_at, state, detail, report)
                 VALUES ($1, $2, $3, $4, $5, $6, now(), $7, $8, $9)
                 ON CONFLICT (slot) DO UPDATE SET instance = EXCLUDED.instance, hostname = EXCLUDED.hostname,
                     pid = EXCLUDED.pid, version = EXCLUDED.version, started_at = EXCLUDED.started_at,
                     reported_at = EXCLUDED.reported_at, state = EXCLUDED.state, detail = EXCLUDED.detail,
                     report = EXCLUDED.report",
                &[
                    &self.slot,
                    &report.instance,
                    &report.hostname,
                    &report.pid,
                    &report.version,
                    &report.started_at,
                    &report.state,
                    &report.detail,
                    &report.report,
                ],
            )
            .await
            .map_err(failed("report the daemon's state"))?;
        Ok(())
    }

    /// The daemon's last word; `None` where none ever ran.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn daemon(&self) -> Result<Option<StoredDaemon>, AgentError> {
        let row = self
            .client
            .query_opt(
                "SELECT instance, hostname, pid, version, started_at, state, detail, report,
                     extract(epoch FROM clock_timestamp() - reported_at)::float8 AS age_seconds
                 FROM twinlog.daemon WHERE slot = $1",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the daemon's state"))?;
        Ok(row.map(|row| StoredDaemon {
            report: DaemonReport {
                instance: row.get("instance"),
                hostname: row.get("hostname"),
                pid: row.get("pid"),
                version: row.get("version"),
                started_at: row.get("started_at"),
                state: row.get("state"),
                detail: row.get("detail"),
                report: row.get("report"),
            },
            age: Duration::try_from_secs_f64(row.get::<_, f64>("age_seconds").max(0.0)).unwrap_or(Duration::MAX),
        }))
    }
}
