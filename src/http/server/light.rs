//! The light: looks every second at what the server's parts report, and writes one line to the log when one is in trouble,
//! with the remedy, and one when that is over.
//!
//! A part that waits for the Site DB is not logged while the Site DB's own line says why. The reports are the same as those
//! of `/health`, so log and health never differ. The daemon logs its own state.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::health::{self, Component, ComponentStatus, Health, Standing, Trouble};
use crate::inbox::Inbox;
use crate::shutdown;
use crate::site_db::{Pool, PoolFigures};
use crate::subscribers;

/// How often the parts are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// The Site DB's component notices an outage within this time; until then, a part that waits for it is not logged.
const SITE_DB_NOTICES: Duration = Duration::from_secs(12);
/// The pool is in trouble when callers have waited for a connection for this long: a wait is usually milliseconds.
const POOL_EXHAUSTED: Duration = Duration::from_secs(5);

/// The trouble of a number that Meta has asked to wait.
const PAUSED: &str = "paused";

/// The components that the server has, beside one for each number.
pub(super) const SITE_DB: &str = "site_db";
/// See [`SITE_DB`].
pub(super) const POOL: &str = "pool";
/// See [`SITE_DB`].
pub(super) const INBOX: &str = "inbox";
/// See [`SITE_DB`].
pub(super) const WEBHOOKS: &str = "webhooks";
/// See [`SITE_DB`].
pub(super) const EVENTS: &str = "events";
/// See [`SITE_DB`].
pub(super) const LISTENERS: &str = "listeners";
/// See [`SITE_DB`].
pub(super) const TEMPLATES: &str = "templates";
/// The outbox registers these itself.
const OUTBOX: &str = "outbox";
const NUMBER: &str = "number ";

/// Runs until the stop.
pub(super) async fn run(health: Health, pool: Pool, inbox: Inbox, stop: CancellationToken) {
    let webhooks = health.component(WEBHOOKS).reports_every(EVERY * 5);
    let component = health.component(POOL).reports_every(EVERY * 5);
    let mut pool_watch = PoolWatch::default();
    let mut told = Told::default();
    loop {
        pool_watch.look(&component, pool.figures(), Instant::now());
        webhooks.stands(inbox.callback_standing(), json!(null));
        for line in told.look(&health.report(), Instant::now()) {
            line.log();
        }
        if !shutdown::sleep(EVERY, &stop).await {
            return;
        }
    }
}

/// How long all connections have been in use while callers waited.
#[derive(Debug, Default)]
struct PoolWatch {
    exhausted: Option<Instant>,
}

impl PoolWatch {
    fn look(&mut self, component: &Component, figures: PoolFigures, now: Instant) {
        if figures.waiting == 0 {
            self.exhausted = None;
        }
        let since = (figures.waiting > 0).then(|| *self.exhausted.get_or_insert(now));
        let waited = since.map(|since| now.saturating_duration_since(since));
        let standing = match waited {
            Some(waited) if waited >= POOL_EXHAUSTED => Standing::Degraded(Trouble::new(
                "exhausted",
                format!(
                    "all {} connections to the Site DB have been in use for {} s: look for what is slow in pg_stat_activity, or \
                     raise site.max_connections",
                    figures.places,
                    waited.as_secs()
                ),
            )),
            _ => Standing::Ready,
        };
        component.stands(standing, json!(figures));
    }
}

/// What the log says now of each part.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, Seen>);

/// A part in trouble.
#[derive(Debug, Clone, Copy)]
struct Seen {
    kind: &'static str,
    since: Instant,
    logged: bool,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Trouble {
        component: String,
        ready: bool,
        /// It passes by itself, at a known time.
        passes: bool,
        reason: String,
    },
    Over {
        component: String,
        lasted: Duration,
    },
}

