//! What a reader of the Agent DB can ask: has a write of the Site DB come, and as of when are a table's rows the Site DB's.

use crate::harness::{Databases, NOTES, SOON, Twins, eventually_is};

/// A block of SQL in the README.
fn of_readme(name: &str) -> String {
    let readme = include_str!("../../../README.md");
    let block = readme.split(&format!("\n```sql {name}\n")).nth(1).unwrap();
    block
        .split("```")
        .next()
        .unwrap()
        .trim()
        .trim_end_matches(';')
        .to_owned()
}

/// Whether a query of the Agent DB is true.
async fn is_true(databases: &Databases, query: &str) -> bool {
    databases.agent.value(&format!("SELECT ({query})::text")).await == "true"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_waits_for_what_a_writer_has_committed() {
    let twins = Twins::new(NOTES).await;
    twins.migrate().await;
    twins.on_site("CREATE TABLE outside (id int)").await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    twins.until_table("notes", "streaming", 0).await;
    let written = "SELECT twinlog.written_lsn()::text";
    // As the README has it.
    let lsn = twins
        .site
        .value(&of_readme("writer").replace("written_lsn()", "written_lsn()::text"))
        .await;
    twins.on_agent(&of_readme("reader").replace("16/B374D848", &lsn)).await;
    for id in 1..=5 {
        // A row; and one of a table that is not replicated, which moves the position alone.
        twins
            .on_site(&format!("INSERT INTO notes VALUES ({id}, 'new', 1)"))
            .await;
        if id == 5 {
            twins.on_site("INSERT INTO outside VALUES (1)").await;
        }
        let lsn = twins.site.value(written).await;
        assert!(
            is_true(&twins, &format!("twinlog.wait_for('{lsn}', '20 s')")).await,
            "{id}"
        );
        assert!(
            is_true(&twins, &format!("EXISTS (SELECT FROM notes WHERE id = {id})")).await,
            "{id}"
        );
    }
    // A role that may read nothing of Twinlog's own.
    let role = twins
        .agent
        .create_role("reader", "GRANT USAGE ON SCHEMA twinlog TO {role}")
        .await;
    let lsn = twins.site.value(written).await;
    let asks = format!(
        "SET ROLE {role}; DO $$ BEGIN ASSERT twinlog.wait_for('{lsn}', '20 s'); ASSERT twinlog.fresh_as_of('notes') IS NOT NULL; END $$; RESET ROLE"
    );
    twins.on_agent(&asks).await;

    // Without a daemon it does not come.
    daemon.stop().await;
    twins.on_site("INSERT INTO notes VALUES (6, 'new', 1)").await;
    let lsn = twins.site.value(written).await;
    assert!(is_true(&twins, &format!("NOT twinlog.wait_for('{lsn}', '0.05 s')")).await);
    // Where it can't be told it is refused.
    for (databases, sql) in [
        (
            &twins.site,
            "BEGIN; INSERT INTO outside VALUES (2); SELECT twinlog.written_lsn()".to_owned(),
        ),
        (
            &twins.agent,
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT twinlog.wait_for('{lsn}', '1 s')"),
        ),
    ] {
        let refused = databases.connect().await.batch_execute(&sql).await.unwrap_err();
        assert_eq!(
            refused.code().map(tokio_postgres::error::SqlState::code),
            Some("25001"),
            "{sql}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_as_fresh_as_it_was_when_it_was_held_or_a_row_of_it_was_parked() {
    let twins = Twins::new("CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE held (id int PRIMARY KEY); CREATE TABLE parked (id int PRIMARY KEY CHECK (id < 10))").await;
    twins
        .on_site("ALTER TABLE parked DROP CONSTRAINT parked_id_check")
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["good", "held", "parked"]).await;
    let later = async |table: &str, than: &str| {
        let query = format!("SELECT coalesce(twinlog.fresh_as_of('{table}') > '{than}', false)::text");
        let asked = || twins.agent.value(&query);
        eventually_is(&format!("{table} is fresher"), SOON, asked, |is| is == "true").await;
    };
    let now = || twins.agent.value("SELECT clock_timestamp()::text");
    let first = now().await;
    for table in ["good", "held", "parked"] {
        later(table, &first).await;
    }

    // WHEN one of them is held, and a row of another one is parked
    twins
        .on_site("ALTER TABLE held ADD v text; INSERT INTO held VALUES (1, 'x'); INSERT INTO parked VALUES (100)")
        .await;
    twins.until_parked(1).await;
    twins.until_table("held", "held", 0).await;
    let then = now().await;
    later("good", &then).await;

    // THEN both stay at that time, and are fresh again once their faults are mended
    for table in ["held", "parked"] {
        let stays =
            format!("twinlog.fresh_as_of('{table}') BETWEEN '{first}'::timestamptz - interval '1 min' AND '{then}'");
        assert!(is_true(&twins, &stays).await, "{table}");
    }
    twins
        .on_agent("ALTER TABLE held ADD v text; ALTER TABLE parked DROP CONSTRAINT parked_id_check")
        .await;
    for table in ["held", "parked"] {
        later(table, &then).await;
    }
    assert!(is_true(&twins, "twinlog.fresh_as_of('pg_class') IS NULL").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_or_is_read_again_is_not_called_fresh_and_nothing_has_come_in_a_gap() {
    let twins = Twins::with_notes(10).await;
    let daemon = twins.start().await;
    twins.until_table("notes", "streaming", 10).await;
    let fresh = "SELECT (twinlog.fresh_as_of('notes') IS NOT NULL)::text";
    twins.until_agent("it is fresh", fresh, "true").await;

    // WHEN it was verified and differs, and was never proved to be equal
    twins.on_agent("UPDATE notes SET body = 'wrong' WHERE id = 3").await;
    twins.fails(&["verify", "notes"]).await;
    assert_eq!(twins.agent.value(fresh).await, "false");
    // THEN what was found stands when other rows are read again, and not when all are.
    twins
        .succeeds(&["resync", "notes", "--where", "id = 5", "--wait"])
        .await;
    assert_eq!(twins.agent.value(fresh).await, "false");
    let differing = twins.run(&["status", "--json"]).await.1;
    assert!(differing.contains("\"differing\":1"), "{differing}");
    twins.succeeds(&["resync", "notes", "--wait"]).await;
    twins.until_agent("it is fresh", fresh, "true").await;
    // What is found right after a resync is not older than that.
    twins.on_agent("UPDATE notes SET body = 'wrong' WHERE id = 3").await;
    twins.fails(&["verify", "notes"]).await;
    assert_eq!(twins.agent.value(fresh).await, "false");
    twins.succeeds(&["resync", "notes", "--wait"]).await;
    twins.until_agent("it is fresh", fresh, "true").await;
    daemon.stop().await;

    // WHEN it is read again for another reason than the command that is remembered
    assert!(
        is_true(
            &twins,
            "EXISTS (SELECT FROM twinlog.tables WHERE command_id IS NOT NULL)"
        )
        .await
    );
    twins.on_agent("UPDATE twinlog.tables SET state = 'resyncing'").await;
    assert_eq!(twins.agent.value(fresh).await, "false");

    // WHEN rows may be missing
    assert!(is_true(&twins, "twinlog.wait_for('0/1', '0 s')").await);
    twins
        .on_agent("UPDATE twinlog.checkpoint SET gap_reason = 'lost', gap_since = now()")
        .await;
    assert!(is_true(&twins, "NOT twinlog.wait_for('0/1', '0 s')").await);
}
