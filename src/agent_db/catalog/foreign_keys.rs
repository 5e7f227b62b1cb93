//! The Agent DB's foreign keys: the order in which tables are written, and which parked rows wait for which table.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// A foreign key between two tables.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ForeignKey {
    /// The table that refers.
    child: TableName,
    /// The table that is referred to.
    parent: TableName,
}

/// All foreign keys of the Agent DB, except a table's references to itself.
#[derive(Debug)]
pub(in crate::agent_db) struct ForeignKeys {
    keys: Vec<ForeignKey>,
    depths: HashMap<TableName, usize>,
}

impl ForeignKeys {
    /// Reads them.
    pub(in crate::agent_db) async fn read(client: &Client) -> Result<Self, AgentError> {
        let rows = client
            .query(
                "SELECT cn.nspname AS child_schema, c.relname AS child, pn.nspname AS parent_schema, p.relname AS parent
                 FROM pg_catalog.pg_constraint f
                 JOIN pg_catalog.pg_class c ON c.oid = f.conrelid
                 JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
                 JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
                 JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
                 WHERE f.contype = 'f' AND f.conrelid <> f.confrelid",
                &[],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the foreign keys", None, source))?;
        let keys: Vec<ForeignKey> = rows
            .iter()
            .map(|row| ForeignKey {
                child: TableName::new(row.get::<_, &str>("child_schema"), row.get::<_, &str>("child")),
                parent: TableName::new(row.get::<_, &str>("parent_schema"), row.get::<_, &str>("parent")),
            })
            .collect();
        Ok(Self {
            depths: depths(&keys),
            keys,
        })
    }

    /// A table's distance from tables without foreign keys: parents have smaller numbers than their children.
    pub(in crate::agent_db) fn depth(&self, table: &TableName) -> usize {
        self.depths.get(table).copied().unwrap_or_default()
    }

    /// Each foreign key as its child and its parent.
    pub(in crate::agent_db) fn pairs(&self) -> impl Iterator<Item = (&TableName, &TableName)> {
        self.keys.iter().map(|key| (&key.child, &key.parent))
    }
}

/// The depth of each table. In a cycle no order is right; there the numbers stop at the number of tables.
fn depths(foreign_keys: &[ForeignKey]) -> HashMap<TableName, usize> {
    let mut depths: HashMap<TableName, usize> = HashMap::new();
    for key in foreign_keys {
        depths.entry(key.child.clone()).or_default();
        depths.entry(key.parent.clone()).or_default();
    }
    // Longest paths by relaxation: without a cycle, each round settles at least one more level.
    for _ in 0..depths.len() {
        let mut changed = false;
        for key in foreign_keys {
            let parent = depths.get(&key.parent).copied().unwrap_or_default();
            if let Some(child) = depths.get_mut(&key.child)
                && *child <= parent
            {
                *child = parent + 1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(child: &str, parent: &str) -> ForeignKey {
        ForeignKey {
            child: TableName::new("public", child),
            parent: TableName::new("public", parent),
        }
    }

    #[test]
    fn parents_come_before_their_children() {
        let depths = depths(&[
            key("messages", "conversations"),
            key("conversations", "leads"),
            key("messages", "leads"),
        ]);
        let depth = |name: &str| depths[&TableName::new("public", name)];
        assert!(depth("leads") < depth("conversations") && depth("conversations") < depth("messages"));
    }

    #[test]
    fn a_cycle_of_foreign_keys_ends() {
        let depths = depths(&[key("a", "b"), key("b", "a"), key("c", "b")]);
        assert_eq!(depths.len(), 3);
    }
}
