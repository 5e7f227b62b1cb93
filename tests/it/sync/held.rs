//! One table's fault holds that table: the others flow, are copied and resynced meanwhile, and it is read again and
//! released by itself once the cause is gone, without a restart.

use crate::harness::{Daemon, SOON, Twins, eventually_equal};

/// A table whose fault is made, and two that must not notice.
const THREE: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int);
    CREATE TABLE one (id int PRIMARY KEY, v text);
    CREATE TABLE two (id int PRIMARY KEY, v text)";

/// A fault of the table `notes` in the Agent DB: how it is made and repaired, and what is said about it.
struct Fault {
    broken: &'static str,
    says: &'static str,
    repaired: &'static str,
}

const AGENT_FAULTS: &[Fault] = &[
    Fault {
        broken: "DROP TABLE notes",
        says: "notes is missing in the Agent DB",
        repaired: "CREATE TABLE notes (id bigint PRIMARY KEY, body text, n int); GRANT ALL ON notes TO {role}",
    },
    Fault {
        broken: "ALTER TABLE notes DROP COLUMN body",
        says: "ADD COLUMN \"body\" text",
        repaired: "ALTER TABLE notes ADD COLUMN \"body\" text",
    },
    Fault {
        broken: "REVOKE INSERT, UPDATE ON notes FROM {role}",
        says: "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON \"public\".\"notes\"",
        repaired: "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON \"public\".\"notes\" TO {role}",
    },
    Fault {
        broken: "ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON notes USING (false)",
        says: "BYPASSRLS",
        repaired: "DROP POLICY none ON notes; ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
    },
    Fault {
        broken: "ALTER TABLE notes ADD COLUMN must int; UPDATE notes SET must = 1; ALTER TABLE notes ALTER must SET NOT NULL",
        says: "column must of public.notes is NOT NULL without a default",
        repaired: "ALTER TABLE notes DROP COLUMN must",
    },
    Fault {
        broken: "ALTER TABLE notes DROP COLUMN n; ALTER TABLE notes ADD COLUMN n int GENERATED ALWAYS AS (1) STORED",
        says: "DROP EXPRESSION",
        repaired: "ALTER TABLE notes ALTER COLUMN n DROP EXPRESSION",
    },
    Fault {
        broken: "ALTER TABLE notes RENAME TO aside; CREATE VIEW notes AS SELECT * FROM aside",
        says: "notes in the Agent DB is not a table",
        repaired: "DROP VIEW notes; ALTER TABLE aside RENAME TO notes",
    },
];

/// Three tables, and a daemon that is an ordinary role of the Agent DB. Returns the role as well.
async fn three() -> (Twins, String) {
    let mut twins = Twins::new(THREE).await;
    let rights = format!(
        "GRANT CREATE ON DATABASE \"{}\" TO {{role}}; GRANT ALL ON notes, one, two TO {{role}}",
        twins.agent.name
    );
    let role = twins.agent.create_role("holder", &rights).await;
    twins.set_agent_url(&twins.agent.url_as(&role));
    (twins, role)
}

/// Changes all three tables on the Site DB.
async fn change(twins: &Twins, id: usize) {
    twins
        .on_site(&format!(
            "BEGIN; INSERT INTO one VALUES ({id}, 'a'); INSERT INTO notes SELECT {id} * 1000 + i, 'x', i FROM generate_series(1, 50) i;
             UPDATE notes SET body = body || 'y' WHERE id % 7 = 0; INSERT INTO two VALUES ({id}, 'a'); COMMIT"
        ))
        .await;
}

/// `notes` is held with these words in the status, and the others flow and are resynced.
async fn only_notes_is_held(twins: &Twins, says: &str) {
    twins.until_equal(&["one", "two"]).await;
    twins.until_table("notes", "held", 0).await;
    let detail = format!(
        "SELECT count(*) FROM twinlog.tables WHERE table_name = 'notes' AND position($${says}$$ IN detail) > 0"
    );
    twins.until_agent(&format!("it says {says}"), &detail, "1").await;
    twins.on_agent("DELETE FROM one; DELETE FROM two WHERE id > 1").await;
    twins.succeeds(&["resync", "one", "two", "--wait"]).await;
    twins.until_equal(&["one", "two"]).await;
    let output = twins.fails(&["status", "--json"]).await;
    assert!(output.contains("\"held\""), "{output}");
}

