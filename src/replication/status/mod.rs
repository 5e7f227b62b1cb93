//! What the daemon says about itself: the state, the positions, the delay.
//!
//! | file | its job |
//! |---|---|
//! | [`state`] | the daemon's state, derived from what is known |
//! | [`sync_status`] | what is known: written by the stream and by the runs, read by anyone |
//! | [`delay`] | how far the Agent DB is behind, in seconds |
//! | [`monitor`] | measures once a second, and tells metrics, health and `twinlog.daemon` |

pub(super) mod delay;
pub(super) mod monitor;
pub(super) mod state;
pub(super) mod sync_status;
