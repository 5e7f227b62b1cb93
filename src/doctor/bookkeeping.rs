//! What is found about the migrations and about what the daemon has stored in the Agent DB.

use super::finding::{Code, Finding};
use crate::agent_db::{Proof, StoredDaemon};
use crate::change::TableName;
use crate::migrations::{Set, Standing};

/// How far a database is with its migrations. `is_automatic`: whether a start applies them.
pub(super) fn of_migrations(set: Set, standing: &Standing, is_automatic: bool) -> Vec<Finding> {
    let (name, command) = match set {
        Set::Site => ("the server's tables", "twinlog migrate site"),
        Set::Agent => ("the business tables", "twinlog migrate agent"),
        Set::Twinlog => ("the daemon's tables (schema twinlog)", "twinlog migrate agent"),
    };
    let about = format!("{}: {name}", set.side());
    let mut found = Vec::new();
    if !standing.texts_match {
        found.push(
            Finding::new(
                Code::MigrationChanged,
                &about,
                "an applied migration has another text than this binary's",
            )
            .fix("use the release that applied it; see `twinlog migrate`"),
        );
    }
    if standing.pending.is_empty() {
        return found;
    }
    let what = format!("not applied yet: {}", standing.pending.join(", "));
    if standing.grants.is_empty() && is_automatic {
        found.push(Finding::new(Code::MigratedLater, &about, what));
    } else {
        let grants = match standing.grants.as_slice() {
            [] => String::new(),
            grants => format!("as the database's owner: {}; then ", grants.join("; ")),
        };
        found.push(Finding::new(Code::NotMigrated, &about, what).fix(format!("{grants}run: {command}")));
    }
    found
}

/// The daemon, by its own last report.
pub(super) fn of_daemon(daemon: Option<&StoredDaemon>) -> Vec<Finding> {
    // It never ran: this is a set-up before its first start.
    let Some(daemon) = daemon else { return Vec::new() };
    let mut found = Vec::new();
    if !daemon.is_running() {
        let what = if daemon.has_stopped() {
            format!("it has stopped {} s ago", daemon.age.as_secs())
        } else {
            format!("it has not reported for {} s", daemon.age.as_secs())
        };
        found.push(
            Finding::new(Code::DaemonNotRunning, "daemon", what).fix("systemctl start twinlog; or: twinlog sync"),
        );
    } else if daemon.report.version != env!("CARGO_PKG_VERSION") {
        let what = format!(
            "the daemon is version {}, this command {}",
            daemon.report.version,
            env!("CARGO_PKG_VERSION")
        );
        found.push(Finding::new(Code::DaemonVersion, "daemon", what));
    }
    found
}

/// Parked rows.
pub(super) fn of_parked(parked: &[(TableName, u64)]) -> Vec<Finding> {
    parked
        .iter()
        .filter(|(_, rows)| *rows > 0)
        .map(|(table, rows)| {
            let what = format!("the Agent DB refuses {rows} of its rows");
            Finding::new(Code::RowsParked, format!("table {table}"), what).fix(format!("twinlog failed list {table}"))
        })
        .collect()
}

/// What verifications have found and not repaired. `copied`: when each table was read the last time.
pub(super) fn of_proofs(proofs: &[Proof], is_outdated: impl Fn(&Proof) -> bool) -> Vec<Finding> {
    proofs
        .iter()
        .filter(|proof| proof.differing() > 0 && !is_outdated(proof))
        .map(|proof| {
            let what = format!("{} of its rows differ between the databases", proof.differing());
            let fix = format!("twinlog verify {} --repair", proof.table);
            Finding::new(Code::RowsDiffer, format!("table {}", proof.table), what).fix(fix)
        })
        .collect()
}
