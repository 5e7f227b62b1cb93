//! A command that is served: its progress, and whether it is still wanted.

use std::pin::pin;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::agent_db::{CommandKind, Comparison, Control, Difference, VerifiedTable, Verify};
use crate::replication::error::SyncError;
use crate::replication::schedule::{is_of_person, is_scheduled};

/// How often it is looked whether a command is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether a command goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    On,
    /// It was ended by somebody, or the daemon stops.
    NoFurther,
}

/// A command that is served.
pub(super) struct Served<'a> {
    pub(super) control: &'a Control,
    pub(super) id: i64,
    pub(super) verify: Verify,
    /// When its progress was stored.
    pub(super) stored: Instant,
}

impl Served<'_> {
    pub(super) fn table(&mut self, at: usize) -> Option<&mut VerifiedTable> {
        self.verify.progress.tables.get_mut(at)
    }

    /// Forgets what was found of a table: it is not the same any more.
    pub(super) fn begin_anew(&mut self, at: usize) {
        if let Some(table) = self.table(at) {
            table.begin_anew(OffsetDateTime::now_utc());
        }
    }

    /// Stores the progress; tells whether the command goes on.
    pub(super) async fn store(&mut self) -> Result<Goes, SyncError> {
        self.stored = Instant::now();
        let kind = CommandKind::Verify(self.verify.clone());
        if !self.control.command_progress(self.id, &kind).await? {
            return Ok(Goes::NoFurther);
        }
        self.goes_on().await
    }

    /// Whether the command goes on: it is still wanted, and nobody waits for another one.
    async fn goes_on(&self) -> Result<Goes, SyncError> {
        let waits = is_scheduled(&self.verify) && self.control.open_commands().await?.iter().any(is_of_person);
        if waits || !self.control.is_wanted(self.id).await? {
            return Ok(Goes::NoFurther);
        }
        Ok(Goes::On)
    }

    /// Does a part of the work, however long it waits for a lock; `None` if meanwhile the command goes no further.
    pub(super) async fn while_wanted<T>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, SyncError> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                done = &mut work => return Ok(Some(done)),
                () = tokio::time::sleep(LOOK_EVERY) => if self.goes_on().await? == Goes::NoFurther {
                    return Ok(None);
                },
            }
        }
    }

    /// Counts a page's differences; stores them before they are repaired.
    pub(super) async fn add(&mut self, at: usize, differences: &[Difference]) -> Result<Goes, SyncError> {
        let interrupted = self.table(at).is_some_and(|table| table.repairing > 0);
        if differences.is_empty() && !interrupted {
            return Ok(Goes::On);
        }
        let before = self.table(at).map_or(0, |table| table.differing());
        self.verify.progress.add(at, differences);
        let is_repaired = self.verify.arguments.repair;
        let Some(shown) = self.table(at).filter(|_| is_repaired) else {
            return Ok(Goes::On);
        };
        shown.repairing += shown.differing() - before;
        self.store().await
    }

    /// Counts what was repaired: all of the page but what still differs.
    pub(super) fn repaired(&mut self, at: usize, left: &Comparison) {
        let rows: u64 = left.differences.iter().map(Difference::rows).sum();
        if let Some(shown) = self.table(at) {
            shown.parked += left.parked;
            shown.repaired += std::mem::take(&mut shown.repairing).saturating_sub(rows + left.parked);
        }
    }
}
