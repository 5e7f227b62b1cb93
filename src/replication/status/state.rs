//! The daemon's state, as health, metrics and `status` name it.

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncState {
    /// Set at each start of a run, until the stream flows.
    Connecting,
    /// Set while another daemon is active for the slot: this one takes over when that one ends.
    Standby,
    /// Set while the stream flows and a table's first copy runs.
    Copying,
    /// Set while the stream flows and every table is copied.
    Streaming,
    /// Set when something needs a person; tried again by itself, since the person may have acted.
    Held,
    /// Set while rows may be missing; only a full resync ends it.
    Gap,
    /// Set once, at the end.
    Stopped,
}

impl SyncState {
    /// All of them, for the metric that has one series each.
    pub const ALL: [&'static str; 7] = [
        "connecting",
        "standby",
        "copying",
        "streaming",
        "held",
        "gap",
        "stopped",
    ];

    /// The name in metrics, `twinlog.daemon` and health.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Standby => "standby",
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Held => "held",
            Self::Gap => "gap",
            Self::Stopped => "stopped",
        }
    }

    /// Whether rows flow and nothing is known to be missing.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::Copying | Self::Streaming | Self::Standby)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_series() {
        for state in [
            SyncState::Connecting,
            SyncState::Standby,
            SyncState::Copying,
            SyncState::Streaming,
            SyncState::Held,
            SyncState::Gap,
            SyncState::Stopped,
        ] {
            assert!(SyncState::ALL.contains(&state.as_str()));
        }
    }
}
