//! The daemon end to end: two real databases, the real binary.

mod agent_changes;
mod basics;
mod claims;
mod convergence;
mod copying;
mod gap;
mod held;
mod identities;
mod joining;
mod keyless;
mod kills;
mod knots;
mod memory;
mod oracle;
mod pooler;
mod program;
mod renames;
mod resync;
mod setup;
mod spelling;
mod systemic;
mod told;
mod too_large;
mod unlogged;
mod unseen;
mod waiting;