impl Told {
    fn look(&mut self, report: &BTreeMap<String, ComponentStatus>, now: Instant) -> Vec<Line> {
        let ours = [SITE_DB, POOL, INBOX, WEBHOOKS, EVENTS, LISTENERS, TEMPLATES, OUTBOX];
        let is_ours =
            |name: &str| ours.contains(&name) || name.starts_with(NUMBER) || name.starts_with(subscribers::COMPONENT);
        let site_db_is_well = report.get(SITE_DB).is_none_or(ComponentStatus::is_well);
        let mut lines = Vec::new();
        for (name, status) in report.iter().filter(|(name, _)| is_ours(name)) {
            let Some(kind) = status.trouble.filter(|kind| *kind != health::STARTING).map(logged_as) else {
                if let Some(seen) = self.0.remove(name)
                    && seen.logged
                {
                    lines.push(Line::Over {
                        component: name.clone(),
                        lasted: now.saturating_duration_since(seen.since),
                    });
                }
                continue;
            };
            let fresh = Seen {
                kind,
                since: now,
                logged: false,
            };
            let seen = self.0.entry(name.clone()).or_insert(fresh);
            if seen.kind != kind {
                // What was logged before is over, though the part is not well.
                *seen = Seen {
                    since: seen.since,
                    ..fresh
                };
            }
            let waits = name != SITE_DB && [health::SITE_DB, health::STATEMENT].contains(&kind);
            let waited = now.saturating_duration_since(seen.since);
            if seen.logged || (waits && (!site_db_is_well || waited < SITE_DB_NOTICES)) {
                continue;
            }
            seen.logged = true;
            lines.push(Line::Trouble {
                component: name.clone(),
                ready: status.ready,
                passes: kind == PAUSED,
                reason: status.reason.clone().unwrap_or_default(),
            });
        }
        lines
    }
}

/// The trouble of which a number that Meta refuses is logged, whether a look at it or a message has found that out.
fn logged_as(kind: &'static str) -> &'static str {
    match kind {
        "refused" => "held",
        kind => kind,
    }
}

impl Line {
    fn log(&self) {
        match self {
            Self::Trouble {
                component,
                ready: false,
                reason,
                ..
            } => tracing::error!(component, "HEALTH: {component} is not ready: {reason}"),
            Self::Trouble {
                component,
                passes: false,
                reason,
                ..
            } => tracing::error!(component, "HEALTH: {component} is degraded: {reason}"),
            Self::Trouble { component, reason, .. } => {
                tracing::warn!(component, "HEALTH: {component} is degraded: {reason}");
            }
            Self::Over { component, lasted } => {
                tracing::info!(
                    component,
                    seconds = lasted.as_secs(),
                    "HEALTH: {component} is well again"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Parts {
        health: Health,
        told: Told,
        now: Instant,
    }

    impl Parts {
        fn new() -> Self {
            Self {
                health: Health::default(),
                told: Told::default(),
                now: Instant::now(),
            }
        }

        fn stands(&self, name: &'static str, kind: Option<&'static str>) {
            let standing = match kind {
                None => Standing::Ready,
                Some(kind) => Standing::NotReady(Trouble::new(kind, "why")),
            };
            self.health.component(name).stands(standing, json!(null));
        }

        fn lines(&mut self, seconds: u64) -> Vec<String> {
            self.now += Duration::from_secs(seconds);
            let lines = self.told.look(&self.health.report(), self.now);
            let short = |line: Line| match line {
                Line::Trouble { component, .. } => component,
                Line::Over { component, lasted } => format!("{component} over after {}", lasted.as_secs()),
            };
            lines.into_iter().map(short).collect()
        }
    }

    #[tokio::test]
    async fn a_trouble_is_one_line_and_its_end_is_one() {
        let mut parts = Parts::new();
        let _starting = parts.health.component("site_db");
        parts.stands("number 1", None);
        assert_eq!(parts.lines(0), [""; 0]);
        parts.stands("number 1", Some("held"));
        assert_eq!(parts.lines(1), ["number 1"]);
        assert_eq!(parts.lines(60), [""; 0]);
        parts.stands("number 1", Some("graph"));
        assert_eq!(parts.lines(1), ["number 1"]);
        parts.stands("number 1", None);
        assert_eq!(parts.lines(1), ["number 1 over after 62"]);
        // The daemon logs its own state.
        parts.stands("sync", Some("held"));
        assert_eq!(parts.lines(1), [""; 0]);
    }

    #[tokio::test]
    async fn an_outage_of_the_site_db_is_one_line_and_not_one_for_each_part() {
        let mut parts = Parts::new();
        for part in ["inbox", "outbox", "number 1"] {
            parts.stands(part, Some(health::SITE_DB));
        }
        assert_eq!(parts.lines(1), [""; 0]);
        parts.stands("site_db", Some("not_ready"));
        assert_eq!(parts.lines(1), ["site_db"]);
        assert_eq!(parts.lines(60), [""; 0]);
        for part in ["inbox", "outbox", "number 1", "site_db"] {
            parts.stands(part, None);
        }
        assert_eq!(parts.lines(1), ["site_db over after 61"]);
        // The Site DB is well, and one part is refused its statements all the same.
        parts.stands("inbox", Some(health::STATEMENT));
        assert_eq!(parts.lines(1), [""; 0]);
        assert_eq!(parts.lines(12), ["inbox"]);
    }
}
