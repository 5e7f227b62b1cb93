//! Statements that write rows: pure text from a [`Target`]. Identifiers are quoted, values are always parameters, one
//! `text[]` for each column.
//!
//! Casts name the column's base type without its length limit: `'abcdef'::varchar(3)` would truncate silently, while
//! assigning a `varchar` to a `varchar(3)` is refused; the same for `char(n)`, `bit(n)` and domains over them.

use std::fmt::Write;

use super::counted;
use super::kind::{Parameter, StatementKind, StatementText};
use super::look::look;
use super::reinsert::{Reinserted, reinsert};
use super::text::{changed, column, from_unnest, list, same, same_key, where_key};
use crate::agent_db::catalog::{Column, Target};
use crate::agent_db::error::{CHANGED, IDENTITY_STAYS};

/// The statement of a kind for a table.
pub(in crate::agent_db::apply) fn statement(target: &Target, kind: &StatementKind) -> StatementText {
    match kind {
        StatementKind::Copy => copy(target),
        StatementKind::Upsert { only_if_different } => upsert(target, *only_if_different, 1),
        StatementKind::Partial { present } => update(target, present, KeyUpdate::Keeps),
        StatementKind::Move { present } => update(target, present, KeyUpdate::Moves),
        StatementKind::Reinsert { present } => reinsert(target, present, Reinserted::Moved),
        StatementKind::SetIdentity { present } => reinsert(target, present, Reinserted::Identity),
        StatementKind::Delete => delete(target, 1),
        StatementKind::Insert => counted::insert(target),
        StatementKind::DeleteOne => counted::delete_one(target),
        StatementKind::UpdateOne => counted::update_one(target),
        StatementKind::Count => counted::count(target),
        StatementKind::Look(written) => look(target, written, CHANGED),
        StatementKind::LookAtIdentity(written) => look(target, written, IDENTITY_STAYS),
    }
}

/// `TRUNCATE` of several tables. `ONLY`, since the stream names each truncated table; a partitioned table has no
/// rows of its own and takes its partitions with it. Never cascades.
pub(in crate::agent_db::apply) fn truncate(targets: &[&Target], restart_identity: bool) -> String {
    let tables: Vec<String> = targets.iter().map(|target| target.only()).collect();
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    format!("TRUNCATE {}{identity}", tables.join(", "))
}

/// `COPY … FROM STDIN` in text form; a value of an identity column is taken as it is, like with OVERRIDING SYSTEM VALUE.
fn copy(target: &Target) -> StatementText {
    let mut sql = format!("COPY {} (", target.relation.table.quoted());
    list(&mut sql, target.columns.iter(), |sql, column| {
        sql.push_str(&column.name)
    });
    sql.push_str(") FROM STDIN");
    StatementText {
        sql,
        parameters: Vec::new(),
    }
}

/// Has the server lock the table and check all that a COPY into it needs, and writes nothing.
pub(in crate::agent_db::apply) fn check_copy(target: &Target) -> String {
    let mut sql = format!("EXPLAIN INSERT INTO {} (", target.relation.table.quoted());
    list(&mut sql, target.columns.iter(), |sql, column| {
        sql.push_str(&column.name)
    });
    sql.push_str(") OVERRIDING SYSTEM VALUE VALUES (");
    list(&mut sql, target.columns.iter(), |sql, _| sql.push_str("NULL"));
    sql.push(')');
    sql
}

