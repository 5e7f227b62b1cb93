//! What others choose is bounded and harmless: the Site DB's answers, names, and the texts of errors.

use crate::harness::{NOTES, SOON, Twins, eventually};

/// What the daemon may take, in MB.
const MOST_MB: u64 = 150;

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_without_an_end_is_not_read_to_its_end() {
    // GIVEN a Site DB whose catalog answers with more than 60 MB: an enum with very many labels, in several tables
    let twins = Twins::private(NOTES).await;
    let daemon = twins.start().await;
    daemon.stop().await;
    let tables: String = (1..=12)
        .map(|i| format!("CREATE TABLE endless_{i} (id int PRIMARY KEY, m mood);"))
        .collect();
    twins
        .on_site(&format!(
            "CREATE TYPE mood AS ENUM ('a'); {tables} SET allow_system_table_mods = on;
             INSERT INTO pg_enum (oid, enumtypid, enumsortorder, enumlabel)
             SELECT i + 100000000, 'mood'::regtype, i + 1, repeat('x', 50) || i FROM generate_series(1, 80000) i"
        ))
        .await;

    // WHEN the daemon starts
    let mut daemon = twins.launch();

    // THEN it says so, and has not taken the memory for it
    daemon.says("longer than the catalog of any database").await;
    if let Some(peak) = daemon.peak_mb() {
        println!("peak {peak} MB");
        assert!(peak <= MOST_MB, "{peak} MB");
    }
    let tables: String = (1..=12).map(|i| format!("DROP TABLE endless_{i};")).collect();
    twins.on_site(&tables).await;
    daemon.until_flowing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_texts_of_others_forge_no_line_and_no_colour() {
    // GIVEN tables and columns whose names have line breaks and escape sequences, and a trigger that raises a long text
    let odd = "a\n2026-11-27T00:00:00Z ERROR forged \x1b[31mred\x1b]0;title\x07";
    let twins = Twins::new(&format!(
        "CREATE TABLE \"{odd}\" (id int PRIMARY KEY, \"{odd}\" text); CREATE TABLE notes (id int PRIMARY KEY, v text)"
    ))
    .await;
    twins
        .on_site(
            "CREATE TABLE \"b\nERROR forged\" (id int); INSERT INTO notes SELECT i, 'v' FROM generate_series(1, 50) i",
        )
        .await;
    twins
        .on_agent(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION E'no\nERROR forged %', repeat('z', 3000000) \
             USING CONSTRAINT = repeat('c', 100000), COLUMN = repeat('d', 100000); END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION refuse(); \
             ALTER TABLE notes ENABLE ALWAYS TRIGGER refuse",
        )
        .await;

    // WHEN they are copied, held and parked
    let daemon = twins.start().await;
    twins.on_site(&format!("INSERT INTO \"{odd}\" VALUES (1, 'x')")).await;
    twins.until_equal(&[&format!("\"{odd}\"")]).await;
    twins.until_parked(50).await;

    // THEN every line of the log is one of ours, and what is kept of the texts is short
    let (_, status) = twins.run(&["status"]).await;
    let (_, failed) = twins.run(&["failed", "list"]).await;
    let output = daemon.output();
    assert!(output.contains("forged"), "the names are told: {output}");
    for text in [&output, &status, &failed] {
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("ERROR forged")), "{text}");
        assert!(
            !text.lines().any(|line| line.starts_with("2026-11-27T00:00:00Z ERROR")),
            "{text}"
        );
    }
    // and a statement that is told can be pasted
    let values = format!("ALTER TABLE \"{odd}\" ADD COLUMN \"c\nd\" int; INSERT INTO \"{odd}\" VALUES (2, 'y', 7)");
    twins.on_site(&values).await;
    let statement = eventually("the column that lacks is told", 2 * SOON, || async {
        let (_, status) = twins.run(&["status"]).await;
        let from = status
            .find("ALTER TABLE \"public\".U&\"a")
            .ok_or_else(|| status.clone())?;
        // The name has a semicolon, too.
        let end = " integer;";
        let length = status[from..].find(end).ok_or_else(|| status.clone())? + end.len();
        Ok::<String, String>(status[from..from + length].to_owned())
    })
    .await;
    twins.on_agent(&statement).await;
    twins.until_equal(&[&format!("\"{odd}\"")]).await;
    let longest = twins
        .agent
        .value("SELECT max(octet_length(f::text))::text FROM twinlog.failed_rows f")
        .await;
    assert!(longest.parse::<u64>().unwrap() < 20_000, "{longest}");
    if let Some(peak) = daemon.peak_mb() {
        println!("peak {peak} MB: errors of 3 MB");
        assert!(peak <= MOST_MB, "{peak} MB");
    }
}
