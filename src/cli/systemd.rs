//! Notifications to systemd: READY, the watchdog's pings, a status line, STOPPING.
//!
//! Does nothing if `NOTIFY_SOCKET` is not set. READY means that the process has started and serves its listeners, not that
//! its databases answer: a unit that waited for them would be killed and restarted while they are down, and could not
//! answer `/readyz`.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::shutdown;

/// How often the status line is renewed, if the watchdog does not need it more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Sends READY, then pings and the state of the parts until `stop` is cancelled, then STOPPING.
///
/// The pings come from a task of the runtime that does the work: if it no longer runs tasks, they end.
pub async fn supervise(health: Health, stop: CancellationToken) {
    notify(&[NotifyState::Ready]);
    // systemd's manual advises half of the time that it waits; with a third, one ping may be late.
    let watchdog = sd_notify::watchdog_enabled();
    let interval = watchdog.map_or(STATUS_INTERVAL, |limit| (limit / 3).min(STATUS_INTERVAL));
    let mut shown = None;
    loop {
        let status = status_line(&health);
        if shown.as_ref() != Some(&status) {
            notify(&[NotifyState::Status(&status)]);
            shown = Some(status);
        }
        if watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        if !shutdown::sleep(interval, &stop).await {
            break;
        }
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// `ready`, or which parts are not and why.
fn status_line(health: &Health) -> String {
    let reasons: Vec<String> = health
        .report()
        .into_iter()
        .filter_map(|(name, status)| Some(format!("{name}: {}", status.reason?)))
        .collect();
    if reasons.is_empty() {
        return "ready".to_owned();
    }
    // A newline would begin another assignment of the protocol.
    reasons.join("; ").replace('\n', " ")
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_names_who_is_not_ready() {
        let health = Health::default();
        assert_eq!(status_line(&health), "ready");
        let sync = health.component("sync");
        sync.not_ready("cannot reach\nthe Site DB", serde_json::Value::Null);
        assert_eq!(status_line(&health), "sync: cannot reach the Site DB");
        sync.ready(serde_json::Value::Null);
        assert_eq!(status_line(&health), "ready");
    }
}
