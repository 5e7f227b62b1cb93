//! What each part of the process reports about itself, for `/readyz`, `/health` and systemd.
//!
//! A running part owns a [`Component`] and reports whether it can do its work, and why not. Nothing here asks a database: the
//! parts do that in their own loops, so a probe costs nothing and can't hang.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

/// All components of this process.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, ComponentStatus>>>);

/// What a component reported last.
#[derive(Debug, Clone, Serialize)]
pub struct ComponentStatus {
    /// Whether the component can do its work now.
    pub ready: bool,
    /// Why it cannot; absent while it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When `ready` last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Figures of the component's own, never row values.
    pub detail: serde_json::Value,
}

/// The right to report for one component. After a drop its last report stays.
#[derive(Debug, Clone)]
pub struct Component {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Registers a component. It is not ready ("starting") until it reports otherwise.
    #[must_use]
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component {
            health: self.clone(),
            name,
        };
        component.not_ready("starting", serde_json::Value::Null);
        component
    }

    /// The last report of every component, by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, ComponentStatus> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, ComponentStatus>> {
        // After a panic in another thread the map is consistent: each write is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// Reports that it can do its work.
    pub fn ready(&self, detail: serde_json::Value) {
        self.set(None, detail);
    }

    /// Reports that it can't do its work, and why.
    pub fn not_ready(&self, reason: impl Into<String>, detail: serde_json::Value) {
        self.set(Some(reason.into()), detail);
    }

    fn set(&self, reason: Option<String>, detail: serde_json::Value) {
        let mut components = self.health.lock();
        let now = OffsetDateTime::now_utc();
        let since = components
            .get(self.name)
            .filter(|status| status.ready == reason.is_none())
            .map_or(now, |status| status.since);
        components.insert(
            self.name,
            ComponentStatus {
                ready: reason.is_none(),
                reason,
                since,
                detail,
            },
        );
    }
}
