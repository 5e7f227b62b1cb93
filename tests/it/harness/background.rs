//! Work in the background of a test: writers, readers, deleters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::wait::{SOON, eventually};

/// A task that repeats a round until the test ends it. [`Self::end`] returns its result.
pub(crate) struct Background<T> {
    rounds: Rounds,
    task: JoinHandle<T>,
}

/// What the task and the test share.
#[derive(Clone, Default)]
pub(crate) struct Rounds {
    ended: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Rounds {
    /// Whether another round is wanted.
    pub(crate) fn go_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    /// Counts a round that has succeeded.
    pub(crate) fn count(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl<T: Send + 'static> Background<T> {
    /// Starts the task.
    pub(crate) fn start<F>(work: impl FnOnce(Rounds) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let rounds = Rounds::default();
        let task = tokio::spawn(work(rounds.clone()));
        Self { rounds, task }
    }

    /// Waits until it has done this number of further rounds.
    pub(crate) async fn more(&self, rounds: u64) {
        let goal = self.rounds.done.load(Ordering::Relaxed) + rounds;
        eventually(
            &format!("round {goal} of the work beside the test is done"),
            SOON,
            || async {
                let done = self.rounds.done.load(Ordering::Relaxed);
                if done >= goal { Ok(()) } else { Err(done) }
            },
        )
        .await;
    }

    /// Lets the current round end, and returns the task's result.
    pub(crate) async fn end(self) -> T {
        self.rounds.ended.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A pause between two rounds of load that a test makes. This is no wait: no assertion may need it.
pub(crate) async fn pace(pause: Duration) {
    tokio::time::sleep(pause).await;
}
