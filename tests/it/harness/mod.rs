//! The set-up of all integration tests: real Postgres, a fresh database on both sides for each test, a network that can
//! fail, and the built binary as a process that can be killed.
//!
//! ```ignore
//! let twins = Twins::new("CREATE TABLE notes (id int PRIMARY KEY)").await;   // GIVEN two databases and a table
//! let daemon = twins.start().await;                                         // and a daemon that is streaming
//! twins.on_site("INSERT INTO notes VALUES (1)").await;                      // WHEN
//! twins.until_equal(&["notes"]).await;                                      // THEN
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `twins` | two databases, a table, a daemon: the set-up of every test of the daemon |
//! | `databases` | the two clusters, and a fresh database on each for every test |
//! | `tables` | whether both sides are equal, and what the daemon's own tables say |
//! | `process`, `config_file` | the built binary: starts it, reads its output, ends it |
//! | `proxy` | a network that can fail |
//! | `http` | clients for our servers' ports |
//! | `pooler` | PgBouncer before a database |
//! | `tls` | certificates for servers |
//! | `background` | writers and readers in the background |
//! | `wait` | polls with a deadline: the only place where tests wait |
//!
//! The two clusters are shared by all tests of the process (they are stopped and removed when it ends, however it ends).
//! A test that restarts or reconfigures a server, or that holds a transaction open for long (a slot's creation waits for
//! every transaction of the *cluster*), starts its own with [`private_databases`].

mod background;
mod config_file;
mod databases;
mod http;
mod pooler;
mod process;
mod proxy;
mod tables;
mod tls;
mod twins;
mod wait;

pub(crate) use background::{Background, Rounds, pace};
pub(crate) use config_file::ConfigFile;
pub(crate) use databases::{Database, Databases, databases, databases_with_private_site, private_databases};
pub(crate) use http::{http_client, http_client_within};
pub(crate) use pooler::Pooler;
pub(crate) use process::Process;
pub(crate) use proxy::{Direction, Proxy};
pub(crate) use tables::{Accounting, assert_same_table, differing_tables, until_equal};
pub(crate) use tls::serve_tls;
pub(crate) use twins::{Daemon, NOTES, Twins};
pub(crate) use wait::{SOON, eventually, eventually_equal, eventually_is, holds_for};
