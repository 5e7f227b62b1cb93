//! What the Agent DB's own catalog says of a table: key, types, what may be written. Types are known by name, never by
//! the source's OIDs, which mean nothing here.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Client;

use super::error::AgentError;
use crate::change::{Identity, Relation, TableDescription, TableName};
use crate::postgres::keys::is_spelled_one_way;
use crate::postgres::quote_identifier;

/// A table of the stream and how to write it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The stream's columns and the Agent DB's key.
    pub relation: Arc<Relation>,
    /// How to write each of the relation's columns.
    pub columns: Vec<Column>,
    /// The equality operator of each key column, `OPERATOR(schema.=)`.
    pub equals: Vec<String>,
    /// Whether its rows are in partitions.
    pub partitioned: bool,
    /// Whether `COPY` does there what INSERT does: it refuses row-level security and passes by rules. A BEFORE STATEMENT
    /// trigger may refuse it between its being taken up and its first row, where the driver loses count of the answers.
    pub copyable: bool,
}

/// How to write a column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name, quoted.
    pub name: String,
    /// The type to cast its text to: the base type of a domain, without a length limit.
    pub cast: String,
    /// `GENERATED ALWAYS AS IDENTITY`: can be inserted (OVERRIDING SYSTEM VALUE) but never updated.
    pub identity_always: bool,
    /// Part of the primary key.
    pub in_key: bool,
    /// Whether its equal values are written alike.
    pub alike: bool,
}

impl Column {
    /// Whether an UPDATE of a row that keeps its key may set it.
    pub(super) const fn is_settable(&self) -> bool {
        !self.identity_always && !self.in_key
    }
}

impl Target {
    /// Whether keys that are equal are written alike.
    pub(super) fn spells_keys_alike(&self) -> bool {
        self.columns.iter().all(|column| !column.in_key || column.alike)
    }

    /// Whether an UPDATE may change the key.
    pub(super) fn key_can_change(&self) -> bool {
        !self
            .columns
            .iter()
            .any(|column| column.in_key && column.identity_always)
    }
}

/// A foreign key between two tables, a table's reference to itself left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignKey {
    /// The table that refers.
    pub child: TableName,
    /// The table that is referred to.
    pub parent: TableName,
}

/// A column as the catalog has it.
struct Found {
    cast: String,
    generated: bool,
    identity: String,
    must_be_given: bool,
    alike: bool,
}

/// Columns with the base type of each. A domain's own limit is checked by the assignment to the column.
const COLUMNS: &str = "
WITH RECURSIVE base (attnum, type) AS (
    SELECT a.attnum, a.atttypid FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.attnum, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
)
SELECT a.attname, pg_catalog.format_type(b.type, -1), a.attgenerated <> '', a.attidentity::text,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
       coalesce((SELECT l.collisdeterministic FROM pg_catalog.pg_collation l WHERE l.oid = a.attcollation), true)
FROM pg_catalog.pg_attribute a
JOIN base b ON b.attnum = a.attnum
JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd'
WHERE a.attrelid = $1
ORDER BY a.attnum";

/// The primary key's columns in key order, with the equality operator (strategy 3 of a btree) of each.
const KEY: &str = "
SELECT a.attname, n.nspname, o.oprname, i.indimmediate, coalesce(c.conname, '')
FROM pg_catalog.pg_index i
LEFT JOIN pg_catalog.pg_constraint c ON c.conindid = i.indexrelid AND c.contype = 'p'
CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k(attnum, opclass, position)
JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_opclass f ON f.oid = k.opclass
JOIN pg_catalog.pg_amop m ON m.amopfamily = f.opcfamily AND m.amoplefttype = f.opcintype
    AND m.amoprighttype = f.opcintype AND m.amopstrategy = 3 AND m.amoppurpose = 's'
JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = $1 AND i.indisprimary AND i.indisvalid AND k.position <= i.indnkeyatts
ORDER BY k.position";

