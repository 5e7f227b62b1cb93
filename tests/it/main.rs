//! The integration tests: one binary, real parts. Needs Postgres 14 or later, which it finds by itself.

mod agent_db;
mod command_line;
mod harness;
mod postgres_clusters;
