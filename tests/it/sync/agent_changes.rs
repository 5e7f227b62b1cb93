//! The Agent DB is changed while the daemon runs, or can't hold every character.

use crate::harness::{NOTES, SOON, Twins, databases};

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_widened_in_the_agent_db_heals_its_rows_and_takes_further_ones() {
    // GIVEN a row that does not fit, which waits for long
    let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY, n bigint)")
        .await
        .with("sync.retry_initial_ms = 300000\nsync.retry_max_ms = 300000");
    twins.on_agent("ALTER TABLE t ALTER n TYPE int").await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    twins.on_site("INSERT INTO t VALUES (1, 3000000000), (2, 2)").await;
    twins.until_parked(1).await;
    // WHEN the column takes it
    twins.on_agent("ALTER TABLE t ALTER n TYPE bigint").await;
    // THEN it heals, and further rows are written
    twins.until_parked(0).await;
    twins.on_site("INSERT INTO t VALUES (3, 4000000000)").await;
    twins.until_equal(&["t"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_goes_in_the_agent_db_heals_its_rows() {
    let twins = Twins::new(NOTES)
        .await
        .with("sync.retry_initial_ms = 300000\nsync.retry_max_ms = 300000");
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT few CHECK (n < 10)")
        .await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    twins
        .on_site("INSERT INTO notes VALUES (1, 'a', 100), (2, 'b', 1)")
        .await;
    twins.until_parked(1).await;
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT few").await;
    twins.until_equal(&["notes"]).await;
    twins.until_parked(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_character_that_the_agent_db_can_not_hold_parks_its_row() {
    // GIVEN an Agent DB in LATIN1
    let databases = databases().await.with_latin1_agent().await;
    let twins = Twins::on(databases, "CREATE TABLE t (id text PRIMARY KEY, v text)").await;
    let _daemon = twins.start().await;
    // WHEN rows hold what it lacks: in a value, in a key, in both
    twins
        .on_site("INSERT INTO t VALUES ('a', 'fine'), ('b', '🚀'), ('🚀', 'c'), ('d', 'é')")
        .await;
    // THEN they are parked, and the others are there
    twins.until_parked(2).await;
    twins
        .until_agent(
            "the others",
            "SELECT string_agg(id || v, ' ' ORDER BY id) FROM t",
            "afine dé",
        )
        .await;
    // Changes of their keys fold in, and a row that fits heals.
    twins
        .on_site("UPDATE t SET v = 'B' WHERE id = 'b'; UPDATE t SET id = 'e' WHERE id = '🚀'")
        .await;
    twins
        .until_agent(
            "healed",
            "SELECT string_agg(id || v, ' ' ORDER BY id) FROM t WHERE id IN ('b', 'e')",
            "bB ec",
        )
        .await;
}

/// Whatever is done to the table there: it is noticed, read again, and equal by itself.
async fn is_mended(twins: &Twins, what: &str) {
    twins.on_agent(what).await;
    eprintln!("{what}");
    twins.until_equal_within(2 * SOON, &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_statements_on_the_agent_dbs_table_have_changed_are_read_again() {
    let twins = Twins::new(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');
         CREATE TABLE t (id int PRIMARY KEY, v text, m mood); CREATE TABLE empty (LIKE t INCLUDING ALL)",
    )
    .await;
    twins
        .on_site("INSERT INTO t SELECT i, 'v' || i, 'sad' FROM generate_series(1, 100) i")
        .await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["t"]).await;
    twins
        .until_agent(
            "what was seen is stored",
            "SELECT count(*) FROM twinlog.tables WHERE agent_marks IS NULL",
            "0",
        )
        .await;
    for what in [
        "ALTER TABLE t ALTER v TYPE text USING upper(v)",
        "ALTER TABLE t DROP v; ALTER TABLE t ADD v text",
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text, m mood)",
        "ALTER TABLE t RENAME TO aside; ALTER TABLE empty RENAME TO t; ALTER TABLE aside RENAME TO empty",
        "TRUNCATE t",
    ] {
        is_mended(&twins, what).await;
    }
    // A label that has another name refuses rows until it is itself again.
    twins.on_agent("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").await;
    twins.until_parked(100).await;
    is_mended(&twins, "ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'").await;
    twins.until_parked(0).await;

    // The same while no daemon runs.
    daemon.kill9();
    twins
        .on_agent("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text, m mood)")
        .await;
    daemon.restart().await;
    twins.until_equal_within(2 * SOON, &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_or_a_policy_did_for_a_moment_is_mended() {
    // GIVEN a role to which row-level security applies
    let mut twins = Twins::new("").await;
    twins.agent_is_owner().await;
    twins.on_both("CREATE TABLE t (id int PRIMARY KEY, n int)").await;
    twins
        .on_agent(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF TG_OP = 'DELETE' THEN RETURN NULL; END IF; NEW.n := -1; RETURN NEW; END $$",
        )
        .await;
    twins
        .on_site("INSERT INTO t SELECT i, i FROM generate_series(1, 100) i")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["t"]).await;
    twins
        .until_agent(
            "what was seen is stored",
            "SELECT count(*) FROM twinlog.tables WHERE agent_marks IS NULL",
            "0",
        )
        .await;
    // WHEN they come, rows change, and they go
    let trigger = "CREATE TRIGGER meddle BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION meddle()";
    let secure = "ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY";
    let insecure = "ALTER TABLE t DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY";
    for (there, change, gone) in [
        (
            trigger,
            "UPDATE t SET n = n + 1 WHERE id < 10; INSERT INTO t VALUES (200, 200)",
            "DROP TRIGGER meddle ON t",
        ),
        (trigger, "DELETE FROM t WHERE id = 20", "DROP TRIGGER meddle ON t"),
        (secure, "DELETE FROM t WHERE id = 30", insecure),
    ] {
        twins.on_agent(there).await;
        twins.on_site(change).await;
        twins.on_site("SELECT pg_sleep(0.5)").await;
        // THEN the rows are mended
        is_mended(&twins, gone).await;
        twins.until_parked(0).await;
        daemon.until_state("streaming").await;
    }
    // One that stays holds the table, though nothing is written.
    twins.on_agent(secure).await;
    twins.until_table("t", "held", 0).await;
    twins.on_agent(insecure).await;
    twins.until_table("t", "streaming", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_crash_of_the_agent_db_would_empty_is_held() {
    let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    twins.on_agent("ALTER TABLE t SET UNLOGGED").await;
    twins.on_site("INSERT INTO t VALUES (1, 'a')").await;
    let daemon = twins.launch();
    daemon.until_state("held").await;
    let remedy = r#"ALTER TABLE "public"."t" SET LOGGED"#;
    assert!(twins.fails(&["status"]).await.contains(remedy));
    twins.on_agent("ALTER TABLE t SET LOGGED").await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["t"]).await;
    // One that was only for a moment, and has lost its rows, was rewritten: it is read again.
    twins
        .on_agent("BEGIN; ALTER TABLE t SET UNLOGGED; DELETE FROM t; ALTER TABLE t SET LOGGED; COMMIT")
        .await;
    twins.until_equal(&["t"]).await;
    daemon.until_state("streaming").await;
    twins.on_agent("ALTER TABLE t SET UNLOGGED").await;
    daemon.until_state("held").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_dbs_types_change_and_what_is_not_sent_is_said() {
    let twins = Twins::new("CREATE TABLE same (id int PRIMARY KEY, n numeric(10,2), at timestamptz)").await;
    twins
        .on_site("CREATE TABLE t (id int PRIMARY KEY, n numeric, twice numeric GENERATED ALWAYS AS (n * 2) STORED)")
        .await;
    twins
        .on_agent("CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), twice numeric)")
        .await;
    twins
        .on_site("INSERT INTO t VALUES (1, 1.239); INSERT INTO same VALUES (1, 1.24, now())")
        .await;
    let daemon = twins.start().await;
    twins.until_agent("it is rounded", "SELECT n FROM t", "1.24").await;
    daemon
        .says("column n is numeric in the Site DB and numeric(10,2) in the Agent DB")
        .await;
    let status = twins.until_status_is_good(&["--json"]).await;
    assert!(
        status.contains("column n is numeric in the Site DB and numeric(10,2)"),
        "{status}"
    );
    if twins
        .site
        .value("SELECT current_setting('server_version_num')::int < 180000")
        .await
        == "true"
    {
        assert!(status.contains("column twice is not sent"), "{status}");
    }
    assert_eq!(
        twins
            .agent
            .value("SELECT count(*) FROM twinlog.tables WHERE notes IS NOT NULL")
            .await,
        "1"
    );
    // Reading it again changes nothing: it is as equal as it can be.
    twins.succeeds(&["resync", "t", "--wait"]).await;
    assert_eq!(twins.parked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_type_of_the_agent_db_has_rounded_or_renamed_are_read_again_once_it_does_not() {
    // GIVEN columns of the Agent DB that round, and values within arrays, domains and composite types
    let twins = Twins::new(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN feeling AS mood;
         CREATE TYPE addr AS (street text, zip int, m mood);
         CREATE TABLE t (id int PRIMARY KEY, n numeric, ts timestamp);
         CREATE TABLE deep (id int PRIMARY KEY, many feeling[], a addr)",
    )
    .await;
    twins
        .on_agent("ALTER TABLE t ALTER n TYPE numeric(10,2), ALTER ts TYPE timestamp(0)")
        .await;
    twins
        .on_site(
            "INSERT INTO t VALUES (1, 1.2345, '2024-01-01 10:00:00.6');
             INSERT INTO deep VALUES (1, '{sad,glad}', '(a,1,sad)'), (2, NULL, '(b,2,glad)')",
        )
        .await;
    let _daemon = twins.start().await;
    twins.until_equal(&["deep"]).await;
    twins
        .until_agent("rounded", "SELECT n::text || ts FROM t", "1.232024-01-01 10:00:01")
        .await;
    let marks = "SELECT count(*) FROM twinlog.tables WHERE agent_marks IS NULL";
    twins.until_agent("what was seen is stored", marks, "0").await;
    // WHEN they take everything, which rewrites no row
    is_mended(&twins, "ALTER TABLE t ALTER n TYPE numeric, ALTER ts TYPE timestamp").await;
    // AND a label and an attribute change there, and change back
    twins.on_agent("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").await;
    twins.until_parked(1).await;
    twins.on_agent("ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'").await;
    twins.until_parked(0).await;
    twins.until_equal_within(2 * SOON, &["deep"]).await;
    twins
        .on_agent("ALTER TYPE addr DROP ATTRIBUTE zip; ALTER TYPE addr DROP ATTRIBUTE m")
        .await;
    twins
        .on_agent("ALTER TYPE addr ADD ATTRIBUTE zip int, ADD ATTRIBUTE m mood")
        .await;
    twins.until_equal_within(2 * SOON, &["deep"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_one_name_and_other_parts_and_a_foreign_key_of_the_agent_db_alone_are_noted() {
    // GIVEN types that round in the Agent DB, and foreign keys that only it has, for a role that fires them
    let mut twins = Twins::new("").await;
    twins.agent_is_owner().await;
    let alike =
        "CREATE TYPE same AS (n numeric(10,2), t text); CREATE TYPE pair AS (a same, b same[]);
         CREATE TABLE par (id int PRIMARY KEY); CREATE TABLE alike (id int PRIMARY KEY, p pair, par int REFERENCES par ON DELETE CASCADE)";
    twins.on_both(alike).await;
    let price = |kind: &str| {
        format!(
            "CREATE TYPE price AS (amount {kind}, cur text); CREATE DOMAIN part AS {kind};
             CREATE TABLE goods (id int PRIMARY KEY, p price[], d part[]); CREATE TABLE lines (id int PRIMARY KEY, p price, par int)"
        )
    };
    twins.on_site(&price("numeric")).await;
    twins.on_agent(&price("numeric(10,2)")).await;
    twins
        .on_agent("ALTER TABLE lines ADD CONSTRAINT mine FOREIGN KEY (par) REFERENCES par ON DELETE SET NULL")
        .await;
    // WHEN they are replicated
    let _daemon = twins.start().await;
    twins
        .on_site("INSERT INTO par VALUES (1); INSERT INTO alike VALUES (1, NULL, 1)")
        .await;
    twins.until_equal(&["par", "alike"]).await;
    for table in ["par", "alike", "goods", "lines"] {
        twins.until_table(table, "streaming", 0).await;
    }
    // THEN it is said of these tables, and of no other
    let notes = "SELECT string_agg(table_name || ': ' || notes, '; ' ORDER BY table_name) FROM twinlog.tables WHERE notes IS NOT NULL";
    let notes = twins.agent.value(notes).await;
    for note in [
        "goods: the type of column p has a part that is numeric in the Site DB and numeric(10,2) in the Agent DB",
        "the type of column d has a part that is numeric",
        "lines: the type of column p has a part",
        "foreign key mine of the Agent DB deletes or changes its rows",
    ] {
        assert!(notes.contains(note), "{notes}");
    }
    assert!(!notes.contains("alike"), "{notes}");
}
