//! Statements for tables whose rows are counted, as no key tells equal ones apart: pure text from a [`Target`].
//!
//! Rows are equal if they print alike: `ROW(…)::text` holds the output text of each column, and tells NULL from an empty
//! text. So `json`, which has no equality, NaN, and 0 and -0 are told apart as they are stored. The values of the stream are
//! cast to the columns' types first, lengths included where an assignment would round (`numeric(10,2)`).
//!
//! Each statement reads the table once (or what an index finds: equal rows have equal values in any column of it), whatever the planner believes about the number of rows: what it compares with is
//! looked up in a hash table, as an `IN` within `IS TRUE` is never made a join. Columns that only the Agent DB has are not
//! looked at: which of several equal rows is deleted does not matter to the Site DB.

use std::fmt::Write;

use super::kind::{Parameter, StatementText};
use super::text::list;
use crate::agent_db::catalog::{Column, Lookup, Target};

/// Insert rows, each as often as it is given.
pub(super) fn insert(target: &Target) -> StatementText {
    StatementText {
        sql: format!(
            "{} SELECT {} FROM {} AS x({})",
            insert_into(target),
            values(target, "x"),
            unnest(target.columns.len()),
            names("", target)
        ),
        parameters: columns(target),
    }
}

/// Delete, for each row that is given, one row that equals it.
pub(super) fn delete_one(target: &Target) -> StatementText {
    let sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.* FROM {unnest} AS u({names})), \
         v AS MATERIALIZED (SELECT s.*, pg_catalog.row_number() OVER (PARTITION BY s.d) AS i FROM ({stored}) AS s \
         WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE), \
         z AS MATERIALIZED (SELECT v.relation, v.place FROM v WHERE ((v.d, v.i) OPERATOR(pg_catalog.=) ANY \
         (SELECT x.d, pg_catalog.row_number() OVER (PARTITION BY x.d) FROM x)) IS TRUE) \
         DELETE FROM {table} AS t WHERE {is_z}",
        given = given(target),
        unnest = unnest(target.columns.len()),
        names = names("", target),
        stored = stored(target),
        table = table(target),
        is_z = is_z(target),
    );
    StatementText {
        sql,
        parameters: columns(target),
    }
}

/// Make the number of rows that equal a given one the given number: insert what lacks, delete what is too much. Returns how
/// many rows were written.
pub(super) fn count(target: &Target) -> StatementText {
    let mut no_values = String::new();
    list(&mut no_values, target.columns.iter(), |sql, _| sql.push_str("NULL"));
    // In `g`, a row that is given stands beside those of the table that equal it; only the latter have a place.
    let sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.n::bigint AS n, {of_u} FROM {unnest} AS u({names}, n)), \
         v AS MATERIALIZED (SELECT s.* FROM ({stored}) AS s WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE), \
         g AS MATERIALIZED (SELECT q.*, pg_catalog.max(q.n) OVER (PARTITION BY q.d) AS wanted, \
         pg_catalog.count(q.place) OVER (PARTITION BY q.d) AS present, \
         pg_catalog.row_number() OVER (PARTITION BY q.d, q.place IS NULL) AS i FROM \
         (SELECT NULL::pg_catalog.oid AS relation, NULL::pg_catalog.tid AS place, x.* FROM x \
         UNION ALL SELECT v.relation, v.place, v.d, NULL, {no_values} FROM v) AS q), \
         z AS MATERIALIZED (SELECT g.relation, g.place FROM g WHERE g.place IS NOT NULL AND g.i OPERATOR(pg_catalog.>) g.wanted), \
         gone AS (DELETE FROM {table} AS t WHERE {is_z} RETURNING 1), \
         came AS ({insert} SELECT {values} FROM g \
         CROSS JOIN LATERAL pg_catalog.generate_series(1, g.wanted OPERATOR(pg_catalog.-) g.present) \
         WHERE g.place IS NULL AND g.i OPERATOR(pg_catalog.=) 1 RETURNING 1) \
         SELECT (SELECT pg_catalog.count(*) FROM gone) OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM came) AS changed",
        given = given(target),
        of_u = names("u.", target),
        unnest = unnest(target.columns.len() + 1),
        names = names("", target),
        stored = stored(target),
        table = table(target),
        is_z = is_z(target),
        insert = insert_into(target),
        values = values(target, "g"),
    );
    let mut parameters = columns(target);
    parameters.push(Parameter::Count);
    StatementText { sql, parameters }
}

