//! The types that a type of users' own is made of, as both databases list them alike.

/// An SQL expression over `pg_attribute a`: the types of the values in a column whose type is not built in, in the order of their
/// places, as a JSON array of texts; else NULL. Attributes of composite types, elements of arrays and what domains stand for take the
/// place of these. Its names and operators are those of `pg_catalog`, whatever the search path.
pub const TYPE_PARTS: &str = "CASE WHEN a.atttypid OPERATOR(pg_catalog.>=) 16384 THEN (\
    WITH RECURSIVE part (place, type, length) AS (SELECT ARRAY[]::pg_catalog.int2[], a.atttypid, a.atttypmod UNION ALL \
    SELECT pg_catalog.array_append(part.place, x.place), x.type, x.length FROM part CROSS JOIN LATERAL (\
    SELECT 0::pg_catalog.int2 AS place, y.typbasetype AS type, y.typtypmod AS length FROM pg_catalog.pg_type y \
    WHERE y.oid OPERATOR(pg_catalog.=) part.type AND y.typtype OPERATOR(pg_catalog.=) 'd' \
    UNION ALL SELECT 0::pg_catalog.int2, y.typelem, part.length FROM pg_catalog.pg_type y \
    WHERE y.oid OPERATOR(pg_catalog.=) part.type AND y.typcategory OPERATOR(pg_catalog.=) 'A' \
    AND y.typtype OPERATOR(pg_catalog.<>) 'd' AND y.typelem OPERATOR(pg_catalog.>=) 16384 \
    UNION ALL SELECT v.attnum, v.atttypid, v.atttypmod FROM pg_catalog.pg_type y \
    JOIN pg_catalog.pg_attribute v ON v.attrelid OPERATOR(pg_catalog.=) y.typrelid \
    WHERE y.oid OPERATOR(pg_catalog.=) part.type AND y.typtype OPERATOR(pg_catalog.=) 'c' \
    AND v.attnum OPERATOR(pg_catalog.>) 0 AND NOT v.attisdropped) x) \
    SELECT pg_catalog.json_agg(pg_catalog.format_type(p.type, p.length) ORDER BY p.place)::pg_catalog.text \
    FROM part p JOIN pg_catalog.pg_type y ON y.oid OPERATOR(pg_catalog.=) p.type \
    WHERE NOT (y.typtype OPERATOR(pg_catalog.=) ANY ('{c,d}') OR y.typcategory OPERATOR(pg_catalog.=) 'A' \
    AND y.typelem OPERATOR(pg_catalog.>=) 16384)) END";

/// An SQL expression over `pg_class c`: the table's foreign keys whose actions delete or change its rows, each as its name, a line
/// break, and a text that is the same in both databases.
pub const ACTING_KEYS: &str = "ARRAY(SELECT pg_catalog.concat_ws(E'\\n', k.conname, ARRAY(SELECT a.attname::pg_catalog.text \
    FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(n, o) JOIN pg_catalog.pg_attribute a \
    ON a.attrelid OPERATOR(pg_catalog.=) k.conrelid AND a.attnum OPERATOR(pg_catalog.=) u.n ORDER BY u.o)::pg_catalog.text, \
    pg_catalog.concat_ws(' ', fn.nspname, fc.relname, k.confdeltype, k.confupdtype, ARRAY(SELECT a.attname::pg_catalog.text \
    FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(n, o) JOIN pg_catalog.pg_attribute a \
    ON a.attrelid OPERATOR(pg_catalog.=) k.confrelid AND a.attnum OPERATOR(pg_catalog.=) u.n ORDER BY u.o)::pg_catalog.text)) \
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class fc ON fc.oid OPERATOR(pg_catalog.=) k.confrelid \
    JOIN pg_catalog.pg_namespace fn ON fn.oid OPERATOR(pg_catalog.=) fc.relnamespace \
    WHERE k.conrelid OPERATOR(pg_catalog.=) c.oid AND k.contype OPERATOR(pg_catalog.=) 'f' \
    AND (k.confdeltype OPERATOR(pg_catalog.=) ANY ('{c,n,d}') OR k.confupdtype OPERATOR(pg_catalog.=) ANY ('{c,n,d}')))";
