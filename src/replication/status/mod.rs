//! What the daemon reports about itself: its state, positions and delay.
//!
//! | file | its job |
//! |---|---|
//! | [`state`] | the daemon's state, derived from facts |
//! | [`sync_status`] | these facts and figures: written by the stream and the runs, read by the monitor |
//! | [`delay`] | how far the Agent DB is behind, in seconds |
//! | [`forecast`] | when the slot will be full |
//! | [`monitor`] | measures once a second, and writes metrics, health and `twinlog.daemon` |

pub(super) mod delay;
pub(super) mod forecast;
pub(super) mod monitor;
pub(super) mod state;
pub(super) mod sync_status;
