//! Which columns of a table must have values that no other row has, apart from its key.

use tokio_postgres::Client;

use crate::agent_db::error::AgentError;
use crate::change::Relation;
use crate::postgres::quote_identifier;

/// The unique and exclusion constraints of a table that are checked with each row, so that two rows can't exchange their
/// values by updates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::agent_db) struct UniqueValues {
    /// Whether there is one.
    pub any: bool,
    /// Their columns (quoted) that may be NULL for a while, which is equal to no other value.
    pub nullable: Vec<String>,
}

/// Columns to which foreign keys refer are left out.
const VALUES: &str = "
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 AS any,
    coalesce(pg_catalog.array_agg(DISTINCT a.attname::pg_catalog.text) FILTER (WHERE NOT a.attnotnull
        AND a.attgenerated OPERATOR(pg_catalog.=) ''
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f
            WHERE f.confrelid OPERATOR(pg_catalog.=) i.indrelid AND f.contype OPERATOR(pg_catalog.=) 'f'
                AND a.attnum OPERATOR(pg_catalog.=) ANY (f.confkey))), '{}') AS nullable
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::smallint[]) AS k(attnum)
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
    AND a.attnum OPERATOR(pg_catalog.=) k.attnum
WHERE i.indrelid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.regclass AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary AND i.indisvalid
    AND i.indimmediate";

impl UniqueValues {
    /// Reads them.
    pub(in crate::agent_db) async fn read(client: &Client, relation: &Relation) -> Result<Self, AgentError> {
        let row = client
            .query_one(VALUES, &[&relation.table.regclass()])
            .await
            .map_err(|source| AgentError::from_driver("read the unique constraints", Some(&relation.table), source))?;
        Ok(Self {
            any: row.get("any"),
            nullable: row
                .get::<_, Vec<String>>("nullable")
                .iter()
                .filter(|name| !relation.key_columns().any(|key| *key == ***name))
                .map(|name| quote_identifier(name))
                .collect(),
        })
    }
}
