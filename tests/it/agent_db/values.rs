//! Values arrive unchanged.

use std::sync::Arc;

use twinlog::change::{Change, Relation};

use super::fixture::{Fixture, chunk, insert, lines, update};

/// Type and the texts that must come out as they went in.
const VALUES: &[(&str, &[&str])] = &[
    ("smallint", &["-32768"]),
    ("bigint", &["9223372036854775807"]),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "1.00",
            "123456789012345678901234567890.000000001",
        ],
    ),
    ("numeric(10,2)", &["-0.50"]),
    ("real", &["NaN", "-Infinity", "1e-45", "-0"]),
    ("double precision", &["0.1", "1.7976931348623157e+308", "-0", "5e-324"]),
    ("money", &["-$1,234.56"]),
    ("boolean", &["t"]),
    ("text", &["", "∅x", "NULL", "a\nb\t\\N{}\"'", "日本語 😀"]),
    ("varchar(3)", &["abc", "日本語"]),
    ("char(4)", &["ab  "]),
    ("\"char\"", &["x", "\\377"]),
    ("name", &["thing"]),
    ("bytea", &["\\x00ff", "\\x"]),
    ("date", &["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31"]),
    ("time", &["24:00:00", "23:59:59.999999"]),
    ("timetz", &["24:00:00+15:59"]),
    (
        "timestamp",
        &["infinity", "0001-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"],
    ),
    (
        "timestamptz",
        &[
            "-infinity",
            "4713-11-24 00:00:00+00 BC",
            "2026-11-21 06:00:00.123456+00",
        ],
    ),
    (
        "interval",
        &["-1 years -2 mons +3 days -04:05:06.789", "178000000 years"],
    ),
    ("uuid", &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    ("json", &["{\"b\": 1,  \"a\": 1, \"a\": 2}", "null"]),
    ("jsonb", &["{\"a\": \"\\\\u0041\\\"\"}", "1.10"]),
    ("xml", &["<a>x</a>text"]),
    ("inet", &["192.168.0.1/24", "::ffff:1.2.3.4/128"]),
    ("cidr", &["10.0.0.0/8"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("bit(3)", &["101"]),
    ("bit varying(5)", &["", "10101"]),
    ("point", &["(1.5,-0)"]),
    ("polygon", &["((0,0),(1,1),(2,0))"]),
    ("tsvector", &["'a':1A 'b c':2"]),
    ("tsquery", &["'a' & !'b'"]),
    ("pg_lsn", &["16/B374D848"]),
    ("int4range", &["[1,5)", "empty", "(,)"]),
    ("tstzrange", &["[\"2026-01-01 00:00:00+00\",infinity)"]),
    ("int4multirange", &["{[1,3),[5,9)}"]),
    (
        "int[]",
        &[
            "{}",
            "{NULL,1}",
            "{{1,2},{3,4}}",
            "[0:1]={1,2}",
            "[-1:0][2:3]={{1,2},{3,4}}",
        ],
    ),
    ("text[]", &["{\"\",NULL,\"NULL\",\"a,b\",\"c\\\"d\\\\\"}"]),
    ("varchar(2)[]", &["{ab,c}"]),
    ("mood", &["so so", "it's"]),
    ("mood[]", &["{ok,\"so so\"}"]),
    ("short", &["abc"]),
    ("shorter", &["ab"]),
    ("short[]", &["{abc,NULL}"]),
    ("positive", &["1"]),
    ("pair", &["(1,\"a b\")", "(,)", "(,\"\"\"\")"]),
    ("pair[]", &["{\"(1,x)\",NULL}"]),
    ("\"Odd Schema\".\"Odd Type\"", &["x"]),
];

const TYPES: &str = "
    CREATE SCHEMA \"Odd Schema\";
    CREATE TYPE \"Odd Schema\".\"Odd Type\" AS ENUM ('x');
    CREATE TYPE mood AS ENUM ('ok', 'so so', 'it''s');
    CREATE DOMAIN short AS varchar(3);
    CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 3);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TYPE pair AS (a int, b text);";

#[tokio::test]
async fn every_types_values_survive_untouched() {
    // GIVEN a column of every type, and rows with every value
    let columns: Vec<String> = VALUES
        .iter()
        .enumerate()
        .map(|(index, (type_, _))| format!("c{index} {type_}"))
        .collect();
    let (mut fixture, t) = Fixture::new(&format!(
        "{TYPES} CREATE TABLE t (id int PRIMARY KEY, {})",
        columns.join(", ")
    ))
    .await
    .with_table("t")
    .await;
    let depth = VALUES.iter().map(|(_, texts)| texts.len()).max().unwrap_or(0);
    let rows: Vec<Vec<&str>> = (0..depth)
        .map(|row| VALUES.iter().map(|(_, texts)| texts[row % texts.len()]).collect())
        .collect();
    let changes = |make: fn(&Arc<Relation>, &[&str]) -> Change| -> Vec<Change> {
        (0..)
            .zip(&rows)
            .map(|(id, row)| {
                let id = id.to_string();
                make(&t, &[&[id.as_str()], row.as_slice()].concat())
            })
            .collect()
    };

    // WHEN they are applied
    let tally = fixture.apply(changes(insert)).await;
    assert_eq!(fixture.parked().await, Vec::<String>::new());
    assert_eq!(tally.applied, depth as u64);

    // THEN they come out as they went in; read back over a session of the product's own, whose settings print as the stream does.
    let client = twinlog::postgres::connect(
        twinlog::postgres::Side::Agent,
        &fixture.db.agent.database_url(),
        "read back",
    )
    .await
    .unwrap();
    // Twice: as inserted, and after an update of every column.
    for _ in 0..2 {
        for (index, (type_, _)) in VALUES.iter().enumerate() {
            let sql = format!("SELECT c{index}::text FROM public.t ORDER BY id");
            // A cast of char(n) to text drops trailing blanks; its output does not.
            let sql = if *type_ == "char(4)" {
                format!("SELECT pg_catalog.format('%s', c{index}) FROM public.t ORDER BY id")
            } else {
                sql
            };
            let mut expected: Vec<&str> = rows.iter().map(|row| row[index]).collect();
            if *type_ == "\"char\"" && fixture.db.agent.cluster.major() < 15 {
                // Postgres 14 has no octal notation for this type and reads the first byte of any text.
                expected = expected.iter().map(|text| &text[..1]).collect();
            }
            let found = lines(&client, &sql).await;
            // A cast of boolean to text gives "true", but its output is "t".
            let found: Vec<String> = match *type_ {
                "boolean" => found.iter().map(|text| text[..1].to_owned()).collect(),
                _ => found,
            };
            assert_eq!(found, expected, "{type_}");
        }
        assert_eq!(fixture.apply(changes(update)).await.applied, depth as u64);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_parked_and_never_cut() {
    let (mut fixture, t) = Fixture::new(&format!(
        "{TYPES} CREATE TABLE t (id int PRIMARY KEY, v varchar(3), c char(3), b bit(3), s short, e mood, p positive,
             f real, a varchar(2)[], d shorter, x pair)"
    ))
    .await
    .with_table("t")
    .await;
    // GIVEN a good row, and bad values for each of its columns
    let good = ["v", "c", "101", "s", "ok", "1", "1", "{a}", "d", "(1,x)"];
    let bad = [
        (0, "abcd", "22001"),
        (1, "abcd", "22001"),
        (2, "1010", "22026"),
        (2, "10", "22026"),
        (3, "abcd", "22001"),
        (4, "angry", "22P02"),
        (5, "0", "23514"),
        (6, "1e60", "22003"),
        (7, "{abc}", "22001"),
        (8, "abc", "23514"),
        (9, "(1)", "22P02"),
    ];

    // WHEN they are inserted, THEN only the good row is there
    let ids: Vec<String> = (0..=bad.len()).map(|id| id.to_string()).collect();
    let mut changes = Vec::new();
    for (number, (column, text, _)) in bad.iter().enumerate() {
        let mut values = good;
        values[*column] = text;
        let values: Vec<&str> = std::iter::once(ids[number].as_str()).chain(values).collect();
        changes.push(insert(&t, &values));
    }
    let values: Vec<&str> = std::iter::once(ids[bad.len()].as_str()).chain(good).collect();
    changes.push(insert(&t, &values));
    let tally = fixture.apply(changes).await;
    assert_eq!((tally.applied, tally.parked), (1, bad.len() as u64));
    let reasons = fixture
        .lines("SELECT reason FROM twinlog.failed_rows ORDER BY id")
        .await;
    let expected: Vec<&str> = bad.iter().map(|(_, _, reason)| *reason).collect();
    assert_eq!(reasons, expected);

    // An update, which uses other casts, does not cut values either.
    let id = ids[bad.len()].as_str();
    for (column, text, _) in bad {
        let mut values = ["="; 10];
        values[column] = text;
        let values: Vec<&str> = std::iter::once(id).chain(values).collect();
        let tally = fixture.apply(vec![update(&t, &values)]).await;
        assert_eq!((tally.applied, tally.parked), (0, 1), "{text}");
        // The row's present state, read from the Site DB, heals it.
        let values: Vec<&str> = std::iter::once(id).chain(good).collect();
        let tally = fixture.apply(vec![chunk(insert(&t, &values))]).await;
        assert_eq!(tally.healed, 1, "{text}");
    }
    assert_eq!(
        fixture.lines("SELECT t FROM t").await,
        ["(11,v,\"c  \",101,s,ok,1,1,{a},d,\"(1,x)\")"]
    );
}

#[tokio::test]
async fn keys_of_extension_types_are_matched_by_their_own_equality() {
    let (mut fixture, t) = Fixture::new(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;
         CREATE TABLE t (k ext.citext PRIMARY KEY, n numeric, c char(5), UNIQUE (c));
         INSERT INTO t VALUES ('Key', 1, 'a')",
    )
    .await
    .with_table("t")
    .await;
    fixture.apply(vec![update(&t, &["KEY", "2", "="])]).await;
    assert_eq!(fixture.lines("SELECT n FROM t").await, ["2"]);
    // Two texts of one key: the database reports the collision, and the replay resolves it.
    let tally = fixture
        .apply(vec![insert(&t, &["key", "3", "b"]), insert(&t, &["kEY", "4", "c"])])
        .await;
    assert_eq!((tally.applied, tally.parked), (2, 0));
    assert_eq!(fixture.lines("SELECT k::text || n::text FROM t").await, ["Key4"]);
}
