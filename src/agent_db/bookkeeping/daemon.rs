//! `twinlog.daemon`: the daemon's last report on itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::lsn::Lsn;

/// A daemon writes a report every second, or three time-outs later; one that has not for this long is not running.
const SILENT: Duration = Duration::from_secs(10);

/// Whether a daemon is not running whose last report is this old, in seconds.
pub(super) fn is_silent_after(age_seconds: f64) -> bool {
    age_seconds > SILENT.as_secs_f64()
}

/// The daemon's report on itself, for `twinlog status`.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonReport {
    /// The process, over all hosts and restarts.
    pub instance: Uuid,
    /// Of the machine that it runs on.
    pub hostname: String,
    /// The process id on its host.
    pub pid: i32,
    /// Of the program, as in 0.1.0.
    pub version: String,
    /// When the process started, by its own clock.
    pub started_at: OffsetDateTime,
    /// connecting, copying, streaming, held, gap, stopped.
    pub state: String,
    /// Why it is in this state, where that needs a reason.
    pub detail: Option<String>,
    /// What it measures.
    pub figures: DaemonFigures,
}

/// The column `report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DaemonFigures {
    /// Measured by a daemon that runs.
    Measured(SyncFigures),
    /// Of a daemon that has stopped, or of one whose version measures others.
    None {},
}

/// What a running daemon measures once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncFigures {
    /// Age of the oldest transaction that is committed in the Site DB and not applied; 0 where there is none.
    pub delay_seconds: f64,
    /// What was committed in the Site DB until then, by its clock, is applied: microseconds since 1970; `None` where this process
    /// has not seen that yet.
    #[serde(default)]
    pub settled_at_micros: Option<i64>,
    /// From the settled position to the end of the Site DB's log; `None` where the Site DB can't be asked.
    pub lag_bytes: Option<u64>,
    /// Up to here the stream was read.
    pub received_lsn: Lsn,
    /// Up to here everything is applied, or needs nothing to be applied.
    pub settled_lsn: Lsn,
    /// Up to here everything is durable in the Agent DB, and acknowledged.
    pub durable_lsn: Lsn,
    /// Whether the Site DB answered.
    pub site_reachable: bool,
    /// Whether a connection reads the slot; `None` where the Site DB can't be asked.
    pub slot_active: Option<bool>,
    /// Log that the Site DB keeps for the slot.
    pub slot_retained_bytes: Option<i64>,
    /// Log that may still be written before the slot is lost; `None` without a limit, or where it is not known.
    pub slot_headroom_bytes: Option<i64>,
    /// Seconds until the slot is lost, at the rate of the last minutes; `None` where what it keeps does not grow, there is no limit,
    /// or that is not known.
    #[serde(default)]
    pub slot_full_in_seconds: Option<u64>,
    /// Tables that are held, of which `twinlog.tables` has the reasons.
    #[serde(default)]
    pub held_tables: u64,
    /// Selected tables that can't be replicated and are left out (`sync.on_unreplicable_table`).
    #[serde(default)]
    pub ignored_tables: Vec<String>,
    /// Rows that are parked.
    pub failed_rows: u64,
    /// Changes that the stream has brought since the process started.
    pub changes_received: u64,
}

/// The daemon's last report, and how old it is.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDaemon {
    /// As the daemon wrote it.
    pub report: DaemonReport,
    /// By the Agent DB's clock.
    pub age: Duration,
}

impl StoredDaemon {
    /// Whether the daemon has said that it stops.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.report.state == "stopped"
    }

    /// Whether no report has come for so long that the daemon can't be running, though it did not say that it stops.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.age > SILENT && !self.has_stopped()
    }

    /// Whether the daemon is at work, by its own report.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.is_silent() && !self.has_stopped()
    }
}

impl Control {
    /// Writes the daemon's report on itself.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn report(&self, report: &DaemonReport) -> Result<(), AgentError> {
        let figures = serde_json::to_value(&report.figures)
            .map_err(|error| AgentError::Internal(format!("the daemon's figures as JSON: {error}")))?;
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
                    &report.detail.as_deref().map(|detail| self.encoding.shown(detail)),
                    &figures,
                ],
            )
            .await
            .map_err(failed("report the daemon's state"))?;
        Ok(())
    }

    /// The daemon's last report; `None` where none ever ran.
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
                figures: serde_json::from_value(row.get("report")).unwrap_or(DaemonFigures::None {}),
            },
            age: Duration::try_from_secs_f64(row.get::<_, f64>("age_seconds").max(0.0)).unwrap_or(Duration::MAX),
        }))
    }
}
