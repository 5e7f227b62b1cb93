//! What Meta posts to the callback.
//!
//! | file | |
//! |---|---|
//! | `statuses` | the statuses of an accepted message: which, when, as what |
//! | `inbound` | what users write; `samples` has a message of each type |
//! | `people` | that users have other ids; the history |
//! | `envelope` | the body around updates, in Meta's spelling |
//! | `delivery` | signed POSTs in batches, repeated until a 200 |

pub(super) mod delivery;
mod envelope;
mod inbound;
mod people;
pub mod samples;
pub(super) mod statuses;

pub use inbound::Inbound;
pub use people::{History, IdentityChange};
