//! Keys whose types differ on the two sides, that sort otherwise, or that one side can't read.

use serde_json::{Value, json};

use super::{of_table, verify};
use crate::harness::Twins;

/// Pairs of tables: the key's type in the Site DB and in the Agent DB, and keys, of which the second is deleted in the Agent DB;
/// then a key that only the Agent DB has.
const PAIRS: &[(&str, &str, &str, &[&str], &str)] = &[
    ("narrow", "bigint", "int", &["1", "-5", "20", "3"], "21"),
    ("wide", "int", "bigint", &["1", "-5", "20", "3"], "3000000000"),
    ("digits", "int", "text", &["9", "10", "100", "-1"], "no number"),
    ("lengths", "varchar(10)", "text", &["b", "B", "a ", "ä"], "b "),
    ("shorter", "text", "varchar(10)", &["b", "B", "a ", "ä"], "b "),
    ("blanks", "char(3)", "char(5)", &["b", "B", "a", "abc"], "d"),
    ("padded", "char(3)", "text", &["b  ", "B  ", "a  ", "abc"], "d"),
    ("spelled", "numeric", "numeric", &["1.0", "2.00", "10", "-3"], "1.5"),
    ("whole", "numeric", "bigint", &["9", "10", "100", "-1"], "7"),
    (
        "days",
        "date",
        "timestamptz",
        &["2024-02-01", "1999-01-01", "2024-01-31", "infinity"],
        "2024-01-30 00:00+00",
    ),
    ("cased", "public.citext", "public.citext", &["b", "A", "ä", "c"], "aa"),
    ("sorted", "text COLLATE \"C\"", "text", &["b", "B", "a", "ä"], "C"),
    ("moods", "public.mood", "text", &["so so", "ok", "bad", "a"], "other"),
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_whatever_the_types_of_their_keys_are_on_either_side() {
    let both = "CREATE EXTENSION citext SCHEMA public; CREATE TYPE public.mood AS ENUM ('so so', 'ok', 'bad', 'a')";
    // Pages of two rows.
    let twins = Twins::new(both).await.with("sync.copy_chunk_rows = 2");
    let table = |name: &str, kind: &str| format!("CREATE TABLE {name} (k {kind}, n int, v text, PRIMARY KEY (k, n));");
    let (mut site, mut agent, mut damage) = (String::new(), String::new(), String::new());
    for (name, on_site, on_agent, keys, extra) in PAIRS {
        site += &table(name, on_site);
        agent += &table(name, on_agent);
        for key in *keys {
            site += &format!("INSERT INTO {name} VALUES ('{key}', 1, 'x'), ('{key}', 2, 'x');");
        }
        let (gone, changed) = (keys[1], keys[2]);
        damage += &format!(
            "DELETE FROM {name} WHERE k = '{gone}' AND n = 1; UPDATE {name} SET v = 'y' WHERE k = '{changed}' AND n = 2;
             INSERT INTO {name} VALUES ('{extra}', 1, 'x');"
        );
    }
    tokio::join!(twins.on_site(&site), twins.on_agent(&agent));
    let _daemon = twins.start().await;
    for (name, ..) in PAIRS {
        twins.until_table(name, "streaming", 8).await;
    }
    let (good, answer) = verify(&twins, &["--all"]).await;
    assert!(good && answer["equal"] == true, "{answer}");

    // WHEN rows differ, THEN each of them is found, and repaired
    twins.on_agent(&damage).await;
    for options in [&["--all"][..], &["--all", "--repair"]] {
        let (good, answer) = verify(&twins, options).await;
        assert_eq!(good, options.len() > 1, "{answer}");
        for (name, ..) in PAIRS {
            let found = of_table(&answer, &format!("public.{name}"));
            let count = |list: &str| found[list].as_array().unwrap().len();
            assert_eq!(
                (count("missing"), count("extra"), count("different")),
                (1, 1, 1),
                "{name}: {answer}"
            );
            assert_eq!(found["different"][0]["columns"], json!(["v"]), "{name}");
        }
    }
    let (good, answer) = verify(&twins, &["--all"]).await;
    assert!(good && answer["equal"] == true, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_large_for_the_agent_db_does_not_stop_the_others_from_being_proved() {
    let twins = Twins::new("CREATE TABLE t (id bigint PRIMARY KEY, v text)").await;
    twins.on_agent("ALTER TABLE t ALTER id TYPE int").await;
    twins
        .on_site("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3000000000, 'c'), (4000000000, 'd')")
        .await;
    let _daemon = twins.start().await;
    twins.until_parked(2).await;
    twins.until_table("t", "streaming", 2).await;
    twins.on_agent("UPDATE t SET v = 'x' WHERE id = 2").await;

    let (good, answer) = verify(&twins, &["t", "--repair"]).await;
    let table = &answer["tables"][0];
    assert!(!good && table["held"] == Value::Null, "{answer}");
    assert_eq!(
        of_table(&answer, "public.t"),
        json!({ "missing": [], "extra": [], "different": [{ "key": ["2"], "columns": ["v"] }] }),
    );
    assert!(table["parked"] == 2 && table["repaired"] == 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_other_encodings_are_equal_and_differences_are_found() {
    let mut twins = Twins::on(
        crate::harness::databases().await.with_latin1_agent().await,
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE words (k text PRIMARY KEY, v text)",
    )
    .await;
    twins.configure("sync.copy_chunk_rows = 100");
    twins
        .on_site(
            "INSERT INTO t SELECT i, 'é' || i FROM generate_series(1, 300) i;
             INSERT INTO words SELECT i || 'ä', 'ö' FROM generate_series(1, 300) i",
        )
        .await;
    let _daemon = twins.start().await;
    twins.until_table("t", "streaming", 300).await;
    twins.until_table("words", "streaming", 300).await;
    let (good, answer) = verify(&twins, &["--all"]).await;
    assert!(good, "{answer}");

    twins
        .on_agent("UPDATE t SET v = 'e7' WHERE id = 7; DELETE FROM words WHERE k LIKE '8_'")
        .await;
    let (_, answer) = verify(&twins, &["--all"]).await;
    assert_eq!(
        of_table(&answer, "public.t")["different"],
        json!([{ "key": ["7"], "columns": ["v"] }])
    );
    // (A document in LATIN1 spells what is not ASCII in its own way.)
    assert_eq!(
        of_table(&answer, "public.words")["missing"].as_array().unwrap().len(),
        1
    );
}
