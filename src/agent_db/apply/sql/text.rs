//! Parts of statements. Whatever is named is named with its schema: the search path is the role's.

use std::fmt::Write;

use crate::agent_db::catalog::{Column, Target};
use crate::agent_db::error::CHANGED;

/// An expression that fails, with [`CHANGED`] and the row's position in the message.
pub(super) fn changed(position: &str) -> String {
    failing(position, CHANGED)
}

/// An expression that fails, with a reason and the row's position in the message.
pub(super) fn failing(position: &str, reason: &str) -> String {
    format!("({position}::pg_catalog.text OPERATOR(pg_catalog.||) ' {reason}')::integer")
}

/// Whether pairs of values are the same as text, byte for byte whatever the collation; NULL is the same as NULL.
pub(super) fn same(sql: &mut String, pairs: impl Iterator<Item = (String, String)>) {
    list_with(sql, " AND ", pairs, |sql, (left, right)| {
        let _ = write!(
            sql,
            "coalesce({left}::pg_catalog.text COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) {right}::pg_catalog.text, \
             {left}::pg_catalog.text IS NULL AND {right}::pg_catalog.text IS NULL)"
        );
    });
}

/// `FROM unnest($1::text[], …) AS x(c0, …)`. Of several arrays it is syntax, and cannot be named with its schema; of one it
/// is a function like others.
pub(super) fn from_unnest(sql: &mut String, keyword: &str, first: usize, count: usize, ordinality: bool) {
    let schema = if count == 1 { "pg_catalog." } else { "" };
    let _ = write!(sql, " {keyword} {schema}unnest(");
    list(sql, first..first + count, |sql, number| {
        let _ = write!(sql, "${number}::pg_catalog.text[]");
    });
    sql.push(')');
    if ordinality {
        sql.push_str(" WITH ORDINALITY");
    }
    sql.push_str(" AS x(");
    list(sql, 0..count, |sql, index| {
        let _ = write!(sql, "c{index}");
    });
    sql.push_str(if ordinality { ", ord)" } else { ")" });
}

/// `t.id OPERATOR(pg_catalog.=) x.c0::bigint AND …`. The operator is the key index's own, by name: a bare `=` on a `citext`
/// might be that of `text`.
pub(super) fn same_key(sql: &mut String, target: &Target, values: &[String]) {
    let parts = target.relation.key_positions().iter().zip(&target.equals).zip(values);
    list_with(sql, " AND ", parts, |sql, ((&key, equals), value)| {
        let column = column(target, key);
        let _ = write!(sql, "t.{} {equals} {value}::{}", column.name, column.cast);
    });
}

/// ` WHERE` the row has the key that is the first of `x`'s columns.
pub(super) fn where_key(sql: &mut String, target: &Target) {
    let keys = target.relation.key_positions().len();
    let values: Vec<String> = (0..keys).map(|part| format!("x.c{part}")).collect();
    sql.push_str(" WHERE ");
    same_key(sql, target, &values);
}

/// A column that [`Target`] guarantees to be there: its constructor checks that keys are positions of columns.
pub(super) fn column(target: &Target, index: usize) -> &Column {
    &target.columns[index]
}

pub(super) fn list<T>(sql: &mut String, items: impl Iterator<Item = T>, each: impl FnMut(&mut String, T)) {
    list_with(sql, ", ", items, each);
}

pub(super) fn list_with<T>(
    sql: &mut String,
    separator: &str,
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut String, T),
) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            sql.push_str(separator);
        }
        each(sql, item);
    }
}