/// `notes` is released, and all are equal.
async fn all_are_equal(twins: &Twins) {
    twins.until_table("notes", "streaming", 0).await;
    twins.until_equal(&["notes", "one", "two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_fault_of_one_table_in_the_agent_db_holds_that_table_alone_until_it_is_gone() {
    let (twins, role) = three().await;
    let daemon = twins.start().await;
    daemon.until_state("streaming").await;
    for (round, fault) in AGENT_FAULTS.iter().enumerate() {
        twins.on_agent(&fault.broken.replace("{role}", &role)).await;
        change(&twins, 2 * round + 1).await;
        only_notes_is_held(&twins, fault.says).await;
        change(&twins, 2 * round + 2).await;
        twins.on_agent(&fault.repaired.replace("{role}", &role)).await;
        all_are_equal(&twins).await;
    }
    daemon.until_state("streaming").await;
    assert_eq!(twins.parked().await, 0);
    let passed_over = "SELECT held > 0 FROM twinlog.accounting WHERE table_name = 'notes'";
    assert_eq!(twins.agent.value(passed_over).await, "true");
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_is_there_at_the_start_or_after_a_reconnect_holds_that_table_alone() {
    let (twins, role) = three().await;
    twins.on_agent("ALTER TABLE notes RENAME TO aside").await;
    change(&twins, 1).await;
    let mut daemon = twins.start().await;
    only_notes_is_held(&twins, "notes is missing").await;
    daemon.restart().await;
    change(&twins, 2).await;
    only_notes_is_held(&twins, "notes is missing").await;
    twins.on_agent("ALTER TABLE aside RENAME TO notes").await;
    all_are_equal(&twins).await;

    // And a right that is revoked while no daemon runs.
    daemon.kill9();
    twins.on_agent(&format!("REVOKE DELETE ON notes FROM {role}")).await;
    twins.on_site("DELETE FROM notes WHERE id % 2 = 0").await;
    let daemon = twins.start().await;
    only_notes_is_held(&twins, "GRANT").await;
    twins.on_agent(&format!("GRANT DELETE ON notes TO {role}")).await;
    all_are_equal(&twins).await;
    daemon.until_state("streaming").await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_locks_in_the_agent_db_is_held_within_seconds_and_a_locked_row_is_parked() {
    let (twins, _) = three().await;
    let daemon = twins.start().await;
    change(&twins, 1).await;
    all_are_equal(&twins).await;

    let other = twins.agent.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE notes").await.unwrap();
    change(&twins, 2).await;
    twins.until_table("notes", "held", 0).await;
    twins.until_equal(&["one", "two"]).await;
    daemon.until_ready(503, &["notes", "pg_locks"]).await;
    other.batch_execute("COMMIT").await.unwrap();
    all_are_equal(&twins).await;

    other
        .batch_execute("BEGIN; UPDATE notes SET n = -1 WHERE id = 1001")
        .await
        .unwrap();
    twins.on_site("UPDATE notes SET n = 7 WHERE id < 1010").await;
    twins.until_parked(1).await;
    change(&twins, 3).await;
    twins.until_equal(&["one", "two"]).await;
    twins.until_table("notes", "streaming", 0).await;
    // A copy that meets the locked row parks it too.
    twins.run(&["resync", "notes", "--wait"]).await;
    twins.until_table("notes", "streaming", 0).await;
    twins.until_parked(1).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    twins.until_equal_within(2 * SOON, &["notes"]).await;
    twins.until_parked(0).await;
    twins.assert_balanced().await;
}

/// Waits until a table is held for a reason with these words.
async fn until_held(twins: &Twins, table: &str, says: &str) {
    twins.until_table(table, "held", 0).await;
    let detail = format!(
        "SELECT count(*) FROM twinlog.tables WHERE table_name = '{table}' AND position($${says}$$ IN detail) > 0"
    );
    eventually_equal(&format!("{table} says {says}"), SOON, Some("1".to_owned()), || {
        twins.agent.text(&detail)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_site_db_that_can_not_be_replicated_holds_only_itself() {
    // GIVEN an ordinary role that may read three tables, and a publication that is not its own
    let mut twins = Twins::new(THREE).await;
    let publication = twins.site.name.clone();
    let rights = format!(
        "ALTER ROLE {{role}} REPLICATION; GRANT SELECT ON notes, one, two TO {{role}};
         CREATE PUBLICATION \"{publication}\" FOR TABLE notes, one, two"
    );
    let role = twins.site.create_role("reader", &rights).await;
    twins.set_site_url(&twins.site.url_as(&role));
    change(&twins, 1).await;
    let mut daemon = twins.start().await;
    all_are_equal(&twins).await;

    // WHEN a backup without a key and a table of somebody else appear, and a right is revoked
    twins
        .on_site("CREATE TABLE notes_backup AS SELECT * FROM notes; CREATE TABLE extra (id int PRIMARY KEY)")
        .await;
    twins.on_agent("CREATE TABLE extra (id int PRIMARY KEY)").await;
    twins.on_site(&format!("REVOKE SELECT ON notes FROM {role}")).await;

    // THEN each is held with its statement, and the others flow, also after a restart
    let grant = format!("GRANT SELECT ON \"public\".\"extra\" TO \"{role}\";");
    for restart in [false, true] {
        if restart {
            daemon.restart().await;
        }
        until_held(&twins, "notes_backup", "REPLICA IDENTITY FULL").await;
        until_held(&twins, "extra", &grant).await;
        until_held(&twins, "notes", "GRANT SELECT ON \"public\".\"notes\"").await;
        change(&twins, 2 + usize::from(restart)).await;
        twins.until_equal(&["one", "two"]).await;
    }
    twins.on_site(&grant).await;
    let add = format!("ALTER PUBLICATION \"{publication}\" ADD TABLE ONLY \"public\".\"extra\";");
    until_held(&twins, "extra", &add).await;
    twins.on_site(&format!("{add} INSERT INTO extra VALUES (1)")).await;
    twins.until_table("extra", "streaming", 0).await;
    twins.until_equal(&["extra"]).await;
    twins.on_site(&format!("GRANT SELECT ON notes TO {role}")).await;
    all_are_equal(&twins).await;
    twins.on_site("DROP TABLE notes_backup").await;
    daemon.until_state("streaming").await;
    twins.assert_balanced().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_agent_db_lacks_holds_its_table_and_loses_nothing() {
    let (twins, _) = three().await;
    let daemon = twins.start().await;
    change(&twins, 1).await;
    twins
        .on_site("ALTER TABLE notes ADD COLUMN price numeric(10,2); UPDATE notes SET price = id")
        .await;
    change(&twins, 2).await;
    only_notes_is_held(
        &twins,
        "ALTER TABLE \"public\".\"notes\" ADD COLUMN \"price\" numeric(10,2);",
    )
    .await;
    twins.on_agent("ALTER TABLE notes ADD COLUMN price numeric(10,2)").await;
    all_are_equal(&twins).await;
    daemon.until_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_agent_db_lacks_is_added_if_that_is_wanted() {
    let mut twins = Twins::new(THREE).await.with("sync.on_new_column = 'add'");
    let role = twins.agent.create_role("other", "").await;
    let _daemon = twins.start().await;
    change(&twins, 1).await;
    twins
        .on_site("ALTER TABLE notes ADD COLUMN price numeric(10,2), ADD COLUMN \"When\" timestamptz[]; UPDATE notes SET price = id")
        .await;
    change(&twins, 2).await;
    all_are_equal(&twins).await;
    let declared = "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
                    WHERE attrelid = 'notes'::regclass AND attname IN ('price', 'When')";
    assert_eq!(
        twins.agent.value(declared).await,
        "numeric(10,2), timestamp with time zone[]"
    );
    drop(role);
    twins.configure("");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_can_not_be_replicated_are_left_out_if_that_is_wanted() {
    let twins = Twins::new(THREE).await.with("sync.on_unreplicable_table = 'ignore'");
    twins.on_site("CREATE TABLE scratch (v int)").await;
    let daemon: Daemon = twins.start().await;
    change(&twins, 1).await;
    all_are_equal(&twins).await;
    twins
        .on_site("CREATE TABLE scratch_too (v int); INSERT INTO scratch_too VALUES (1)")
        .await;
    daemon.says("public.scratch_too").await;
    change(&twins, 2).await;
    all_are_equal(&twins).await;
    daemon.until_state("streaming").await;
    let output = twins.until_status_is_good(&[]).await;
    assert!(
        output.contains("left out") && output.contains("public.scratch"),
        "{output}"
    );

    // and they join without a restart, once what was missing on either side is there
    twins.on_agent("CREATE TABLE scratch (v int PRIMARY KEY)").await;
    twins
        .on_site("ALTER TABLE scratch ADD PRIMARY KEY (v); INSERT INTO scratch VALUES (1); CREATE TABLE later (id int PRIMARY KEY)")
        .await;
    twins.until_table("scratch", "streaming", 0).await;
    twins.until_equal(&["scratch"]).await;
    daemon.says("public.later").await;
    twins.on_site("INSERT INTO later VALUES (1)").await;
    twins.on_agent("CREATE TABLE later (id int PRIMARY KEY)").await;
    twins.until_table("later", "streaming", 0).await;
    twins.until_equal(&["later"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_can_not_be_copied_keep_no_other_from_being_copied() {
    let mut twins = Twins::new(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)",
    )
    .await
    .with("sync.copy_workers = 2");
    let rights = format!(
        "ALTER ROLE {{role}} REPLICATION; GRANT SELECT ON a, b, c TO {{role}};
         ALTER TABLE a ENABLE ROW LEVEL SECURITY; ALTER TABLE b ENABLE ROW LEVEL SECURITY;
         CREATE PUBLICATION \"{}\" FOR TABLE a, b, c; INSERT INTO c VALUES (1), (2)",
        twins.site.name
    );
    let role = twins.site.create_role("reader", &rights).await;
    twins.set_site_url(&twins.site.url_as(&role));
    let _daemon = twins.start().await;
    twins.until_equal(&["c"]).await;
    until_held(&twins, "a", "BYPASSRLS").await;
    twins
        .on_site("ALTER TABLE a DISABLE ROW LEVEL SECURITY; ALTER TABLE b DISABLE ROW LEVEL SECURITY; INSERT INTO a VALUES (1)")
        .await;
    twins.until_table("a", "streaming", 0).await;
    twins.until_table("b", "streaming", 0).await;
    twins.until_equal(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_of_several_tables_holds_the_one_that_can_not_be_truncated() {
    let twins = Twins::new(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
         CREATE TABLE c (id int PRIMARY KEY)",
    )
    .await;
    twins
        .on_site("INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1)")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["a", "b", "c"]).await;
    // A table of the Agent DB alone refers to one of the middle.
    twins.on_agent("CREATE TABLE mine (c int REFERENCES c)").await;
    twins.on_site("TRUNCATE a, c, b").await;
    daemon.says("a table is held").await;
    twins.until_equal(&["a", "b"]).await;
    let output = daemon.output();
    let held: Vec<&str> = output.lines().filter(|line| line.contains("a table is held")).collect();
    assert!(held.iter().all(|line| line.contains("public.c")), "{held:?}");
    // It is read again, without a TRUNCATE.
    twins.until_equal_within(2 * SOON, &["c"]).await;
    twins.on_site("INSERT INTO c VALUES (2)").await;
    twins.until_equal(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_columns_is_told() {
    for publication in ["", "CREATE PUBLICATION {publication} FOR ALL TABLES"] {
        let twins = Twins::new("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE none ()").await;
        twins
            .on_site(&publication.replace("{publication}", &twins.site.name))
            .await;
        twins
            .on_site("ALTER TABLE none REPLICA IDENTITY FULL; INSERT INTO none DEFAULT VALUES")
            .await;
        let daemon = twins.launch();
        daemon.until_state("held").await;
        twins
            .on_site("INSERT INTO none DEFAULT VALUES; DELETE FROM none; INSERT INTO t VALUES (1)")
            .await;
        twins.until_equal(&["t"]).await;
        assert!(
            twins
                .fails(&["status"])
                .await
                .contains("none of the Site DB has no columns")
        );
        twins
            .on_both("ALTER TABLE none ADD id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
            .await;
        twins.on_site("INSERT INTO none DEFAULT VALUES").await;
        twins.until_equal_within(2 * SOON, &["none"]).await;
        daemon.until_state("streaming").await;
    }
}
