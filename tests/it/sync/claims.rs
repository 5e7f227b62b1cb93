//! Two pipelines and one table of the Agent DB: the second holds it, with the name of the first, unless both share it.

use crate::harness::{Daemon, NOTES, SOON, Twins, databases, eventually_is};

/// Two Site DBs with the same table, and one Agent DB: the second's own Agent DB is not used.
async fn two_sources() -> (Twins, Twins) {
    let first = Twins::new(NOTES).await;
    let mut second = Twins::on(databases().await, "CREATE TABLE other (id int PRIMARY KEY, v text)").await;
    second.on_site(NOTES).await;
    first.on_agent("CREATE TABLE other (id int PRIMARY KEY, v text)").await;
    second.set_agent_url(&first.agent.url);
    (first, second)
}

/// Waits until a slot's table is in this state, with this text in its detail.
async fn until(agent: &Twins, slot: &str, table: &str, state: &str, says: &str) {
    let query = format!(
        "SELECT concat_ws(': ', state, detail) FROM twinlog.tables WHERE slot = '{slot}' AND table_name = '{table}'"
    );
    eventually_is(
        &format!("{table} of {slot} is {state}: {says}"),
        2 * SOON,
        || agent.agent.text(&query),
        |found| {
            found
                .as_ref()
                .is_some_and(|found| found.starts_with(state) && found.contains(says))
        },
    )
    .await;
}

