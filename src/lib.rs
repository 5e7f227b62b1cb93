//! Twinlog keeps WhatsApp Business conversations safe in two Postgres databases.
//!
//! The map. Two halves that never name each other, and small pure modules that both may use:
//!
//! ```text
//! main → cli ─→ http ─→ outbox, inbox ─→ provider, site_db ─→ postgres
//!          └──→ replication ─→ wire, pgoutput, copy ─→ source, agent_db ─→ postgres ─→ change
//! everyone may use: lsn, timestamp, retry, shutdown, metrics, health, config, failpoint
//! ```
//!
//! | half | module | its job |
//! |---|---|---|
//! | daemon | [`pgoutput`] | bytes of the replication stream → messages; pure and total |
//! | | [`wire`] | the replication connection: TLS, login, framing, feedback |
//! | | [`replication`] | what the stream means: batches, progress, slot and gap states, reconnect |
//! | | [`copy`] | the fenced chunk: initial copy, resync, healing of parked rows |
//! | | [`source`] | all that the daemon asks the Site DB over plain connections |
//! | | [`agent_db`] | the sink: rows, failed rows, accounting and checkpoint in one transaction |
//! | | [`change`] | a row's change, in words that all of these share |
//! | server | [`http`] | routes, authentication, limits |
//! | | [`outbox`] | claim, rate-limit, send, reconcile |
//! | | [`inbox`] | raw webhook event → messages, statuses, leads |
//! | | [`site_db`] | the server's statements on the Site DB |
//! | | [`provider`] | WhatsApp's providers in one small language; the Cloud API: types, error classes, signature |
//! | both | [`cli`] | commands, composition, logs, health |
//! | | [`postgres`] | a session with either database: connect, TLS, settings, quoting, what a SQLSTATE means |
//! | | [`migrations`] | the schemas that come along, and how they get into the databases |
//! | | [`dev`] | throwaway Postgres clusters and the Graph simulator, for `demo` and the tests |
//!
//! The test `tests/it/architecture.rs` holds the arrows.

pub mod agent_db;
pub mod change;
pub mod cli;
pub mod config;
pub mod copy;
pub mod dev;
pub mod failpoint;
pub mod health;
pub mod http;
pub mod inbox;
pub mod lsn;
pub mod metrics;
pub mod migrations;
pub mod outbox;
pub mod pgoutput;
pub mod postgres;
pub mod provider;
pub mod replication;
pub mod retry;
pub mod shutdown;
pub mod site_db;
pub mod source;
pub mod timestamp;
pub mod wire;
