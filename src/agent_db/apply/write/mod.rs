//! Writing a segment: first all at once, then, where a row was refused, in exact stream order down to the guilty rows.
//!
//! | file | |
//! |---|---|
//! | `writer` | what all of it needs: session, resolved tables, parked keys, constraints |
//! | `segment` | which way is tried when |
//! | `at_once` | one statement for each table and kind |
//! | `in_order` | exact stream order, under savepoints |
//! | `groups` | some groups of rows, and what became of each row |
//! | `round_trip` | their statements, sent together |
//! | `copy_backoff` | how long a table is written without COPY |

mod at_once;
mod copy_backoff;
mod groups;
mod in_order;
mod round_trip;
mod segment;
mod writer;

pub(super) use copy_backoff::CopyBackoff;
pub(super) use writer::{Constraints, Writer};
