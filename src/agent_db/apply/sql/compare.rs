//! Statements that compare rows with what the table holds, and write nothing: pure text from a [`Target`].
//!
//! Rows are the same if they print alike once the given one is cast to the columns' types (see [`super::counted`]): then
//! writing it would leave the stored one as it is. So 0 and -0, 1.0 and 1.00, a text and the same with a trailing blank
//! differ, and a type that the Agent DB chose is no difference. Columns that only the Agent DB has are not looked at.

use std::fmt::Write;

use super::counted::{given, names, stored, unnest};
use super::kind::{Parameter, StatementText};
use super::text::{column, from_unnest, list, same_key};
use crate::agent_db::catalog::Target;

/// Which columns of a row are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db::apply) enum Compared {
    /// All of them.
    Row,
    /// This one.
    Column(usize),
}

/// Compares rows that should be there. Returns those that are not, or are other than they should be: `ord`, the position
/// (from 1); `present`, whether there is a row with the key; `differs`, for each compared column whether it differs; `key`, the
/// key as it is stored.
pub(in crate::agent_db::apply) fn expected(target: &Target, compared: Compared) -> StatementText {
    let keys = target.relation.key_positions().len();
    let columns: Vec<usize> = match compared {
        Compared::Row => (0..target.columns.len()).collect(),
        Compared::Column(index) => vec![index],
    };
    let mut parameters: Vec<Parameter> = (0..keys).map(Parameter::KeyPart).collect();
    parameters.extend(columns.iter().map(|&index| Parameter::Column(index)));
    let (mut is, mut should, mut differs) = (String::new(), String::new(), String::new());
    list(&mut is, columns.iter(), |sql, &index| {
        let _ = write!(sql, "t.{}", column(target, index).name);
    });
    list(&mut should, columns.iter().enumerate(), |sql, (position, &index)| {
        sql.push_str(&column(target, index).as_stored(&format!("x.c{}", keys + position)));
    });
    list(&mut differs, columns.iter().enumerate(), |sql, (position, &index)| {
        let column = column(target, index);
        let is = printed(&format!("t.{}", column.name));
        let should = printed(&column.as_stored(&format!("x.c{}", keys + position)));
        let _ = write!(sql, "{is} OPERATOR(pg_catalog.<>) {should}");
    });
    let mut sql = format!(
        "SELECT x.ord, t.tableoid IS NOT NULL AS present, ARRAY[{differs}] AS differs, {} AS key",
        stored_key(target)
    );
    from_unnest(&mut sql, "FROM", 1, parameters.len(), true);
    let _ = write!(sql, " LEFT JOIN {} AS t ON ", target.only());
    same_key(&mut sql, target, &key_values(keys));
    let _ = write!(
        sql,
        " WHERE t.tableoid IS NULL OR {} OPERATOR(pg_catalog.<>) {}",
        printed(&is),
        printed(&should)
    );
    StatementText { sql, parameters }
}

/// Looks for rows that should not be there. Returns the positions (from 1) of the keys that are, as `ord`, and the keys as they
/// are stored.
pub(in crate::agent_db::apply) fn unexpected(target: &Target) -> StatementText {
    let keys = target.relation.key_positions().len();
    let mut sql = format!("SELECT x.ord, {} AS key", stored_key(target));
    from_unnest(&mut sql, "FROM", 1, keys, true);
    let _ = write!(sql, " JOIN {} AS t ON ", target.only());
    same_key(&mut sql, target, &key_values(keys));
    StatementText {
        sql,
        parameters: (0..keys).map(Parameter::KeyPart).collect(),
    }
}

/// Compares the number of rows that equal each given one with the given number. Returns where it is another one: `ord`, the
/// position (from 1); `present`, how many there are.
pub(in crate::agent_db::apply) fn counts(target: &Target) -> StatementText {
    let width = target.columns.len();
    let sql = format!(
        "WITH x AS MATERIALIZED (SELECT {given} AS d, u.n::bigint AS n, u.ord, {of_u} FROM {unnest} WITH ORDINALITY AS u({names}, n, ord)), \
         v AS MATERIALIZED (SELECT s.d, pg_catalog.count(*) AS n FROM ({stored}) AS s \
         WHERE (s.d OPERATOR(pg_catalog.=) ANY (SELECT x.d FROM x)) IS TRUE GROUP BY s.d) \
         SELECT x.ord, coalesce(v.n, 0) AS present FROM x LEFT JOIN v ON v.d OPERATOR(pg_catalog.=) x.d \
         WHERE coalesce(v.n, 0) OPERATOR(pg_catalog.<>) x.n",
        given = given(target),
        unnest = unnest(width + 1),
        names = names("", target),
        of_u = names("u.", target),
        stored = stored(target),
    );
    let mut parameters: Vec<Parameter> = (0..width).map(Parameter::Column).collect();
    parameters.push(Parameter::Count);
    StatementText { sql, parameters }
}

/// How values print, never NULL.
fn printed(values: &str) -> String {
    format!("ROW({values})::pg_catalog.text COLLATE pg_catalog.\"C\"")
}

/// The key of `t` as a `text[]`, as the types' output functions print it.
fn stored_key(target: &Target) -> String {
    let mut sql = "ARRAY[".to_owned();
    list(&mut sql, target.relation.key_positions().iter(), |sql, &key| {
        let _ = write!(sql, "pg_catalog.format('%s', t.{})", column(target, key).name);
    });
    sql.push(']');
    sql
}

fn key_values(keys: usize) -> Vec<String> {
    (0..keys).map(|part| format!("x.c{part}")).collect()
}
