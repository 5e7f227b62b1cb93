//! What Meta posts to the callback.
//!
//! | file | |
//! |---|---|
//! | `statuses` | the statuses of an accepted message: which, when, as what |
//! | `inbound` | what users write; `samples` has a message of each type |
//! | `envelope` | the body around updates, in Meta's spelling |
//! | `delivery` | signed POSTs in batches, repeated until a 200 |

pub(super) mod delivery;
mod envelope;
mod inbound;
pub mod samples;
pub(super) mod statuses;

pub use inbound::Inbound;
