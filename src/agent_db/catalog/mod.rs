//! What the Agent DB's catalog says about its tables and the daemon's role. Read when a table is resolved or a session begins; writes
//! nothing.
//!
//! | file | its job |
//! |---|---|
//! | `target` | how to write a table |
//! | `read` | what the catalog says about one table |
//! | `key` | which of its unique keys tells its rows apart |
//! | `alike` | whether two types print a value alike |
//! | `resolve` | matches a table of the stream with it: what is wrong, or how to write it |
//! | `deferred_triggers` | whether triggers fire with the commit |
//! | `foreign_keys` | in which order tables are written |
//! | `examine` | what is wrong with a table, as far as the catalog says it |
//! | `values` | which columns of a table must have values that no other row has |
//! | `rights` | what the role may do |

mod alike;
mod deferred_triggers;
mod examine;
mod foreign_keys;
mod key;
mod read;
mod resolve;
mod rights;
mod target;
mod values;

pub(super) use deferred_triggers::has_deferred_triggers;
pub(super) use examine::examine;
pub(super) use foreign_keys::{Action, ForeignKey, ForeignKeys};
pub(super) use read::Sight;
pub(super) use resolve::resolve;
pub(super) use rights::Rights;
pub(super) use target::{Column, Lookup, Target};
pub(super) use values::UniqueValues;
