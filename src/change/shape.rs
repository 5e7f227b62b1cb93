//! What is stored about a table of the Site DB when it is copied: if this differs later, the stream may have missed changes.
//! Pure.
//!
//! Some changes never come through the log: a rewrite of the table (`ALTER … TYPE … USING`, an unlogged spell), a partition
//! that is attached with its rows, a label of an enum that is renamed, a publication that sent less for a while. But each
//! leaves a trace in the catalog ([`Marks`]), and the table is read again. The reverse is not true: `VACUUM FULL`,
//! `CLUSTER` and `TRUNCATE` leave the same trace as a rewrite with other values, and no catalog tells them apart. Reading
//! once too often is the price for never missing one, and only rows that differ are written.

use std::collections::HashSet;

/// What is stored about a table when it is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its OID: a table that was dropped and created again has another.
    pub oid: u32,
    /// A text about its entry in the publication and the published operations: a table that was removed and added again has
    /// another entry, and has missed the changes between.
    pub membership: String,
    /// Its published columns with their types.
    pub columns: Vec<String>,
    /// The publication's row filter.
    pub row_filter: Option<String>,
    /// `None`: stored by a version that did not know them. That is no reason to read the table again.
    pub marks: Option<Marks>,
}

/// Traces in the catalog of what the log does not carry. Opaque texts, compared for equality.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Marks {
    /// The version of the publication's options, and of the table's place in its schema if the whole schema is published:
    /// they differ as well if something was changed and changed back.
    pub publication: String,
    /// The files that hold its rows, one of each partition: a rewrite makes a new file.
    pub files: Vec<String>,
    /// Each published column's name and number: a column that was dropped and added again has another number.
    pub columns: Vec<(String, i32)>,
    /// Each published column's name with its type as `oid length`, whatever that is called. Empty: stored by a version that
    /// did not know them.
    #[serde(default)]
    pub kinds: Vec<(String, String)>,
    /// What the texts of values depend on beside the values: labels of enums and attributes of composite types, each with
    /// the OID of the type that it belongs to.
    pub types: Vec<(u32, String)>,
}

impl Shape {
    /// Why rows that were copied with this shape can't be used with the new one; `None` if they can. Dropped columns do no
    /// harm; an added one, or one with a new type, has values that the stream never sent.
    #[must_use]
    pub fn outdated_by(&self, now: &Self) -> Option<&'static str> {
        if self.oid != now.oid {
            Some("it was created anew")
        } else if self.membership != now.membership {
            Some("it left the publication for a while, or the publication sends other changes")
        } else if self.row_filter != now.row_filter {
            Some("its row filter is another one")
        } else if self.has_other_kinds(now) {
            Some("it has another column, or one of another type")
        } else {
            let (before, now) = (self.marks.as_ref()?, now.marks.as_ref()?);
            if before.publication != now.publication {
                Some("the publication was changed, and may have sent less for a while")
            } else if before.has_other_types(now) {
                Some("a label of an enum or an attribute of a composite type was changed")
            } else {
                None
            }
        }
    }

    /// Why some rows that were copied with this shape may differ by now although the stream sent no change of them. Unlike
    /// with an outdated shape, no transaction that still runs has written the table before: all of these lock it against
    /// writers. So it can be read again at once.
    #[must_use]
    pub fn doubted_by(&self, now: &Self) -> Option<&'static str> {
        let (before, now) = (self.marks.as_ref()?, now.marks.as_ref()?);
        if before.files != now.files {
            Some("it was rewritten or truncated, or partitions were attached or detached")
        } else if before.has_other_columns(now) {
            Some("a column was dropped and added again under its name")
        } else {
            None
        }
    }
}

impl Shape {
    /// Whether a column is new, or of another type: by the type itself where it is known, as types get other names and schemas
    /// too.
    fn has_other_kinds(&self, now: &Self) -> bool {
        match (&self.marks, &now.marks) {
            (Some(before), Some(now)) if !before.kinds.is_empty() && !now.kinds.is_empty() => {
                now.kinds.iter().any(|kind| !before.kinds.contains(kind))
            }
            _ => now.columns.iter().any(|column| !self.columns.contains(column)),
        }
    }
}