/// The rows of the table, each with its place and its text.
fn stored(target: &Target) -> String {
    let mut row = String::new();
    list(&mut row, target.columns.iter(), |sql, column| {
        let _ = write!(sql, "t.{}", column.name);
    });
    let mut sql = format!(
        "SELECT t.tableoid AS relation, t.ctid AS place, ROW({row})::pg_catalog.text COLLATE pg_catalog.\"C\" AS d FROM {} AS t",
        table(target)
    );
    if let Some(Lookup { column, equals }) = &target.lookup
        && let Some(Column { name, cast, .. }) = target.columns.get(*column)
    {
        let _ = write!(
            sql,
            " WHERE t.{name} {equals} ANY (ARRAY(SELECT x.c{column}::{cast} FROM x)) OR t.{name} IS NULL"
        );
    }
    sql
}

/// The text that a given row has once it is stored.
fn given(target: &Target) -> String {
    let mut row = String::new();
    list(&mut row, target.columns.iter().enumerate(), |sql, (index, column)| {
        let _ = write!(sql, "u.c{index}::{}", column.stored);
    });
    format!("ROW({row})::pg_catalog.text COLLATE pg_catalog.\"C\"")
}

/// Whether a row of the table is one of those in `z`. By its place, so that the table is not read once more; places are
/// unique within a partition only.
fn is_z(target: &Target) -> String {
    let places = "t.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT z.place FROM z))";
    if target.partitioned {
        format!(
            "{places} AND ((t.tableoid, t.ctid) OPERATOR(pg_catalog.=) ANY (SELECT z.relation, z.place FROM z)) IS TRUE"
        )
    } else {
        places.to_owned()
    }
}

/// Not the rows of tables that inherit from this one; a partitioned table has all of its rows in others.
fn table(target: &Target) -> String {
    let only = if target.partitioned { "" } else { "ONLY " };
    format!("{only}{}", target.relation.table.quoted())
}

fn insert_into(target: &Target) -> String {
    let mut sql = format!("INSERT INTO {} (", target.relation.table.quoted());
    list(&mut sql, target.columns.iter(), |sql, column| {
        sql.push_str(&column.name)
    });
    sql.push_str(") OVERRIDING SYSTEM VALUE");
    sql
}

fn values(target: &Target, from: &str) -> String {
    let mut sql = String::new();
    list(&mut sql, target.columns.iter().enumerate(), |sql, (index, column)| {
        let _ = write!(sql, "{from}.c{index}::{}", column.cast);
    });
    sql
}

/// `c0, c1, …`, each with this before it.
fn names(before: &str, target: &Target) -> String {
    let mut sql = String::new();
    list(&mut sql, 0..target.columns.len(), |sql, index| {
        let _ = write!(sql, "{before}c{index}");
    });
    sql
}

/// `unnest($1::text[], …)`
fn unnest(parameters: usize) -> String {
    // Of several arrays it is syntax, and cannot be named with its schema; of one it is a function like others.
    let mut sql = if parameters == 1 {
        "pg_catalog.unnest("
    } else {
        "unnest("
    }
    .to_owned();
    list(&mut sql, 1..=parameters, |sql, number| {
        let _ = write!(sql, "${number}::pg_catalog.text[]");
    });
    sql.push(')');
    sql
}

fn columns(target: &Target) -> Vec<Parameter> {
    (0..target.columns.len()).map(Parameter::Column).collect()
}
