//! `agent_db`: segments applied to a real Agent DB.

mod copied;
mod fallback;
mod fixture;
mod parking;
mod property;
mod rows;
mod session;
mod values;
