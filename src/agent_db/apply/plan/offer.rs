//! What a plan answers to a change.

use crate::change::Change;

/// The result of offering a change to a plan.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent_db::apply) enum Offer<'a> {
    /// It is in the plan.
    Taken,
    /// It is in the plan, and this earlier change of the key is now part of it.
    Folded(&'a Change),
    /// It and this earlier change of an equal row cancel each other: neither is in the plan.
    Cancelled(&'a Change),
    /// Write this table's plan first, then offer the change again.
    WriteFirst,
}
