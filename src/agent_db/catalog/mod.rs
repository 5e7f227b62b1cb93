//! What the Agent DB says of its tables and of the daemon's role. Read when a table is resolved or a session begins; writes
//! nothing.
//!
//! | file | |
//! |---|---|
//! | `target` | how to write a table |
//! | `read` | what the catalog says of one table |
//! | `resolve` | the match of both: what is wrong, or how to write it |
//! | `foreign_keys` | in which order tables are written |
//! | `rights` | what the role may do |

mod foreign_keys;
mod read;
mod resolve;
mod rights;
mod target;

pub(super) use foreign_keys::ForeignKeys;
pub(super) use resolve::resolve;
pub(super) use rights::Rights;
pub(super) use target::{Column, Target};
