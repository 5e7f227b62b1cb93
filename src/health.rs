//! What each part of the process reports about itself, for `/readyz`, `/health`, the metrics, the log and systemd.
//!
//! A running part owns a [`Component`] and reports how it stands: ready, degraded (it works, but not for all, or not at full
//! pace), or not ready (it can't do its work). Nothing here asks a database: the parts do that in their own loops, so a probe
//! costs nothing and can't hang.
//!
//! A part whose loop hangs reports nothing any more. So each loop says how often it reports
//! ([`Component::reports_every`]); [`Health::report`] shows one that has been silent for several times as long as degraded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::Instant;

/// A loop is silent when it has not reported for this many times its bound.
const SILENT_AFTER: u32 = 3;

/// All components of this process.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Entry>>>);

/// What a component reported last.
#[derive(Debug, Clone, Serialize)]
pub struct ComponentStatus {
    /// Whether the component can do its work now.
    pub ready: bool,
    /// Whether it does its work only in part; false while it is not ready.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    /// Why it is degraded or not ready, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong, as a word: stays while the reason's figures change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<&'static str>,
    /// When its state last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Figures of the component's own, never row values.
    pub detail: serde_json::Value,
}

/// How a component stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It does its work.
    Ready,
    /// It works only in part.
    Degraded(Trouble),
    /// It can't do its work.
    NotReady(Trouble),
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// As a word: it does not change while the trouble lasts.
    pub kind: &'static str,
    /// As a sentence for people, with the remedy.
    pub reason: String,
}

impl Trouble {
    /// What is wrong, as a word and as a sentence.
    pub fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }
}

/// [`Trouble::kind`] of a component that waits for the Site DB, whose own component says why.
pub const SITE_DB: &str = "site_db";

/// [`Trouble::kind`] of a component that the Site DB refused a statement, though it answers.
pub const STATEMENT: &str = "statement";

/// [`Trouble::kind`] of a component that has not reported yet.
pub const STARTING: &str = "starting";

/// [`Trouble::kind`] of a component that says nothing any more.
pub const SILENT: &str = "silent";

#[derive(Debug, Clone)]
struct Entry {
    status: ComponentStatus,
    reported: Instant,
    every: Option<Duration>,
}

/// The right to report for one component. After a drop its last report stays.
#[derive(Debug, Clone)]
pub struct Component {
    health: Health,
    name: Cow<'static, str>,
}

impl Health {
    /// Registers a component. It is not ready ("starting") until it reports otherwise.
    #[must_use]
    pub fn component(&self, name: impl Into<Cow<'static, str>>) -> Component {
        let component = Component {
            health: self.clone(),
            name: name.into(),
        };
        let starting = Standing::NotReady(Trouble::new(STARTING, "starting"));
        component.stands(starting, serde_json::Value::Null);
        component
    }

    /// The last report of every component, by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, ComponentStatus> {
        let now = Instant::now();
        let shown = |(name, entry): (&String, &Entry)| (name.clone(), entry.shown(now));
        self.lock().iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // After a panic in another thread the map is consistent: each write is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The status, or that there has been none for too long.
    fn shown(&self, now: Instant) -> ComponentStatus {
        let mut status = self.status.clone();
        let silent = now.saturating_duration_since(self.reported);
        if let Some(every) = self.every
            && silent > every * SILENT_AFTER
            && status.ready
        {
            status.degraded = true;
            status.trouble = Some(SILENT);
            status.reason = Some(format!(
                "it has not finished a round for {} s (one takes less than {} s); if that lasts, restart twinlog and report it",
                silent.as_secs(),
                every.as_secs()
            ));
            status.since = OffsetDateTime::now_utc() - silent;
        }
        status
    }
}

impl ComponentStatus {
    /// Whether all is well with the component.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.ready && !self.degraded
    }
}

impl Component {
    /// Its loop reports at least this often; see the module.
    #[must_use]
    pub fn reports_every(self, every: Duration) -> Self {
        if let Some(entry) = self.health.lock().get_mut(self.name.as_ref()) {
            entry.every = Some(every);
        }
        self
    }

    /// Reports that it can do its work.
    pub fn ready(&self, detail: serde_json::Value) {
        self.stands(Standing::Ready, detail);
    }

    /// Reports that it can't do its work, and why.
    pub fn not_ready(&self, reason: impl Into<String>, detail: serde_json::Value) {
        self.stands(Standing::NotReady(Trouble::new("not_ready", reason)), detail);
    }

    /// Reports how it stands.
    pub fn stands(&self, standing: Standing, detail: serde_json::Value) {
        let (ready, degraded, trouble) = match standing {
            Standing::Ready => (true, false, None),
            Standing::Degraded(trouble) => (true, true, Some(trouble)),
            Standing::NotReady(trouble) => (false, false, Some(trouble)),
        };
        let kind = trouble.as_ref().map(|trouble| trouble.kind);
        let mut components = self.health.lock();
        let before = components.get(self.name.as_ref());
        let now = OffsetDateTime::now_utc();
        let unchanged = |entry: &&Entry| {
            let status = &entry.status;
            (status.ready, status.degraded, status.trouble) == (ready, degraded, kind)
        };
        let entry = Entry {
            reported: Instant::now(),
            every: before.and_then(|entry| entry.every),
            status: ComponentStatus {
                ready,
                degraded,
                trouble: kind,
                since: before.filter(unchanged).map_or(now, |entry| entry.status.since),
                reason: trouble.map(|trouble| trouble.reason),
                detail,
            },
        };
        components.insert(self.name.clone().into_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_component_that_says_nothing_any_more_is_degraded_by_name() {
        let health = Health::default();
        let component = health.component("inbox").reports_every(Duration::from_secs(5));
        component.ready(json!(null));
        tokio::time::advance(Duration::from_secs(14)).await;
        assert!(health.report()["inbox"].is_well());
        tokio::time::advance(Duration::from_secs(2)).await;
        let status = health.report()["inbox"].clone();
        assert!(status.ready && status.degraded, "{status:?}");
        assert!(status.reason.unwrap().contains("not finished a round for 16 s"));
        component.ready(json!(null));
        assert!(health.report()["inbox"].is_well());
    }

    #[test]
    fn a_state_begins_when_its_trouble_does() {
        let health = Health::default();
        let component = health.component("number 1");
        let stands = |kind, reason: &str| {
            component.stands(Standing::Degraded(Trouble::new(kind, reason)), json!(null));
            health.report()["number 1"].since
        };
        let since = stands("held", "code 190");
        assert_eq!(stands("held", "code 191"), since);
        assert!(stands("paused", "until noon") > since);
        component.ready(json!(null));
        assert!(health.report()["number 1"].is_well());
    }
}
