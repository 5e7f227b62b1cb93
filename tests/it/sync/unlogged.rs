//! What the Site DB's log does not carry: the rows differ without a change in the stream. It is noticed by its trace in the
//! catalog, and the table is read again. With a daemon and without one meanwhile.

use crate::harness::{Daemon, SOON, Twins, eventually_is, holds_for};

/// The tables of both sides, and what the Site DB has more.
#[derive(Default)]
struct World<'a> {
    /// Statements for both sides.
    both: &'a str,
    /// Statements for the Site DB, before the daemon starts; `{publication}` is the publication's name.
    site: &'a str,
    /// Statements for the Agent DB, before the daemon starts.
    agent: &'a str,
    /// The table that is compared.
    table: &'a str,
}

const T: World<'static> = World {
    both: "CREATE TABLE t (id int PRIMARY KEY, v text, n int)",
    site: "INSERT INTO t SELECT i, 'row ' || i, i FROM generate_series(1, 1000) i",
    agent: "",
    table: "t",
};

const ALL_TABLES: &str = "CREATE PUBLICATION {publication} FOR ALL TABLES;
    INSERT INTO t SELECT i, 'row ' || i, i FROM generate_series(1, 1000) i";

impl World<'_> {
    async fn twins(&self) -> (Twins, Daemon) {
        let twins = Twins::new(self.both).await;
        let site = self.site.replace("{publication}", &twins.site.name);
        tokio::join!(twins.on_site(&site), twins.on_agent(self.agent));
        let daemon = twins.start().await;
        twins.until_table(self.table, "streaming", 0).await;
        (twins, daemon)
    }

    /// Runs statements on the Site DB, each in a transaction of its own, with a daemon and without one meanwhile. The rows
    /// differ by them, and become equal by themselves.
    async fn heals_after(&self, accident: &[&str]) {
        for is_away in [false, true] {
            let (twins, mut daemon) = self.twins().await;
            if is_away {
                daemon.kill9();
            }
            for statement in accident {
                let statement = statement.replace("{publication}", &twins.site.name);
                twins.on_site(&statement).await;
            }
            if is_away {
                daemon = twins.start().await;
            }
            eprintln!("away: {is_away}");
            self.until_equal(&twins).await;
            twins.until_table(self.table, "streaming", 0).await;
            daemon.until_state("streaming").await;
            self.until_equal(&twins).await;
        }
    }

    /// The columns may have other types on the two sides: compared by their texts.
    async fn until_equal(&self, twins: &Twins) {
        let text = format!("SELECT string_agg(t::text, ' ' ORDER BY id) FROM {} t", self.table);
        eventually_is(
            "both sides have the same rows",
            2 * SOON,
            || async { tokio::join!(twins.site.text(&text), twins.agent.text(&text)) },
            |(site, agent)| site == agent,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_with_other_values() {
    T.heals_after(&["ALTER TABLE t ALTER v TYPE text USING upper(v)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_changed_and_changed_back() {
    T.heals_after(&[
        "ALTER TABLE t ALTER n TYPE numeric USING n / 2.0",
        "ALTER TABLE t ALTER n TYPE int",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spell_without_a_log() {
    let world = World { site: ALL_TABLES, ..T };
    world
        .heals_after(&[
            "ALTER TABLE t SET UNLOGGED",
            "INSERT INTO t SELECT i, 'unlogged', i FROM generate_series(2001, 3000) i; DELETE FROM t WHERE id < 10",
            "ALTER TABLE t SET LOGGED",
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_sent_less_for_a_while() {
    T.heals_after(&[
        "ALTER PUBLICATION {publication} SET (publish = 'insert')",
        "DELETE FROM t WHERE id < 10; UPDATE t SET v = 'changed' WHERE id BETWEEN 10 AND 20",
        "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_for_a_while_under_another_name() {
    T.heals_after(&[
        "ALTER TABLE t RENAME TO t_aside; ALTER PUBLICATION {publication} DROP TABLE t_aside",
        "DELETE FROM t_aside WHERE id < 10; INSERT INTO t_aside VALUES (5000, 'unpublished', 1)",
        "ALTER PUBLICATION {publication} ADD TABLE t_aside; ALTER TABLE t_aside RENAME TO t",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_that_is_not_published() {
    let world = World {
        site: "CREATE PUBLICATION {publication} FOR TABLE t WITH (publish = 'insert, update, delete');
               INSERT INTO t SELECT i, 'row ' || i, i FROM generate_series(1, 1000) i",
        ..T
    };
    world
        .heals_after(&["TRUNCATE t", "INSERT INTO t VALUES (7, 'new', 7)"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_and_added_again() {
    T.heals_after(&[
        "ALTER TABLE t DROP COLUMN n",
        "ALTER TABLE t ADD COLUMN n int DEFAULT 42",
        "INSERT INTO t VALUES (5000, 'more')",
    ])
    .await;
    T.heals_after(&["ALTER TABLE t DROP COLUMN n, ADD COLUMN n int"]).await;
}

/// A partitioned table that is published as a whole.
const PARTED: World<'static> = World {
    both: "CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
           CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
           CREATE TABLE part_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
           CREATE TABLE part_d PARTITION OF parted DEFAULT",
    site: "INSERT INTO parted SELECT i, 'row ' || i FROM generate_series(1, 199) i",
    agent: "",
    table: "parted",
};

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_attached_with_its_rows_or_detached() {
    PARTED
        .heals_after(&[
            "CREATE TABLE loaded (id int PRIMARY KEY, v text)",
            "INSERT INTO loaded SELECT i, 'loaded' FROM generate_series(200, 299) i",
            "ALTER TABLE parted ATTACH PARTITION loaded FOR VALUES FROM (200) TO (300)",
            "UPDATE parted SET v = 'again' WHERE id = 250",
        ])
        .await;
    PARTED
        .heals_after(&["ALTER TABLE parted DETACH PARTITION part_2", "DROP TABLE part_2"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_rewritten() {
    PARTED
        .heals_after(&[
            "ALTER TABLE parted DETACH PARTITION part_2",
            "UPDATE part_2 SET v = 'aside' WHERE id < 150",
            "ALTER TABLE parted ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200)",
        ])
        .await;
    PARTED
        .heals_after(&["ALTER TABLE parted ALTER v TYPE text USING upper(v)"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_were_published_as_their_own_for_a_while() {
    PARTED
        .heals_after(&[
            "ALTER PUBLICATION {publication} SET (publish_via_partition_root = false)",
            "UPDATE parted SET v = 'by partition' WHERE id = 5; INSERT INTO parted VALUES (500, 'by partition')",
            "ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)",
        ])
        .await;
}

/// Values whose texts depend on a type of the Site DB; the Agent DB keeps them as texts.
const TYPED: World<'static> = World {
    both: "",
    site: "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE pair AS (a int, b mood);
           CREATE DOMAIN mood_domain AS mood; CREATE TYPE mood_range AS RANGE (subtype = mood);
           CREATE TABLE typed (id int PRIMARY KEY, plain mood, many mood[], dom mood_domain, composite pair, span mood_range);
           INSERT INTO typed SELECT i, 'sad', '{sad,glad}', 'sad', '(1,sad)', '[sad,glad]' FROM generate_series(1, 10) i",
    agent: "CREATE TABLE typed (id int PRIMARY KEY, plain text, many text, dom text, composite text, span text)",
    table: "typed",
};

/// One column of [`TYPED`] alone.
fn typed(column: &'static str, kind: &'static str) -> (String, String) {
    let drop = ["plain", "many", "dom", "composite", "span"]
        .iter()
        .filter(|name| **name != column)
        .map(|name| format!("ALTER TABLE typed DROP COLUMN {name};"))
        .collect::<String>();
    (
        format!("{};{drop}", TYPED.site),
        format!("CREATE TABLE typed (id int PRIMARY KEY, {column} {kind})"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_an_enum_that_is_renamed_wherever_the_enum_is_used() {
    for column in ["plain", "many", "dom", "composite", "span"] {
        let (site, agent) = typed(column, "text");
        eprintln!("{column}");
        let world = World {
            site: &site,
            agent: &agent,
            ..TYPED
        };
        world
            .heals_after(&["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_had_another_name_for_a_while_and_a_composite_type_that_gets_an_attribute() {
    TYPED
        .heals_after(&[
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
            "UPDATE typed SET many = '{blue}' WHERE id = 3; INSERT INTO typed VALUES (11, 'blue')",
            "ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'",
        ])
        .await;
    TYPED.heals_after(&["ALTER TYPE pair ADD ATTRIBUTE c int"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_no_row_is_no_reason_to_read_a_table_again() {
    let (twins, daemon) = TYPED.twins().await;
    for statement in [
        "ALTER TYPE mood ADD VALUE 'so so'",
        "ALTER TABLE typed ALTER plain SET STATISTICS 50",
        "GRANT SELECT ON typed TO PUBLIC",
        "CREATE INDEX ON typed (plain)",
        "ANALYZE typed; ",
        "ALTER TABLE typed ADD CHECK (id > 0)",
        "INSERT INTO typed (id, plain) VALUES (20, 'so so')",
    ] {
        twins.on_site(statement).await;
    }
    TYPED.until_equal(&twins).await;
    holds_for("nothing is read again", std::time::Duration::from_secs(6), || async {
        let output = daemon.output();
        let again = output.contains("read again") || output.contains("restarting");
        if again { Err("read again") } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_without_a_difference_writes_nothing() {
    let (twins, daemon) = T.twins().await;
    let copied = "SELECT sum(copied) FROM twinlog.accounting";
    let before = twins.agent.value(copied).await;
    twins.on_site("VACUUM FULL t").await;
    daemon.says("read again").await;
    twins.until_table("t", "streaming", 1000).await;
    assert_eq!(twins.agent.value(copied).await, before, "no row was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_an_older_version_did_not_store_are_no_reason_to_read_a_table_again() {
    let (twins, mut daemon) = T.twins().await;
    daemon.kill9();
    twins.on_agent("UPDATE twinlog.tables SET source_marks = NULL").await;
    let daemon = twins.start().await;
    twins
        .until_agent(
            "they are stored",
            "SELECT count(*) FROM twinlog.tables WHERE source_marks IS NULL",
            "0",
        )
        .await;
    assert!(!daemon.output().contains("may differ"), "{}", daemon.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_deletes_while_the_publication_sends_no_deletes_and_commits_later() {
    // GIVEN a daemon that has created its slot in this run, and a transaction that runs on after the publication is itself
    // again
    let twins = Twins::private(T.both).await;
    twins.on_site(T.site).await;
    let daemon = twins.start().await;
    twins.until_table("t", "streaming", 1000).await;
    let publication = format!("ALTER PUBLICATION {}", twins.site.name);
    let slow = twins.site.connect().await;
    slow.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    twins.on_site(&format!("{publication} SET (publish = 'insert')")).await;
    slow.batch_execute("DELETE FROM t WHERE id < 10").await.unwrap();
    twins
        .on_site(&format!(
            "{publication} SET (publish = 'insert, update, delete, truncate')"
        ))
        .await;

    // WHEN the change is noticed, THEN the table is not read before that transaction has ended
    daemon.says("older transactions").await;
    slow.batch_execute("COMMIT").await.unwrap();
    twins.until_table("t", "streaming", 991).await;
    twins.until_equal(&["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_does_not_send_deletes_is_told() {
    let (twins, daemon) = T.twins().await;
    let publication = format!("ALTER PUBLICATION \"{}\" SET", twins.site.name);
    twins.on_site(&format!("{publication} (publish = 'insert')")).await;
    daemon.until_state("held").await;
    let remedy = format!("{publication} (publish = 'insert, update, delete, truncate')");
    daemon
        .until_ready(503, &["does not send updates and deletes", &remedy])
        .await;
    assert!(twins.fails(&["status"]).await.contains(&remedy));
    twins.on_site("INSERT INTO t VALUES (5000, 'flows', 1)").await;
    twins
        .until_agent("inserts flow", "SELECT count(*) FROM t WHERE id = 5000", "1")
        .await;

    twins.on_site("DELETE FROM t WHERE id = 5").await;
    twins.on_site(&remedy).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_for_a_while_is_told_with_the_steps() {
    // GIVEN a change that was made while there was no publication
    let (twins, mut daemon) = T.twins().await;
    let slot = twins.site.name.clone();
    daemon.kill9();
    for statement in [
        "DROP PUBLICATION {publication}",
        "INSERT INTO t VALUES (5000, 'unpublished', 1)",
        "CREATE PUBLICATION {publication} FOR TABLE t",
    ] {
        twins.on_site(&statement.replace("{publication}", &slot)).await;
    }

    // WHEN a daemon comes to it, THEN the steps are told
    let daemon = twins.launch();
    daemon.until_state("held").await;
    let drop_slot = format!("SELECT pg_drop_replication_slot('{slot}')");
    daemon
        .until_ready(503, &["did not exist when", &drop_slot, "twinlog resync --all"])
        .await;
    twins.drop_slot().await;
    daemon.until_state("gap").await;
    twins.succeeds(&["resync", "--all"]).await;
    daemon.until_state("streaming").await;
    twins.until_equal(&["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_waits_for_a_rewrite_does_not_take_the_table_for_empty() {
    // GIVEN a rewrite that is going on
    let (twins, _daemon) = T.twins().await;
    let writer = twins.site.connect().await;
    writer
        .batch_execute("BEGIN; ALTER TABLE t ALTER v TYPE text USING upper(v)")
        .await
        .unwrap();
    // Every row that is deleted is written down.
    twins
        .on_agent(
            "CREATE TABLE gone (id int); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.gone VALUES (OLD.id); RETURN OLD; END $$;
             CREATE TRIGGER note BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE t ENABLE ALWAYS TRIGGER note",
        )
        .await;

    // WHEN a resync waits for it
    twins.succeeds(&["resync", "t"]).await;
    twins
        .until_site(
            "the resync waits",
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
            "true",
        )
        .await;
    writer.batch_execute("COMMIT").await.unwrap();

    // THEN nothing is deleted, and the new values come
    twins.until_equal_within(2 * SOON, &["t"]).await;
    assert_eq!(twins.agent.value("SELECT count(*) FROM gone").await, "0");
}
