//! The look at what a statement has written, for tables whose triggers or rules may write something else. It is sent behind
//! the statement, in the same round trip, and fails as a refused row does.

use std::fmt::Write;

use super::kind::{Parameter, StatementText, Written};
use super::text::{column, failing, from_unnest, list_with, same, same_key};
use crate::agent_db::catalog::Target;

/// Finds the rows that are other than they were sent, and fails with the first. `reason`: what the message says.
pub(super) fn look(target: &Target, written: &Written, reason: &str) -> StatementText {
    let keys = target.relation.key_positions().len();
    let mut parameters: Vec<Parameter> = (0..keys).map(Parameter::KeyPart).collect();
    let old: Vec<String> = (0..keys).map(|part| format!("x.c{part}")).collect();
    let mut new = old.clone();
    if matches!(written, Written::Moved { .. }) {
        new = (keys..2 * keys).map(|part| format!("x.c{part}")).collect();
        parameters.extend((0..keys).map(Parameter::NewKeyPart));
    }
    let first_column = parameters.len();
    let looked_at: Vec<usize> = target
        .columns
        .iter()
        .enumerate()
        .filter(|&(index, column)| {
            !column.in_key
                && match written {
                    Written::Images => true,
                    Written::Partial { present } | Written::Moved { present } => {
                        present.get(index).copied().unwrap_or_default()
                    }
                    Written::Nothing => false,
                }
        })
        .map(|(index, _)| index)
        .collect();
    parameters.extend(looked_at.iter().map(|&index| Parameter::Column(index)));
    let mut sql = format!("SELECT {}", failing("x.ord", reason));
    from_unnest(&mut sql, "FROM", 1, parameters.len(), true);
    sql.push_str(" WHERE ");
    let row = |sql: &mut String, key: &[String]| {
        let _ = write!(sql, "EXISTS (SELECT FROM {} t WHERE ", target.only());
        same_key(sql, target, key);
    };
    match written {
        Written::Nothing => row(&mut sql, &old),
        Written::Images => {
            sql.push_str("NOT ");
            row(&mut sql, &new);
            as_sent(&mut sql, target, &looked_at, first_column);
        }
        Written::Partial { .. } | Written::Moved { .. } => {
            row(&mut sql, &new);
            sql.push_str(") AND NOT ");
            row(&mut sql, &new);
            as_sent(&mut sql, target, &looked_at, first_column);
        }
    }
    sql.push(')');
    if matches!(written, Written::Moved { .. }) {
        sql.push_str(" OR ");
        row(&mut sql, &old);
        sql.push_str(") AND NOT (");
        list_with(
            &mut sql,
            " AND ",
            target.relation.key_positions().iter().enumerate(),
            |sql, (part, &key)| {
                let cast = &column(target, key).cast;
                let _ = write!(
                    sql,
                    "{}::{cast} {} {}::{cast}",
                    old[part], target.equals[part], new[part]
                );
            },
        );
        sql.push(')');
    }
    StatementText { sql, parameters }
}

/// ` AND` the row's columns are what was sent, which stands in `x` from `first` on.
fn as_sent(sql: &mut String, target: &Target, columns: &[usize], first: usize) {
    if columns.is_empty() {
        return;
    }
    sql.push_str(" AND ");
    same(
        sql,
        columns.iter().enumerate().map(|(position, &index)| {
            let column = column(target, index);
            (
                format!("t.{}", column.name),
                column.as_stored(&format!("x.c{}", first + position)),
            )
        }),
    );
}
