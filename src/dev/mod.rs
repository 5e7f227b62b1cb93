//! What stands in for the outside world: throwaway Postgres clusters, for `demo` and the tests.
//!
//! Nothing here is reached by `run`, `serve` or `sync`: those talk to databases that somebody else keeps.

pub mod graph_simulator;
pub mod postgres;
