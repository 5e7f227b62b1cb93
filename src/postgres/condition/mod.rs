//! The condition of `twinlog resync --where`: a small language of our own, which looks like SQL and can do no more than
//! choose rows.
//!
//! Whoever may give a condition (on the command line, or in a row of `twinlog.commands`) is not trusted with the daemon's
//! rights. Any SQL expression would run with them: functions that end sessions or drop slots work in a read-only
//! transaction too, and a cast that fails shows a row's value in its error. So a condition is parsed here, and written anew
//! for each database: columns are quoted, literals are texts of the column's type, and nothing else gets into the statement.
//!
//! ```text
//! condition  = all { OR all }
//! all        = single { AND single }
//! single     = NOT single | ( condition ) | column [ test ]
//! test       = (= | <> | != | < | <= | > | >=) value
//!            | [NOT] IN ( value , … ) | [NOT] BETWEEN value AND value | [NOT] LIKE text | [NOT] ILIKE text
//!            | IS [NOT] NULL | IS [NOT] TRUE | IS [NOT] FALSE
//! value      = number | 'text' | TRUE | FALSE | moment [ (+ | -) INTERVAL 'text' ]
//! moment     = now() | CURRENT_TIMESTAMP | CURRENT_DATE
//! ```
//!
//! | file | its job |
//! |---|---|
//! | `token` | text → words, literals, signs |
//! | `tree` | [`Condition`], and why a text is none |
//! | `parse` | tokens → the tree |
//! | `sql` | [`Condition`] → SQL for one table |

mod parse;
mod sql;
mod token;
mod tree;

pub use sql::ColumnType;
pub use tree::{Condition, ConditionError, LONGEST};

impl std::str::FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        if text.len() > LONGEST {
            return Err(ConditionError::TooLong);
        }
        parse::parse(&token::tokens(text)?).map(Self)
    }
}

#[cfg(test)]
mod tests;
