//! Traces in the Site DB's catalog of what its log does not carry: see `change::Marks`.
//!
//! | what happened | trace |
//! |---|---|
//! | `ALTER … TYPE … USING`, `ADD COLUMN` with a volatile default, `SET EXPRESSION`, an unlogged spell, a `TRUNCATE` that is not published | another file |
//! | a partition was attached with its rows, or detached | other partitions' files under the root, other versions of their attachment |
//! | a column was dropped and added again under its name | its number |
//! | a label of an enum was renamed, also within arrays, domains, ranges and composite types | the label's row |
//! | an attribute of a composite type was added or dropped | the type's attributes |
//! | `publish` or `publish_via_partition_root` were other ones for a while | the version of the publication's row |
//! | the table was in another schema for a while, of a publication `FOR TABLES IN SCHEMA` | the version of its dependency on the schema |
//!
//! A row's version is its `xmin`: it differs after every update, also one that is taken back; freezing keeps it. (It is not
//! used for `pg_class` and `pg_attribute`, which also change with every `GRANT` and `SET STATISTICS`.)
//!
//! Only tables of the catalog are read, without a lock on the user's table: a rewrite that is going on must not stop the
//! watch over the others.

use tokio_postgres::Row;

use crate::change::Marks;
use crate::postgres::Lossy;

/// The OIDs below this one are of built-in objects, which nobody changes.
const FIRST_USER_OID: u32 = 16384;

/// The columns for a query over `pg_class c` and `pg_attribute a`, grouped by `c.oid`; `$1` is the publication.
/// `schemas`: a subquery over `pg_publication b` that finds the publication's entry for the table's schema, or `NULL`.
pub(super) fn columns(schemas: &str) -> String {
    format!(
        "(SELECT pg_catalog.concat_ws(':', b.xmin, CASE WHEN {schemas} IS NOT NULL THEN \
         (SELECT d.xmin FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
         AND d.objsubid = 0 AND d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n') END) \
         FROM pg_catalog.pg_publication b WHERE b.pubname = $1) AS mark_publication, \
         ARRAY(WITH RECURSIVE tree (oid, attached) AS (SELECT c.oid, NULL::xid UNION ALL SELECT i.inhrelid, i.xmin FROM tree \
         JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid WHERE c.relkind = 'p' AND NOT i.inhdetachpending) \
         SELECT pg_catalog.concat_ws(':', tree.oid, (SELECT f.relfilenode FROM pg_catalog.pg_class f WHERE f.oid = tree.oid), attached) \
         FROM tree WHERE (SELECT f.relkind FROM pg_catalog.pg_class f WHERE f.oid = tree.oid) = 'r' ORDER BY tree.oid) AS mark_files, \
         pg_catalog.array_agg(a.attnum::int4 ORDER BY a.attnum) AS mark_numbers, \
         pg_catalog.array_agg(a.atttypid || ' ' || a.atttypmod ORDER BY a.attnum) AS mark_kinds, {} AS mark_types",
        types()
    )
}

/// The parts of all types that a table's columns are made of, as `oid:part`.
fn types() -> String {
    format!(
        "ARRAY(WITH RECURSIVE used (oid) AS (SELECT u.atttypid FROM pg_catalog.pg_attribute u \
         WHERE u.attrelid = c.oid AND u.attnum > 0 AND NOT u.attisdropped AND u.atttypid >= {FIRST_USER_OID} \
         UNION SELECT part.oid FROM used CROSS JOIN LATERAL (\
         SELECT y.typelem FROM pg_catalog.pg_type y WHERE y.oid = used.oid \
         UNION ALL SELECT y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = used.oid \
         UNION ALL SELECT v.atttypid FROM pg_catalog.pg_type y JOIN pg_catalog.pg_attribute v ON v.attrelid = y.typrelid \
         WHERE y.oid = used.oid AND y.typtype = 'c' AND v.attnum > 0 AND NOT v.attisdropped \
         UNION ALL SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE used.oid IN (g.rngtypid, g.rngmultitypid)\
         ) part (oid) WHERE part.oid >= {FIRST_USER_OID}) \
         SELECT e.enumtypid || ':' || e.oid || ' ' || e.enumlabel || ' ' || e.xmin \
         FROM used JOIN pg_catalog.pg_enum e ON e.enumtypid = used.oid \
         UNION ALL SELECT y.oid || ':' || pg_catalog.string_agg(v.attnum || ' ' || \
         pg_catalog.format_type(v.atttypid, v.atttypmod), ', ' ORDER BY v.attnum) \
         FROM used JOIN pg_catalog.pg_type y ON y.oid = used.oid AND y.typtype = 'c' \
         JOIN pg_catalog.pg_attribute v ON v.attrelid = y.typrelid AND v.attnum > 0 AND NOT v.attisdropped \
         GROUP BY y.oid ORDER BY 1)"
    )
}

/// The marks of a row of such a query. `columns`: the names of the columns, in the same order as their numbers.
pub(super) fn of_row(row: &Row, columns: &[String]) -> Marks {
    let numbers: Vec<i32> = row.get("mark_numbers");
    let kinds: Vec<String> = row.get("mark_kinds");
    let types: Vec<String> = Lossy::texts(row.get("mark_types"));
    Marks {
        publication: row.get::<_, Option<String>>("mark_publication").unwrap_or_default(),
        files: row.get("mark_files"),
        columns: columns.iter().cloned().zip(numbers).collect(),
        kinds: columns.iter().cloned().zip(kinds).collect(),
        types: types
            .iter()
            .filter_map(|part| part.split_once(':'))
            .filter_map(|(oid, part)| Some((oid.parse().ok()?, part.to_owned())))
            .collect(),
    }
}
