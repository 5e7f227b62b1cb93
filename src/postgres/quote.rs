//! Names and conditions in a statement.

/// Quotes an identifier.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// Quotes a text as a value.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
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
