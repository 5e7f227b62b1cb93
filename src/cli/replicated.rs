//! What the daemon knows of a row and its table, for commands that tell a row's story.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::agent_db::{Control, DaemonFigures, Discard, FailedFilter, FailedRowDetail, Proof, TableRecord, TableState};
use crate::change::TableName;

/// Decisions that are told.
const MOST: u32 = 20;

/// A delay below this is what every change takes, in seconds.
const USUAL_DELAY: f64 = 1.0;

/// What is known.
pub(super) struct Replicated {
    table: TableName,
    /// Why the daemon writes nothing, where it does not.
    daemon: Option<String>,
    delay_seconds: Option<f64>,
    gap: Option<String>,
    record: Option<TableRecord>,
    parked: Option<FailedRowDetail>,
    discards: Vec<Discard>,
    proof: Option<Proof>,
}

impl Replicated {
    /// Reads it. `key`: the row's, as a JSON array of texts.
    pub(super) async fn read(control: &Control, table: &TableName, key: Option<&str>) -> anyhow::Result<Self> {
        let filter = FailedFilter {
            table: Some(table.clone()),
            key: key.map(str::to_owned),
            id: None,
        };
        let (parked, discards) = match key {
            Some(_) => (
                control.failed_row_details(&filter, 1).await?.pop(),
                control.discards(&filter, MOST).await?,
            ),
            None => (None, Vec::new()),
        };
        let daemon = control.daemon().await?;
        let delay_seconds = daemon.as_ref().and_then(|daemon| match &daemon.report.figures {
            DaemonFigures::Measured(figures) => Some(figures.delay_seconds),
            DaemonFigures::None {} => None,
        });
        let daemon = match daemon {
            None => Some("no daemon has ever run".to_owned()),
            Some(daemon) if daemon.has_stopped() => Some("the daemon is stopped".to_owned()),
            Some(daemon) if daemon.is_silent() => {
                Some(format!("the daemon is gone: no report for {} s", daemon.age.as_secs()))
            }
            Some(daemon) if !matches!(daemon.report.state.as_str(), "streaming" | "copying") => Some(format!(
                "the daemon is {}: {}",
                daemon.report.state,
                daemon.report.detail.as_deref().unwrap_or("it says no more")
            )),
            Some(_) => None,
        };
        let gap = control.visible_checkpoint().await?.and_then(|stored| stored.gap);
        Ok(Self {
            daemon,
            delay_seconds,
            gap: gap.map(|gap| gap.reason),
            record: control
                .tables()
                .await?
                .into_iter()
                .find(|record| record.table == *table),
            proof: control.proofs().await?.into_iter().find(|proof| proof.table == *table),
            table: table.clone(),
            parked,
            discards,
        })
    }

    /// Why the row may be other than in the Site DB, the nearest reason first. Without one, nobody knows.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(FailedRowDetail { row, .. }) = &self.parked {
            let next = match (&row.discarded_at, &row.next_attempt_at) {
                (Some(at), _) => format!("given up {at}"),
                (None, Some(at)) => format!("tried again {at}"),
                (None, None) => String::new(),
            };
            reasons.push(format!(
                "parked since {}: {} ({}); {} change(s), {} attempt(s), {next}: twinlog failed show {}",
                row.parked_at, row.message, row.fingerprint, row.changes, row.attempts, row.id
            ));
        }
        match &self.record {
            None => reasons.push(format!("table {} is not replicated: twinlog status", self.table)),
            Some(record) if record.state == TableState::Held => {
                let detail = record.detail.as_deref().unwrap_or("no reason is known");
                reasons.push(format!("the table is held: {detail}"));
            }
            Some(record) if record.state.is_first_copy() => reasons.push(format!(
                "the table's first copy is not finished{}",
                record
                    .detail
                    .as_ref()
                    .map(|detail| format!(": {detail}"))
                    .unwrap_or_default()
            )),
            Some(_) => {}
        }
        reasons.extend(self.daemon.clone());
        reasons.extend(self.gap.as_ref().map(|gap| format!("rows may be missing: {gap}")));
        if let Some(delay) = self
            .delay_seconds
            .filter(|delay| *delay > USUAL_DELAY && self.daemon.is_none())
        {
            reasons.push(format!("the Agent DB is {delay:.1} s behind"));
        }
        reasons
    }

    /// Whether the row is parked.
    pub(super) const fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// What people have decided about the row.
    pub(super) fn decisions(&self) -> Vec<String> {
        self.discards
            .iter()
            .map(|discard| {
                format!(
                    "{}: given up by {} (role {}): {}",
                    discard.at, discard.who, discard.role, discard.why
                )
            })
            .collect()
    }

    /// What the last verification of the table has found.
    pub(super) fn proof(&self) -> String {
        let Some(proof) = &self.proof else {
            return "never verified".to_owned();
        };
        let proved = match proof.proved_at {
            Some(at) => format!("proved to be equal as of {}", in_text(at)),
            None => "never proved to be equal".to_owned(),
        };
        let is_outdated = self.record.as_ref().is_some_and(|record| proof.is_outdated(record));
        match proof.differing() {
            0 => proved,
            _ if is_outdated => format!("{proved}; read again since the last verification"),
            rows => format!("{proved}; {rows} row(s) differed {}", in_text(proof.verified_at)),
        }
    }

    pub(super) fn in_json(&self) -> Value {
        json!({
            "parked": self.parked.as_ref().map(|parked| &parked.row),
            "discards": self.discards,
            "table_state": self.record.as_ref().map(|record| record.state.as_str()),
            "table_detail": self.record.as_ref().and_then(|record| record.detail.clone()),
            "delay_seconds": self.delay_seconds,
            "daemon": self.daemon,
            "gap": self.gap,
            "proved_at": self.proof.as_ref().and_then(|proof| proof.proved_at).map(in_text),
            "verified_at": self.proof.as_ref().map(|proof| in_text(proof.verified_at)),
        })
    }
}

/// A time, RFC 3339.
pub(super) fn in_text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
