//! Rows of the stream that are to go, or to get another key, while parked rows refer to them.
//!
//! A parked row's version in the Agent DB is not that of the Site DB: it may refer to a row that it left long ago there.
//! Where the removal of that row cascades, the parked row would go with it, and so would rows that refer to the parked one
//! and that the Site DB keeps. So such a change is parked as well. Nothing is asked while no row is parked.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;

use super::writer::{Constraints, Writer};
use crate::agent_db::apply::plan::Group;
use crate::agent_db::apply::sql::{self, TextArray};
use crate::agent_db::catalog::{Action, ForeignKey, Target};
use crate::agent_db::error::AgentError;
use crate::change::{Key, TableName};

/// A row of some groups that must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The position of its group.
    pub(super) group: usize,
    /// Its position in the group.
    pub(super) row: usize,
    /// The foreign key by which a parked row refers to it.
    pub(super) constraint: String,
}

impl Writer {
    /// The rows of the groups, deletes and moves, that must wait for parked rows. Nearly always none, without a query.
    pub(super) async fn waiting(&mut self, groups: &[Group<'_>]) -> Result<Vec<Waiting>, AgentError> {
        let mut waiting = Vec::new();
        if !self.checks_constraints() || !self.parked.any() {
            return Ok(waiting);
        }
        for (number, group) in groups.iter().enumerate() {
            for (row, constraint) in Box::pin(self.awaited(group)).await? {
                waiting.push(Waiting {
                    group: number,
                    row,
                    constraint,
                });
            }
        }
        Ok(waiting)
    }

    /// Positions of the rows of a group that must wait, each with the foreign key.
    async fn awaited(&mut self, group: &Group<'_>) -> Result<BTreeMap<usize, String>, AgentError> {
        let dangerous = self.dangerous(group);
        let mut awaited = BTreeMap::new();
        if dangerous.is_empty() {
            return Ok(awaited);
        }
        self.session.open().await?;
        let parent = self.target(group.relation).await?;
        let keys: Vec<&Key> = group.rows.iter().map(|row| row.key).collect();
        for key in &dangerous {
            // A cascaded column of a parked row is written again with the row; another key would not be found any more.
            if group.moves() && !self.is_in_key(key) {
                continue;
            }
            let stale: Vec<&Key> = self.parked.keys(&key.child).collect();
            for position in self.referenced(&parent, key, &keys, &stale).await? {
                awaited.insert(position, key.name.clone());
            }
        }
        Ok(awaited)
    }

    /// Whether a column of the foreign key is part of the child's key.
    fn is_in_key(&self, key: &ForeignKey) -> bool {
        self.targets.newest(&key.child).is_some_and(|child| {
            let mut columns = child.relation.key_columns();
            columns.any(|column| key.columns.iter().any(|name| *name == *column))
        })
    }

    /// The foreign keys by which the group may change what it must not.
    fn dangerous(&self, group: &Group<'_>) -> Vec<ForeignKey> {
        let Constraints::Checked(foreign_keys) = &self.constraints else {
            return Vec::new();
        };
        let acts = |key: &&ForeignKey| {
            (group.deletes() && foreign_keys.cascades_further(key))
                || (group.moves() && key.on_update != Action::Refuse)
        };
        foreign_keys
            .of_parent(&group.relation.table)
            .filter(|key| self.parked.count(&key.child) > 0)
            .filter(acts)
            .cloned()
            .collect()
    }

    /// Positions of those keys of the parent to whose rows the child's rows of these keys refer.
    pub(super) async fn referenced(
        &self,
        parent: &Arc<Target>,
        key: &ForeignKey,
        keys: &[&Key],
        stale: &[&Key],
    ) -> Result<Vec<usize>, AgentError> {
        if keys.is_empty() || stale.is_empty() {
            return Ok(Vec::new());
        }
        // A table with parked rows was resolved, as all tables are at the start.
        let Some(child) = self.targets.newest(&key.child) else {
            return Ok(Vec::new());
        };
        let sql = sql::referenced(parent, &child, key);
        let ours = (0..parent.relation.key_positions().len()).map(|part| TextArray::KeyPart { keys, part });
        let theirs = (0..child.relation.key_positions().len()).map(|part| TextArray::KeyPart { keys: stale, part });
        self.ordinals(&sql, ours.chain(theirs).collect(), &key.parent).await
    }

    /// The positions (from 0) that a query returns as `ord`.
    pub(super) async fn ordinals(
        &self,
        sql: &str,
        parameters: Vec<TextArray<'_>>,
        table: &TableName,
    ) -> Result<Vec<usize>, AgentError> {
        let failed = |source| AgentError::from_driver("look for references", Some(table), source);
        let rows = self.session.client.query_raw(sql, parameters).await.map_err(failed)?;
        let rows: Vec<i64> = rows
            .and_then(|row| std::future::ready(row.try_get::<_, i64>("ord")))
            .try_collect()
            .await
            .map_err(failed)?;
        Ok(rows
            .into_iter()
            .filter_map(|ord| usize::try_from(ord - 1).ok())
            .collect())
    }
}
