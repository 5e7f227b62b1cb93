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
use super::text::{changed, list};
use crate::agent_db::catalog::{Column, Lookup, Target};

/// Insert rows, each as often as it is given. Returns how many were written.
pub(super) fn insert(target: &Target) -> StatementText {
    let mut sql = format!(
        "WITH u AS MATERIALIZED (SELECT * FROM {} AS u({})), came AS ({} SELECT {} FROM u RETURNING {}) ",
        unnest(target.columns.len()),
        names("", target),
        insert_into(target),
        values(target, "u"),
        returned(target),
    );
    let all = "(SELECT pg_catalog.count(*) FROM u)";
    let _ = match target.guarded {
        true => write!(
            sql,
            "SELECT CASE WHEN {} AND NOT EXISTS (SELECT FROM came WHERE NOT (came.d OPERATOR(pg_catalog.=) \
             ANY (SELECT {} FROM u))) THEN {all} ELSE {} END AS changed",
            as_many("came", all),
            given(target),
            changed(all)
        ),
        false => write!(sql, "SELECT pg_catalog.count(*) AS changed FROM came"),
    };
    StatementText {
        sql,
        parameters: columns(target),
    }
}

/// Delete, for each row that is given, one row that equals it. Returns how many were deleted.
pub(super) fn delete_one(target: &Target) -> StatementText {
    let mut sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.* FROM {unnest} AS u({names})), \
         v AS MATERIALIZED (SELECT s.*, pg_catalog.row_number() OVER (PARTITION BY s.d) AS i FROM ({stored}) AS s \
         WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE), \
         z AS MATERIALIZED (SELECT v.relation, v.place FROM v WHERE ((v.d, v.i) OPERATOR(pg_catalog.=) ANY \
         (SELECT x.d, pg_catalog.row_number() OVER (PARTITION BY x.d) FROM x)) IS TRUE), \
         gone AS (DELETE FROM {table} AS t WHERE {is_z} RETURNING 1) ",
        given = given(target),
        unnest = unnest(target.columns.len()),
        names = names("", target),
        stored = stored(target),
        table = target.only(),
        is_z = is_z(target),
    );
    let found = "(SELECT pg_catalog.count(*) FROM z)";
    let _ = match target.guarded {
        true => write!(
            sql,
            "SELECT CASE WHEN {} THEN {found} ELSE {} END AS changed",
            as_many("gone", found),
            changed(found)
        ),
        false => write!(sql, "SELECT pg_catalog.count(*) AS changed FROM gone"),
    };
    StatementText {
        sql,
        parameters: columns(target),
    }
}

/// Make, for each old row that is given, one row that equals it the new one. Columns of the Agent DB alone stay as they are.
/// Returns the positions of the rows that were found.
pub(super) fn update_one(target: &Target) -> StatementText {
    let width = target.columns.len();
    let mut no_values = String::new();
    list(&mut no_values, 0..=width, |sql, _| sql.push_str("NULL"));
    let mut new = String::new();
    list(&mut new, 0..width, |sql, index| {
        let _ = write!(sql, "n{index}");
    });
    let mut set = String::new();
    list(&mut set, target.columns.iter().enumerate(), |sql, (index, column)| {
        let _ = write!(sql, "{} = z.n{index}::{}", column.name, column.cast);
    });
    // In `q`, a row that is given stands beside one of the table that equals it; only the latter has a place.
    let mut sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.* FROM {unnest} WITH ORDINALITY AS u({old}, {new}, ord)), \
         v AS MATERIALIZED (SELECT s.* FROM ({stored}) AS s WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE), \
         p AS (SELECT q.*, pg_catalog.row_number() OVER (PARTITION BY q.d, q.place IS NULL) AS i FROM \
         (SELECT NULL::pg_catalog.oid AS relation, NULL::pg_catalog.tid AS place, x.d, x.ord, {of_x} FROM x \
         UNION ALL SELECT v.relation, v.place, v.d, {no_values} FROM v) AS q), \
         z AS MATERIALIZED (SELECT g.* FROM (SELECT p.ord, {new}, pg_catalog.max(p.place) OVER (PARTITION BY p.d, p.i) AS place, \
         pg_catalog.max(p.relation) OVER (PARTITION BY p.d, p.i) AS relation FROM p) AS g \
         WHERE g.ord IS NOT NULL AND g.place IS NOT NULL), \
         done AS (UPDATE {table} AS t SET {set} FROM z WHERE t.ctid OPERATOR(pg_catalog.=) z.place \
         AND t.tableoid OPERATOR(pg_catalog.=) z.relation RETURNING {returned}, z.ord, {new_text} AS n) ",
        given = given(target),
        unnest = unnest(2 * width),
        old = names("", target),
        of_x = {
            let mut of_x = String::new();
            list(&mut of_x, 0..width, |sql, index| {
                let _ = write!(sql, "x.n{index}");
            });
            of_x
        },
        stored = stored(target),
        table = target.only(),
        returned = returned(target),
        new_text = text_of(target, |index| format!("z.n{index}")),
    );
    let found = "(SELECT pg_catalog.count(*) FROM z)";
    let _ = match target.guarded {
        true => write!(
            sql,
            "SELECT CASE WHEN {} AND NOT EXISTS (SELECT FROM done WHERE done.d OPERATOR(pg_catalog.<>) done.n) \
             THEN z.ord ELSE {} END AS ord FROM z",
            as_many("done", found),
            changed("z.ord")
        ),
        false => write!(sql, "SELECT done.ord FROM done"),
    };
    let mut parameters: Vec<Parameter> = (0..width).map(Parameter::OldColumn).collect();
    parameters.extend(columns(target));
    StatementText { sql, parameters }
}

