//! Refuses a connection pooler in transaction mode, before anything of a session is changed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};
use tokio_postgres::Client;

use super::connect::{establish, in_time};
use super::error::{SessionError, Side};
use super::sqlx_relay::SqlxAccess;
use crate::config::DatabaseUrl;

/// How long the second session of [`refuse_pooler`] waits for its answer. A pool in session mode whose only server session
/// is ours gives it none.
const SECOND_SESSION: Duration = Duration::from_secs(3);

/// How long the whole question may take over sqlx, whose sessions have no limit of their own.
const SQLX_QUESTION: Duration = Duration::from_secs(15);

/// How often both sessions are asked for their processes.
const ROUNDS: u32 = 4;

/// For how long a server that was found to keep its sessions is not asked again: a daemon opens about five connections at
/// a start, and each question costs two more and ten round trips.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// When a server (with user and database) was last found to keep its sessions. Who asks holds the inner lock, so that others
/// who want to know the same wait for its answer.
type Answer = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// One entry for each URL of the configuration.
static ANSWERS: LazyLock<Mutex<HashMap<String, Answer>>> = LazyLock::new(Mutex::default);

/// Makes sure that a session keeps its server process, before anything of a session is changed: settings and locks of ours
/// would else reach other clients of a pool. While a first session is idle, a second one must not get the same process,
/// nor the first one another. The answer holds for [`ASKED_AGAIN_AFTER`].
///
/// # Errors
/// [`SessionError::Pooled`]; the first session can't be opened.
pub async fn refuse_pooler(side: Side, url: &DatabaseUrl) -> Result<(), SessionError> {
    let answer = answer_of(url);
    let mut keeps_sessions = answer.lock().await;
    if keeps_sessions.is_some_and(|asked| asked.elapsed() < ASKED_AGAIN_AFTER) {
        return Ok(());
    }
    ask_for_pooler(side, url).await?;
    *keeps_sessions = Some(Instant::now());
    Ok(())
}

/// The same for the sessions of sqlx, which are opened by it; `url` is that of `access`.
///
/// # Errors
/// None: the answer is whether the sessions are shared, `None` if that could not be asked.
pub async fn finds_pooler(access: &SqlxAccess, url: &DatabaseUrl) -> Option<bool> {
    let answer = answer_of(url);
    let mut keeps_sessions = answer.lock().await;
    if keeps_sessions.is_some_and(|asked| asked.elapsed() < ASKED_AGAIN_AFTER) {
        return Some(false);
    }
    let shared = tokio::time::timeout(SQLX_QUESTION, share_a_process(access))
        .await
        .ok()?
        .ok()?;
    if !shared {
        *keeps_sessions = Some(Instant::now());
    }
    Some(shared)
}

fn answer_of(url: &DatabaseUrl) -> Answer {
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(answers.entry(url.to_string()).or_default())
}

async fn ask_for_pooler(side: Side, url: &DatabaseUrl) -> Result<(), SessionError> {
    let attempt = Box::pin(async {
        if share_a_process(&Plain { side, url }).await? {
            return Err(SessionError::Pooled {
                side,
                server: url.to_string(),
            });
        }
        Ok(())
    });
    in_time(side, url, attempt).await
}

/// Opens sessions, and asks them who answers.
trait Sessions: Sync {
    type Session: Send;
    type Error: Send;

    fn open(&self) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// What [`PROCESS`] gives.
    fn process(&self, session: &mut Self::Session) -> impl Future<Output = Result<String, Self::Error>> + Send;
}

/// The server process that answers: its id, and when it began, as servers behind one address may use the same ids.
const PROCESS: &str =
    "SELECT pg_catalog.concat(pg_catalog.pg_backend_pid(), ' ', pg_catalog.pg_postmaster_start_time())";

/// Whether a session may get another's server process.
async fn share_a_process<S: Sessions>(sessions: &S) -> Result<bool, S::Error> {
    let mut first = sessions.open().await?;
    let own = sessions.process(&mut first).await?;
    let second = async {
        let mut second = sessions.open().await?;
        let mut other = sessions.process(&mut second).await?;
        // Where other clients use the pool too, a process may be taken by one of them between two questions.
        for _ in 1..ROUNDS {
            if other == own || sessions.process(&mut first).await? != own {
                return Ok::<_, S::Error>(true);
            }
            other = sessions.process(&mut second).await?;
        }
        Ok(other == own)
    };
    // Where there is no second session (a limit), only the first one can be looked at.
    let shared = tokio::time::timeout(SECOND_SESSION, second).await;
    Ok(matches!(shared, Ok(Ok(true))) || sessions.process(&mut first).await? != own)
}

struct Plain<'a> {
    side: Side,
    url: &'a DatabaseUrl,
}

impl Sessions for Plain<'_> {
    type Session = Client;
    type Error = SessionError;

    async fn open(&self) -> Result<Client, SessionError> {
        let (client, _) = establish(self.side, self.url, "twinlog check", None).await?;
        Ok(client)
    }

    async fn process(&self, client: &mut Client) -> Result<String, SessionError> {
        let messages = client
            .simple_query(PROCESS)
            .await
            .map_err(|source| SessionError::new(self.side, "ask for the server process", source))?;
        Ok(messages
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_default())
    }
}

impl Sessions for SqlxAccess {
    type Session = PgConnection;
    type Error = sqlx::Error;

    async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        self.connect().await
    }

    async fn process(&self, connection: &mut PgConnection) -> Result<String, sqlx::Error> {
        // In the simple protocol: a prepared statement may not be known to the next server process.
        let row = connection.fetch_one(PROCESS).await?;
        row.try_get(0)
    }
}
