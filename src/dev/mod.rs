//! Stand-ins for the outside world, for `demo`, `simulate` and the tests: throwaway Postgres clusters and the Graph
//! simulator. `run`, `serve` and `sync` never use them.

pub mod graph_simulator;
pub mod postgres;
