//! Why the server refuses a table's statements, as exactly as its catalog says it.

use super::writer::Writer;
use crate::agent_db::catalog;
use crate::agent_db::error::AgentError;
use crate::postgres::sqlstate::LOCK_NOT_AVAILABLE;

impl Writer {
    /// The fault that the catalog shows, with its own remedy; else the refusal as it is. The caller has gone back to where the
    /// segment began.
    pub(in crate::agent_db::apply) async fn explained(&mut self, fault: AgentError) -> Result<AgentError, AgentError> {
        let (AgentError::TableRefused { table, refusal, .. }
        | AgentError::Refused {
            table: Some(table),
            refusal,
            ..
        }) = &fault
        else {
            return Ok(fault);
        };
        let Some(description) = self.targets.description(table) else {
            return Ok(fault);
        };
        if refusal.sqlstate == LOCK_NOT_AVAILABLE {
            return Ok(fault);
        }
        self.session.open().await?;
        self.session.command("SAVEPOINT look").await?;
        let examined = Box::pin(catalog::examine(&self.session.client, &description)).await;
        self.back_to("ROLLBACK TO SAVEPOINT look; RELEASE SAVEPOINT look")
            .await?;
        Ok(match examined {
            Err(found) if found.table_fault().is_some() => found,
            _ => fault,
        })
    }
}
