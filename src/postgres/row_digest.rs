//! Digests of the rows of a range of keys, which both databases compute alike: a number of rows, and the sum of their hashes.
//!
//! A row's hash is made of those of its values. Where both sides have the same type, and its equal values are always the same
//! (integers, texts, uuids, times), that is Postgres' own hash of the type; else that of the value's text, as different values
//! may be equal (0 and -0, 1.0 and 1.00), and the text is what is compared. A cast to text gives it where it is the type's output;
//! elsewhere (boolean, `char(n)`, types of others) it is that of a row of the value, which takes several times as long.
//!
//! Where two digests are the same, each row of one side is the same as one of the other, but for a chance of one in 2^64. Where
//! types, versions or locales print or hash differently the digests differ, and prove nothing. That holds in whatever order
//! either side sorts its keys.

use super::quote::{quote_identifier, where_clause};

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
    /// Its columns that are compared.
    pub columns: Vec<DigestedColumn>,
    /// The columns of its key.
    pub key: Vec<DigestedKey>,
    /// Only rows that meet all of these, on the alias `t`.
    pub filters: Vec<String>,
}

/// A column of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestedKey {
    /// Its name, quoted.
    pub name: String,
    /// Its type as `format_type` shows it, without length.
    pub kind: String,
    /// Its type as it stands in a statement.
    pub cast: String,
}

impl DigestedKey {
    /// The type to cast the bounds of a range to. Either side can read any integer of the other one as the largest type.
    #[must_use]
    pub fn bound_type(&self) -> &str {
        widest(&self.kind).unwrap_or(&self.cast)
    }
}

/// The largest type of integers, if this is one: each server compares all of them with one another, and uses indexes for that.
#[must_use]
pub fn widest(kind: &str) -> Option<&'static str> {
    INTEGERS.contains(&kind).then_some("bigint")
}

/// A column that is compared.
#[derive(Debug, Clone)]
pub struct DigestedColumn {
    /// Its name, quoted.
    pub name: String,
    /// Its type as `format_type` shows it, without length.
    pub kind: String,
    hashed: Hashed,
}

/// What of a value is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashed {
    /// What it is.
    Value,
    /// Its cast to text.
    Text,
    /// The text of a row of it: like any type's output.
    Row,
}

impl DigestedColumn {
    /// A column, given with its unquoted name. Its values are hashed as texts before both sides have agreed.
    #[must_use]
    pub fn new(name: &str, kind: &str) -> Self {
        Self {
            name: quote_identifier(name),
            kind: kind.to_owned(),
            hashed: Hashed::Row,
        }
    }

    /// The hash of its value, never NULL. `seed` tells the columns apart.
    fn hash(&self, seed: usize) -> String {
        let name = format!("t.{}", self.name);
        let of_text =
            |text: &str| format!("pg_catalog.hashtextextended({text}::text COLLATE pg_catalog.\"C\", {seed})");
        let hash = match self.hashed {
            Hashed::Value => native_hash(&self.kind, &name, seed).unwrap_or_else(|| of_text(&format!("ROW({name})"))),
            Hashed::Text => of_text(&name),
            Hashed::Row => of_text(&format!("ROW({name})")),
        };
        // Any number stands for NULL.
        format!("coalesce({hash}, {})", 7_919 * (seed + 1))
    }
}

/// Postgres' own hash of a value, for types whose equal values are always the same.
fn native_hash(kind: &str, value: &str, seed: usize) -> Option<String> {
    Some(match kind {
        "smallint" => format!("pg_catalog.hashint2extended({value}, {seed})"),
        "integer" => format!("pg_catalog.hashint4extended({value}, {seed})"),
        "bigint" => format!("pg_catalog.hashint8extended({value}, {seed})"),
        "boolean" => format!("pg_catalog.hashint4extended({value}::integer, {seed})"),
        "uuid" => format!("pg_catalog.uuid_hash_extended({value}, {seed})"),
        // Byte for byte, whatever the column's collation.
        "text" | "character varying" => {
            format!("pg_catalog.hashtextextended({value}::text COLLATE pg_catalog.\"C\", {seed})")
        }
        "timestamp without time zone" => format!("pg_catalog.timestamp_hash_extended({value}, {seed})"),
        "timestamp with time zone" => {
            format!("pg_catalog.timestamp_hash_extended(pg_catalog.timezone('UTC', {value}), {seed})")
        }
        _ => return None,
    })
}

