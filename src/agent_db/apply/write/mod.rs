//! Writes a segment: first all at once; if a row is refused, again in exact stream order, to find the refused rows.
//!
//! | file | its job |
//! |---|---|
//! | `writer` | what every way needs: session, resolved tables, parked keys, constraints |
//! | `segment` | the ways to write, from the fastest to the most exact |
//! | `at_once` | one statement for each table and kind |
//! | `in_order` | exact stream order, under savepoints |
//! | `groups` | groups of rows, and the result for each row |
//! | `heal` | parked rows that wait for each other |
//! | `explained` | why the server refuses a table's statements |
//! | `order` | whether the order of the stream must be kept |
//! | `stale` | rows that must wait for parked rows that refer to them |
//! | `truncate` | TRUNCATE, and whose fault it is |
//! | `round_trip` | their statements, sent together |
//! | `part` | one of them with its values, and its answer |
//! | `late` | the second look, at what deferred triggers have changed |
//! | `late_rows` | the rows that it looks at |
//! | `staged` | values that are sent ahead of their statements |
//! | `slow` | how many rows one statement of a slow table writes |
//! | `copy_backoff` | how long a table is written without COPY |

mod at_once;
mod copy_backoff;
mod explained;
mod groups;
mod heal;
mod in_order;
mod late;
mod late_rows;
mod order;
mod part;
mod round_trip;
mod segment;
mod slow;
mod staged;
mod stale;
mod truncate;
mod writer;

pub(super) use copy_backoff::CopyBackoff;
pub(super) use late_rows::LateRows;
pub(super) use slow::SlowTables;
pub(super) use writer::{Constraints, LockWait, Writer};
