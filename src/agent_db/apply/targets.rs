//! The resolved tables and their prepared statements.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::{Client, Statement};

use super::sql::{self, Parameter, StatementKind};
use crate::agent_db::catalog::{self, Target};
use crate::agent_db::error::AgentError;
use crate::change::{Identity, Relation, RelationId, RowKey, SourceFacts, TableDescription, TableName};

/// Tables that are looked up at the same time: a start with ten thousand tables is not ten thousand times as long as the way
/// to the Agent DB and back.
const LOOKUPS_AT_ONCE: usize = 32;

/// A prepared statement of a table.
#[derive(Debug)]
pub(super) struct Prepared {
    pub statement: Statement,
    /// The source of each parameter, in order.
    pub parameters: Vec<Parameter>,
}

/// The resolved tables. A table whose columns changed while the daemon runs has several versions, since changes with
/// the old columns may still be on their way. The newest version is the last.
#[derive(Debug, Default)]
pub(super) struct Targets {
    tables: HashMap<RelationId, Vec<Version>>,
    /// What the Site DB's catalog says about each.
    facts: HashMap<RelationId, Arc<SourceFacts>>,
    /// Versions of all tables.
    versions: usize,
    /// Statements of all versions.
    statements: usize,
}

#[derive(Debug)]
struct Version {
    target: Arc<Target>,
    /// The Agent DB's table may have been changed since.
    doubted: bool,
    statements: HashMap<StatementKind, Arc<Prepared>>,
}

/// A table as the stream describes it, of which only the same key will do.
fn described(relation: &Relation, facts: Arc<SourceFacts>) -> TableDescription {
    TableDescription {
        id: relation.id,
        table: relation.table.clone(),
        columns: relation.columns.to_vec(),
        identity: match &relation.key {
            RowKey::Columns(key) => Identity::Columns(key.to_vec()),
            RowKey::WholeRow => Identity::Full,
        },
        facts,
    }
}

impl Targets {
    /// Each change of a table's columns adds a version; beyond this many, all are cleared.
    const MAX_VERSIONS: usize = 10_000;

    /// Partial images have many sets of columns; beyond this many statements, all are cleared, to save the server's memory.
    const MAX_STATEMENTS: usize = 1000;

    /// Matches a table of the stream with the Agent DB's. The same description gives the same relation as long as the
    /// Agent DB's table stays the same.
    pub(super) async fn resolve(
        &mut self,
        client: &Client,
        description: &TableDescription,
    ) -> Result<Arc<Relation>, AgentError> {
        let target = Box::pin(catalog::resolve(client, description)).await?;
        self.facts.insert(description.id, Arc::clone(&description.facts));
        Ok(Arc::clone(&self.keep(target).relation))
    }

    /// The same for many tables, several of which are looked up at the same time.
    pub(super) async fn resolve_all(
        &mut self,
        client: &Client,
        descriptions: &[TableDescription],
    ) -> Vec<Result<Arc<Relation>, AgentError>> {
        let mut resolved = Vec::with_capacity(descriptions.len());
        for some in descriptions.chunks(LOOKUPS_AT_ONCE) {
            let lookups = some
                .iter()
                .map(|description| Box::pin(catalog::resolve(client, description)));
            for target in join_all(lookups).await {
                resolved.push(target.map(|target| Arc::clone(&self.keep(target).relation)));
            }
        }
        resolved
    }

    /// How to write a relation, as it was resolved; `None` if it has to be looked up again.
    pub(super) fn known(&self, relation: &Arc<Relation>) -> Option<Arc<Target>> {
        let versions = self.tables.get(&relation.id)?;
        let is_of = |version: &&Version| !version.doubted && version.target.relation == *relation;
        let known = versions.iter().rev().find(is_of)?;
        Some(Arc::clone(&known.target))
    }

