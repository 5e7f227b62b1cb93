//! Keys that the Site DB tells apart and the Agent DB's types would take as one.

use crate::harness::{SOON, Twins};

/// The type of a key on both sides, two values of it, and the statement that corrects it.
const KEYS: &[(&str, &str, &str, &str)] = &[
    ("text", "citext", "('a'), ('A')", "TYPE text;"),
    ("text", "char(3)", "('a'), ('a ')", "TYPE text;"),
    ("text", "int", "('1'), ('01')", "TYPE text;"),
    (
        "text",
        "text COLLATE blind",
        "('b'), ('B')",
        "TYPE text COLLATE pg_catalog.\"default\";",
    ),
    ("numeric", "numeric(6,0)", "(1.1), (1.2)", "TYPE numeric;"),
    ("float8", "float4", "(0.1), (0.10000000001)", "TYPE double precision;"),
    (
        "timestamp",
        "date",
        "('2024-01-02 03:00'), ('2024-01-02 04:00')",
        "TYPE timestamp without time zone;",
    ),
    (
        "timestamptz",
        "timestamptz(0)",
        "('2024-01-02 03:00:00.1Z'), ('2024-01-02 03:00:00.2Z')",
        "TYPE timestamp with time zone;",
    ),
];

/// Other types on the two sides by which keys stay apart.
const APART: &str = "CREATE TABLE apart (a %, b int, n int, PRIMARY KEY (a, b))";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_keys_the_agent_db_may_take_as_one_is_held_with_the_statement_that_corrects_its_type() {
    // GIVEN tables with keys of other types in the Agent DB, before the start and while the stream flows
    let twins = Twins::new(
        "CREATE EXTENSION citext;
         CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )
    .await;
    twins.on_site(&APART.replace('%', "varchar(9)")).await;
    twins.on_agent(&APART.replace('%', "text")).await;
    let create = |number: usize, kind: &str| format!("CREATE TABLE t{number} (id {kind} PRIMARY KEY, n int DEFAULT 1)");
    let mut daemon = None;
    for (number, (site, agent, ..)) in KEYS.iter().enumerate() {
        twins.on_agent(&create(number, agent)).await;
        twins.on_site(&create(number, site)).await;
        if number == KEYS.len() / 2 {
            daemon = Some(twins.start().await);
        }
    }
    let _daemon = daemon.unwrap();

    // WHEN rows differ by their keys alone
    for (number, (_, _, keys, _)) in KEYS.iter().enumerate() {
        twins
            .on_site(&format!("INSERT INTO t{number} (id) VALUES {keys}"))
            .await;
    }
    twins.on_site("INSERT INTO apart VALUES ('a', 1, 1), ('A', 1, 2)").await;

    // THEN their tables are held, and the others flow
    twins.until_equal(&["apart"]).await;
    for (number, (.., statement)) in KEYS.iter().enumerate() {
        twins.until_table(&format!("t{number}"), "held", 0).await;
        let detail = twins
            .agent
            .value(&format!(
                "SELECT detail FROM twinlog.tables WHERE table_name = 't{number}'"
            ))
            .await;
        assert!(detail.contains("different keys of"), "{detail}");
        let wanted = format!("ALTER TABLE \"public\".\"t{number}\" ALTER COLUMN \"id\" {statement}");
        assert!(detail.contains(&wanted), "{detail}");
        // WHEN the statement is pasted
        twins.on_agent(&wanted).await;
    }

    // THEN both are equal
    let tables: Vec<String> = (0..KEYS.len()).map(|number| format!("t{number}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    twins.until_equal_within(2 * SOON, &tables).await;
    assert_eq!(twins.parked().await, 0);
    twins.assert_balanced().await;
}