/// Types of which a cast to text is what their output function prints, as the catalog has no other function for the cast.
const CAST_AS_PRINTED: &[&str] = &[
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "text",
    "character varying",
    "json",
    "jsonb",
    "bytea",
    "uuid",
    "date",
    "interval",
    "timestamp without time zone",
    "timestamp with time zone",
];

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
                .all(|(one, other)| is_alike(&one.kind, &other.kind))
    }

    /// Has values hashed in the fastest way that both sides have.
    pub fn agree(&mut self, other: &mut Self) {
        for (one, other) in self.columns.iter_mut().zip(&mut other.columns) {
            let hashed = if one.kind == other.kind && native_hash(&one.kind, "", 0).is_some() {
                Hashed::Value
            } else if [&one.kind, &other.kind]
                .iter()
                .all(|kind| CAST_AS_PRINTED.contains(&kind.as_str()))
            {
                Hashed::Text
            } else {
                Hashed::Row
            };
            one.hashed = hashed;
            other.hashed = hashed;
        }
    }

    /// The digest of a range: after a key (`$1`, …), up to and with another one (the parameters that follow).
    #[must_use]
    pub fn digest(&self, after: bool, upto: bool) -> String {
        let hashes: Vec<String> = (self.columns.iter().enumerate())
            .map(|(seed, column)| column.hash(seed))
            .collect();
        // Hashed once more: sums of sums would not tell which values stand in one row.
        format!(
            "SELECT pg_catalog.count(*) AS rows, pg_catalog.sum(pg_catalog.hashint8extended({}, 0))::text AS sum FROM {} t {}",
            hashes.join(" # "),
            self.table,
            self.within(after, upto),
        )
    }

    /// The last key of a range of so many rows; no row where there are not so many.
    #[must_use]
    pub fn bound(&self, after: bool, upto: bool, rows: u64) -> String {
        let names: Vec<String> = self.key.iter().map(|key| format!("t.{}", key.name)).collect();
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
        let names: Vec<String> = self.key.iter().map(|key| format!("t.{}", key.name)).collect();
        let names = names.join(", ");
        let mut filters = self.filters.clone();
        let mut first = 1;
        for (wanted, operator) in [(after, ">"), (upto, "<=")] {
            if wanted {
                let casts: Vec<String> = (self.key.iter().enumerate())
                    .map(|(part, key)| format!("${}::text::{}", first + part, key.bound_type()))
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
            columns: vec![DigestedColumn::new("a", "bigint"), DigestedColumn::new("b", "numeric")],
            key: (kinds.iter().enumerate())
                .map(|(index, kind)| DigestedKey {
                    name: format!("\"k{index}\""),
                    kind: (*kind).to_owned(),
                    cast: (*kind).to_owned(),
                })
                .collect(),
            filters: vec!["(a > 0)".to_owned()],
        }
    }

    #[test]
    fn a_range_lies_between_two_keys() {
        let (mut one, mut other) = (table(&["bigint", "uuid"]), table(&["bigint", "uuid"]));
        one.agree(&mut other);
        assert_eq!(
            one.digest(true, true),
            r#"SELECT pg_catalog.count(*) AS rows, pg_catalog.sum(pg_catalog.hashint8extended(coalesce(pg_catalog.hashint8extended(t."a", 0), 7919) # coalesce(pg_catalog.hashtextextended(t."b"::text COLLATE pg_catalog."C", 1), 15838), 0))::text AS sum FROM ONLY "public"."t" t WHERE (a > 0) AND (t."k0", t."k1") > ($1::text::bigint, $2::text::uuid) AND (t."k0", t."k1") <= ($3::text::bigint, $4::text::uuid)"#
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
