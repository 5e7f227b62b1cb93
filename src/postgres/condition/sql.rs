//! A condition → SQL for one table of one database. Only quoted names, quoted literals and words of our own get in.

use postgres_protocol::escape::escape_literal;

use super::tree::{Condition, ConditionError, Direction, Expression, Moment, Test, Value};
use crate::change::TableName;
use crate::postgres::quote::quote_identifier;

/// The type of a column as `format_type` prints it without a modifier, ready for a cast.
pub type ColumnType<'a> = Option<&'a str>;

impl Condition {
    /// The condition for a table whose alias is `t`. `type_of`: the types of its columns.
    ///
    /// # Errors
    /// It names a column that the table does not have.
    pub fn to_sql<'a>(
        &self,
        table: &TableName,
        type_of: impl Fn(&str) -> ColumnType<'a>,
    ) -> Result<String, ConditionError> {
        expression(&self.0, table, &type_of)
    }
}

fn expression<'a>(
    part: &Expression,
    table: &TableName,
    type_of: &impl Fn(&str) -> ColumnType<'a>,
) -> Result<String, ConditionError> {
    let all = |parts: &[Expression], word: &str| {
        let parts: Result<Vec<_>, _> = parts.iter().map(|part| expression(part, table, type_of)).collect();
        Ok(format!("({})", parts?.join(word)))
    };
    match part {
        Expression::Or(parts) => all(parts, " OR "),
        Expression::And(parts) => all(parts, " AND "),
        Expression::Not(part) => Ok(format!("(NOT {})", expression(part, table, type_of)?)),
        Expression::Test { column, test } => {
            let kind = type_of(column).ok_or_else(|| ConditionError::NoColumn {
                table: table.to_string(),
                column: column.clone(),
            })?;
            if matches!(test, Test::Holds | Test::Is(_)) && kind != "boolean" {
                return Err(ConditionError::NotBoolean {
                    table: table.to_string(),
                    column: column.clone(),
                });
            }
            Ok(format!(
                "({})",
                test_of(&format!("t.{}", quote_identifier(column)), kind, test)
            ))
        }
    }
}

fn test_of(column: &str, kind: &str, test: &Test) -> String {
    match test {
        Test::Holds => column.to_owned(),
        Test::Compare(comparison, with) => {
            let sign: &str = comparison.into();
            format!("{column} {sign} {}", value(with, kind))
        }
        Test::In(values) => {
            let values: Vec<_> = values.iter().map(|one| value(one, kind)).collect();
            format!("{column} IN ({})", values.join(", "))
        }
        Test::Between(least, most) => format!("{column} BETWEEN {} AND {}", value(least, kind), value(most, kind)),
        Test::Like { pattern, any_case } => {
            let word = if *any_case { "ILIKE" } else { "LIKE" };
            format!("{} {word} {}", text_of(column, kind), literal(pattern))
        }
        Test::IsNull => format!("{column} IS NULL"),
        Test::Is(true) => format!("{column} IS TRUE"),
        Test::Is(false) => format!("{column} IS FALSE"),
    }
}

/// A column's text. A type of somebody's own may have a cast to text that is any function of his: it would run with the
/// daemon's rights. What the type prints needs no cast. (Types that are named with a schema are not Postgres' own.)
fn text_of(column: &str, kind: &str) -> String {
    if kind.contains(['.', '"']) {
        format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN pg_catalog.concat({column}) END")
    } else {
        format!("{column}::pg_catalog.text")
    }
}

fn value(value: &Value, kind: &str) -> String {
    match value {
        Value::Literal(text) => format!("{}::{kind}", literal(text)),
        Value::Moment { moment, interval } => {
            let moment = match moment {
                Moment::Now => "CURRENT_TIMESTAMP",
                Moment::Today => "CURRENT_DATE",
            };
            match interval {
                None => moment.to_owned(),
                Some((direction, interval)) => {
                    let sign = match direction {
                        Direction::Later => '+',
                        Direction::Earlier => '-',
                    };
                    format!("({moment} {sign} {}::pg_catalog.interval)", literal(interval))
                }
            }
        }
    }
}

/// A text as a literal. (No text has a NUL: a server would end the statement there.)
fn literal(text: &str) -> String {
    escape_literal(&text.replace('\0', "")).trim_start().to_owned()
}
