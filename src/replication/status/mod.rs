//! What the daemon says about itself: the state, the positions, the delay.
//!
//! | file | its job |
//! |---|---|
//! | [`state`] | the names of the daemon's state |
//! | [`sync_status`] | the figures of the running stream, written by it and read by anyone |
//! | [`delay`] | how far the Agent DB is behind, in seconds |

pub(super) mod delay;
pub(super) mod state;
pub(super) mod sync_status;
