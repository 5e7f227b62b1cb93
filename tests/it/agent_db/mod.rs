//! `agent_db`: segments applied to a real Agent DB.

mod copied;
mod fallback;
mod fixture;
mod gap;
mod knots;
mod names;
mod parking;
mod property;
mod rows;
mod session;
mod slow;
mod trigger_effects;
mod triggers;
mod values;
