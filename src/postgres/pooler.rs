//! Refuses a connection pooler in transaction mode, before anything of a session is changed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::connect::{establish, in_time};
use super::error::{SessionError, Side};
use crate::config::DatabaseUrl;

/// How long the second session of [`refuse_pooler`] waits for its answer. A pool in session mode whose only server session
/// is ours gives it none.
const SECOND_SESSION: Duration = Duration::from_secs(3);

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
    let answer = {
        let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(answers.entry(url.to_string()).or_default())
    };
    let mut keeps_sessions = answer.lock().await;
    if keeps_sessions.is_some_and(|asked| asked.elapsed() < ASKED_AGAIN_AFTER) {
        return Ok(());
    }
    ask_for_pooler(side, url).await?;
    *keeps_sessions = Some(Instant::now());
    Ok(())
}

async fn ask_for_pooler(side: Side, url: &DatabaseUrl) -> Result<(), SessionError> {
    let attempt = Box::pin(async {
        let (first, _) = establish(side, url, "twinlog check", None).await?;
        let own = process(side, &first).await?;
        let second = async {
            let (second, _) = establish(side, url, "twinlog check", None).await?;
            let mut other = process(side, &second).await?;
            // Where other clients use the pool too, a process may be taken by one of them between two questions.
            for _ in 1..ROUNDS {
                if other == own || process(side, &first).await? != own {
                    return Ok::<_, SessionError>(true);
                }
                other = process(side, &second).await?;
            }
            Ok(other == own)
        };
        // Where there is no second session (a limit), only the first one can be looked at.
        let shared = tokio::time::timeout(SECOND_SESSION, second).await;
        if matches!(shared, Ok(Ok(true))) || process(side, &first).await? != own {
            return Err(SessionError::Pooled {
                side,
                server: url.to_string(),
            });
        }
        Ok(())
    });
    in_time(side, url, attempt).await
}

/// The server process that answers: its id, and when it began, as servers behind one address may use the same ids.
async fn process(side: Side, client: &Client) -> Result<String, SessionError> {
    let messages = client
        .simple_query(
            "SELECT pg_catalog.concat(pg_catalog.pg_backend_pid(), ' ', pg_catalog.pg_postmaster_start_time())",
        )
        .await
        .map_err(|source| SessionError::new(side, "ask for the server process", source))?;
    Ok(messages
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap_or_default())
}
