//! Whether the stream of a run flows: decided from positions, and told once.

use crate::lsn::Lsn;

/// A stream that was started does not flow yet: its first change may be one that ends it. It flows once a transaction is
/// through it, or once the server has said that there is nothing to send.
#[derive(Debug, Clone, Copy)]
pub(in crate::replication) struct Flow {
    /// The durable checkpoint, at which the stream begins.
    from: Lsn,
    /// Where the Site DB's log ended at the start of the run.
    tip: Lsn,
    /// The server has sent something.
    heard: bool,
    told: bool,
}

impl Flow {
    /// A stream that has just been started.
    pub(in crate::replication) const fn new(from: Lsn, tip: Lsn) -> Self {
        Self {
            from,
            tip,
            heard: false,
            told: false,
        }
    }

    /// The server has sent something.
    pub(in crate::replication) const fn heard(&mut self) {
        self.heard = true;
    }

    /// Whether to tell now that the stream flows. `settled`: everything up to here is durable in the Agent DB, or needs
    /// nothing written there.
    pub(in crate::replication) fn is_news(&mut self, settled: Lsn) -> bool {
        if self.told || !self.heard || (settled <= self.from && settled < self.tip) {
            return false;
        }
        self.told = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_flows_once_something_is_through_or_nothing_is_to_be_sent() {
        let mut behind = Flow::new(Lsn(10), Lsn(50));
        behind.heard();
        assert!(!behind.is_news(Lsn(10)), "the first change may end it");
        assert!(behind.is_news(Lsn(20)));
        assert!(!behind.is_news(Lsn(30)), "once");
        let mut idle = Flow::new(Lsn(50), Lsn(50));
        assert!(!idle.is_news(Lsn(50)), "not before a word of the server");
        idle.heard();
        assert!(idle.is_news(Lsn(50)));
    }
}
