//! The daemon's state, as health, metrics and `status` name it: never set, always derived from what is known.

use strum::VariantNames;

use crate::retry::Disposition;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum SyncState {
    /// No stream flows yet, or it was interrupted: it is tried again.
    Connecting,
    /// Another daemon is active for the slot: this one takes over when that one ends.
    Standby,
    /// The stream flows, and a table's first copy runs.
    Copying,
    /// The stream flows, and every table is copied.
    Streaming,
    /// Something has to be repaired by a person. It is tried again by itself, since that may have happened.
    Held,
    /// Rows may be missing; only a full resync ends it.
    Gap,
    /// The daemon has ended.
    Stopped,
}

impl SyncState {
    /// All of them, for the metric that has one series each.
    pub const ALL: &'static [&'static str] = Self::VARIANTS;

    /// The name in metrics, `twinlog.daemon` and health.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether rows flow and nothing is known to be missing.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::Copying | Self::Streaming | Self::Standby)
    }
}

/// Why no stream flows: how the last run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replication) enum Setback {
    /// Another daemon has the slot.
    Standby,
    /// Rows may be missing, and nobody has asked for the full resync that would show what.
    Gap,
    /// It passes by itself: reconnect.
    Interrupted,
    /// It stays until somebody repairs it.
    Held,
}

impl From<Disposition> for Setback {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::Transient => Self::Interrupted,
            // What a row's own error stops as a whole is as wrong for every other row.
            Disposition::Systemic | Disposition::Row => Self::Held,
        }
    }
}

/// Everything that the state follows from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::replication) struct SyncFacts {
    /// The daemon has ended.
    pub(in crate::replication) stopped: bool,
    /// A run reads the stream now.
    pub(in crate::replication) flowing: bool,
    /// How the last run ended, and why; kept while the next one starts, where it needs more than another try.
    pub(in crate::replication) setback: Option<(Setback, String)>,
    /// Why rows may be missing.
    pub(in crate::replication) gap: Option<String>,
    /// Of a table that is held or whose copy is: which, and why.
    pub(in crate::replication) held_table: Option<String>,
    /// A table's first copy is not finished.
    pub(in crate::replication) copying: bool,
}

impl SyncFacts {
    /// The state, and why where that needs a reason. Pure.
    pub(in crate::replication) fn state(&self) -> (SyncState, Option<String>) {
        if self.stopped {
            return (SyncState::Stopped, None);
        }
        if !self.flowing {
            return match &self.setback {
                None => (SyncState::Connecting, None),
                Some((setback, reason)) => {
                    let state = match setback {
                        Setback::Standby => SyncState::Standby,
                        Setback::Gap => SyncState::Gap,
                        Setback::Interrupted => SyncState::Connecting,
                        Setback::Held => SyncState::Held,
                    };
                    (state, Some(reason.clone()))
                }
            };
        }
        match (&self.gap, &self.held_table) {
            (Some(reason), _) => (SyncState::Gap, Some(reason.clone())),
            (None, Some(reason)) => (SyncState::Held, Some(reason.clone())),
            (None, None) if self.copying => (SyncState::Copying, None),
            (None, None) => (SyncState::Streaming, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut SyncFacts)) -> SyncFacts {
        let mut facts = SyncFacts::default();
        change(&mut facts);
        facts
    }

    fn setback(setback: Setback) -> SyncFacts {
        facts(|facts| facts.setback = Some((setback, "why".to_owned())))
    }

    fn flowing(change: impl FnOnce(&mut SyncFacts)) -> SyncFacts {
        facts(|facts| {
            facts.flowing = true;
            change(facts);
        })
    }

    #[test]
    fn every_state_follows_from_its_facts() {
        let why = || Some("why".to_owned());
        for (known, state, reason) in [
            (facts(|_| {}), SyncState::Connecting, None),
            (setback(Setback::Interrupted), SyncState::Connecting, why()),
            (setback(Setback::Standby), SyncState::Standby, why()),
            (setback(Setback::Held), SyncState::Held, why()),
            (setback(Setback::Gap), SyncState::Gap, why()),
            (flowing(|_| {}), SyncState::Streaming, None),
            (flowing(|facts| facts.copying = true), SyncState::Copying, None),
            (flowing(|facts| facts.held_table = why()), SyncState::Held, why()),
            (
                flowing(|facts| {
                    facts.gap = why();
                    facts.held_table = Some("less grave".to_owned());
                    facts.copying = true;
                }),
                SyncState::Gap,
                why(),
            ),
            (
                flowing(|facts| facts.setback = Some((Setback::Held, "before".to_owned()))),
                SyncState::Streaming,
                None,
            ),
            (
                flowing(|facts| {
                    facts.stopped = true;
                    facts.gap = why();
                }),
                SyncState::Stopped,
                None,
            ),
        ] {
            assert_eq!(known.state(), (state, reason), "{known:?}");
        }
    }

    #[test]
    fn only_what_flows_without_a_known_hole_is_healthy() {
        assert_eq!(SyncState::ALL.len(), 7);
        assert_eq!(SyncState::Gap.as_str(), "gap");
        for unhealthy in [
            SyncState::Connecting,
            SyncState::Held,
            SyncState::Gap,
            SyncState::Stopped,
        ] {
            assert!(!unhealthy.is_healthy());
        }
    }
}
