//! The integration tests: one binary, real parts. Needs Postgres 14 or later, which it finds by itself.

mod agent_db;
mod architecture;
mod campaign;
mod command_line;
mod demo;
mod doctor;
mod fuzz_seeds;
mod harness;
mod help;
mod inbox;
mod monitoring;
mod pitfalls;
mod postgres_clusters;
mod quickstart;
mod realtime;
mod server;
mod sessions;
mod simulate;
mod sync;
mod systemd;
mod whole;
mod wire;