/// The slots that claim a table, in order.
async fn claims(agent: &Twins, table: &str) -> Option<String> {
    let query = format!(
        "SELECT coalesce(string_agg(slot, ',' ORDER BY claimed_at), '') FROM twinlog.claims WHERE table_name = '{table}'"
    );
    agent.agent.text(&query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_source_holds_the_table_of_the_first_and_writes_it_once_the_claim_is_gone() {
    let (first, second) = two_sources().await;
    let (one, two) = (first.site.name.clone(), second.site.name.clone());
    first
        .on_site("INSERT INTO notes SELECT i, 'first', i FROM generate_series(1, 100) i")
        .await;
    second
        .on_site("INSERT INTO notes VALUES (5, 'second', 0), (500, 'second', 0); INSERT INTO other VALUES (1, 'a')")
        .await;
    let mut daemon = first.start().await;
    first.until_equal(&["notes"]).await;

    // The second one names the first, says that it runs, and what to do; its other table flows.
    let mut other = second.start().await;
    until(
        &first,
        &two,
        "notes",
        "held",
        &format!("slot {one}, which reads database {one}"),
    )
    .await;
    until(&first, &two, "notes", "held", "its daemon runs").await;
    until(
        &first,
        &two,
        "notes",
        "held",
        r#"sync.tables = ["public.*", "!public.notes"]"#,
    )
    .await;
    until(&first, &two, "other", "streaming", "").await;
    second
        .on_site("DELETE FROM notes WHERE id = 5; INSERT INTO other VALUES (2, 'b')")
        .await;
    first
        .until_agent("the other table flows", "SELECT count(*) FROM other", "2")
        .await;
    // It stays so over a restart of either, and while the first does not run.
    daemon.kill9();
    let statement = format!("stop that daemon, and in the Agent DB: DELETE FROM twinlog.claims WHERE slot = '{one}';");
    until(&first, &two, "notes", "held", &statement).await;
    other.restart().await;
    until(&first, &two, "notes", "held", "does not run").await;
    first.until_equal(&["notes"]).await;
    assert_eq!(claims(&first, "notes").await.as_deref(), Some(&*one));

    // The statement is pasted: the second takes the table, and the first holds it when it comes back.
    first
        .on_agent(&format!("DELETE FROM twinlog.claims WHERE slot = '{one}';"))
        .await;
    until(&first, &two, "notes", "streaming", "").await;
    first
        .until_agent(
            "the rows are the second's",
            "SELECT string_agg(id || body, ',') FROM notes",
            "500second",
        )
        .await;
    let back = first.launch();
    until(&first, &one, "notes", "held", &format!("slot {two}")).await;
    back.until_ready(503, &["notes"]).await;

    // The second leaves the table out: its claim is given back, and the first goes on by itself.
    let mut second = second;
    other.kill9();
    second.configure("sync.tables = ['public.other']");
    let _other = second.start().await;
    until(&first, &one, "notes", "streaming", "").await;
    first.until_equal(&["notes"]).await;
    assert_eq!(claims(&first, "notes").await.as_deref(), Some(&*one));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_both_share_keeps_the_rows_of_the_other() {
    let (first, second) = two_sources().await;
    let (mut first, mut second) = (first, second);
    first.configure("sync.shared_tables = ['public.notes']");
    first
        .on_site("INSERT INTO notes SELECT i, 'first', i FROM generate_series(1, 100) i")
        .await;
    second
        .on_site("INSERT INTO notes SELECT i, 'second', i FROM generate_series(1001, 1100) i")
        .await;
    let two = second.site.name.clone();
    let mut daemon = first.start().await;
    first.until_equal(&["notes"]).await;

    // One of them alone does not share it.
    let mut other = second.start().await;
    until(
        &first,
        &two,
        "notes",
        "held",
        "name it in sync.shared_tables here too, as there",
    )
    .await;
    other.kill9();
    second.configure("sync.shared_tables = ['public.n*']");
    let mut other = second.start().await;
    until(&first, &two, "notes", "streaming", "").await;

    let both = |what: &'static str, rows: &'static str| {
        let first = &first;
        async move {
            let rows_of = "SELECT concat_ws(' ', count(*) FILTER (WHERE id <= 1000), count(*) FILTER (WHERE id > 1000)) FROM notes";
            first.until_agent(what, rows_of, rows).await;
        }
    };
    both("both have all their rows", "100 100").await;
    first.on_site("DELETE FROM notes WHERE id > 90").await;
    second
        .on_site("DELETE FROM notes WHERE id > 1080; UPDATE notes SET n = 0")
        .await;
    both("each deletes its own", "90 80").await;
    first.succeeds(&["resync", "--all", "--wait"]).await;
    second.succeeds(&["resync", "notes", "--wait"]).await;
    both("a resync deletes nothing", "90 80").await;
    first
        .on_site("TRUNCATE notes; INSERT INTO notes VALUES (1, 'again', 1)")
        .await;
    daemon
        .wait_for_output("a TRUNCATE of a table of sync.shared_tables is not applied", SOON)
        .await;
    first
        .until_agent("the stream goes on", "SELECT body FROM notes WHERE id = 1", "again")
        .await;
    both("a TRUNCATE deletes nothing", "90 80").await;

    // The first ends the sharing: it came first, so the second holds the table within seconds.
    daemon.kill9();
    first.configure("");
    let _daemon = first.start().await;
    until(&first, &two, "notes", "held", "name it in sync.shared_tables there too").await;
    other.restart().await;
    until(&first, &two, "notes", "held", "has claimed public.notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_made_in_place_of_one_that_is_gone_takes_its_claims_over() {
    let mut twins = Twins::with_notes(10).await;
    let old = twins.site.name.clone();
    let new = format!("{old}_new");
    let mut daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    // While the daemon of the old slot runs, and while the slot is there, the claim holds.
    twins.configure(&format!("sync.slot = '{new}'"));
    let mut other = twins.launch();
    until(&twins, &new, "notes", "held", &format!("slot {old}")).await;
    daemon.kill9();
    until(&twins, &new, "notes", "held", "does not run").await;
    other.restart().await;
    until(&twins, &new, "notes", "held", &format!("slot {old}")).await;

    twins.drop_slot().await;
    until(&twins, &new, "notes", "streaming", "").await;
    other
        .wait_for_output("does not exist any more in the Site DB: its claims", SOON)
        .await;
    twins.on_site("INSERT INTO notes VALUES (11, 'new', 1)").await;
    twins.until_equal(&["notes"]).await;
    assert_eq!(claims(&twins, "notes").await.as_deref(), Some(&*new));

    // It is found at a start too, and said once.
    other.kill9();
    twins
        .on_site(&format!("SELECT pg_drop_replication_slot('{new}') FROM pg_sleep(0.5)"))
        .await;
    twins.configure("");
    let newest = twins.launch();
    newest.until_state("gap").await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
    let said = newest
        .output()
        .matches("does not exist any more in the Site DB: its claims")
        .count();
    assert_eq!(said, 1, "{}", newest.output());
    assert_eq!(claims(&twins, "notes").await.as_deref(), Some(&*old));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_follows_the_table_and_covers_its_partitions() {
    let (first, second) = two_sources().await;
    let (one, two) = (first.site.name.clone(), second.site.name.clone());
    let parted = "CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)";
    first.on_both(parted).await;
    second
        .on_site("CREATE TABLE parted_1 (id int PRIMARY KEY); INSERT INTO parted_1 VALUES (1)")
        .await;
    first
        .on_site("INSERT INTO notes VALUES (1, 'first', 1); INSERT INTO parted VALUES (2)")
        .await;
    let mut daemon = first.start().await;
    first.until_equal(&["notes", "parted"]).await;
    let mut other = second.start().await;
    until(&first, &two, "parted_1", "held", "has claimed public.parted at").await;

    // Renamed in the Agent DB: the first holds what it misses, and the second may not take it under the new name.
    second.on_site("ALTER TABLE notes RENAME TO moved").await;
    first.on_agent("ALTER TABLE notes RENAME TO moved").await;
    until(&first, &two, "moved", "held", &format!("slot {one}")).await;
    first.on_site("INSERT INTO notes VALUES (2, 'first', 2)").await;
    until(&first, &one, "notes", "held", "missing").await;
    other.restart().await;
    until(&first, &two, "moved", "held", "has claimed public.notes at").await;

    // Renamed back and made anew: the claim is the same, or taken anew.
    first.on_agent("ALTER TABLE moved RENAME TO notes").await;
    until(&first, &one, "notes", "streaming", "").await;
    first.on_agent(&format!("DROP TABLE notes; {NOTES}")).await;
    first.on_site("INSERT INTO notes VALUES (3, 'first', 3)").await;
    daemon.restart().await;
    first.succeeds(&["resync", "notes", "--wait"]).await;
    first.until_equal(&["notes"]).await;
    let is_right = "SELECT relation = 'notes'::regclass FROM twinlog.claims WHERE table_name = 'notes'";
    first
        .until_agent("the claim is of the new table", is_right, "true")
        .await;

    // After a restore from a dump, the OIDs in the claims are those of other tables: the names count.
    daemon.kill9();
    other.kill9();
    second.on_site("ALTER TABLE moved RENAME TO notes").await;
    first
        .on_agent("UPDATE twinlog.claims SET relation = 1, place = 'another' WHERE table_name = 'notes'")
        .await;
    let _other = second.start().await;
    until(&first, &two, "notes", "held", &format!("slot {one}")).await;
    let _daemon = first.start().await;
    until(&first, &one, "notes", "streaming", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_that_start_at_the_same_moment_one_has_the_table_and_a_death_before_the_copy_changes_nothing() {
    let (first, second) = two_sources().await;
    let (one, two) = (first.site.name.clone(), second.site.name.clone());
    first.on_site("INSERT INTO notes VALUES (1, 'first', 1)").await;
    second.on_site("INSERT INTO notes VALUES (2, 'second', 2)").await;
    // Its claim is committed before its slot exists, and before a row is written.
    first.dies_at("slot.after_create=return(abort)").await;
    assert_eq!(claims(&first, "notes").await.as_deref(), Some(&*one));
    let _other = second.start().await;
    until(&first, &two, "notes", "held", &format!("slot {one}")).await;
    let _daemon = first.start().await;
    first.until_equal(&["notes"]).await;

    // Twice as many at once, on a fresh Agent DB.
    let (third, fourth) = two_sources().await;
    let mut daemons: (Daemon, Daemon) = (third.launch(), fourth.launch());
    tokio::join!(daemons.0.until_flowing(), daemons.1.until_flowing());
    let states = "SELECT string_agg(state, ',' ORDER BY state) FROM twinlog.tables WHERE table_name = 'notes'";
    third
        .until_agent("one streams, one is held", states, "held,streaming")
        .await;
    assert!(claims(&third, "notes").await.is_some_and(|slots| !slots.contains(',')));
    drop(daemons);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_from_before_claims_starts_as_ever_and_a_table_without_a_key_is_not_shared() {
    let mut twins = Twins::with_notes(10).await;
    let mut daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    daemon.kill9();
    twins.on_agent("DELETE FROM twinlog.claims").await;
    twins
        .on_site("DELETE FROM notes WHERE id = 1; INSERT INTO notes VALUES (11, 'a', 1)")
        .await;
    daemon.restart().await;
    twins.until_equal(&["notes"]).await;
    let slot = twins.site.name.clone();
    assert_eq!(claims(&twins, "notes").await.as_deref(), Some(&*slot));
    // It is not copied again.
    twins.until_table("notes", "streaming", 10).await;

    daemon.kill9();
    twins.on_both("CREATE TABLE bag (v int)").await;
    twins.on_site("ALTER TABLE bag REPLICA IDENTITY FULL").await;
    twins.configure("sync.shared_tables = ['public.bag']");
    let _daemon = twins.start().await;
    until(&twins, &slot, "bag", "held", "has no key, so it can't be shared").await;
}
