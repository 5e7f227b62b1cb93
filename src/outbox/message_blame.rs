//! Finds messages that the provider refuses with an account error although it accepts others of the same number. Then
//! the message is at fault (it asks for something that this account may not do), and it must not hold the number again
//! and again: one client's message would stop all clients.
//!
//! A message of a client that waits is cancelled when it is refused, and a repeat is another message. So a number whose messages are
//! accepted is held only when several are refused and none is accepted in between: of two clients, or three of one.
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
/// As many refusals of one client's messages, with none accepted in between, hold the number.
const REFUSALS_OF_A_CLIENT: u32 = 3;
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
    /// By client: the refusals since a message was accepted last.
    in_a_row: HashMap<String, u32>,
    /// When the last one of these came.
    last_refusal: Option<Instant>,
}

/// What an account error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The number can't send.
    NumberAtFault,
    /// This message can't be sent.
    MessageAtFault,
    /// Either: the message waits, and others are tried.
    NotKnown,
}

impl MessageBlame {
    /// Notes that a message was accepted, by an attempt that began at `begun`.
    pub(super) fn accepted(&self, id: Uuid, begun: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.refused.remove(&id);
        known.accepted = known.accepted.max(Some(begun));
        if known.last_refusal.is_some_and(|refused| begun > refused) {
            known.in_a_row.clear();
            known.last_refusal = None;
        }
    }

    /// Notes that a client's message was refused with an account error. Returns what is to blame.
    ///
    /// Only [`ErrorClass::Permission`] may be about one message. All other classes concern the token, the account or the
    /// number, however often another message is accepted in between.
    pub(super) fn refused(&self, id: Uuid, client: &str, class: ProblemClass, now: Instant) -> Verdict {
        if class != ProblemClass::Refused(ErrorClass::Permission) {
            return Verdict::NumberAtFault;
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
        if *proofs >= REFUSALS_TO_BLAME {
            known.refused.remove(&id);
            return Verdict::MessageAtFault;
        }
        known.last_refusal = Some(now);
        let of_client = known.in_a_row.entry(client.to_owned()).or_default();
        *of_client += 1;
        let enough = *of_client >= REFUSALS_OF_A_CLIENT || known.in_a_row.len() > 1;
        if enough || accepted.is_none() {
            Verdict::NumberAtFault
        } else {
            Verdict::NotKnown
        }
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
            blame.refused(ID, "crm", ProblemClass::Refused(class), Instant::now())
        };
        // Nothing else is accepted: the account is at fault, however long.
        for _ in 0..10 {
            assert_eq!(refused(10), Verdict::NumberAtFault);
            tick().await;
        }
        // Another attempt that had begun before the refusal proves nothing.
        let begun = Instant::now();
        tick().await;
        assert_eq!(refused(10), Verdict::NumberAtFault);
        blame.accepted(OTHER, begun);
        tick().await;
        assert_eq!(refused(10), Verdict::NumberAtFault);
        tick().await;
        blame.accepted(OTHER, Instant::now());
        for verdict in [Verdict::NotKnown, Verdict::NotKnown, Verdict::MessageAtFault] {
            tick().await;
            assert_eq!(refused(10), verdict);
            tick().await;
            blame.accepted(OTHER, Instant::now());
        }
        // A token is never a message's fault, nor is a limit of the account that comes and goes.
        for _ in 0..10 {
            for code in [0, 190, 368, 131_031, 131_042, 131_048, 131_064] {
                tick().await;
                assert_eq!(refused(code), Verdict::NumberAtFault, "{code}");
            }
            tick().await;
            blame.accepted(OTHER, Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_is_at_fault_when_two_clients_or_three_messages_in_a_row_are_refused() {
        let blame = MessageBlame::default();
        let refused = async |client: &str| {
            tokio::time::advance(Duration::from_secs(1)).await;
            let class = ProblemClass::Refused(ErrorClass::Permission);
            blame.refused(Uuid::new_v4(), client, class, Instant::now())
        };
        let accepted = async || {
            tokio::time::advance(Duration::from_secs(1)).await;
            blame.accepted(OTHER, Instant::now());
        };
        // Before any was accepted, the first one tells.
        assert_eq!(refused("one").await, Verdict::NumberAtFault);
        for _ in 0..5 {
            accepted().await;
            assert_eq!(refused("one").await, Verdict::NotKnown);
            assert_eq!(refused("one").await, Verdict::NotKnown);
        }
        assert_eq!(refused("one").await, Verdict::NumberAtFault);
        accepted().await;
        assert_eq!(refused("one").await, Verdict::NotKnown);
        assert_eq!(refused("two").await, Verdict::NumberAtFault);
    }
}