/// `first`: the number of its first parameter.
pub(super) fn upsert(target: &Target, only_if_different: bool, first: usize) -> StatementText {
    let columns = &target.columns;
    let mut sql = format!("INSERT INTO {} AS t (", target.relation.table.quoted());
    list(&mut sql, columns.iter(), |sql, column| sql.push_str(&column.name));
    sql.push_str(") OVERRIDING SYSTEM VALUE SELECT ");
    list(&mut sql, columns.iter().enumerate(), |sql, (index, column)| {
        let _ = write!(sql, "x.c{index}::{}", column.cast);
    });
    let parameters: Vec<Parameter> = (0..columns.len()).map(Parameter::Column).collect();
    from_unnest(&mut sql, "FROM", first, columns.len(), false);
    sql.push_str(" ON CONFLICT (");
    list(
        &mut sql,
        target.relation.key_positions().iter().enumerate(),
        |sql, (part, &key)| {
            sql.push_str(&column(target, key).name);
            if let Some(Some(collation)) = target.collations.get(part) {
                let _ = write!(sql, " COLLATE {collation}");
            }
        },
    );
    sql.push(')');
    let set: Vec<&Column> = columns.iter().filter(|column| column.is_settable()).collect();
    if set.is_empty() {
        sql.push_str(" DO NOTHING");
    } else {
        sql.push_str(" DO UPDATE SET ");
        list(&mut sql, set.iter(), |sql, column| {
            let _ = write!(sql, "{0} = EXCLUDED.{0}", column.name);
        });
        if only_if_different {
            // As text: not every type can be compared (json, point), and equal is not always the same (1.0 and 1.00).
            sql.push_str(" WHERE NOT (");
            same(
                &mut sql,
                set.iter()
                    .map(|column| (format!("t.{}", column.name), format!("EXCLUDED.{}", column.name))),
            );
            sql.push(')');
        }
    }
    StatementText { sql, parameters }
}

/// Whether an update sets the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyUpdate {
    Keeps,
    Moves,
}

/// An update of rows found by their (old) keys; returns the positions of those that were found.
fn update(target: &Target, present: &[bool], key: KeyUpdate) -> StatementText {
    let keys = target.relation.key_positions().len();
    let set: Vec<usize> = target
        .columns
        .iter()
        .enumerate()
        .filter(|&(index, column)| {
            present.get(index).copied().unwrap_or_default()
                && (column.is_settable() || (key == KeyUpdate::Moves && column.in_key))
        })
        .map(|(index, _)| index)
        .collect();
    let mut parameters: Vec<Parameter> = (0..keys).map(Parameter::KeyPart).collect();
    parameters.extend(set.iter().map(|&index| Parameter::Column(index)));
    let mut sql = format!("UPDATE {} AS t SET ", target.only());
    if set.is_empty() {
        // Only the key is known: check that the row exists, and change nothing.
        if let Some(&first) = target.relation.key_positions().first() {
            let _ = write!(sql, "{0} = t.{0}", column(target, first).name);
        }
    }
    list(&mut sql, set.iter().enumerate(), |sql, (position, &index)| {
        let column = column(target, index);
        let _ = write!(sql, "{} = x.c{}::{}", column.name, keys + position, column.cast);
    });
    from_unnest(&mut sql, "FROM", 1, parameters.len(), true);
    let key_parts: Vec<String> = (0..keys).map(|part| format!("x.c{part}")).collect();
    where_key(&mut sql, target);
    if target.guarded {
        // A trigger may have moved the row elsewhere.
        let new_parts: Vec<String> = (target.relation.key_positions().iter().zip(&key_parts))
            .map(|(key, old)| match set.iter().position(|index| index == key) {
                Some(position) => format!("x.c{}", keys + position),
                None => old.clone(),
            })
            .collect();
        sql.push_str(" RETURNING CASE WHEN ");
        same_key(&mut sql, target, &new_parts);
        let _ = write!(sql, " THEN x.ord ELSE {} END AS ord", changed("x.ord"));
    } else {
        sql.push_str(" RETURNING x.ord");
    }
    StatementText { sql, parameters }
}

