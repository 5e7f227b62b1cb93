//! By what it is seen, on another connection, that tables were changed in the Agent DB: rows of its catalog.

use std::collections::BTreeMap;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::TableName;

/// Each catalog row that decides how a table is written has in `xmin` the transaction that wrote it: the table itself (with
/// its rights and row-level security), columns, defaults, constraints of its own and those that refer to it, indexes,
/// triggers, rules, policies, partitions; the types of its columns with their values and checks; the schema. What the role may do is asked as such, and who
/// has claimed the table.
/// Statistics are written in place and change nothing here.
const MARKS: &str = "
SELECT n.nspname AS schema_name, c.relname AS table_name, concat_ws(' ', c.oid, c.xmin, n.xmin,
    (SELECT string_agg(concat_ws(':', m.id, m.mark), ',' ORDER BY m.id, m.mark::text) FROM (
        SELECT a.attnum::oid, a.xmin FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
        UNION ALL SELECT d.oid, d.xmin FROM pg_attrdef d WHERE d.adrelid = c.oid
        UNION ALL SELECT k.oid, k.xmin FROM pg_constraint k WHERE k.conrelid = c.oid OR k.confrelid = c.oid
        UNION ALL SELECT i.indexrelid, i.xmin FROM pg_index i WHERE i.indrelid = c.oid
        UNION ALL SELECT g.oid, g.xmin FROM pg_trigger g WHERE g.tgrelid = c.oid
            OR g.tgrelid = ANY (ARRAY(SELECT p.relid::oid FROM pg_partition_tree(c.oid::regclass) p))
        UNION ALL SELECT w.oid, w.xmin FROM pg_rewrite w WHERE w.ev_class = c.oid
        UNION ALL SELECT y.oid, y.xmin FROM pg_policy y WHERE y.polrelid = c.oid
        UNION ALL SELECT h.inhrelid, h.xmin FROM pg_inherits h WHERE h.inhparent = c.oid
        UNION ALL SELECT t.oid, t.xmin FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT e.oid, e.xmin FROM pg_attribute a JOIN pg_enum e ON e.enumtypid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT k.oid, k.xmin FROM pg_attribute a JOIN pg_constraint k ON k.contypid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS m(id, mark)),
    row_security_active(c.oid), has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'INSERT'),
    has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'DELETE'),
    has_table_privilege(c.oid, 'TRUNCATE'),
    (SELECT string_agg(concat_ws(':', k.slot, k.xmin), ',' ORDER BY k.slot) FROM twinlog.claims k
        WHERE k.relation = c.oid)) AS mark
FROM unnest($1::text[], $2::text[]) AS x(s, t)
JOIN pg_namespace n ON n.nspname = x.s
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.t";

/// What is compared, by table.
pub type AgentMarks = BTreeMap<TableName, String>;

impl Control {
    /// The marks of those tables that are there.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn agent_marks<'t>(&self, tables: impl Iterator<Item = &'t TableName>) -> Result<AgentMarks, AgentError> {
        let (schemas, names): (Vec<&str>, Vec<&str>) = tables.map(|table| (&*table.schema, &*table.name)).unzip();
        let rows = self
            .client
            .query(MARKS, &[&schemas, &names])
            .await
            .map_err(failed("look for changes of the catalog"))?;
        Ok(rows
            .iter()
            .map(|row| {
                let table = TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name"));
                (table, row.get("mark"))
            })
            .collect())
    }

    /// Makes all parked rows of a table due now: what refused them may be gone.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn retry_table(&self, table: &TableName) -> Result<(), AgentError> {
        self.client
            .execute(
                "UPDATE twinlog.failed_rows SET next_attempt_at = now()
                 WHERE slot = $1 AND schema_name = $2 AND table_name = $3 AND next_attempt_at > now()",
                &[&self.slot, &&*table.schema, &&*table.name],
            )
            .await
            .map_err(failed("make the failed rows due"))?;
        Ok(())
    }
}