impl Marks {
    fn has_other_columns(&self, now: &Self) -> bool {
        now.columns
            .iter()
            .any(|(name, number)| self.columns.iter().any(|(old, other)| old == name && other != number))
    }

    /// Whether something that was there is not there any more. A label that was added changes no value, and a type that no
    /// column uses any more does not matter.
    fn has_other_types(&self, now: &Self) -> bool {
        let used: HashSet<u32> = now.types.iter().map(|(kind, _)| *kind).collect();
        self.types
            .iter()
            .any(|part| used.contains(&part.0) && !now.types.contains(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            oid: 7,
            membership: "1:2:tttt".to_owned(),
            columns: vec!["id bigint".to_owned(), "n int".to_owned()],
            row_filter: None,
            marks: Some(Marks {
                publication: "700".to_owned(),
                files: vec!["7:7".to_owned()],
                columns: vec![("id".to_owned(), 1), ("n".to_owned(), 2)],
                kinds: Vec::new(),
                types: vec![(9, "91 sad".to_owned()), (9, "92 glad".to_owned())],
            }),
        }
    }

    #[test]
    fn only_what_makes_the_stream_miss_rows_makes_a_copy_outdated() {
        let outdated = |change: fn(&mut Shape)| {
            let mut now = shape();
            change(&mut now);
            shape().outdated_by(&now).is_some()
        };
        assert!(outdated(|now| now.oid = 8));
        assert!(outdated(|now| now.membership = "1:3:tttt".to_owned()));
        assert!(outdated(|now| now.row_filter = Some("(n > 0)".to_owned())));
        assert!(outdated(|now| now.columns.push("more text".to_owned())));
        assert!(outdated(|now| now.columns[1] = "n bigint".to_owned()));
        assert!(!outdated(|now| now.columns.reverse()), "the order does not matter");
        assert!(
            !outdated(|now| now.columns.truncate(1)),
            "dropped columns do not matter"
        );
        assert!(!outdated(|now| now.marks = None));
        assert!(!outdated(|_| {}));
    }

    #[test]
    fn a_type_that_has_another_name_is_the_same_type() {
        let of = |name: &str, kind: &str| {
            let mut shape = shape();
            shape.columns[1] = format!("n {name}");
            shape.marks.as_mut().unwrap().kinds = vec![("n".to_owned(), kind.to_owned())];
            shape
        };
        assert!(of("mood", "9 -1").outdated_by(&of("other.mood", "9 -1")).is_none());
        assert!(of("mood", "9 -1").outdated_by(&of("mood", "10 -1")).is_some());
        assert!(shape().outdated_by(&of("int", "23 -1")).is_none(), "not known before");
    }

    #[test]
    fn a_trace_of_what_the_log_does_not_carry_makes_a_copy_outdated_or_doubtful() {
        let judged = |change: fn(&mut Marks)| {
            let mut now = shape();
            change(now.marks.as_mut().unwrap());
            (shape().outdated_by(&now).is_some(), shape().doubted_by(&now).is_some())
        };
        let outdated = |change| judged(change) == (true, false);
        let doubted = |change| judged(change) != (false, false);
        // Transactions that still run may have written the table before.
        assert!(outdated(|now| now.publication = "701".to_owned()));
        assert!(outdated(|now| now.types[0].1 = "91 blue".to_owned()));
        // These waited for all that had written it.
        assert!(doubted(|now| now.files[0] = "7:8".to_owned()));
        assert!(doubted(|now| now.files.push("8:8".to_owned())));
        assert!(doubted(|now| now.columns[1].1 = 3));
        assert!(
            !doubted(|now| now.types.push((9, "93 so so".to_owned()))),
            "no value has it yet"
        );
        assert!(!doubted(|now| now.types.clear()), "no column uses it any more");
        assert!(!doubted(|now| now.columns.truncate(1)));
        assert!(!doubted(|_| {}));
    }

    #[test]
    fn a_shape_that_an_older_version_stored_is_no_reason_to_read_again() {
        let older = Shape { marks: None, ..shape() };
        assert_eq!((older.outdated_by(&shape()), older.doubted_by(&shape())), (None, None));
        assert_ne!(older, shape(), "but the marks are stored");
    }
}
