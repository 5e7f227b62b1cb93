//! x
pub mod fence;
pub mod snapshot;
pub mod window;
