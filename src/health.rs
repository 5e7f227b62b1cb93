//! What each part says of itself, for `/readyz`, `/health` and systemd's watchdog.
//!
//! A part that runs owns a [`Component`] and tells it when it can do its work and when not, and why. Nobody asks a
//! database here: the parts do that in their own loops, so a probe costs nothing and can't hang.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;

/// All components of this process.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Status>>>);

/// A component's last word.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Whether it can do its work now.
    pub ready: bool,
    /// Why not; absent while it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When that last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Figures of its own, never row values.
    pub detail: serde_json::Value,
}

/// The right to speak for one component. Dropping it does not take its last word back.
#[derive(Debug, Clone)]
pub struct Component {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Registers a component, not ready ("starting") until it says otherwise.
    #[must_use]
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component {
            health: self.clone(),
            name,
        };
        component.not_ready("starting", serde_json::Value::Null);
        component
    }

    /// Every component's last word, by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, Status> {
        self.lock().clone()
    }

    /// Whether all components can do their work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|status| status.ready)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Status>> {
        // A panic elsewhere leaves the map whole: each write is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// It can do its work.
    pub fn ready(&self, detail: serde_json::Value) {
        self.set(None, detail);
    }

    /// It can't do its work, and why.
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
            Status {
                ready: reason.is_none(),
                reason,
                since,
                detail,
            },
        );
    }
}
