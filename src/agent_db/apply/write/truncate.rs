//! TRUNCATE of one or several tables: all of them at once, as foreign keys between them may need it. Where it is refused, the
//! table that is at fault is found, so that the others are truncated without it.

use std::sync::Arc;

use super::writer::Writer;
use crate::agent_db::apply::ledger::{ChangeKind, Ledger};
use crate::agent_db::apply::limit::Work;
use crate::agent_db::apply::segment::PassedOver;
use crate::agent_db::apply::sql;
use crate::agent_db::catalog::Target;
use crate::agent_db::error::{AgentError, TRUNCATE};
use crate::change::{TableName, Truncate};
use crate::postgres::sqlstate::QUERY_CANCELED;

/// The names (`schema`, `name`) of those of the tables to which a table refers that is not among them: by a foreign key that
/// keeps them from being truncated.
const REFERRED_TO: &str = "
SELECT x.s, x.t FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS x(s, t)
JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) x.s
JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid AND c.relname OPERATOR(pg_catalog.=) x.t
JOIN pg_catalog.pg_constraint f ON f.confrelid OPERATOR(pg_catalog.=) c.oid AND f.contype OPERATOR(pg_catalog.=) 'f'
JOIN pg_catalog.pg_class o ON o.oid OPERATOR(pg_catalog.=) f.conrelid
JOIN pg_catalog.pg_namespace p ON p.oid OPERATOR(pg_catalog.=) o.relnamespace
WHERE ((p.nspname, o.relname) OPERATOR(pg_catalog.=) ANY (
    SELECT y.s, y.t FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS y(s, t))) IS NOT TRUE";

impl Writer {
    /// Truncates tables.
    pub(super) async fn truncate(&mut self, truncate: &Truncate, ledger: &mut Ledger) -> Result<(), AgentError> {
        let mut targets = Vec::new();
        for relation in &truncate.relations {
            if self.is_held(&relation.table) {
                ledger.pass_over(&relation.table, 1, PassedOver::Held);
            } else {
                targets.push(self.target(relation).await?);
            }
        }
        if targets.is_empty() {
            return Ok(());
        }
        self.session.open().await?;
        // A table with pending deferred checks can't be truncated.
        self.check_deferred().await?;
        let identity = truncate.restart_identity;
        if let [only] = targets.as_slice() {
            self.truncate_at_once(std::slice::from_ref(only), identity).await?;
        } else {
            self.session.command("SAVEPOINT truncated").await?;
            if let Err(error) = self.truncate_at_once(&targets, identity).await {
                self.back_to("ROLLBACK TO SAVEPOINT truncated").await?;
                return Err(self.blamed(error, &targets, identity).await?);
            }
            self.session.command("RELEASE SAVEPOINT truncated").await?;
        }
        for target in &targets {
            let relation = &target.relation;
            self.parked.clear(&relation.table);
            let tally = ledger.of(&relation.table, ChangeKind::Truncate);
            tally.received += 1;
            tally.applied += 1;
        }
        Ok(())
    }

    /// The error's table is the first of them.
    async fn truncate_at_once(&self, targets: &[Arc<Target>], restart_identity: bool) -> Result<(), AgentError> {
        let sql = sql::truncate(&targets.iter().map(AsRef::as_ref).collect::<Vec<_>>(), restart_identity);
        let sql = format!("{sql}; {}", self.session.pin_again());
        let table = targets.first().map(|target| &target.relation.table);
        let truncated = self.session.client.batch_execute(&sql);
        let (truncated, cancelled) = self.session.limit.within(&Work::NONE, truncated).await;
        if let (Err(_), Some(cancelled)) = (&truncated, cancelled) {
            return Err(cancelled.of("TRUNCATE", table.cloned(), 0));
        }
        truncated.map_err(|source| AgentError::from_driver(TRUNCATE, table, source).of_whole_table())
    }

    /// The refusal of several tables, as that of the one which is at fault: a table outside refers to it, or it is refused by
    /// itself for the same reason. If none is found, that of the first.
    async fn blamed(
        &self,
        error: AgentError,
        targets: &[Arc<Target>],
        restart_identity: bool,
    ) -> Result<AgentError, AgentError> {
        let Some(code) = sqlstate(&error) else {
            return Ok(error);
        };
        if let Some(table) = self.referred_to(targets).await? {
            return Ok(of_table(error, table));
        }
        for target in targets {
            let alone = self
                .truncate_at_once(std::slice::from_ref(target), restart_identity)
                .await;
            self.back_to("ROLLBACK TO SAVEPOINT truncated").await?;
            if alone.as_ref().is_err_and(|alone| sqlstate(alone) == Some(code.clone())) {
                return Ok(of_table(error, target.relation.table.clone()));
            }
        }
        Ok(error)
    }

    /// The first of the tables to which one refers that is not among them.
    async fn referred_to(&self, targets: &[Arc<Target>]) -> Result<Option<TableName>, AgentError> {
        let tables = || targets.iter().map(|target| &target.relation.table);
        let schemas: Vec<&str> = tables().map(|table| &*table.schema).collect();
        let names: Vec<&str> = tables().map(|table| &*table.name).collect();
        let failed = |source| AgentError::from_driver("look for references", None, source);
        let row = self
            .session
            .client
            .query(REFERRED_TO, &[&schemas, &names])
            .await
            .map_err(failed)?;
        Ok(row
            .first()
            .map(|row| TableName::new(row.get::<_, &str>("s"), row.get::<_, &str>("t"))))
    }
}

fn sqlstate(error: &AgentError) -> Option<String> {
    match error {
        AgentError::Refused { refusal, .. } | AgentError::TableRefused { refusal, .. } => {
            Some(refusal.sqlstate.clone())
        }
        AgentError::TooSlow { .. } => Some(QUERY_CANCELED.to_owned()),
        _ => None,
    }
}

fn of_table(error: AgentError, name: TableName) -> AgentError {
    match error {
        AgentError::Refused {
            action, refusal, role, ..
        } => AgentError::Refused {
            action,
            table: Some(name),
            refusal,
            role,
        },
        AgentError::TableRefused {
            action, refusal, role, ..
        } => AgentError::TableRefused {
            action,
            table: name,
            refusal,
            role,
        },
        AgentError::TooSlow {
            action,
            rows,
            seconds,
            waited_for,
            ..
        } => AgentError::TooSlow {
            action,
            table: Some(name),
            rows,
            seconds,
            waited_for,
        },
        other => other,
    }
}
