//! Statements for rows of several tables that wait for each other, and for what stands in their way.

use std::fmt::Write;

use super::kind::Parameter;
use super::statement::{delete, upsert};
use super::text::{from_unnest, where_key};
use crate::agent_db::catalog::{ForeignKey, Target};
use crate::postgres::quote_identifier;

/// What one part of a statement over several tables does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent_db::apply) enum PartKind {
    Delete,
    Upsert,
}

/// One statement that writes rows of several tables, in the order of the parts: constraints that can't be deferred, and the
/// actions of foreign keys, then meet the result as a whole. Returns what each part's parameters are made of.
pub(in crate::agent_db::apply) fn together(parts: &[(PartKind, &Target)]) -> (String, Vec<Vec<Parameter>>) {
    let (mut with, mut counts) = (String::new(), String::new());
    let mut parameters: Vec<Vec<Parameter>> = Vec::with_capacity(parts.len());
    let mut first = 1;
    for (number, (kind, target)) in parts.iter().enumerate() {
        let text = match kind {
            PartKind::Delete => delete(target, first),
            PartKind::Upsert => upsert(target, true, first),
        };
        first += text.parameters.len();
        parameters.push(text.parameters);
        let (comma, union) = if number == 0 { ("", "") } else { (", ", " UNION ALL ") };
        let _ = write!(with, "{comma}w{number} AS ({} RETURNING 1)", text.sql);
        // Read one after the other, so the parts are written in their order.
        let _ = write!(counts, "{union}SELECT pg_catalog.count(*) FROM w{number}");
    }
    (format!("WITH {with} {counts}"), parameters)
}

/// Sets columns (quoted) of rows to NULL, found by their keys.
pub(in crate::agent_db::apply) fn set_null(target: &Target, columns: &[String]) -> String {
    let set: Vec<String> = columns.iter().map(|column| format!("{column} = NULL")).collect();
    let mut sql = format!("UPDATE {} AS t SET {}", target.only(), set.join(", "));
    from_unnest(&mut sql, "FROM", 1, target.relation.key_positions().len(), false);
    where_key(&mut sql, target);
    sql
}

/// Positions (from 1) of the rows whose reference finds no row. Parameters: the foreign key's columns of the rows, which
/// are at `positions` of the child's images. `None` if the images do not have them.
pub(in crate::agent_db::apply) fn missing_parents(child: &Target, key: &ForeignKey) -> Option<(String, Vec<usize>)> {
    let positions: Option<Vec<usize>> = key.columns.iter().map(|name| position(child, name)).collect();
    let positions = positions?;
    let mut sql = "SELECT x.ord".to_owned();
    from_unnest(&mut sql, "FROM", 1, positions.len(), true);
    sql.push_str(" WHERE ");
    for part in 0..positions.len() {
        let _ = write!(sql, "x.c{part} IS NOT NULL AND ");
    }
    let _ = write!(sql, "NOT EXISTS (SELECT FROM {} AS p WHERE ", key.parent.quoted());
    for (part, &at) in positions.iter().enumerate() {
        let and = if part == 0 { "" } else { " AND " };
        let (name, equals) = (key.referenced.get(part)?, key.equals.get(part)?);
        let cast = &child.columns.get(at)?.cast;
        let _ = write!(sql, "{and}p.{} {equals} x.c{part}::{cast}", quote_identifier(name));
    }
    sql.push(')');
    Some((sql, positions))
}

/// Positions (from 1) of the parent's rows to which some rows of the child refer. Parameters: the parent's keys, then the
/// child's.
pub(in crate::agent_db::apply) fn referenced(parent: &Target, child: &Target, key: &ForeignKey) -> String {
    let (ours, theirs) = (
        parent.relation.key_positions().len(),
        child.relation.key_positions().len(),
    );
    let mut sql = "SELECT DISTINCT x.ord".to_owned();
    from_unnest(&mut sql, "FROM", 1, ours, true);
    let _ = write!(
        sql,
        " JOIN {} AS t ON true JOIN {} AS c ON true JOIN ",
        key.parent.quoted(),
        key.child.quoted()
    );
    let arrays: Vec<String> = (1..=theirs)
        .map(|part| format!("${}::pg_catalog.text[]", ours + part))
        .collect();
    let names: Vec<String> = (0..theirs).map(|part| format!("k{part}")).collect();
    let schema = if theirs == 1 { "pg_catalog." } else { "" };
    let (arrays, names) = (arrays.join(", "), names.join(", "));
    let _ = write!(sql, "{schema}unnest({arrays}) AS s({names}) ON true");
    where_key(&mut sql, parent);
    let positions = child.relation.key_positions().iter();
    for (part, (column, equals)) in positions
        .filter_map(|&at| child.columns.get(at))
        .zip(&child.equals)
        .enumerate()
    {
        let _ = write!(sql, " AND c.{} {equals} s.k{part}::{}", column.name, column.cast);
    }
    for ((column, referenced), equals) in key.columns.iter().zip(&key.referenced).zip(&key.equals) {
        let (referenced, column) = (quote_identifier(referenced), quote_identifier(column));
        let _ = write!(sql, " AND t.{referenced} {equals} c.{column}");
    }
    sql
}

/// Where a column (unquoted) stands in a table's images.
fn position(target: &Target, name: &str) -> Option<usize> {
    target.relation.columns.iter().position(|column| **column == *name)
}
