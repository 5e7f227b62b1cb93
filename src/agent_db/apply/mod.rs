//! Changes in, SQL out: rows, failed rows, accounting and checkpoint in one transaction of the Agent DB.
//!
//! An [`Applier`] is a session that holds the slot's lock. It begins a [`Transaction`], which applies [`Segment`]s and is
//! committed with a checkpoint or rolled back. Where changes come from and when to commit is decided by
//! `replication`.
//!
//! | file | its job |
//! |---|---|
//! | `applier` | what outlives a transaction |
//! | `transaction` | apply, commit, rollback |
//! | `compare` | compares rows with what the Agent DB holds |
//! | `segment` | what is applied, and the result |
//! | `write` | how a segment is written |
//! | `plan` | which changes one statement can write: pure |
//! | `sql` | statements and the forms in which rows are sent: pure |
//! | `targets` | the resolved tables and their prepared statements |
//! | `parked_keys` | the keys that are parked, and what a segment does to them |
//! | `parking_log` | what is said about parked rows |
//! | `ledger` | what became of each change |
//! | `limit` | ends a statement that takes too long |
//! | `session` | the connection and the state of its transaction |
//! | `rehearsal` | what a retry of parked rows would come to, rolled back |
//! | `trial` | whether the database takes a table's statements at all |
//! | `pipelined` | several statements in one round trip |

mod applier;
mod compare;
mod ledger;
mod limit;
mod parked_keys;
mod parking_log;
mod pipelined;
mod plan;
mod rehearsal;
mod segment;
mod session;
mod sql;
mod targets;
mod transaction;
mod trial;
mod write;

pub use applier::{Applier, ApplierSettings};
pub use compare::Comparer;
pub use rehearsal::{Rehearsal, Rehearsed};
pub use segment::{Applied, Committed, Item, PassedOver, Segment};
pub use transaction::Transaction;
pub(super) use trial::try_statements;
