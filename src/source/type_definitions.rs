//! Statements that create the types of columns as the Site DB has them, for a table whose column the Agent DB lacks together with
//! its type. Not what a type that was written in C needs, unless an extension brings it.

use tokio_postgres::{Client, Row};

use super::bounded;
use super::error::SourceError;
use crate::change::RelationId;

/// A type of the Site DB that is not Postgres' own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeDefinition {
    /// The schema in which the type is, quoted.
    pub schema: String,
    /// The type's name with its schema, quoted.
    pub name: String,
    /// The statement that creates it.
    pub statement: String,
}

/// The types, those first that others use. A domain uses its base type, a range its subtype, a composite type its attributes'.
const DEFINITIONS: &str = "
WITH RECURSIVE used (type, depth) AS (
    SELECT a.atttypid, 0 FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text = ANY ($2)
    UNION
    SELECT n.type, u.depth + 1 FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.type
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typtype = 'b'
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT m.rngtypid FROM pg_catalog.pg_range m WHERE m.rngmultitypid = t.oid
        UNION ALL SELECT b.atttypid FROM pg_catalog.pg_attribute b
            WHERE t.typtype = 'c' AND b.attrelid = t.typrelid AND b.attnum > 0 AND NOT b.attisdropped
    ) AS n (type) WHERE n.type <> 0 AND u.depth < 20
), types AS (
    SELECT t.*, n.nspname, max(u.depth) AS depth, (
        SELECT pg_catalog.format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I', x.extname, xn.nspname)
        FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
        JOIN pg_catalog.pg_namespace xn ON xn.oid = x.extnamespace
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass LIMIT 1) AS extension
    FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.type JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    -- An array comes with its element's type, and a multirange with its range.
    WHERE n.nspname <> 'pg_catalog' AND (t.typtype IN ('e', 'd', 'c', 'r') OR t.typtype = 'b' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_type e WHERE e.typarray = t.oid)) GROUP BY t.oid, n.nspname
)
SELECT pg_catalog.quote_ident(t.nspname) AS schema, pg_catalog.format('%I.%I', t.nspname, t.typname) AS name,
    coalesce(t.extension, CASE t.typtype
        WHEN 'e' THEN pg_catalog.format('CREATE TYPE %I.%I AS ENUM (%s)', t.nspname, t.typname, (
            SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
            FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid))
        WHEN 'd' THEN pg_catalog.format('CREATE DOMAIN %I.%I AS %s%s%s%s%s', t.nspname, t.typname,
            pg_catalog.format_type(t.typbasetype, t.typtypmod), (SELECT pg_catalog.format(' COLLATE %I.%I', 'pg_catalog', l.collname)
                FROM pg_catalog.pg_collation l WHERE l.oid = t.typcollation AND l.collnamespace = 'pg_catalog'::pg_catalog.regnamespace
                AND l.oid <> (SELECT y.typcollation FROM pg_catalog.pg_type y WHERE y.oid = t.typbasetype)),
            -- Rows that are there get it when a column is added; without it, a domain that is NOT NULL refuses them.
            CASE WHEN t.typnotnull THEN ' DEFAULT ' || pg_catalog.pg_get_expr(t.typdefaultbin, 0) END,
            CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END, (
            SELECT pg_catalog.string_agg(pg_catalog.format(' CONSTRAINT %I %s', k.conname,
                pg_catalog.pg_get_constraintdef(k.oid)), '' ORDER BY k.conname)
            FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'))
        WHEN 'c' THEN pg_catalog.format('CREATE TYPE %I.%I AS (%s)', t.nspname, t.typname, (
            SELECT pg_catalog.string_agg(pg_catalog.format('%I %s%s', b.attname,
                pg_catalog.format_type(b.atttypid, b.atttypmod), (SELECT pg_catalog.format(' COLLATE %I.%I', 'pg_catalog', l.collname)
                FROM pg_catalog.pg_collation l WHERE l.oid = b.attcollation AND l.collnamespace = 'pg_catalog'::pg_catalog.regnamespace
                AND l.oid <> (SELECT y.typcollation FROM pg_catalog.pg_type y WHERE y.oid = b.atttypid))), ', ' ORDER BY b.attnum)
            FROM pg_catalog.pg_attribute b WHERE b.attrelid = t.typrelid AND b.attnum > 0 AND NOT b.attisdropped))
        -- Not its functions, which are for speed, and not an operator class, which only an extension has.
        WHEN 'r' THEN (SELECT pg_catalog.format('CREATE TYPE %I.%I AS RANGE (SUBTYPE = %s%s, MULTIRANGE_TYPE_NAME = %I.%I)',
            t.nspname, t.typname, pg_catalog.format_type(r.rngsubtype, NULL), (SELECT pg_catalog.format(', COLLATION = %I.%I', 'pg_catalog', l.collname)
                FROM pg_catalog.pg_collation l WHERE l.oid = r.rngcollation AND l.collnamespace = 'pg_catalog'::pg_catalog.regnamespace
                AND l.oid <> (SELECT y.typcollation FROM pg_catalog.pg_type y WHERE y.oid = r.rngsubtype)), mn.nspname, mt.typname)
            FROM pg_catalog.pg_range r JOIN pg_catalog.pg_type mt ON mt.oid = r.rngmultitypid
            JOIN pg_catalog.pg_namespace mn ON mn.oid = mt.typnamespace WHERE r.rngtypid = t.oid)
    END) AS statement
FROM types t ORDER BY depth DESC, name";

/// The types that these columns of a table use, those first that others use.
///
/// # Errors
/// The statement failed.
pub async fn type_definitions(
    client: &Client,
    relation: RelationId,
    columns: &[&str],
) -> Result<Vec<TypeDefinition>, SourceError> {
    let definition = |row: &Row| {
        Ok(row
            .get::<_, Option<String>>("statement")
            .map(|statement| TypeDefinition {
                schema: row.get("schema"),
                name: row.get("name"),
                statement,
            }))
    };
    bounded::rows(
        client,
        DEFINITIONS,
        &[&relation.0, &columns],
        "read the definitions of types",
        definition,
    )
    .await
}
