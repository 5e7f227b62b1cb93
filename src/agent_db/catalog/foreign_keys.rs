//! The Agent DB's foreign keys: the order in which tables are written, and which parked rows wait for which table.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// What the database does to the rows that refer to a row that goes, or that changes the columns that they refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db) enum Action {
    /// Nothing: it refuses the change (NO ACTION, RESTRICT).
    Refuse,
    /// CASCADE.
    Cascade,
    /// SET NULL, SET DEFAULT.
    Set,
}

impl Action {
    /// From `confdeltype` or `confupdtype`.
    fn from_catalog(letter: &str) -> Self {
        match letter {
            "c" => Self::Cascade,
            "n" | "d" => Self::Set,
            _ => Self::Refuse,
        }
    }
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent_db) struct ForeignKey {
    /// Its name.
    pub name: String,
    /// The table that refers.
    pub child: TableName,
    /// The table that is referred to; perhaps the same.
    pub parent: TableName,
    /// The child's columns, unquoted.
    pub columns: Vec<String>,
    /// The parent's columns, unquoted, in the same order.
    pub referenced: Vec<String>,
    /// The operator that compares each pair of them, the parent's column on its left.
    pub equals: Vec<String>,
    pub on_delete: Action,
    pub on_update: Action,
}

/// All foreign keys of the Agent DB.
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
                "SELECT f.conname AS name, cn.nspname AS child_schema, c.relname AS child, pn.nspname AS parent_schema,
                     p.relname AS parent, f.confdeltype::pg_catalog.text AS on_delete, f.confupdtype::pg_catalog.text AS on_update,
                     ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(f.conkey) WITH ORDINALITY k(attnum, i)
                         JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) f.conrelid
                             AND a.attnum OPERATOR(pg_catalog.=) k.attnum ORDER BY i)
                         AS columns,
                     ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY k(attnum, i)
                         JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) f.confrelid
                             AND a.attnum OPERATOR(pg_catalog.=) k.attnum ORDER BY i)
                         AS referenced,
                     ARRAY(SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
                         FROM pg_catalog.unnest(f.conpfeqop) WITH ORDINALITY k(operator, i)
                         JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) k.operator
                         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace ORDER BY i) AS equals
                 FROM pg_catalog.pg_constraint f
                 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) f.conrelid
                 JOIN pg_catalog.pg_namespace cn ON cn.oid OPERATOR(pg_catalog.=) c.relnamespace
                 JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) f.confrelid
                 JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) p.relnamespace
                 WHERE f.contype OPERATOR(pg_catalog.=) 'f'
                 ORDER BY f.conname, f.oid",
                &[],
            )
            .await
            .map_err(|source| AgentError::from_driver("read the foreign keys", None, source))?;
        let keys: Vec<ForeignKey> = rows
            .iter()
            .map(|row| ForeignKey {
                name: row.get("name"),
                columns: row.get("columns"),
                referenced: row.get("referenced"),
                equals: row.get("equals"),
                on_delete: Action::from_catalog(row.get("on_delete")),
                on_update: Action::from_catalog(row.get("on_update")),
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

    /// A table's references to other rows.
    pub(in crate::agent_db) fn of_child(&self, child: &TableName) -> impl Iterator<Item = &ForeignKey> {
        self.keys.iter().filter(move |key| key.child == *child)
    }

    /// The references to a table's rows.
    pub(in crate::agent_db) fn of_parent(&self, parent: &TableName) -> impl Iterator<Item = &ForeignKey> {
        self.keys.iter().filter(move |key| key.parent == *parent)
    }

    /// Whether the database itself changes other rows when a row of the table goes.
    pub(in crate::agent_db) fn acts_on_delete(&self, table: &TableName) -> bool {
        self.of_parent(table).any(|key| key.on_delete != Action::Refuse)
    }

    /// Whether the removal of a row removes those that refer to it by this key, and changes further rows with them.
    pub(in crate::agent_db) fn cascades_further(&self, key: &ForeignKey) -> bool {
        key.on_delete == Action::Cascade && self.acts_on_delete(&key.child)
    }

    /// Whether the database itself changes rows at all.
    pub(in crate::agent_db) fn act(&self) -> bool {
        self.keys
            .iter()
            .any(|key| key.on_delete != Action::Refuse || key.on_update != Action::Refuse)
    }
}

/// The depth of each table. In a cycle no order is right; there the numbers stop at the number of tables.
fn depths(foreign_keys: &[ForeignKey]) -> HashMap<TableName, usize> {
    let between_tables = || foreign_keys.iter().filter(|key| key.child != key.parent);
    let mut depths: HashMap<TableName, usize> = HashMap::new();
    for key in between_tables() {
        depths.entry(key.child.clone()).or_default();
        depths.entry(key.parent.clone()).or_default();
    }
    // Longest paths by relaxation: without a cycle, each round settles at least one more level.
    for _ in 0..depths.len() {
        let mut changed = false;
        for key in between_tables() {
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
            name: format!("{child}_{parent}_fkey"),
            child: TableName::new("public", child),
            parent: TableName::new("public", parent),
            columns: Vec::new(),
            referenced: Vec::new(),
            equals: Vec::new(),
            on_delete: Action::Refuse,
            on_update: Action::Refuse,
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
