//! Digests of the rows of a range of keys, which both databases compute alike: a number of rows, and the sum of the hashes of
//! their texts (see [`super::row_text`]).
//!
//! Where two digests are the same, each row of one side is the same as one of the other: only the same text has the same hash,
//! but for a chance of one in 2^64. Where types, versions or locales print or hash differently the digests differ, and prove
//! nothing. That holds in whatever order either side sorts its keys.

use super::quote::where_clause;
use super::row_text::row_text;

/// Rows of a range: how many, and the sum of their hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub rows: i64,
    /// The sum, as Postgres prints it; `None` without rows.
    pub sum: Option<String>,
}

/// One side's table, whose ranges are digested.
#[derive(Debug, Clone)]
pub struct DigestedTable {
    /// As it stands in FROM.
    pub table: String,
    /// Its columns that are compared, unquoted.
    pub columns: Vec<String>,
    /// The columns of its key, quoted, with their types.
    pub key: Vec<(String, String)>,
    /// Only rows that meet all of these, on the alias `t`.
    pub filters: Vec<String>,
}

/// Types whose values every server sorts alike: a range of them has the same keys on both sides.
const SORTED_ALIKE: &[&str] = &[
    "smallint",
    "integer",
    "bigint",
    "oid",
    "uuid",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "bytea",
];

/// Integers of different sizes are sorted alike, too.
const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];

impl DigestedTable {
    /// Whether both sides sort the keys alike.
    #[must_use]
    pub fn is_sorted_as(&self, other: &Self) -> bool {
        let is_alike = |one: &str, other: &str| {
            SORTED_ALIKE.contains(&one) && (one == other || (INTEGERS.contains(&one) && INTEGERS.contains(&other)))
        };
        !self.key.is_empty()
            && self.key.len() == other.key.len()
            && self
                .key
                .iter()
                .zip(&other.key)
                .all(|((_, one), (_, other))| is_alike(one, other))
    }

    /// The digest of a range: after a key (`$1`, …), up to and with another one (the parameters that follow).
    #[must_use]
    pub fn digest(&self, after: bool, upto: bool) -> String {
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        format!(
            "SELECT pg_catalog.count(*) AS rows, pg_catalog.sum(pg_catalog.hashtextextended({}, 0))::text AS sum FROM {} t {}",
            row_text("t", &columns),
            self.table,
            self.within(after, upto),
        )
    }

    /// The last key of a range of so many rows; no row where there are not so many.
    #[must_use]
    pub fn bound(&self, after: bool, upto: bool, rows: u64) -> String {
        let names: Vec<String> = self.key.iter().map(|(name, _)| format!("t.{name}")).collect();
        let texts: Vec<String> = names.iter().map(|name| format!("{name}::text")).collect();
        format!(
            "SELECT ARRAY[{}] AS key FROM {} t {} ORDER BY {} OFFSET {} LIMIT 1",
            texts.join(", "),
            self.table,
            self.within(after, upto),
            names.join(", "),
            rows.saturating_sub(1),
        )
    }

    fn within(&self, after: bool, upto: bool) -> String {
        let names: Vec<String> = self.key.iter().map(|(name, _)| format!("t.{name}")).collect();
        let names = names.join(", ");
        let mut filters = self.filters.clone();
        let mut first = 1;
        for (wanted, operator) in [(after, ">"), (upto, "<=")] {
            if wanted {
                let casts: Vec<String> = (self.key.iter().enumerate())
                    .map(|(part, (_, kind))| format!("${}::text::{kind}", first + part))
                    .collect();
                filters.push(format!("({names}) {operator} ({})", casts.join(", ")));
                first += self.key.len();
            }
        }
        where_clause(&filters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kinds: &[&str]) -> DigestedTable {
        DigestedTable {
            table: "ONLY \"public\".\"t\"".to_owned(),
            columns: vec!["a".to_owned(), "b".to_owned()],
            key: (kinds.iter().enumerate())
                .map(|(index, kind)| (format!("\"k{index}\""), (*kind).to_owned()))
                .collect(),
            filters: vec!["(a > 0)".to_owned()],
        }
    }

    #[test]
    fn a_range_lies_between_two_keys() {
        assert_eq!(
            table(&["bigint", "uuid"]).digest(true, true),
            r#"SELECT pg_catalog.count(*) AS rows, pg_catalog.sum(pg_catalog.hashtextextended(ROW(t."a", t."b")::text COLLATE pg_catalog."C", 0))::text AS sum FROM ONLY "public"."t" t WHERE (a > 0) AND (t."k0", t."k1") > ($1::text::bigint, $2::text::uuid) AND (t."k0", t."k1") <= ($3::text::bigint, $4::text::uuid)"#
        );
        assert!(
            table(&["bigint"])
                .bound(false, true, 100)
                .ends_with(r#"WHERE (a > 0) AND (t."k0") <= ($1::text::bigint) ORDER BY t."k0" OFFSET 99 LIMIT 1"#)
        );
    }

    #[test]
    fn only_types_that_every_server_sorts_alike_have_ranges() {
        for (one, other, alike) in [
            (&["bigint"][..], &["integer"][..], true),
            (&["uuid", "date"], &["uuid", "date"], true),
            (&["text"], &["text"], false),
            (&["numeric"], &["numeric"], false),
            (&["uuid"], &["text"], false),
            (&["oid"], &["bigint"], false),
            (&[], &[], false),
        ] {
            assert_eq!(table(one).is_sorted_as(&table(other)), alike, "{one:?} {other:?}");
        }
    }
}
