//! What is not called equal, and what is not called different.

use serde_json::{Value, json};

use super::{of_table, sorted, verify};
use crate::harness::{NOTES, SOON, Twins};

/// The Site DB's row and the Agent DB's, which writing would leave as it is, or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_agent_db_would_refuse_is_no_shorter_one_and_blanks_that_it_would_cut_are_no_difference() {
    const COLUMNS: &[(&str, &str, &str, &str)] = &[
        ("c", "char(3)", "abcdef", "abc"),
        ("cs", "char(3)[]", "{abcdef}", "{abc}"),
        ("v", "varchar(3)", "abcdef", "abc"),
        ("vs", "varchar(3)[]", "{abcdef,NULL}", "{abc,NULL}"),
        ("short", "short", "abcdef", "abc"),
        ("fixed", "fixed", "abcdef", "abc"),
        ("b", "bit(3)", "1010", "101"),
        ("bs", "bit(3)[]", "{1010}", "{101}"),
    ];
    let twins = Twins::new("").await;
    let kind = |of: &str| if of.ends_with("[]") { "text[]" } else { "text" };
    let site: Vec<String> = COLUMNS
        .iter()
        .map(|(name, of, ..)| format!("{name} {}", kind(of)))
        .collect();
    let agent: Vec<String> = COLUMNS.iter().map(|(name, of, ..)| format!("{name} {of}")).collect();
    twins
        .on_site(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", site.join(", ")))
        .await;
    twins
        .on_agent(&format!(
            "CREATE DOMAIN short AS varchar(3); CREATE DOMAIN fixed AS char(3); CREATE TABLE t (id int PRIMARY KEY, {})",
            agent.join(", ")
        ))
        .await;
    // A row that fits, one whose blanks are cut, and one for each column that does not fit, of which the Agent DB has another one.
    twins
        .on_site("INSERT INTO t (id, c, v, cs, short) VALUES (1, 'ab', 'ab ', '{ab}', 'ab'), (2, 'ab     ', 'ab     ', '{\"abc  \"}', 'abc    ')")
        .await;
    let daemon = twins.start().await;
    twins.until_table("t", "streaming", 2).await;
    for (id, (name, _, long, _)) in (10..).zip(COLUMNS) {
        twins
            .on_site(&format!("INSERT INTO t (id, {name}) VALUES ({id}, '{long}')"))
            .await;
    }
    twins.until_parked(COLUMNS.len() as i64).await;
    daemon.stop().await;
    for (id, (name, _, _, cut)) in (10..).zip(COLUMNS) {
        twins
            .on_agent(&format!("INSERT INTO t (id, {name}) VALUES ({id}, '{cut}')"))
            .await;
    }
    // Their entries are gone, as if somebody had discarded them.
    twins.on_agent("DELETE FROM twinlog.failed_rows").await;
    let _daemon = twins.start().await;

    let (good, answer) = verify(&twins, &["t"]).await;

    assert!(!good, "{answer}");
    let expected: Vec<Value> = (10..)
        .zip(COLUMNS)
        .map(|(id, (name, ..))| json!({ "key": [id.to_string()], "columns": [name] }))
        .collect();
    assert_eq!(
        of_table(&answer, "public.t"),
        json!({ "missing": [], "extra": [], "different": sorted(&Value::Array(expected)) })
    );
    // A repair is refused as well, and says so.
    let (good, answer) = verify(&twins, &["t", "--repair"]).await;
    assert!(!good && answer["tables"][0]["repaired"] == 0, "{answer}");
    assert_eq!(answer["tables"][0]["parked"], COLUMNS.len(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_db_changes_when_it_is_repaired_is_not_called_repaired() {
    // GIVEN a trigger of the Agent DB that changes what is written once it is switched on
    let twins = Twins::with_notes(10).await;
    twins
        .on_agent(
            "CREATE TABLE switch (v int);
             CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF EXISTS (SELECT FROM public.switch) THEN NEW.body = 'mine'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER change BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION change();
             ALTER TABLE notes ENABLE ALWAYS TRIGGER change",
        )
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    twins
        .on_agent("UPDATE notes SET n = 0 WHERE id = 3; DELETE FROM notes WHERE id = 4; INSERT INTO notes VALUES (99); INSERT INTO switch VALUES (1)")
        .await;

    let (good, answer) = verify(&twins, &["notes", "--repair"]).await;

    // THEN only what the trigger does not touch is repaired
    let table = &answer["tables"][0];
    assert!(!good && table["repaired"] == 1, "{answer}");
    assert_eq!(twins.agent.value("SELECT count(*) FROM notes WHERE id = 99").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_other_pipelines_are_no_difference() {
    let twins = Twins::with_notes(20)
        .await
        .with("sync.shared_tables = ['public.notes']");
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    twins
        .on_agent("INSERT INTO notes VALUES (5000, 'of another pipeline', 1), (-1, 'likewise', 1)")
        .await;
    let (good, answer) = verify(&twins, &["notes", "--repair"]).await;
    assert!(good, "{answer}");
    twins
        .on_agent("DELETE FROM notes WHERE id = 7; UPDATE notes SET n = 0 WHERE id = 8")
        .await;
    let (good, answer) = verify(&twins, &["notes", "--repair"]).await;
    assert!(good && answer["tables"][0]["repaired"] == 2, "{answer}");
    assert_eq!(
        of_table(&answer, "public.notes"),
        json!({ "missing": [["7"]], "extra": [], "different": [{ "key": ["8"], "columns": ["n"] }] })
    );
    assert_eq!(twins.agent.value("SELECT count(*) FROM notes").await, "22");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_can_not_be_published_is_named_and_nothing_is_called_equal() {
    let twins = Twins::with_notes(5).await;
    twins.on_site("CREATE UNLOGGED TABLE cache (id int PRIMARY KEY)").await;
    twins.on_agent("CREATE TABLE cache (id int PRIMARY KEY)").await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    let (good, answer) = verify(&twins, &["--all"]).await;

    assert!(!good && answer["equal"] == false, "{answer}");
    let tables = answer["tables"].as_array().unwrap();
    let cache = tables.iter().find(|table| table["table"] == "public.cache").unwrap();
    assert!(cache["held"].is_string() && cache["equal"] == false, "{answer}");
    let notes = tables.iter().find(|table| table["table"] == "public.notes").unwrap();
    assert_eq!(notes["equal"], true, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_too_large_to_be_read_fails_with_what_to_do() {
    let twins = Twins::new(NOTES).await;
    let _daemon = twins.start().await;
    let large = "INSERT INTO twinlog.commands (slot, kind, arguments, state, progress) SELECT slot, 'verify', '{\"all\": true}', 'running',
        jsonb_build_object('tables', jsonb_agg(jsonb_build_object('table', repeat('x', 1000)))) FROM twinlog.daemon, generate_series(1, 5000)
        GROUP BY slot";
    twins.on_agent(large).await;
    let failed = "SELECT state || ': ' || error FROM twinlog.commands ORDER BY id DESC LIMIT 1";
    let words =
        "failed: the progress of the command verify is not readable; ask for it again, for fewer tables at a time";
    twins.until_agent("it is refused", failed, words).await;
    assert!(verify(&twins, &["notes"]).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_held_meanwhile_is_not_called_equal() {
    let twins = Twins::with_notes(1000).await;
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let mut slow = twins.spawn(&["verify", "notes", "--rate", "200", "--json"]);
    let begun = "SELECT (progress->'tables'->0->>'rows')::int > 0 FROM twinlog.commands ORDER BY id DESC LIMIT 1";
    twins.until_agent("some rows are compared", begun, "true").await;

    // WHEN the Agent DB lacks a column of it
    twins
        .on_site("ALTER TABLE notes ADD more text; UPDATE notes SET more = 'x', body = 'y' WHERE id = 1")
        .await;

    // THEN the answer is why
    let status = slow.wait(2 * SOON).await;
    let answer = super::answer(&slow.output());
    assert!(!status.success() && answer["equal"] == false, "{answer}");
    assert!(
        answer["tables"][0]["held"].as_str().unwrap().contains("more"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_parked_when_it_came_by_is_not_proved() {
    let twins = Twins::with_notes(800).await;
    twins.on_agent("ALTER TABLE notes ADD CHECK (n <> 3)").await;
    let _daemon = twins.start().await;
    twins.until_parked(1).await;
    twins.until_table("notes", "streaming", 799).await;
    let mut slow = twins.spawn(&["verify", "notes", "--rate", "200", "--json"]);
    let begun = "SELECT (progress->'tables'->0->>'rows')::int > 0 FROM twinlog.commands ORDER BY id DESC LIMIT 1";
    twins.until_agent("some rows are compared", begun, "true").await;

    // WHEN its entry is gone by the end
    twins.on_agent("DELETE FROM twinlog.failed_rows").await;

    let status = slow.wait(2 * SOON).await;
    let answer = super::answer(&slow.output());
    assert!(!status.success() && answer["tables"][0]["parked"] == 1, "{answer}");
}
