//! Rows that no key tells apart, known by their text: `ROW(…)::text` holds the output text of each column, and tells NULL
//! from an empty text. Types that have no equality (`json`) have a text, and values that are equal but not the same (1.0
//! and 1.00) have two.

use super::quote::{quote_columns, where_clause};

/// An expression: a row's text.
#[must_use]
pub fn row_text(alias: &str, columns: &[&str]) -> String {
    format!(
        "ROW({})::text COLLATE pg_catalog.\"C\"",
        quote_columns(alias, columns.iter().copied()).join(", ")
    )
}

/// What a page of distinct rows is read from.
#[derive(Debug, Clone, Copy)]
pub struct DistinctRows<'a> {
    /// As it stands in FROM.
    pub table: &'a str,
    /// Whether its rows are in partitions, so that their places are unique only within a partition.
    pub partitioned: bool,
    /// The columns, unquoted.
    pub columns: &'a [&'a str],
    /// Only rows that meet all of these, on the alias `t`.
    pub filters: &'a [String],
    /// Only rows of which at least one that equals them meets this.
    pub condition: Option<&'a str>,
}

impl DistinctRows<'_> {
    /// A query for a page: the columns, the number of equal rows, and the digest of the row's text. Pages are in the order
    /// of that digest, since any order does, and a digest is small; `after` says that `$1` is the last page's last one.
    ///
    /// There is no index for it: each page reads the table once.
    #[must_use]
    pub fn page(&self, after: bool, limit: u64) -> String {
        let list = quote_columns("t", self.columns.iter().copied());
        // A representative of each group is found again by its place.
        let (place, found) = if self.partitioned {
            (
                "ARRAY[t.tableoid::text, t.ctid::text]",
                "t.tableoid = (g.place)[1]::oid AND t.ctid = (g.place)[2]::tid",
            )
        } else {
            ("t.ctid", "t.ctid = g.place")
        };
        let (meets, having) = match self.condition {
            Some(condition) => (
                format!(", ({condition}) AS meets"),
                "HAVING pg_catalog.bool_or(s.meets)",
            ),
            None => (String::new(), ""),
        };
        format!(
            "SELECT {list} g.n, g.digest FROM (SELECT s.digest, pg_catalog.count(*) AS n, pg_catalog.min(s.place) AS place \
             FROM (SELECT {place} AS place, pg_catalog.sha256(pg_catalog.textsend({text})) AS digest{meets} FROM {table} t {filters}) s \
             {after} GROUP BY s.digest {having} ORDER BY s.digest LIMIT {limit}) g \
             JOIN {table} t ON {found} ORDER BY g.digest",
            list = list.iter().map(|column| format!("{column}, ")).collect::<String>(),
            text = row_text("t", self.columns),
            table = self.table,
            filters = where_clause(self.filters),
            after = if after { "WHERE s.digest > $1::text::bytea" } else { "" },
        )
    }
}
