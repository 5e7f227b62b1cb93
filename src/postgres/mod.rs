//! A session with either database: how it is opened and what every session has in common.
//!
//! | file | its job |
//! |---|---|
//! | [`connect()`] | opens a session with pinned settings |
//! | [`plain`] | opens a session on a throwaway cluster, with nothing pinned |
//! | `pooler` | refuses a connection pooler in transaction mode |
//! | [`session_settings`] | the one list of settings that every session pins |
//! | [`tls`] | what `sslmode` and `sslrootcert` mean |
//! | [`sqlx_access()`] | the same for sqlx |
//! | [`sqlx_relay`] | carries sqlx's connections: TLS, and a bound on the memory that answers take |
//! | `answer_bound` | that bound |
//! | [`error`] | what can go wrong with a session, on which [`Side`], and what to do about it |
//! | [`sqlstate`] | the one table of what each SQLSTATE means |
//! | [`quote`] | names in statements |
//! | `lossy` | names that are not UTF-8 |
//! | [`condition`] | the condition of `resync --where`: parsed, and written anew as SQL |
//! | [`keys`] | how Postgres compares keys |
//! | [`row_text`] | rows that no key tells apart, known by their text |
//! | [`row_digest`] | digests of ranges of rows, which both databases compute alike |
//! | [`server_facts`] | what a server says about itself and our role |
//! | [`waits`] | what our sessions wait for, and who makes them wait |
//! | [`sequences`] | the sequences from which columns take their values |
//! | [`type_parts`] | what both databases list alike: parts of types, foreign keys |
//! | `lsn` | positions as `pg_lsn` |
//!
//! Not here: statements for the Site DB (`source`, `site_db`) and the Agent DB (`agent_db`), and the replication connection
//! (`wire`), which uses the same TLS and the same settings.

mod answer_bound;
pub mod condition;
pub mod connect;
pub mod diagnosis;
pub mod error;
pub mod keys;
mod lossy;
mod lsn;
pub mod plain;
mod pooler;
pub mod quote;
pub mod row_digest;
pub mod row_text;
pub mod sequences;
pub mod server_facts;
pub mod session_settings;
pub mod sqlstate;
pub mod sqlx_options;
pub mod sqlx_relay;
pub mod tls;
pub mod type_parts;
pub mod waits;

pub use condition::{Condition, ConditionError};
pub use connect::connect;
pub use error::{RaisedBy, Refusal, SessionError, Side};
pub use lossy::Lossy;
pub use plain::connect_plain;
pub use pooler::{finds_pooler, refuse_pooler};
pub use quote::{quote_identifier, quote_literal};
pub use sqlstate::{DEADLOCK, QUERY_CANCELED, disposition};
pub use sqlx_options::sqlx_access;
pub use sqlx_relay::SqlxAccess;
pub use tokio_postgres::{Client, Error as DriverError};

/// Where the driver's log lines come from. At `debug` it prints the parameters of every statement.
pub const DRIVER_LOG_TARGET: &str = "tokio_postgres";

/// Where sqlx logs the notices that a server sends.
pub const NOTICES_LOG_TARGET: &str = "sqlx::postgres::notice";
