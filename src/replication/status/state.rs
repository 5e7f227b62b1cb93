//! The daemon's state, as shown by health, metrics and `twinlog status`. It is never set, but derived from facts.

use strum::VariantNames;

use crate::retry::Disposition;

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum SyncState {
    /// No stream flows yet, or it was interrupted; the daemon tries again.
    Connecting,
    /// Another daemon is active for the slot; this one takes over when the other ends.
    Standby,
    /// The stream flows, and the first copy of at least one table is unfinished.
    Copying,
    /// The stream flows, and the first copies of all tables are finished.
    Streaming,
    /// An operator has to repair something. The daemon keeps trying, and continues by itself after the repair.
    Held,
    /// Rows may be missing; only a full resync ends this state.
    Gap,
    /// The daemon has ended.
    Stopped,
}

impl SyncState {
    /// The names of all states, for the metric with one series for each.
    pub const ALL: &'static [&'static str] = Self::VARIANTS;

    /// The name in metrics, `twinlog.daemon` and health.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether this daemon does its work: rows flow and none are known to be missing, or it is the standby.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::Copying | Self::Streaming | Self::Standby)
    }
}

/// How the last run ended, which decides the state until the stream flows again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replication) enum Setback {
    /// Another daemon holds the slot's lock.
    SlotTaken,
    /// Another pipeline's daemon holds it: the slot's rows in the Agent DB are not this one's.
    SlotOfAnother,
    /// Rows may be missing, and no full resync was asked for yet.
    RowsMissing,
    /// The cause is temporary: reconnect.
    Temporary,
    /// The cause stays until an operator repairs it.
    NeedsRepair,
}

impl From<Disposition> for Setback {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::Transient => Self::Temporary,
            // A row's own error normally parks the row. If it ends the run instead, waiting does not help.
            Disposition::Systemic | Disposition::Row => Self::NeedsRepair,
        }
    }
}

/// The facts from which the state is derived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::replication) struct SyncFacts {
    /// The daemon has ended.
    pub(in crate::replication) stopped: bool,
    /// A run is reading the stream now.
    pub(in crate::replication) flowing: bool,
    /// How the last run ended, and why. Kept while the next run starts, unless it was only an interruption.
    pub(in crate::replication) setback: Option<(Setback, String)>,
    /// Why rows may be missing; `None` if none are.
    pub(in crate::replication) gap: Option<String>,
    /// The tables that are held, or whose copies are held, and why.
    pub(in crate::replication) held_tables: Option<String>,
    /// Why rows may differ because of what the publication does not send.
    pub(in crate::replication) narrowed: Option<String>,
    /// At least one table's first copy is unfinished.
    pub(in crate::replication) copying: bool,
}

impl SyncFacts {
    /// Whether the slot's row in `twinlog.daemon` is another daemon's to write, as long as that one runs.
    pub(in crate::replication) fn is_another_active(&self) -> bool {
        let setback = self.setback.as_ref().map(|(setback, _)| *setback);
        !self.flowing && matches!(setback, Some(Setback::SlotTaken | Setback::SlotOfAnother))
    }

    /// The state, and the reason for it if it needs one. Pure.
    pub(in crate::replication) fn state(&self) -> (SyncState, Option<String>) {
        if self.stopped {
            return (SyncState::Stopped, None);
        }
        if !self.flowing {
            return match &self.setback {
                None => (SyncState::Connecting, None),
                Some((setback, reason)) => {
                    let state = match setback {
                        Setback::SlotTaken => SyncState::Standby,
                        Setback::RowsMissing => SyncState::Gap,
                        Setback::Temporary => SyncState::Connecting,
                        Setback::NeedsRepair | Setback::SlotOfAnother => SyncState::Held,
                    };
                    (state, Some(reason.clone()))
                }
            };
        }
        match (&self.gap, self.held_tables.as_ref().or(self.narrowed.as_ref())) {
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
            (setback(Setback::Temporary), SyncState::Connecting, why()),
            (setback(Setback::SlotTaken), SyncState::Standby, why()),
            (setback(Setback::NeedsRepair), SyncState::Held, why()),
            (setback(Setback::RowsMissing), SyncState::Gap, why()),
            (flowing(|_| {}), SyncState::Streaming, None),
            (flowing(|facts| facts.copying = true), SyncState::Copying, None),
            (flowing(|facts| facts.held_tables = why()), SyncState::Held, why()),
            (flowing(|facts| facts.narrowed = why()), SyncState::Held, why()),
            (
                flowing(|facts| {
                    facts.gap = why();
                    facts.held_tables = Some("less grave".to_owned());
                    facts.copying = true;
                }),
                SyncState::Gap,
                why(),
            ),
            (
                flowing(|facts| facts.setback = Some((Setback::NeedsRepair, "before".to_owned()))),
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
