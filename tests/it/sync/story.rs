//! `twinlog why`: a row's story over both databases.

use serde_json::{Value, json};

use crate::harness::{NOTES, Twins};

/// Runs `twinlog why --json`; returns whether it exits with 0, and what it says.
async fn why(twins: &Twins, arguments: &[&str]) -> (bool, Value) {
    let arguments = [&["why", "--json"], arguments].concat();
    let (status, output) = twins.run(&arguments).await;
    let line = output.lines().find(|line| line.starts_with('{'));
    let answer = line.unwrap_or_else(|| panic!("no answer: {output}"));
    (status.success(), serde_json::from_str(answer).unwrap())
}

fn reasons(story: &Value) -> String {
    story["why"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_tells_whether_it_is_equal_and_why_not() {
    // GIVEN a row that is equal, rows that the Agent DB has changed, lost and made up, and one that it refuses
    let twins = Twins::new(NOTES)
        .await
        .with("sync.retry_initial_ms = 60000\nsync.retry_max_ms = 60000");
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT sound CHECK (n < 100)")
        .await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'secret ' || i, i FROM generate_series(1, 5) i")
        .await;
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (6, 'secret 6', 600)").await;
    twins.until_parked(1).await;
    twins.until_table("notes", "streaming", 5).await;
    twins
        .on_agent("UPDATE notes SET body = 'other', n = 0 WHERE id = 2; DELETE FROM notes WHERE id = 3; INSERT INTO notes VALUES (9, '', 9)")
        .await;

    let (fine, story) = why(&twins, &["notes", "1"]).await;
    assert!(fine && story["verdict"] == "equal", "{story}");
    let (fine, story) = why(&twins, &["public.notes", r#"["2"]"#]).await;
    assert!(!fine && story["columns"] == json!(["body", "n"]), "{story}");
    assert!(
        reasons(&story).contains("no reason is known: twinlog verify --repair"),
        "{story}"
    );
    assert!(!story.to_string().contains("secret"), "{story}");
    let (_, story) = why(&twins, &["notes", "2", "--show-values"]).await;
    let values = json!([
        {"name": "id", "site": "2", "agent": "2"},
        {"name": "body", "site": "secret 2", "agent": "other"},
        {"name": "n", "site": "2", "agent": "0"},
    ]);
    assert_eq!(story["values"], values);
    for (key, verdict) in [("3", "missing"), ("9", "extra"), ("6", "missing")] {
        let (fine, story) = why(&twins, &["notes", key]).await;
        assert!(!fine && story["verdict"] == verdict, "{story}");
    }
    let (fine, story) = why(&twins, &["notes", "77"]).await;
    assert!(fine && story["verdict"] == "absent", "{story}");

    // The row that was refused says so, and what people have decided about it.
    twins
        .succeeds(&["failed", "discard", r#"["6"]"#, "--reason", "a test's row"])
        .await;
    let (_, story) = why(&twins, &["notes", "6"]).await;
    assert!(reasons(&story).contains("23514 sound public.notes"), "{story}");
    assert_eq!(story["replication"]["discards"][0]["why"], "a test's row", "{story}");
    let text = twins.fails(&["why", "notes", "6"]).await;
    assert!(
        text.contains("missing in the Agent DB") && text.contains("parked since"),
        "{text}"
    );

    // WHEN the table is verified, repaired and held, THEN that is told too
    twins.fails(&["verify", "notes"]).await;
    let (_, story) = why(&twins, &["notes", "3"]).await;
    assert!(story["replication"]["verified_at"].is_string(), "{story}");
    twins.on_agent("ALTER TABLE notes RENAME n TO m").await;
    twins.on_site("INSERT INTO notes VALUES (10, '', 10)").await;
    twins.until_table("notes", "held", 0).await;
    let (fine, story) = why(&twins, &["notes", "10"]).await;
    assert!(!fine && story["verdict"] == "not_compared", "{story}");
    assert!(reasons(&story).contains("the table is held"), "{story}");

    // AND mistakes are named.
    let (_, story) = why(&twins, &["notes", "1", "2"]).await;
    assert!(!reasons(&story).is_empty(), "{story}");
    let (fine, story) = why(&twins, &["nowhere", "1"]).await;
    assert!(!fine && reasons(&story).contains("not replicated"), "{story}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_filter_leaves_out_says_so_and_a_key_may_have_several_columns() {
    let twins =
        Twins::new("CREATE TABLE parts (a text, b int, n int, PRIMARY KEY (a, b)); CREATE TABLE plain (n int)").await;
    let version = twins.site.value("SELECT current_setting('server_version_num')").await;
    if version.parse::<u32>().unwrap() < 150_000 {
        println!("row filters came with PostgreSQL 15: left out");
        return;
    }
    let publication = &twins.site.name;
    twins
        .on_site(&format!(
            "ALTER TABLE plain REPLICA IDENTITY FULL;
             CREATE PUBLICATION \"{publication}\" FOR TABLE parts WHERE (b > 0), plain;
             INSERT INTO parts VALUES ('x', 1, 1), ('x', -1, 1)"
        ))
        .await;
    let _daemon = twins.start().await;
    let (fine, story) = why(&twins, &["parts", "x", "1"]).await;
    assert!(fine && story["verdict"] == "equal", "{story}");
    let (_, story) = why(&twins, &["parts", "--", "x", "-1"]).await;
    assert!(
        story["filtered"] == true && reasons(&story).contains("row filter"),
        "{story}"
    );
    let (fine, story) = why(&twins, &["parts", "x"]).await;
    assert!(!fine && reasons(&story).contains("told apart by a, b"), "{story}");
    let (fine, story) = why(&twins, &["plain", "1"]).await;
    assert!(!fine && reasons(&story).contains("no key"), "{story}");
}
