//! Rows of which an UPDATE can't set a column (`GENERATED ALWAYS AS IDENTITY`): they are deleted and inserted anew. What the
//! images do not hold, columns of the Agent DB alone among it, is taken from the row that goes.

use std::fmt::Write;

use super::kind::{Parameter, StatementText};
use super::text::{column, from_unnest, list, same, where_key};
use crate::agent_db::catalog::Target;

/// Which rows, and what they get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reinserted {
    /// Those of the old keys: everything that the images hold, the new key too.
    Moved,
    /// Those of the new keys whose identity columns outside of the key differ: these columns.
    Identity,
}

/// Returns the positions of the rows that were deleted and inserted.
pub(super) fn reinsert(target: &Target, present: &[bool], rows: Reinserted) -> StatementText {
    let keys = target.relation.key_positions().len();
    let given: Vec<usize> = target
        .columns
        .iter()
        .enumerate()
        .filter(|&(index, column)| {
            present.get(index).copied().unwrap_or_default() && (rows == Reinserted::Moved || column.is_reinserted())
        })
        .map(|(index, _)| index)
        .collect();
    let mut parameters: Vec<Parameter> = (0..keys)
        .map(match rows {
            Reinserted::Moved => Parameter::KeyPart,
            Reinserted::Identity => Parameter::NewKeyPart,
        })
        .collect();
    parameters.extend(given.iter().map(|&index| Parameter::Column(index)));
    let position = |index: usize| given.iter().position(|&other| other == index).map(|at| keys + at);

    let mut sql = format!("WITH gone AS (DELETE FROM {} AS t", target.only());
    from_unnest(&mut sql, "USING", 1, parameters.len(), true);
    where_key(&mut sql, target);
    if rows == Reinserted::Identity {
        sql.push_str(" AND NOT (");
        let pairs = given.iter().enumerate().map(|(at, &index)| {
            let column = column(target, index);
            (
                format!("t.{}", column.name),
                column.as_stored(&format!("x.c{}", keys + at)),
            )
        });
        same(&mut sql, pairs);
        sql.push(')');
    }
    sql.push_str(" RETURNING x.ord");
    let mut names = String::new();
    let mut number = 0;
    let mut add = |sql: &mut String, name: &str, value: String| {
        let _ = write!(sql, ", {value} AS v{number}");
        let comma = if number == 0 { "" } else { ", " };
        let _ = write!(names, "{comma}{name}");
        number += 1;
    };
    for (index, column) in target.columns.iter().enumerate() {
        let value = match position(index) {
            Some(at) => format!("x.c{at}::{}", column.cast),
            None => format!("t.{}", column.name),
        };
        add(&mut sql, &column.name, value);
    }
    for name in &target.unpublished {
        add(&mut sql, name, format!("t.{name}"));
    }
    let _ = write!(
        sql,
        "), came AS (INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT ",
        target.relation.table.quoted()
    );
    list(&mut sql, 0..number, |sql, number| {
        let _ = write!(sql, "gone.v{number}");
    });
    // Reading the count makes the rows come before the statement ends.
    sql.push_str(
        " FROM gone RETURNING 1) SELECT gone.ord FROM gone \
         WHERE (SELECT pg_catalog.count(*) FROM came) OPERATOR(pg_catalog.>=) 0",
    );
    StatementText { sql, parameters }
}
