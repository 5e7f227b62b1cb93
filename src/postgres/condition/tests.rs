//! What conditions may say, and what they may not.

use proptest::prelude::*;

use super::tree::DEEPEST;
use super::*;
use crate::change::TableName;

fn sql(text: &str) -> Result<String, ConditionError> {
    let types = |column: &str| match column {
        "id" => Some("bigint"),
        "name" | "odd \"name" => Some("text"),
        "at" => Some("timestamp with time zone"),
        "active" => Some("boolean"),
        "mood" => Some("public.mood"),
        _ => None,
    };
    text.parse::<Condition>()?.to_sql(&TableName::new("public", "t"), types)
}

#[test]
fn a_condition_is_written_anew_with_quoted_columns_and_literals_of_their_types() {
    for (text, expected) in [
        ("id = 7", r#"(t."id" = '7'::bigint)"#),
        ("ID >= -7", r#"(t."id" >= '-7'::bigint)"#),
        ("id <> 1.5e+3", r#"(t."id" <> '1.5e+3'::bigint)"#),
        ("id != 1", r#"(t."id" <> '1'::bigint)"#),
        ("name = 'O''Hara'", r#"(t."name" = 'O''Hara'::text)"#),
        (r"name = 'a\b'", r#"(t."name" = E'a\\b'::text)"#),
        (r#""odd ""name" = 'x'"#, r#"(t."odd ""name" = 'x'::text)"#),
        (
            "mood IN ('ok', 'sad')",
            r#"(t."mood" IN ('ok'::public.mood, 'sad'::public.mood))"#,
        ),
        ("id not in (1)", r#"(NOT (t."id" IN ('1'::bigint)))"#),
        (
            "id BETWEEN 1 AND 3 AND active",
            r#"((t."id" BETWEEN '1'::bigint AND '3'::bigint) AND (t."active"))"#,
        ),
        ("name LIKE 'a%'", r#"(t."name"::pg_catalog.text LIKE 'a%')"#),
        ("name NOT ILIKE 'a%'", r#"(NOT (t."name"::pg_catalog.text ILIKE 'a%'))"#),
        (
            "mood LIKE 'a%'",
            r#"(CASE WHEN t."mood" IS DISTINCT FROM NULL THEN pg_catalog.concat(t."mood") END LIKE 'a%')"#,
        ),
        ("name IS NOT NULL", r#"(NOT (t."name" IS NULL))"#),
        ("active IS NOT TRUE", r#"(NOT (t."active" IS TRUE))"#),
        ("active = true", r#"(t."active" = 'true'::boolean)"#),
        ("at > now()", r#"(t."at" > CURRENT_TIMESTAMP)"#),
        (
            "at > now() - INTERVAL '1 day'",
            r#"(t."at" > (CURRENT_TIMESTAMP - '1 day'::pg_catalog.interval))"#,
        ),
        (
            "at < current_date + interval '1 h'",
            r#"(t."at" < (CURRENT_DATE + '1 h'::pg_catalog.interval))"#,
        ),
        (
            "NOT (id = 1 OR id = 2 AND active)",
            r#"(NOT ((t."id" = '1'::bigint) OR ((t."id" = '2'::bigint) AND (t."active"))))"#,
        ),
    ] {
        assert_eq!(sql(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn everything_else_is_refused_with_its_position() {
    for (text, position) in [
        ("", 1),
        ("true", 1),
        ("1 = 1", 1),
        ("id", 0),
        ("id = other", 6),
        ("id = id", 6),
        ("pg_sleep(1) IS NULL", 9),
        ("id = pg_drop_replication_slot('s')", 6),
        ("id = (SELECT 1)", 6),
        ("id = 1; DROP TABLE t", 7),
        ("id = 1 -- comment", 8),
        ("id = 1 /* comment */", 8),
        ("id::text = '1'", 3),
        ("id = '1'::int", 9),
        ("id + 1 = 2", 0),
        ("id OPERATOR(pg_catalog.=) 1", 4),
        ("name = E'x'", 9),
        ("name = 'x", 8),
        ("name ~ 'x'", 6),
        ("name = $1", 8),
        ("id = NULL", 6),
        ("id IN ()", 8),
        ("id NOT = 1", 8),
        ("at > now() - '1 day'", 14),
        ("t.id = 1", 2),
        ("(id = 1", 8),
        ("id = 1)", 7),
        ("exists (id)", 1),
    ] {
        match sql(text) {
            Err(ConditionError::Unexpected { position: at, .. }) if position > 0 => assert_eq!(at, position, "{text}"),
            Err(_) if position == 0 => {}
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn columns_have_to_exist_and_only_booleans_stand_alone() {
    assert!(matches!(sql("gone = 1"), Err(ConditionError::NoColumn { .. })));
    assert!(matches!(sql("name OR active"), Err(ConditionError::NotBoolean { .. })));
    assert!(matches!(sql("id IS TRUE"), Err(ConditionError::NotBoolean { .. })));
}

#[test]
fn length_and_depth_are_bounded() {
    assert_eq!(
        sql(&format!("id = {}", "1".repeat(LONGEST))),
        Err(ConditionError::TooLong)
    );
    assert_eq!(
        sql(&format!("{}active", "NOT ".repeat(DEEPEST))),
        Err(ConditionError::TooDeep)
    );
    assert_eq!(
        sql(&format!("{}active", "(".repeat(1000))),
        Err(ConditionError::TooDeep)
    );
    assert!(sql(&format!("{}active", "NOT ".repeat(DEEPEST - 1))).is_ok());
}

/// Without what is inside of quotes.
fn outside_of_quotes(sql: &str) -> String {
    let (mut out, mut inside) = (String::new(), None);
    for character in sql.replace("\\\\", "").chars() {
        match inside {
            None if character == '\'' || character == '"' => inside = Some(character),
            None => out.push(character),
            Some(quote) if quote == character => inside = None,
            Some(_) => {}
        }
    }
    assert_eq!(inside, None, "{sql}");
    out
}

proptest! {
    #[test]
    fn any_text_is_refused_or_gives_only_words_of_ours(text in ".{0,40}") {
        let _ = sql(&text);
    }

    #[test]
    fn a_literal_stays_one_whatever_is_in_it(literal in ".{0,30}", column in prop::sample::select(vec!["name", "mood"])) {
        let text = format!("{column} = '{}'", literal.replace('\'', "''"));
        let written = outside_of_quotes(&sql(&text).unwrap());
        let kind = if column == "name" { "text" } else { "public.mood" };
        let plain = format!("(t. = ::{kind})");
        let escaped = format!("(t. = E::{kind})");
        prop_assert!(written == plain || written == escaped, "{written}");
    }
}
