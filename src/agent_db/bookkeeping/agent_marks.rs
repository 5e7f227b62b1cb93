//! By what it is seen, on another connection, that tables were changed in the Agent DB: rows of its catalog. Kept in
//! `twinlog.tables`, so that it is also seen after the daemon was away.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::control::{Control, failed};
use crate::agent_db::error::AgentError;
use crate::change::TableName;
use crate::postgres::Lossy;

/// Each catalog row that decides how a table is written has in `xmin` the transaction that wrote it: the table itself (with
/// its rights and row-level security), columns, defaults, constraints of its own and those that refer to it, indexes,
/// triggers, rules, policies, partitions; the types of its columns with their values and checks; the schema. What the role may do is asked as such, and who
/// has claimed the table. (A constraint of another table that refers to it has triggers on it. To look for the constraint itself
/// would read all of them for each table: the catalog has no index for that.)
/// Statistics are written in place and change nothing here.
const MARKS: &str = "
SELECT n.nspname AS schema_name, c.relname AS table_name, c.oid, c.xmin::text AS class,
    ARRAY(SELECT concat_ws(':', f.oid, f.relfilenode) FROM pg_class f WHERE f.relkind = 'r' AND f.oid = ANY (ARRAY(
        -- Not pg_partition_tree, which would wait for locked partitions.
        WITH RECURSIVE p (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM p JOIN pg_inherits h ON h.inhparent = p.oid)
        SELECT p.oid FROM p)) ORDER BY f.oid) AS files,
    ARRAY(SELECT concat_ws(':', a.attnum, a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
        AND NOT a.attisdropped ORDER BY a.attnum) AS columns,
    ARRAY(SELECT concat_ws(':', a.attnum, a.atttypid, a.atttypmod) FROM pg_attribute a WHERE a.attrelid = c.oid
        AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS kinds,
    -- Of all types that the columns are made of: of arrays, domains, ranges and composite types, too.
    ARRAY(WITH RECURSIVE used (oid) AS (SELECT a.atttypid FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
        UNION SELECT part.oid FROM used CROSS JOIN LATERAL (
            SELECT y.typelem FROM pg_type y WHERE y.oid = used.oid
            UNION ALL SELECT y.typbasetype FROM pg_type y WHERE y.oid = used.oid
            UNION ALL SELECT v.atttypid FROM pg_type y JOIN pg_attribute v ON v.attrelid = y.typrelid
                WHERE y.oid = used.oid AND y.typtype = 'c' AND v.attnum > 0 AND NOT v.attisdropped
            UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE used.oid IN (g.rngtypid, g.rngmultitypid)
        ) part (oid) WHERE part.oid >= 16384)
        SELECT concat_ws(':', e.enumtypid, e.oid, e.enumlabel) FROM used JOIN pg_enum e ON e.enumtypid = used.oid
        UNION ALL SELECT concat_ws(':', y.oid, v.attnum, v.atttypid, v.atttypmod) FROM used
            JOIN pg_type y ON y.oid = used.oid AND y.typtype = 'c'
            JOIN pg_attribute v ON v.attrelid = y.typrelid AND v.attnum > 0 AND NOT v.attisdropped
        ORDER BY 1) AS labels,
    ARRAY(SELECT concat_ws(':', m.kind, m.id, m.mark) FROM (
        SELECT 'trigger', g.oid, g.xmin FROM pg_trigger g WHERE NOT g.tgisinternal AND g.tgrelid = ANY (ARRAY(
        -- Not pg_partition_tree, which would wait for locked partitions.
        WITH RECURSIVE p (oid) AS (SELECT c.oid UNION ALL SELECT h.inhrelid FROM p JOIN pg_inherits h ON h.inhparent = p.oid)
        SELECT p.oid FROM p))
        UNION ALL SELECT 'rule', w.oid, w.xmin FROM pg_rewrite w WHERE w.ev_class = c.oid
        UNION ALL SELECT 'policy', y.oid, y.xmin FROM pg_policy y WHERE y.polrelid = c.oid
    ) AS m(kind, id, mark) ORDER BY m.kind, m.id) || concat_ws(':', c.relrowsecurity, c.relforcerowsecurity) AS writers,
    concat_ws(' ', n.xmin, c.relacl, c.relowner, c.reloptions, c.relpersistence,
    (SELECT string_agg(concat_ws(':', m.id, m.mark), ',' ORDER BY m.id, m.mark::text) FROM (
        SELECT a.attnum::oid, a.xmin FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
        UNION ALL SELECT d.oid, d.xmin FROM pg_attrdef d WHERE d.adrelid = c.oid
        UNION ALL SELECT k.oid, k.xmin FROM pg_constraint k WHERE k.conrelid = c.oid
        UNION ALL SELECT i.indexrelid, i.xmin FROM pg_index i WHERE i.indrelid = c.oid
        UNION ALL SELECT g.oid, g.xmin FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgisinternal
        UNION ALL SELECT h.inhrelid, h.xmin FROM pg_inherits h WHERE h.inhparent = c.oid
        UNION ALL SELECT t.oid, t.xmin FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT e.oid, e.xmin FROM pg_attribute a JOIN pg_enum e ON e.enumtypid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        -- By the one index that there is.
        UNION ALL SELECT k.oid, k.xmin FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid AND t.typtype = 'd'
            JOIN pg_constraint k ON k.conrelid = 0 AND k.contypid = t.oid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS m(id, mark)),
    row_security_active(c.oid), has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'INSERT'),
    has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'DELETE'),
    has_table_privilege(c.oid, 'TRUNCATE'),
    (SELECT string_agg(concat_ws(':', k.slot, k.xmin), ',' ORDER BY k.slot) FROM twinlog.claims k
        WHERE k.relation = c.oid)) AS rest
FROM unnest($1::text[], $2::text[]) AS x(s, t)
JOIN pg_namespace n ON n.nspname = x.s
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.t";

/// What is seen of a table. Opaque texts, compared for equality.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentMark {
    /// Its OID.
    oid: u32,
    /// The version of its row in `pg_class`.
    class: String,
    /// The files that hold its rows, one of each partition, as `oid:file`.
    files: Vec<String>,
    /// Numbers and names of the columns.
    columns: Vec<String>,
    /// Numbers of the columns with the type of each as `oid:length`. Empty: stored by a version that did not know them.
    #[serde(default)]
    kinds: Vec<String>,
    /// Labels of the enums, and attributes of the composite types, that its columns are made of.
    labels: Vec<String>,
    /// What may hide rows, or write others than were sent: triggers, rules, policies.
    writers: Vec<String>,
    /// Everything else.
    rest: String,
}

