//! What every integration test stands on: real Postgres, a fresh database on both sides for each test, a network that can
//! be broken, and the built binary as a process that can be killed.
//!
//! ```ignore
//! let db = harness::databases().await;                       // two empty databases on two shared clusters
//! db.site.batch_execute("CREATE TABLE …").await.unwrap();    // a tokio_postgres::Client by deref
//! let proxy = harness::Proxy::start(db.site.cluster.port()).await;
//! harness::eventually("the row arrives", SOON, || async { … }).await;
//! harness::assert_same_table(&db.site, &db.agent, "public.leads").await;
//! ```
//!
//! The two clusters are shared by all tests of the process (they are stopped and removed when it ends, however it ends).
//! A test that restarts or reconfigures a server, or that holds a transaction open for long (a slot's creation waits for
//! every transaction of the *cluster*), starts its own with [`private_databases`].

mod databases;
mod process;
mod proxy;
mod tables;
mod wait;

pub(crate) use databases::{Database, Databases, databases, private_databases};
pub(crate) use process::{ConfigFile, Process};
pub(crate) use proxy::{Direction, Proxy};
pub(crate) use tables::{assert_same_table, differing_tables};
pub(crate) use wait::{SOON, eventually, eventually_equal};
