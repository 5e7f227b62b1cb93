//! Connections to the Site DB: the pool, and a transaction that other rooms can hold without knowing the driver.
//!
//! **Nothing waits for ever.** A host that goes silent in the middle of a statement sends no reset, so only a clock on our
//! side notices. Every wait has a limit: for a place ([`ACQUIRE_TIMEOUT`]), for the opening of a connection, for the test
//! of one that was idle, for each statement (see `session`), for a rollback, for closing. A connection that let a limit
//! pass, or whose caller went away in mid-statement, is closed and never used again; the next caller gets another one.
//!
//! Why not the driver's pool: it tests each connection that comes back, without a limit. One silent host takes all of its
//! places that way, for ever; and each use costs a round trip more. It also sets no TCP keepalive and offers no way to. Here
//! none is needed: a connection is used within seconds of its last answer, or tested first, or closed.
//!
//! | file | its job |
//! |---|---|
//! | `store` | idle connections and places, in memory |
//! | `open` | opens a connection and pins its settings |
//! | `listen` | a connection that waits for notifications |
//! | `process` | this process, as the Site DB knows it, and its commits |
//! | `session` | a connection in use: the time limit of each statement, and whether it is fit to be used again |
//! | `transaction` | [`Transaction`]: begin, commit, roll back, savepoints |

mod listen;
mod open;
mod process;
mod session;
mod store;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::store::Figures as PoolFigures;
pub use self::transaction::Transaction;

pub(super) use self::listen::Listening;
use self::open::Opening;
use self::process::Process;
pub(super) use self::session::Session;
use self::store::Store;
use super::SiteError;
use crate::config::Site;
use crate::retry::backoff;

/// Connections to the Site DB, shared by everything in this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(pub(super) Sessions, CancellationToken, Arc<Process>);

/// Where sessions come from. A statement that is executed on it gets a connection of its own.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    store: Arc<Store>,
    opening: Arc<Opening>,
}

/// How long a request waits for a connection: Meta's clients give up after 5 s at the earliest, and must hear from us
/// before that.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the first statement of a transaction may take, with the wait for a connection: it tests a connection that was
/// not tested. Nothing is written before it, so the caller knows that nothing is stored.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection that was used within this time is not tested before its next use. If it broke since, the statement fails
/// as it would if the connection broke a moment later.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long the test of an idle connection may take; it is one round trip.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest wait between tries to open a connection while a caller waits: a restart of the Site DB takes seconds.
const OPEN_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Pool {
    /// A pool that connects at its first use, so that the server starts even if the Site DB is down. `prepared` are statements
    /// that are prepared on each new connection.
    pub(super) fn connect_with(site: &Site, prepared: fn() -> [&'static str; 3]) -> Self {
        let shared = CancellationToken::new();
        let process = Arc::new(Process::new());
        let opening = Opening::new(&site.url, prepared, process.id, shared.clone());
        let store = Store::new(usize::try_from(site.max_connections).unwrap_or(1));
        let sessions = Sessions {
            store: Arc::new(store),
            opening: Arc::new(opening),
        };
        Self(sessions, shared, process)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// No connection could be opened or became free in time, or the Site DB is silent.
    pub async fn begin(&self) -> Result<Transaction<'static>, SiteError> {
        let process = Arc::clone(&self.2);
        let began = async { Transaction::begin(self.0.acquire().await?, process).await };
        timeout(BEGIN_TIMEOUT, began)
            .await
            .unwrap_or(Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
            .map_err(SiteError::from)
    }

    /// The id of this process in the Site DB's sessions.
    #[must_use]
    pub fn process(&self) -> Uuid {
        self.2.id
    }

    /// A statement that is a transaction of its own may have written events. [`Transaction::commit`] says so itself.
    pub(super) fn committed(&self) {
        self.2.committed();
    }

    /// Waits until this process has committed something since the last call. For one waiter.
    pub async fn next_commit(&self) {
        self.2.next_commit().await;
    }

    /// How many connections there are, and what they do.
    #[must_use]
    pub fn figures(&self) -> PoolFigures {
        self.0.store.figures()
    }

    /// Waits until a pooler is found that shares the server's sessions, and closes the pool for good: nothing may run on
    /// them.
    pub(super) async fn closed_for_shared_sessions(&self) {
        self.1.cancelled().await;
        self.0.store.shut();
    }

    /// Refuses new work, and returns when all connections are closed.
    pub async fn close(&self) {
        self.0.store.shut();
        self.0.store.emptied().await;
    }
}

impl Sessions {
    /// A connection for one caller.
    ///
    /// # Errors
    /// None became free or could be opened within [`ACQUIRE_TIMEOUT`].
    pub(super) async fn acquire(&self) -> Result<Session, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let place = timeout_at(deadline, self.store.place())
            .await
            .map_err(|_| sqlx::Error::PoolTimedOut)?
            .ok_or(sqlx::Error::PoolClosed)?;
        while let Some(idle) = self.store.take() {
            let since = idle.used.elapsed();
            let mut connection = idle;
            if since <= TRUSTED_FOR || matches!(timeout(TEST_TIMEOUT, connection.test()).await, Ok(Ok(()))) {
                return Ok(Session::new(connection, place));
            }
            // What broke this one has broken the others as well: opening one costs less than testing each.
            self.store.forget_idle();
        }
        let opening = Arc::clone(&self.opening);
        // A task, so that a connection that is opened slowly is there for the next caller.
        let opened = tokio::spawn(async move {
            let mut tries = 0;
            loop {
                match opening.open().await {
                    Ok(connection) => return Ok(Session::new(connection, place)),
                    Err(error) => {
                        tries += 1;
                        let again = Instant::now() + backoff(tries, OPEN_RETRY.0, OPEN_RETRY.1);
                        if again >= deadline || !open::may_pass(&error) {
                            return Err(error);
                        }
                        tokio::time::sleep_until(again).await;
                    }
                }
            }
        });
        match timeout_at(deadline, opened).await {
            Ok(Ok(opened)) => opened,
            // A panic, or the process is stopping.
            Ok(Err(_)) => Err(sqlx::Error::WorkerCrashed),
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }
}