/// Reads the catalog and matches it with the stream's description.
pub(super) async fn resolve(client: &Client, description: &TableDescription) -> Result<Target, AgentError> {
    let table = &description.table;
    let failed = |source| AgentError::from_driver("read the catalog", Some(table), source);
    let class = client
        .query_opt(
            "SELECT c.oid, c.relkind::text, NOT c.relhasrules AND NOT pg_catalog.row_security_active(c.oid)
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND g.tgenabled <> 'D'
                    -- Bits: 1 for each row, 2 before, 4 insert.
                    AND g.tgtype::int & 7 = 6)
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
            &[&&*table.schema, &&*table.name],
        )
        .await
        .map_err(failed)?
        .ok_or_else(|| AgentError::TableMissing { table: table.clone() })?;
    let oid: u32 = class.get(0);
    let kind: &str = class.get(1);
    if !matches!(kind, "r" | "p") {
        return Err(AgentError::NotATable { table: table.clone() });
    }
    let partitioned = kind == "p";
    let copyable: bool = class.get(2);
    let columns = client.query(COLUMNS, &[&oid]).await.map_err(failed)?;
    let key = client.query(KEY, &[&oid]).await.map_err(failed)?;

    let key_names: Vec<String> = key.iter().map(|row| row.get(0)).collect();
    let mut found = HashMap::new();
    let mut unfilled = None;
    for row in &columns {
        let name: String = row.get(0);
        let column = Found {
            cast: row.get(1),
            generated: row.get(2),
            identity: row.get(3),
            must_be_given: row.get(4),
            alike: row.get(5),
        };
        if column.must_be_given && !description.columns.iter().any(|published| **published == *name) {
            unfilled.get_or_insert_with(|| name.clone());
        }
        found.insert(name, column);
    }

    let published = |name: &str| description.columns.iter().position(|column| **column == *name);
    let Some(first) = key.first() else {
        let suggested = match &description.identity {
            Identity::Full => Vec::new(),
            Identity::Columns(positions) => positions
                .iter()
                .filter_map(|&position| description.columns.get(position).map(ToString::to_string))
                .collect(),
        };
        return Err(AgentError::NoPrimaryKey {
            table: table.clone(),
            suggested,
        });
    };
    if !first.get::<_, bool>(3) {
        return Err(AgentError::DeferrablePrimaryKey {
            table: table.clone(),
            constraint: first.get(4),
            columns: key_names,
        });
    }
    let mut key_positions = Vec::new();
    for name in &key_names {
        let position = published(name).ok_or_else(|| AgentError::KeyNotPublished {
            table: table.clone(),
            column: name.clone(),
        })?;
        if let Identity::Columns(identity) = &description.identity
            && !identity.is_empty()
            && !identity.contains(&position)
        {
            return Err(AgentError::IdentityWithoutKey {
                table: table.clone(),
                column: name.clone(),
            });
        }
        key_positions.push(position);
    }

    let mut missing = Vec::new();
    let mut ours = Vec::new();
    for (position, name) in description.columns.iter().enumerate() {
        match found.get(&**name) {
            None => missing.push(name.to_string()),
            Some(column) if column.generated => {
                return Err(AgentError::ColumnGenerated {
                    table: table.clone(),
                    column: name.to_string(),
                });
            }
            Some(column) => ours.push(Column {
                name: quote_identifier(name),
                cast: column.cast.clone(),
                identity_always: column.identity == "a",
                in_key: key_positions.contains(&position),
                alike: column.alike && is_spelled_one_way(&column.cast),
            }),
        }
    }
    if !missing.is_empty() {
        return Err(AgentError::ColumnMissing {
            table: table.clone(),
            columns: missing,
        });
    }
    if let Some(column) = unfilled {
        return Err(AgentError::ColumnUnfilled {
            table: table.clone(),
            column,
        });
    }
    Ok(Target {
        relation: Arc::new(Relation {
            id: description.id,
            table: table.clone(),
            columns: description.columns.iter().map(Arc::clone).collect(),
            key: key_positions.into(),
        }),
        columns: ours,
        equals: key
            .iter()
            .map(|row| format!("OPERATOR({}.{})", quote_identifier(row.get(1)), row.get::<_, &str>(2)))
            .collect(),
        partitioned,
        copyable,
    })
}

/// All foreign keys of the Agent DB.
pub(super) async fn foreign_keys(client: &Client) -> Result<Vec<ForeignKey>, AgentError> {
    let rows = client
        .query(
            "SELECT cn.nspname, c.relname, pn.nspname, p.relname FROM pg_catalog.pg_constraint f
             JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
             JOIN pg_catalog.pg_class p ON p.oid = f.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
             WHERE f.contype = 'f' AND f.conrelid <> f.confrelid",
            &[],
        )
        .await
        .map_err(|source| AgentError::from_driver("read the foreign keys", None, source))?;
    Ok(rows
        .iter()
        .map(|row| ForeignKey {
            child: TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            parent: TableName::new(row.get::<_, &str>(2), row.get::<_, &str>(3)),
        })
        .collect())
}

/// How far each table is from those that refer to nothing: parents have smaller numbers than their children. In a cycle
/// no order is right; the numbers then stop growing at the number of tables.
pub(super) fn depths(foreign_keys: &[ForeignKey]) -> HashMap<TableName, usize> {
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
