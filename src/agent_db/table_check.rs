//! Whether a table can be written now, found out over a session of its own, so that looking never disturbs the writing.

use tokio_postgres::Client;

use super::catalog;
use super::error::AgentError;
use crate::change::TableDescription;
use crate::config::DatabaseUrl;
use crate::postgres::{self, Side};

/// A session that looks, and writes nothing.
#[derive(Debug)]
pub struct TableCheck(Client);

impl TableCheck {
    /// Opens the session.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl) -> Result<Self, AgentError> {
        Ok(Self(postgres::connect(Side::Agent, url, "twinlog check").await?))
    }

    /// Looks whether the table is there, fits, may be written and is not locked.
    ///
    /// # Errors
    /// What is wrong with the table; or the connection's error.
    pub async fn check(&self, table: &TableDescription) -> Result<(), AgentError> {
        catalog::resolve(&self.0, table).await?;
        let lock = format!(
            "BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE NOWAIT; ROLLBACK",
            table.table.quoted()
        );
        let locked = self.0.batch_execute(&lock).await;
        if let Err(source) = locked {
            // The transaction is gone in any case, or the connection is.
            let _ = self.0.batch_execute("ROLLBACK").await;
            return Err(AgentError::from_driver("lock a table", Some(&table.table), source));
        }
        Ok(())
    }
}
