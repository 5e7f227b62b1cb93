//! Twinlog keeps WhatsApp Business conversations safe in two Postgres databases.
//!
//! The **server** sends messages and takes Meta's webhooks, and commits both to the Site DB. The **daemon** reads the Site
//! DB's log and keeps the Agent DB its twin. They are two halves that never name each other:
//!
//! ```text
//! main → cli ─→ http ─→ outbox, inbox, subscribers ─→ realtime ─→ provider, site_db ─→ postgres
//!          └──→ replication ─→ wire, pgoutput, copy ─→ source, agent_db ─→ postgres ─→ change
//! cli → doctor ─→ replication, source, agent_db, site_db, provider, migrations
//! everyone may use: config, failpoint, group_commit, health, lsn, metrics, retry, shutdown, timestamp
//! ```
//!
//! | half | module | its job |
//! |---|---|---|
//! | daemon | [`replication`] | what the stream means: batches, progress, slot and gap states, each table's life, reconnect |
//! | | [`wire`] | the replication connection: TLS, login, framing, feedback |
//! | | [`pgoutput`] | bytes of the replication stream → messages; pure and total |
//! | | [`copy`] | the fenced chunk: first copy, resync, healing of parked rows |
//! | | [`source`] | all that the daemon asks the Site DB over plain connections |
//! | | [`agent_db`] | rows, failed rows, accounting and checkpoint in one transaction; the daemon's own tables |
//! | | [`change`] | a row's change, in words that all of these share |
//! | server | [`http`] | routes, authentication, limits |
//! | | [`outbox`] | claim, rate-limit, send, reconcile |
//! | | [`inbox`] | raw webhook event → messages, statuses, leads |
//! | | [`subscribers`] | hands webhooks on to other receivers |
//! | | [`realtime`] | pushes events: tells those who wait what was committed |
//! | | [`provider`] | WhatsApp's providers behind one set of types; Meta's Cloud API |
//! | | [`site_db`] | the server's statements on the Site DB, one owner for each table |
//! | both | [`cli`] | commands, composition, logs |
//! | | [`doctor`] | examines a set-up: asks every room that knows something, and says what it means |
//! | | [`postgres`] | a session with either database: connect, TLS, settings, quoting, what a SQLSTATE means |
//! | | [`migrations`] | the schemas that come along, and how they get into the databases |
//! | | [`dev`] | throwaway Postgres clusters and the Graph simulator, for `demo` and the tests |
//!
//! # Three walks
//!
//! Each goes down the map, and never up again.
//!
//! - **A change of a row, from the log to the Agent DB.** [`wire`] hands over payloads → [`pgoutput`] decodes them →
//!   `replication::stream` assembles changes and closes a batch on a commit → [`agent_db`]'s applier plans statements,
//!   writes rows and failed rows, and commits them with the checkpoint → `replication::stream` acknowledges the position.
//! - **A message, from the request to its outcome.** [`http`] reads the request → [`outbox`] commits it `pending`, claims
//!   it (`sending`), and calls the [`provider`] → the answer becomes a transition that [`site_db`] writes,
//!   and [`realtime`] wakes the request that waits for it.
//! - **A webhook, from Meta to the conversation.** [`http`] → [`inbox`] checks the signature and commits the raw event, and
//!   only then Meta gets its 200 → a worker has [`provider`] read the events → [`site_db`] writes messages, reports and leads.
//!
//! "Pitfall P7" in a comment is a known bug of other systems of this field; `tests/it/pitfalls` lists all of them.
//!
//! The test `tests/it/architecture` holds the map: who may name whom, which module may use which driver, no circles, the
//! size of files.

pub mod agent_db;
pub mod change;
pub mod cli;
pub mod config;
pub mod copy;
pub mod dev;
pub mod doctor;
pub mod failpoint;
pub mod group_commit;
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
pub mod realtime;
pub mod replication;
pub mod retry;
pub mod shutdown;
pub mod site_db;
pub mod source;
pub mod subscribers;
pub mod timestamp;
pub mod wire;
