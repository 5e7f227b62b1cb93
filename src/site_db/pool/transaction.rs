//! A transaction, or a savepoint inside one, on a connection of the pool.

use std::sync::Arc;

use super::process::Process;
use super::session::Session;
use crate::site_db::SiteError;

/// A transaction, or a savepoint inside one. Dropped before [`commit`](Self::commit), it is rolled back.
///
/// READ COMMITTED, as [`locks`](crate::site_db::locks) needs it: each statement sees what was committed before it.
#[derive(Debug)]
pub struct Transaction<'a> {
    session: Lent<'a>,
    depth: u32,
    /// Neither committed nor rolled back.
    open: bool,
    /// Told of the commit; `None` for a savepoint.
    process: Option<Arc<Process>>,
}

#[derive(Debug)]
enum Lent<'a> {
    /// The transaction itself.
    Whole(Session),
    /// A savepoint in another one's session.
    Part(&'a mut Session),
}

impl Transaction<'static> {
    pub(super) async fn begin(mut session: Session, process: Arc<Process>) -> Result<Self, sqlx::Error> {
        let depth = session.begin().await?;
        Ok(Self {
            session: Lent::Whole(session),
            depth,
            open: true,
            process: Some(process),
        })
    }
}

impl Transaction<'_> {
    /// Commits; of a savepoint: keeps what was done since.
    ///
    /// # Errors
    /// The Site DB refused, or did not answer: then it is not known whether it is committed.
    pub async fn commit(mut self) -> Result<(), SiteError> {
        let depth = self.depth;
        self.connection().commit(depth).await?;
        self.open = false;
        if let Some(process) = &self.process {
            process.committed();
        }
        Ok(())
    }

    /// Rolls back; of a savepoint: only what was done since.
    ///
    /// # Errors
    /// The connection broke, which rolls everything back as well.
    pub async fn rollback(mut self) -> Result<(), SiteError> {
        let depth = self.depth;
        self.open = false;
        self.connection().rollback(depth).await?;
        Ok(())
    }

    /// A savepoint: what is done on it can be rolled back alone.
    ///
    /// # Errors
    /// See [`SiteError`].
    pub async fn savepoint(&mut self) -> Result<Transaction<'_>, SiteError> {
        let session = self.connection();
        let depth = session.begin().await?;
        Ok(Transaction {
            session: Lent::Part(session),
            depth,
            open: true,
            process: None,
        })
    }

    /// The connection, to run statements on.
    pub(in crate::site_db) fn connection(&mut self) -> &mut Session {
        match &mut self.session {
            Lent::Whole(session) => session,
            Lent::Part(session) => session,
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // The session of a whole transaction rolls it back when it is dropped.
        if self.open
            && let Lent::Part(session) = &mut self.session
        {
            session.rollback_later(self.depth);
        }
    }
}
