//! Which changes can be written by one statement: pure.
//!
//! A [`WritePlan`] folds each key's changes into one, column by column, so that a statement never meets a key twice (P25)
//! and an unchanged value is never lost (P20). The rows of one plan have distinct keys, so their order does not matter to
//! the result. The plan of a table is written first before a change whose order would matter:
//!
//! - a key change whose old or new key is in the plan already,
//! - a partial image after a delete of the key: it has no base, and must be applied in its own place,
//! - a chunk's row for a parked key, whose outcome decides what the key's next change means,
//! - another set of columns for the table,
//! - a truncate (ends the plans of all tables).
//!
//! Secondary unique indexes and foreign keys are not known here: if the database refuses a plan, the segment is written
//! once more in exact order, by [`OrderedRun`]s (P24).
//!
//! | file | |
//! |---|---|
//! | `image` | the result of a row's changes |
//! | `write_plan` | changes that can be written together, regardless of their order |
//! | `counted` | what the changes of equal rows come to, where rows are counted |
//! | `group` | the rows of one statement |
//! | `offer` | what a plan answers to a change |
//! | `ordered_run` | neighbours in the stream that one statement can write |

mod counted;
mod group;
mod image;
mod offer;
mod ordered_run;
mod write_plan;

pub(super) use group::{Group, Purpose, RowWrite, present};
pub(super) use image::moved;
pub(super) use offer::Offer;
pub(super) use ordered_run::OrderedRun;
pub(super) use write_plan::WritePlan;

#[cfg(test)]
mod tests;
