//! What `twinlog doctor` asks of the Agent DB: the rights of the daemon's role, and for each table what is wrong with it and what
//! fires when it is written. Reads the catalog only.

use tokio_postgres::Client;

use super::catalog::{self, Rights};
use super::error::AgentError;
use crate::change::{TableDescription, TableName};
use crate::config::DatabaseUrl;
use crate::postgres::connect::{self, CutLater};
use crate::postgres::session_settings::SessionKind;
use crate::postgres::{Side, refuse_pooler};

/// A session that looks, and writes nothing.
#[derive(Debug)]
pub struct Survey {
    client: Client,
    rights: Rights,
    _cut: CutLater,
}

/// What the role may do beyond writing its tables. None of it is required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRights {
    /// The role's name, unquoted.
    pub role: String,
    /// `session_replication_role = replica`: triggers and foreign keys are passed over.
    pub skips_triggers: bool,
    /// `TEMPORARY` on the database: values of many megabytes are sent in pieces.
    pub makes_temporary_tables: bool,
}

/// What happens in the Agent DB when a table's rows are written as the daemon writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WhatFires {
    /// Triggers of people that fire, unquoted.
    pub triggers: Vec<String>,
    /// Foreign keys that are checked at once, unquoted.
    pub foreign_keys: Vec<String>,
}

impl Survey {
    /// Opens the session, with the same triggers and rules as the one that writes.
    ///
    /// # Errors
    /// The connection's.
    pub async fn connect(url: &DatabaseUrl) -> Result<Self, AgentError> {
        refuse_pooler(Side::Agent, url).await?;
        let (client, cut) = connect::open_bounded(Side::Agent, url, "twinlog doctor", SessionKind::Writing).await?;
        let rights = Rights::probe(&client).await?;
        Ok(Self {
            client,
            rights,
            _cut: cut,
        })
    }

    /// What the role may do.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn rights(&self) -> Result<AgentRights, AgentError> {
        let row = self
            .client
            .query_one(
                "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY') AS temporary",
                &[],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the role's rights", None, source))?;
        Ok(AgentRights {
            role: self.rights.role.clone(),
            skips_triggers: self.rights.session_replication_role,
            makes_temporary_tables: row.get("temporary"),
        })
    }

    /// What is wrong with a table, as far as the catalog says it.
    ///
    /// # Errors
    /// What is wrong; or the connection's error.
    pub async fn examine(&self, table: &TableDescription) -> Result<(), AgentError> {
        catalog::examine(&self.client, table).await.map(drop)
    }

    /// What fires when the table's rows are written.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn what_fires(&self, table: &TableName) -> Result<WhatFires, AgentError> {
        let row = self
            .client
            .query_one(FIRES, &[&table.regclass(), &self.rights.session_replication_role])
            .await
            .map_err(|source| AgentError::from_driver("read the catalog", Some(table), source))?;
        Ok(WhatFires {
            triggers: row.get("triggers"),
            foreign_keys: row.get("foreign_keys"),
        })
    }
}

/// `$2`: whether the session is a replica. Source for the letters of `tgenabled`:
/// <https://www.postgresql.org/docs/current/catalog-pg-trigger.html>.
const FIRES: &str = "
SELECT ARRAY(SELECT t.tgname::pg_catalog.text FROM pg_catalog.pg_trigger t
        WHERE t.tgrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1) AND NOT t.tgisinternal
        AND CASE WHEN $2 THEN t.tgenabled OPERATOR(pg_catalog.=) ANY ('{A,R}'::\"char\"[])
                 ELSE t.tgenabled OPERATOR(pg_catalog.=) ANY ('{A,O}'::\"char\"[]) END ORDER BY 1) AS triggers,
    ARRAY(SELECT k.conname::pg_catalog.text FROM pg_catalog.pg_constraint k
        WHERE k.conrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1) AND k.contype OPERATOR(pg_catalog.=) 'f'
        AND NOT $2 AND NOT k.condeferrable ORDER BY 1) AS foreign_keys";
