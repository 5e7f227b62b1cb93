//! The positions of a run: what was received, what is durable in the Agent DB, and what may be acknowledged.
//!
//! The rule (promise 4): a position is acknowledged to the Site DB only after it was written to `twinlog.checkpoint`
//! and that commit is durable. This includes an idle slot: if nothing is pending, a keepalive's `wal_end` first becomes
//! the checkpoint, and is then acknowledged. So the slot is never ahead of the checkpoint. A slot that *is* ahead was
//! recreated or moved by somebody else: a gap (pitfalls P1, P3, P7).

use crate::lsn::Lsn;

/// Positions of one run of the stream. They only move forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replication) struct Progress {
    /// The durable checkpoint.
    durable: Lsn,
    /// Everything up to here is durable in the Agent DB, or needs nothing written there.
    settled: Lsn,
    /// End of the last received transaction that has something to write.
    effects_through: Lsn,
    /// The stream has sent a BEGIN, and not its COMMIT yet.
    open: bool,
    /// The open transaction has something to write.
    open_has_effects: bool,
}

impl Progress {
    /// Starts at a checkpoint that is durable in the Agent DB.
    #[must_use]
    pub(in crate::replication) const fn resume(checkpoint: Lsn) -> Self {
        Self {
            durable: checkpoint,
            settled: checkpoint,
            effects_through: checkpoint,
            open: false,
            open_has_effects: false,
        }
    }

    /// The stream began a transaction.
    pub(in crate::replication) const fn begin(&mut self) {
        self.open = true;
        self.open_has_effects = false;
    }

    /// The open transaction has something to write.
    pub(in crate::replication) const fn effect(&mut self) {
        self.open_has_effects = true;
    }

    /// The stream committed the open transaction.
    pub(in crate::replication) fn commit(&mut self, end_lsn: Lsn) {
        self.open = false;
        if self.open_has_effects {
            self.effects_through = self.effects_through.max(end_lsn);
        } else if self.is_idle() {
            self.settled = self.settled.max(end_lsn);
        }
        self.open_has_effects = false;
    }

    /// The server said that it has sent everything up to here.
    pub(in crate::replication) fn keepalive(&mut self, wal_end: Lsn) {
        if self.is_idle() {
            self.settled = self.settled.max(wal_end);
        }
    }

    /// A checkpoint is durable in the Agent DB.
    pub(in crate::replication) fn durable(&mut self, checkpoint: Lsn) {
        self.durable = self.durable.max(checkpoint);
        self.settled = self.settled.max(self.durable);
    }

    /// No open transaction, nothing buffered, nothing in flight.
    #[must_use]
    pub(in crate::replication) fn is_idle(&self) -> bool {
        !self.open && self.effects_through <= self.durable
    }

    /// What may be acknowledged to the Site DB.
    #[must_use]
    pub(in crate::replication) const fn acknowledgeable(&self) -> Lsn {
        self.durable
    }

    /// Everything up to here is durable in the Agent DB, or needs nothing written there.
    #[must_use]
    pub(in crate::replication) const fn settled(&self) -> Lsn {
        self.settled
    }

    /// The position that an idle stream may write as its next checkpoint; `None` if it is not ahead of the last one.
    #[must_use]
    pub(in crate::replication) fn idle_checkpoint(&self) -> Option<Lsn> {
        (self.is_idle() && self.settled > self.durable).then_some(self.settled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Transaction { effects: bool, whole: bool },
        Finish,
        Keepalive,
        SinkCommits,
        IdleCheckpoint,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), any::<bool>()).prop_map(|(effects, whole)| Step::Transaction { effects, whole }),
            Just(Step::Finish),
            Just(Step::Keepalive),
            Just(Step::SinkCommits),
            Just(Step::IdleCheckpoint),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the order of events, no position at or past an unwritten effect is ever acknowledged or settled,
        /// and none that the Agent DB does not hold is acknowledged.
        #[test]
        fn nothing_is_acknowledged_before_it_is_durable(steps in prop::collection::vec(step(), 1..64)) {
            let mut progress = Progress::resume(Lsn(100));
            let (mut wal, mut in_agent) = (100_u64, 100_u64);
            // Ends of transactions with effects that the Agent DB does not hold; None: not committed yet.
            let mut unwritten: Vec<Option<u64>> = Vec::new();
            let mut open: Option<bool> = None;
            for step in steps {
                match step {
                    Step::Transaction { effects, whole } if open.is_none() => {
                        wal += 10;
                        progress.begin();
                        if effects {
                            progress.effect();
                            unwritten.push(None);
                        }
                        open = Some(effects);
                        if whole {
                            wal += 10;
                            progress.commit(Lsn(wal));
                            if effects { *unwritten.last_mut().unwrap() = Some(wal) }
                            open = None;
                        }
                    }
                    Step::Finish => if let Some(effects) = open.take() {
                        wal += 10;
                        progress.commit(Lsn(wal));
                        if effects { *unwritten.last_mut().unwrap() = Some(wal) }
                    }
                    Step::Keepalive => {
                        // The walsender's position is behind an open transaction's end, and past everything it sent.
                        wal += 5;
                        progress.keepalive(Lsn(wal));
                    }
                    Step::SinkCommits => {
                        if let Some(end) = unwritten.iter().flatten().max().copied() {
                            in_agent = in_agent.max(end);
                            unwritten.retain(Option::is_none);
                            progress.durable(Lsn(end));
                        }
                    }
                    Step::IdleCheckpoint => if let Some(position) = progress.idle_checkpoint() {
                        prop_assert!(unwritten.is_empty() && open.is_none());
                        in_agent = in_agent.max(position.0);
                        progress.durable(position);
                    }
                    Step::Transaction { .. } => {}
                }
                prop_assert!(progress.acknowledgeable() <= Lsn(in_agent));
                prop_assert!(progress.settled() >= progress.acknowledgeable());
                for end in unwritten.iter().flatten() {
                    prop_assert!(progress.settled() < Lsn(*end));
                }
            }
        }
    }

    #[test]
    fn an_idle_keepalive_moves_the_slot_on_and_a_busy_one_does_not() {
        let mut progress = Progress::resume(Lsn(100));
        progress.keepalive(Lsn(200));
        assert_eq!(progress.acknowledgeable(), Lsn(100), "not before it is in the Agent DB");
        assert_eq!(progress.idle_checkpoint(), Some(Lsn(200)));
        progress.durable(Lsn(200));
        assert_eq!(progress.acknowledgeable(), Lsn(200));

        progress.begin();
        progress.effect();
        progress.keepalive(Lsn(300));
        progress.commit(Lsn(310));
        progress.keepalive(Lsn(400));
        assert_eq!((progress.settled(), progress.idle_checkpoint()), (Lsn(200), None));
        progress.durable(Lsn(310));
        progress.keepalive(Lsn(400));
        assert_eq!(progress.idle_checkpoint(), Some(Lsn(400)));
    }
}
