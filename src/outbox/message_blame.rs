//! Finds messages that the provider refuses with an account error although it accepts others of the same number. Then
//! the message is at fault (it asks for something that this account may not do), and it must not hold the number again
//! and again.
//!
//! Kept in memory: a new process only needs longer to find such a message.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use uuid::Uuid;

use crate::provider::ErrorClass;
use crate::site_db::messages::ProblemClass;

/// A message is to blame after this many refusals, if another message was accepted before each of them (and after the
/// refusal before it). More than one, because the account may also be restricted again in between.
const REFUSALS_TO_BLAME: u32 = 3;
/// Bound on the messages that are remembered. Each has held the number for a while, so there are few.
const MAX_MESSAGES: usize = 1000;

/// Which messages of a number may be to blame themselves.
#[derive(Debug, Default)]
pub(super) struct MessageBlame(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Start of the latest attempt that was accepted.
    accepted: Option<Instant>,
    /// By message: its last refusal, and how many of its refusals came after another message was accepted.
    refused: HashMap<Uuid, (Instant, u32)>,
}

impl MessageBlame {
    /// Notes that a message was accepted, by an attempt that began at `begun`.
    pub(super) fn accepted(&self, id: Uuid, begun: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.refused.remove(&id);
        known.accepted = known.accepted.max(Some(begun));
    }

    /// Notes that a message was refused with an account error. Returns whether the message is to blame.
    ///
    /// Only [`ErrorClass::Permission`] may be about one message. All other classes concern the token, the account or the
    /// number, however often another message is accepted in between.
    pub(super) fn refused(&self, id: Uuid, class: ProblemClass, now: Instant) -> bool {
        if class != ProblemClass::Refused(ErrorClass::Permission) {
            return false;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = known.accepted;
        if known.refused.len() >= MAX_MESSAGES && !known.refused.contains_key(&id) {
            known.refused.clear();
        }
        let (before, proofs) = known.refused.entry(id).or_insert((now, 0));
        if accepted.is_some_and(|accepted| accepted > *before) {
            *proofs += 1;
        }
        *before = now;
        let to_blame = *proofs >= REFUSALS_TO_BLAME;
        if to_blame {
            known.refused.remove(&id);
        }
        to_blame
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::cloud::GraphError;

    const ID: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    #[tokio::test(start_paused = true)]
    async fn only_what_is_refused_again_and_again_while_others_pass_is_to_blame() {
        let blame = MessageBlame::default();
        let tick = || tokio::time::advance(Duration::from_secs(1));
        let refused = |code| {
            let class = GraphError::new(code, "x").class(400);
            blame.refused(ID, ProblemClass::Refused(class), Instant::now())
        };
        // Nothing else is accepted: the account is at fault, however long.
        for _ in 0..10 {
            assert!(!refused(10));
            tick().await;
        }
        // Another attempt that had begun before the refusal proves nothing.
        let begun = Instant::now();
        tick().await;
        assert!(!refused(10));
        blame.accepted(OTHER, begun);
        for last in [false, false, false, true] {
            tick().await;
            assert_eq!(refused(10), last);
            tick().await;
            blame.accepted(OTHER, Instant::now());
        }
        // A token is never a message's fault, nor is a limit of the account that comes and goes.
        for _ in 0..10 {
            for code in [0, 190, 368, 131_031, 131_042, 131_048, 131_064] {
                tick().await;
                assert!(!refused(code));
            }
            tick().await;
            blame.accepted(OTHER, Instant::now());
        }
    }
}