/// Make the number of rows that equal a given one the given number: insert what lacks, delete what is too much. Returns how
/// many rows were written.
pub(super) fn count(target: &Target) -> StatementText {
    let mut no_values = String::new();
    list(&mut no_values, target.columns.iter(), |sql, _| sql.push_str("NULL"));
    // In `g`, a row that is given stands beside those of the table that equal it; only the latter have a place.
    let mut sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.n::bigint AS n, {of_u} FROM {unnest} AS u({names}, n)), \
         v AS MATERIALIZED (SELECT s.* FROM ({stored}) AS s WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE), \
         g AS MATERIALIZED (SELECT q.*, pg_catalog.max(q.n) OVER (PARTITION BY q.d) AS wanted, \
         pg_catalog.count(q.place) OVER (PARTITION BY q.d) AS present, \
         pg_catalog.row_number() OVER (PARTITION BY q.d, q.place IS NULL) AS i FROM \
         (SELECT NULL::pg_catalog.oid AS relation, NULL::pg_catalog.tid AS place, x.* FROM x \
         UNION ALL SELECT v.relation, v.place, v.d, NULL, {no_values} FROM v) AS q), \
         z AS MATERIALIZED (SELECT g.relation, g.place FROM g WHERE g.place IS NOT NULL AND g.i OPERATOR(pg_catalog.>) g.wanted), \
         w AS MATERIALIZED (SELECT g.* FROM g CROSS JOIN LATERAL pg_catalog.generate_series(1, g.wanted OPERATOR(pg_catalog.-) g.present) \
         WHERE g.place IS NULL AND g.i OPERATOR(pg_catalog.=) 1), \
         gone AS (DELETE FROM {table} AS t WHERE {is_z} RETURNING 1), \
         came AS ({insert} SELECT {values} FROM w RETURNING {returned}) ",
        given = given(target),
        of_u = names("u.", target),
        unnest = unnest(target.columns.len() + 1),
        names = names("", target),
        stored = stored(target),
        table = target.only(),
        is_z = is_z(target),
        insert = insert_into(target),
        values = values(target, "w"),
        returned = returned(target),
    );
    let written =
        "(SELECT pg_catalog.count(*) FROM gone) OPERATOR(pg_catalog.+) (SELECT pg_catalog.count(*) FROM came)";
    let _ = match target.guarded {
        true => write!(
            sql,
            "SELECT CASE WHEN {} AND {} AND NOT EXISTS (SELECT FROM came WHERE NOT (came.d OPERATOR(pg_catalog.=) \
             ANY (SELECT x.d FROM x))) THEN {written} ELSE {} END AS changed",
            as_many("gone", "(SELECT pg_catalog.count(*) FROM z)"),
            as_many("came", "(SELECT pg_catalog.count(*) FROM w)"),
            changed("(SELECT pg_catalog.count(*) FROM x)")
        ),
        false => write!(sql, "SELECT {written} AS changed"),
    };
    let mut parameters = columns(target);
    parameters.push(Parameter::Count);
    StatementText { sql, parameters }
}

/// Whether a list has as many rows as the other number says.
fn as_many(list: &str, number: &str) -> String {
    format!("(SELECT pg_catalog.count(*) FROM {list}) OPERATOR(pg_catalog.=) {number}")
}

/// The text of a row that was written, as `d`.
fn returned(target: &Target) -> String {
    if target.guarded {
        let mut row = String::new();
        list(&mut row, target.columns.iter(), |sql, column| {
            let _ = write!(sql, "t.{}", column.name);
        });
        format!("ROW({row})::pg_catalog.text COLLATE pg_catalog.\"C\" AS d")
    } else {
        "1 AS d".to_owned()
    }
}

/// The rows of the table, each with its place and its text.
pub(super) fn stored(target: &Target) -> String {
    let mut row = String::new();
    list(&mut row, target.columns.iter(), |sql, column| {
        let _ = write!(sql, "t.{}", column.name);
    });
    let mut sql = format!(
        "SELECT t.tableoid AS relation, t.ctid AS place, ROW({row})::pg_catalog.text COLLATE pg_catalog.\"C\" AS d FROM {} AS t",
        target.only()
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
pub(super) fn given(target: &Target) -> String {
    text_of(target, |index| format!("u.c{index}"))
}

/// The text that a row of these values has once it is stored.
fn text_of(target: &Target, value: impl Fn(usize) -> String) -> String {
    let mut row = String::new();
    list(&mut row, target.columns.iter().enumerate(), |sql, (index, column)| {
        sql.push_str(&column.as_stored(&value(index)));
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

fn insert_into(target: &Target) -> String {
    let mut sql = format!("INSERT INTO {} AS t (", target.relation.table.quoted());
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
pub(super) fn names(before: &str, target: &Target) -> String {
    let mut sql = String::new();
    list(&mut sql, 0..target.columns.len(), |sql, index| {
        let _ = write!(sql, "{before}c{index}");
    });
    sql
}

/// `unnest($1::text[], …)`
pub(super) fn unnest(parameters: usize) -> String {
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
