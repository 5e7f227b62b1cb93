//! Gives the slot up before the WAL that it keeps fills the Site DB's disk (`sync.give_up_slot_at`).
//!
//! The monitor measures, the loop of runs ends its run and drops the slot. Nothing is noted before the drop: a daemon that is
//! killed right after it finds a checkpoint without a slot at its next start, which is the same gap (`continuity`), and the Agent DB
//! may not even be there, as its absence is a reason for a slot to grow.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tracing::error;

use crate::failpoint;
use crate::source::{self, Sample, Source};
use crate::wire::{ReplicationConnection, ServerFault, SlotName};

use super::continuity::{GapReason, Verdict};
use super::error::SyncError;
use super::settings::PipelineSettings;
use super::stale_reader::end_if_dead;

/// Whether the slot keeps too much, and what would help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    /// It is within its limit.
    None,
    /// The daemon has confirmed nearly everything: a transaction of the Site DB that has written and is still open holds the
    /// slot back. A new slot could not be made before that transaction has ended, and every table would have to be read again.
    HeldBack,
    /// It is to be given up.
    Over,
}

impl Excess {
    /// Bytes: `kept` by the slot, of which the daemon has not confirmed `unconfirmed`.
    fn of(limit: u64, kept: u64, unconfirmed: u64) -> Self {
        if kept <= limit {
            Self::None
        } else if unconfirmed <= limit / 4 && kept <= limit.saturating_mul(2) {
            Self::HeldBack
        } else {
            Self::Over
        }
    }
}

/// The limit, and whether the slot is over it.
#[derive(Debug)]
pub(super) struct SlotLimit {
    /// Bytes; `None`: the slot is never given up.
    limit: Option<u64>,
    /// What the slot keeps, while that is more than the limit.
    over: watch::Sender<Option<u64>>,
    /// The slot that this process has given up, until there is another one.
    given_up: Mutex<Option<GapReason>>,
}

impl SlotLimit {
    pub(super) fn new(settings: &PipelineSettings) -> Self {
        Self {
            limit: settings.lost_slot.give_up_at,
            over: watch::Sender::new(None),
            given_up: Mutex::default(),
        }
    }

    /// Bytes that may still be kept; `None` without a limit.
    pub(super) fn headroom(&self, kept: i64) -> Option<i64> {
        let limit = i64::try_from(self.limit?).unwrap_or(i64::MAX);
        Some(limit.saturating_sub(kept).max(0))
    }

    /// What the slot keeps, and whether that is too much.
    fn measured(&self, sample: &Sample) -> (u64, Excess) {
        let bytes = |bytes: Option<i64>| u64::try_from(bytes.unwrap_or(0)).unwrap_or(0);
        let kept = bytes(sample.retained);
        // A slot that is not made to its end yet has confirmed nothing.
        let unconfirmed = bytes(sample.unconfirmed.or(sample.retained));
        let excess = self
            .limit
            .map_or(Excess::None, |limit| Excess::of(limit, kept, unconfirmed));
        (kept, excess)
    }

    /// The slot was measured. Returns whether it is over the limit, and kept, as an open transaction holds it back.
    pub(super) fn observe(&self, sample: &Sample) -> bool {
        let (kept, excess) = self.measured(sample);
        let over = (excess == Excess::Over).then_some(kept);
        self.over.send_if_modified(|before| {
            let is_other = before.is_some() != over.is_some();
            *before = over;
            is_other
        });
        excess == Excess::HeldBack
    }

    /// Waits until the slot is over its limit, and returns what it keeps.
    pub(super) async fn exceeded(&self) -> u64 {
        let mut over = self.over.subscribe();
        let kept = over
            .wait_for(Option::is_some)
            .await
            .map(|kept| kept.unwrap_or_default());
        match kept {
            Ok(kept) => kept,
            // Never: the sender is ours.
            Err(_) => std::future::pending().await,
        }
    }

    /// Drops the slot if it is still over its limit, now that the run has ended and confirmed what it had applied.
    ///
    /// # Errors
    /// It can't be dropped now, as when another program reads it: tried again before the next run. The connection of a dead daemon
    /// of ours is ended.
    pub(super) async fn enforce(&self, settings: &PipelineSettings, slot: &SlotName) -> Result<(), SyncError> {
        let (true, Some(limit)) = (self.over.borrow().is_some(), self.limit) else {
            return Ok(());
        };
        let source = Source::connect(&settings.site, "twinlog setup").await?;
        let (kept, excess) = self.measured(&source::sample(source.client(), slot.as_str()).await?);
        if excess != Excess::Over {
            self.over.send_replace(None);
            return Ok(());
        }
        let version = source::version(source.client()).await?;
        let found = source::slot(source.client(), slot.as_str(), version).await?;
        // Not what another program made with the same name, and nothing that is gone already.
        if found.is_some_and(|slot| slot.plugin == "pgoutput" && slot.database == settings.site.database) {
            let mut replication = ReplicationConnection::connect(&settings.site, "twinlog setup").await?;
            if let Err(error) = replication.drop_slot(slot).await {
                if error.fault() == Some(ServerFault::SlotActive) {
                    end_if_dead(&source, settings, slot).await;
                }
                return Err(error.into());
            }
            failpoint::reach(failpoint::name::SLOT_AFTER_GIVE_UP);
            replication.close().await;
            error!(%slot, kept_bytes = kept, limit_bytes = limit, "the slot is given up, as it kept more of the Site DB's log than sync.give_up_slot_at: rows may be missing until every table is read again");
            *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(GapReason::SlotGivenUp { kept, limit });
        }
        self.over.send_replace(None);
        Ok(())
    }

    /// A missing slot is named as what it is, if this process gave it up.
    pub(super) fn named(&self, verdict: Verdict) -> Verdict {
        if verdict != Verdict::Gap(GapReason::SlotMissing) {
            return verdict;
        }
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.clone().map_or(verdict, Verdict::Gap)
    }

    /// There is a slot again.
    pub(super) fn recreated(&self) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_open_transaction_holds_back_is_given_up_at_twice_the_limit_only() {
        for (kept, unconfirmed, excess) in [
            (100, 100, Excess::None),
            (101, 101, Excess::Over),
            (101, 26, Excess::Over),
            (101, 25, Excess::HeldBack),
            (200, 0, Excess::HeldBack),
            (201, 0, Excess::Over),
        ] {
            assert_eq!(Excess::of(100, kept, unconfirmed), excess, "{kept} {unconfirmed}");
        }
    }
}