/// What is seen, by table.
pub type AgentMarks = BTreeMap<TableName, AgentMark>;

impl AgentMark {
    /// Why the Agent DB's rows may not be any more what was written; `None` if they are. Pure.
    #[must_use]
    pub fn doubted_by(&self, now: &Self) -> Option<&'static str> {
        if self.oid != now.oid {
            Some("another table has its name in the Agent DB")
        } else if self.files != now.files {
            Some("it was rewritten or truncated in the Agent DB, or partitions were attached or detached there")
        } else if self.has_other_columns(now) {
            Some("a column was dropped and added again in the Agent DB, or columns have exchanged their names")
        } else if self.labels.iter().any(|label| !now.labels.contains(label)) {
            Some(
                "a label of an enum was renamed in the Agent DB, or an attribute of a composite type dropped or altered",
            )
        } else if self.has_other_kinds(now) {
            Some("a column has another type in the Agent DB, and may take what it has rounded or cut")
        } else if self.writers != now.writers {
            Some("its triggers, rules or policies were changed in the Agent DB")
        } else if self.class != now.class && self.rest == now.rest {
            Some("something was changed in the Agent DB and changed back")
        } else {
            None
        }
    }

    /// Whether a column has another type. (Some types are changed without a rewrite, which would be another file.)
    fn has_other_kinds(&self, now: &Self) -> bool {
        let number = |kind: &str| kind.split_once(':').map(|(number, _)| number.to_owned());
        let before: Vec<_> = self.kinds.iter().map(|kind| number(kind)).collect();
        now.kinds
            .iter()
            .any(|kind| !self.kinds.contains(kind) && before.contains(&number(kind)))
    }

    /// Whether a name is another column's. One that was missing holds its table, and the table is read when it is released.
    fn has_other_columns(&self, now: &Self) -> bool {
        let name = |column: &str| column.split_once(':').map(|(_, name)| name.to_owned());
        let before: Vec<_> = self.columns.iter().map(|column| name(column)).collect();
        now.columns
            .iter()
            .any(|column| !self.columns.contains(column) && before.contains(&name(column)))
    }
}

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
                let mark = AgentMark {
                    oid: row.get("oid"),
                    class: row.get("class"),
                    files: row.get("files"),
                    columns: Lossy::texts(row.get("columns")),
                    kinds: row.get("kinds"),
                    labels: Lossy::texts(row.get("labels")),
                    writers: row.get("writers"),
                    rest: row.get("rest"),
                };
                (table, mark)
            })
            .collect())
    }

    /// The marks that are stored. Those of another version count as unknown.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn stored_agent_marks(&self) -> Result<AgentMarks, AgentError> {
        let rows = self
            .client
            .query(
                "SELECT schema_name, table_name, agent_marks::text AS marks FROM twinlog.tables
                 WHERE slot = $1 AND agent_marks IS NOT NULL",
                &[&self.slot],
            )
            .await
            .map_err(failed("read the tables' marks"))?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                let table = TableName::new(row.get::<_, &str>("schema_name"), row.get::<_, &str>("table_name"));
                Some((table, serde_json::from_str(row.get("marks")).ok()?))
            })
            .collect())
    }

    /// Stores the marks of a table.
    ///
    /// # Errors
    /// The statement's or the connection's.
    pub async fn store_agent_mark(&self, table: &TableName, mark: &AgentMark) -> Result<(), AgentError> {
        store(&self.client, &self.slot, table, mark).await
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

async fn store(client: &Client, slot: &str, table: &TableName, mark: &AgentMark) -> Result<(), AgentError> {
    let mark = serde_json::to_string(mark).unwrap_or_default();
    client
        .execute(
            "UPDATE twinlog.tables SET agent_marks = $4::text::jsonb
             WHERE slot = $1 AND schema_name = $2 AND table_name = $3",
            &[&slot, &&*table.schema, &&*table.name, &mark],
        )
        .await
        .map_err(failed("store a table's marks"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_changed_rows_is_a_reason_to_read_them_again() {
        let text = |parts: &[&str]| parts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let before = || AgentMark {
            oid: 7,
            class: "700".to_owned(),
            files: text(&["7:7"]),
            columns: text(&["1:id", "2:v"]),
            kinds: text(&["1:23:-1", "2:1700:655366"]),
            labels: text(&["9:91:sad"]),
            writers: text(&["f:f"]),
            rest: "701".to_owned(),
        };
        let doubted = |change: fn(&mut AgentMark)| {
            let mut now = before();
            change(&mut now);
            before().doubted_by(&now).is_some()
        };
        assert!(doubted(|now| now.oid = 8));
        assert!(doubted(|now| now.files[0] = "7:8".to_owned()));
        assert!(doubted(|now| now.columns[1] = "3:v".to_owned()));
        assert!(doubted(|now| now.kinds[1] = "2:1700:-1".to_owned()));
        assert!(!doubted(|now| now.kinds.push("3:25:-1".to_owned())));
        assert!(!doubted(|now| now.kinds.truncate(1)));
        assert!(doubted(|now| now.labels[0] = "9:91:blue".to_owned()));
        assert!(doubted(|now| now.writers.push("trigger:1:1".to_owned())));
        assert!(doubted(|now| now.class = "702".to_owned()), "changed and changed back");
        assert!(!doubted(
            |now| (now.class, now.rest) = ("702".to_owned(), "703".to_owned())
        ));
        assert!(!doubted(|now| now.labels.push("9:92:glad".to_owned())));
        assert!(!doubted(|now| now.columns.push("3:more".to_owned())));
        assert!(!doubted(|now| now.columns.truncate(1)));
        assert!(!doubted(|_| {}));
    }
}