/// `first`: the number of its first parameter.
pub(super) fn delete(target: &Target, first: usize) -> StatementText {
    let mut sql = format!("DELETE FROM {} AS t", target.only());
    let keys = target.relation.key_positions().len();
    from_unnest(&mut sql, "USING", first, keys, false);
    where_key(&mut sql, target);
    StatementText {
        sql,
        parameters: (0..keys).map(Parameter::KeyPart).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Relation, RelationId, RowKey, TableName};

    fn target() -> Target {
        let column = |name: &str, cast: &str, identity_always, in_key| Column {
            name: format!("\"{name}\""),
            kind: cast.into(),
            cast: cast.into(),
            stored: cast.into(),
            blanks: None,
            identity_always,
            in_key,
            alike: false,
        };
        Target {
            relation: Arc::new(Relation {
                id: RelationId(1),
                table: TableName::new("public", "le\"ads"),
                columns: ["name", "id", "shop", "seq"].map(Arc::from).into(),
                key: RowKey::Columns([2, 1].into()),
            }),
            columns: vec![
                column("name", "character varying", false, false),
                column("id", "bigint", false, true),
                column("shop", "public.citext", false, true),
                column("seq", "integer", true, false),
            ],
            equals: vec!["OPERATOR(public.=)".into(), "OPERATOR(pg_catalog.=)".into()],
            collations: Vec::new(),
            lookup: None,
            unpublished: Vec::new(),
            notes: None,
            partitioned: false,
            guarded: false,
            fires_late: false,
            copyable: true,
        }
    }

    #[test]
    fn an_upsert_overwrites_what_may_be_set() {
        let text = statement(
            &target(),
            &StatementKind::Upsert {
                only_if_different: false,
            },
        );
        assert_eq!(
            text.sql,
            r#"INSERT INTO "public"."le""ads" AS t ("name", "id", "shop", "seq") OVERRIDING SYSTEM VALUE SELECT x.c0::character varying, x.c1::bigint, x.c2::public.citext, x.c3::integer FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[]) AS x(c0, c1, c2, c3) ON CONFLICT ("shop", "id") DO UPDATE SET "name" = EXCLUDED."name""#
        );
        assert_eq!(text.parameters, [0, 1, 2, 3].map(Parameter::Column));
    }

    #[test]
    fn a_chunks_upsert_leaves_equal_rows_alone() {
        let text = statement(
            &target(),
            &StatementKind::Upsert {
                only_if_different: true,
            },
        );
        assert!(
            text.sql.ends_with(
                r#"DO UPDATE SET "name" = EXCLUDED."name" WHERE NOT (coalesce(t."name"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) EXCLUDED."name"::pg_catalog.text, t."name"::pg_catalog.text IS NULL AND EXCLUDED."name"::pg_catalog.text IS NULL))"#
            ),
            "{}",
            text.sql
        );
    }

    #[test]
    fn a_table_of_keys_only_has_nothing_to_overwrite() {
        let mut target = target();
        for column in &mut target.columns {
            column.in_key = true;
        }
        let text = statement(
            &target,
            &StatementKind::Upsert {
                only_if_different: true,
            },
        );
        assert!(text.sql.ends_with("DO NOTHING"), "{}", text.sql);
        let text = statement(
            &target,
            &StatementKind::Partial {
                present: [false, true, true, false].into(),
            },
        );
        assert_eq!(
            text.sql,
            r#"UPDATE ONLY "public"."le""ads" AS t SET "shop" = t."shop" FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) WITH ORDINALITY AS x(c0, c1, ord) WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint RETURNING x.ord"#
        );
    }

    #[test]
    fn a_partial_update_sets_the_columns_that_are_there() {
        let text = statement(
            &target(),
            &StatementKind::Partial {
                present: [true; 4].into(),
            },
        );
        assert_eq!(
            text.sql,
            r#"UPDATE ONLY "public"."le""ads" AS t SET "name" = x.c2::character varying FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) WITH ORDINALITY AS x(c0, c1, c2, ord) WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint RETURNING x.ord"#
        );
        assert_eq!(
            text.parameters,
            [Parameter::KeyPart(0), Parameter::KeyPart(1), Parameter::Column(0)]
        );
    }

    #[test]
    fn a_move_sets_the_key_too_and_finds_the_row_by_its_old_one() {
        let text = statement(
            &target(),
            &StatementKind::Move {
                present: [false, true, true, false].into(),
            },
        );
        assert_eq!(
            text.sql,
            r#"UPDATE ONLY "public"."le""ads" AS t SET "id" = x.c2::bigint, "shop" = x.c3::public.citext FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[]) WITH ORDINALITY AS x(c0, c1, c2, c3, ord) WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint RETURNING x.ord"#
        );
    }

    #[test]
    fn a_copy_names_the_columns_of_the_stream() {
        let text = statement(&target(), &StatementKind::Copy);
        assert_eq!(
            text.sql,
            r#"COPY "public"."le""ads" ("name", "id", "shop", "seq") FROM STDIN"#
        );
        assert_eq!(text.parameters, []);
    }

    #[test]
    fn a_delete_goes_by_key() {
        let text = statement(&target(), &StatementKind::Delete);
        assert_eq!(
            text.sql,
            r#"DELETE FROM ONLY "public"."le""ads" AS t USING unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS x(c0, c1) WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint"#
        );
    }

    #[test]
    fn a_column_that_no_update_sets_is_set_by_inserting_the_row_anew() {
        let mut target = target();
        target.unpublished = vec!["\"mine\"".to_owned()];
        let upsert = StatementKind::Upsert {
            only_if_different: false,
        };
        let text = statement(&target, &upsert.set_identity(&target).unwrap());
        assert_eq!(
            text.sql,
            r#"WITH gone AS (DELETE FROM ONLY "public"."le""ads" AS t USING unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) WITH ORDINALITY AS x(c0, c1, c2, ord) WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint AND NOT (coalesce(t."seq"::pg_catalog.text COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) x.c2::integer::pg_catalog.text, t."seq"::pg_catalog.text IS NULL AND x.c2::integer::pg_catalog.text IS NULL)) RETURNING x.ord, t."name" AS v0, t."id" AS v1, t."shop" AS v2, x.c2::integer AS v3, t."mine" AS v4), came AS (INSERT INTO "public"."le""ads" ("name", "id", "shop", "seq", "mine") OVERRIDING SYSTEM VALUE SELECT gone.v0, gone.v1, gone.v2, gone.v3, gone.v4 FROM gone RETURNING 1) SELECT gone.ord FROM gone WHERE (SELECT pg_catalog.count(*) FROM came) OPERATOR(pg_catalog.>=) 0"#
        );
        assert_eq!(
            text.parameters,
            [Parameter::NewKeyPart(0), Parameter::NewKeyPart(1), Parameter::Column(3)]
        );
        let without_it = StatementKind::Partial {
            present: [true, true, true, false].into(),
        };
        assert_eq!(without_it.set_identity(&target), None);
    }

    #[test]
    fn a_truncate_names_each_table_and_never_cascades() {
        let plain = target();
        let mut partitioned = target();
        partitioned.partitioned = true;
        assert_eq!(
            truncate(&[&plain, &partitioned], true),
            r#"TRUNCATE ONLY "public"."le""ads", "public"."le""ads" RESTART IDENTITY"#
        );
    }

    #[test]
    fn where_triggers_may_write_something_else_an_update_and_a_look_fail_at_other_rows() {
        let mut target = target();
        target.guarded = true;
        let present = || [true, true, true, false].into();
        let changed = "(x.ord::pg_catalog.text OPERATOR(pg_catalog.||) ' twinlog: the row was not written as it was sent')::integer";
        let text = statement(&target, &StatementKind::Move { present: present() });
        assert!(
            text.sql.ends_with(&format!(
                r#" RETURNING CASE WHEN t."shop" OPERATOR(public.=) x.c4::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c3::bigint THEN x.ord ELSE {changed} END AS ord"#
            )),
            "{}",
            text.sql
        );
        let looked = |kind: StatementKind| statement(&target, &kind.look().unwrap());
        let deleted = looked(StatementKind::Delete);
        assert_eq!(
            deleted.sql,
            format!(
                r#"SELECT {changed} FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) WITH ORDINALITY AS x(c0, c1, ord) WHERE EXISTS (SELECT FROM ONLY "public"."le""ads" t WHERE t."shop" OPERATOR(public.=) x.c0::public.citext AND t."id" OPERATOR(pg_catalog.=) x.c1::bigint)"#
            )
        );
        assert_eq!(
            looked(StatementKind::Copy).parameters,
            [
                Parameter::KeyPart(0),
                Parameter::KeyPart(1),
                Parameter::Column(0),
                Parameter::Column(3)
            ]
        );
        assert_eq!(
            looked(StatementKind::Move { present: present() }).parameters[2..],
            [Parameter::NewKeyPart(0), Parameter::NewKeyPart(1), Parameter::Column(0)]
        );
    }
}