    /// Looks a relation up again: the versions were cleared meanwhile, or its table was changed.
    pub(super) async fn look_up(
        &mut self,
        client: &Client,
        relation: &Arc<Relation>,
    ) -> Result<Arc<Target>, AgentError> {
        let target = Box::pin(catalog::resolve(client, &described(relation, Arc::default()))).await?;
        if target.relation.key != relation.key {
            return Err(AgentError::KeyChanged {
                table: relation.table.clone(),
            });
        }
        Ok(self.keep(target))
    }

    /// How to write a table, as it was resolved last; `None` if it was not.
    pub(super) fn newest(&self, table: &TableName) -> Option<Arc<Target>> {
        let versions = self.tables.values().flatten();
        let of_table = versions.filter(|version| version.target.relation.table == *table);
        of_table.last().map(|version| Arc::clone(&version.target))
    }

    /// A table as it was described when it was resolved last; `None` if it was not.
    pub(super) fn description(&self, table: &TableName) -> Option<TableDescription> {
        let target = self.newest(table)?;
        let facts = self.facts.get(&target.relation.id).map(Arc::clone);
        Some(described(&target.relation, facts.unwrap_or_default()))
    }

    /// Has a table looked up again before it is written the next time, and its statements prepared again: the server keeps
    /// the plan of a statement for which a rule does nothing also after the rule is gone, since such a plan depends on no table.
    pub(super) fn doubt(&mut self, table: &TableName) {
        let of_table = |version: &&mut Version| version.target.relation.table == *table;
        for version in self.tables.values_mut().flatten().filter(of_table) {
            version.doubted = true;
            self.statements -= version.statements.len();
            version.statements.clear();
        }
    }

    /// Adds a target, or finds an equal one, whose statements stay prepared.
    fn keep(&mut self, target: Target) -> Arc<Target> {
        let id = target.relation.id;
        if let Some(versions) = self.tables.get_mut(&id)
            && let Some(position) = versions.iter().position(|version| *version.target == target)
        {
            // It is the newest again: a type in the Agent DB was changed and changed back.
            let mut known = versions.remove(position);
            known.doubted = false;
            let target = Arc::clone(&known.target);
            versions.push(known);
            return target;
        }
        if self.versions >= Self::MAX_VERSIONS {
            *self = Self::default();
        }
        let target = Arc::new(target);
        self.versions += 1;
        self.tables.entry(id).or_default().push(Version {
            target: Arc::clone(&target),
            doubted: false,
            statements: HashMap::new(),
        });
        target
    }

    /// A table's statement, if it is prepared.
    pub(super) fn known_statement(&self, target: &Arc<Target>, kind: &StatementKind) -> Option<Arc<Prepared>> {
        let versions = self.tables.get(&target.relation.id)?;
        let version = versions.iter().find(|version| Arc::ptr_eq(&version.target, target))?;
        version.statements.get(kind).map(Arc::clone)
    }

    /// Prepares a table's statement.
    pub(super) async fn prepare(
        &mut self,
        client: &Client,
        target: &Arc<Target>,
        kind: &StatementKind,
    ) -> Result<Arc<Prepared>, AgentError> {
        let id = target.relation.id;
        let of_target = |version: &&mut Version| Arc::ptr_eq(&version.target, target);
        let text = sql::statement(target, kind);
        let statement = client.prepare(&text.sql).await.map_err(|source| {
            AgentError::from_driver("prepare a statement", Some(&target.relation.table), source).whatever_the_row()
        })?;
        let prepared = Arc::new(Prepared {
            statement,
            parameters: text.parameters,
        });
        if self.statements >= Self::MAX_STATEMENTS {
            self.forget_statements();
        }
        // If the version was cleared meanwhile, the statement is not kept, and is prepared again next time.
        if let Some(version) = self
            .tables
            .get_mut(&id)
            .and_then(|versions| versions.iter_mut().find(of_target))
        {
            version.statements.insert(kind.clone(), Arc::clone(&prepared));
            self.statements += 1;
        }
        Ok(prepared)
    }

    fn forget_statements(&mut self) {
        for version in self.tables.values_mut().flatten() {
            version.statements.clear();
        }
        self.statements = 0;
    }
}
