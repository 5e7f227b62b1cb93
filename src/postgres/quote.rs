//! Names and conditions in a statement.

use std::fmt::Write;

use crate::change::is_unprintable;
pub use crate::change::quote_identifier;

/// Quotes a text as a value. As with a name, what can't be printed stands as an escape.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    if !text.contains(is_unprintable) {
        return postgres_protocol::escape::escape_literal(text);
    }
    let mut quoted = " E'".to_owned();
    for character in text.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            // All of these have four digits at most.
            unprintable if is_unprintable(unprintable) => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(unprintable));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('\'');
    quoted
}

/// Quotes columns, each with the alias of its table before it: `t."id"`.
#[must_use]
pub fn quote_columns<'a>(alias: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names
        .into_iter()
        .map(|name| format!("{alias}.{}", quote_identifier(name)))
        .collect()
}

/// `WHERE` with all of the conditions; empty without any.
#[must_use]
pub fn where_clause(conditions: &[String]) -> String {
    if conditions.is_empty() {
        String::new()
    } else {
        format!("WHERE {}", conditions.join(" AND "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_can_not_be_printed_stands_in_escapes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("\"a\n'\\\""), r#" E'"a\u000A''\\"'"#);
    }
}
