//! What people are told about mistakes of the set-up: the fault, where it is, and the statement or key that mends it.

use crate::harness::{NOTES, SOON, Twins, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn urls_that_are_swapped_are_named_by_every_command_and_nothing_is_written() {
    let mut twins = Twins::with_notes(5).await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    daemon.stop().await;
    let (site, agent) = (twins.site.url.clone(), twins.agent.url.clone());
    let says = ["site.url and agent.url look swapped", "exchange the two"];

    twins.set_site_url(&agent);
    twins.set_agent_url(&site);
    let mut daemon = twins.launch();
    for word in says {
        daemon.wait_for_output(word, SOON).await;
    }
    daemon.until_ready(503, &says).await;
    for command in [&["migrate"] as &[&str], &["status"]] {
        let output = twins.fails(command).await;
        assert!(says.iter().all(|word| output.contains(word)), "{command:?}: {output}");
    }
    let schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'twinlog'";
    assert_eq!(
        twins.site.value(schema).await,
        "0",
        "nothing was written into the Site DB"
    );
    daemon.kill9();

    // Before any daemon ran, the server's tables tell.
    let mut fresh = Twins::new("").await;
    let (site, agent) = (fresh.site.url.clone(), fresh.agent.url.clone());
    fresh.succeeds(&["migrate", "site"]).await;
    fresh.set_site_url(&agent);
    fresh.set_agent_url(&site);
    let output = fresh.fails(&["migrate"]).await;
    assert!(says.iter().all(|word| output.contains(word)), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_says_how_many_rows_it_has_changed_and_an_unknown_key_is_a_problem() {
    let twins = Twins::new(&format!("{NOTES}; CREATE TABLE more (id int PRIMARY KEY)")).await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'a', i FROM generate_series(1, 100) i; INSERT INTO more VALUES (1)")
        .await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes", "more"]).await;
    let output = twins.succeeds(&["resync", "--all", "--wait"]).await;
    assert!(
        output.contains("101 row(s) read, 0 changed in the Agent DB"),
        "{output}"
    );
    twins
        .on_agent(
            "UPDATE notes SET n = 0 WHERE id <= 3; DELETE FROM notes WHERE id = 9; INSERT INTO notes VALUES (1000)",
        )
        .await;
    let output = twins.succeeds(&["resync", "notes", "--wait"]).await;
    assert!(
        output.contains("100 row(s) read, 5 changed in the Agent DB"),
        "{output}"
    );
    twins.until_equal(&["notes"]).await;
    // Through a daemon of the command's own.
    daemon.stop().await;
    twins.on_agent("DELETE FROM notes WHERE id < 3").await;
    let output = twins.succeeds(&["resync", "notes", "--json", "--wait"]).await;
    assert!(output.contains("\"changed\":2"), "{output}");

    let output = twins.fails(&["failed", "retry", "notes", "--key", "[\"12345\"]"]).await;
    assert!(output.contains("no row with this key is parked"), "{output}");
    let output = twins.fails(&["resync"]).await;
    assert!(output.contains("--all"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_with_several_hosts_channel_binding_or_without_its_password_is_named() {
    let mut twins = Twins::new(NOTES).await;
    let url = twins.site.url.clone();
    let joint = if url.contains('?') { '&' } else { '?' };
    for (url, says) in [
        (
            "postgres://me@one,two/crm".to_owned(),
            "several hosts are not supported",
        ),
        (
            format!("{url}{joint}channel_binding=require"),
            "channel_binding=require is not supported",
        ),
    ] {
        twins.set_site_url(&url);
        let output = twins.fails(&["sync"]).await;
        assert!(output.contains("site.url") && output.contains(says), "{output}");
    }
}
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_agent_db_is_named_with_the_setting_and_its_place() {
    let mut twins = Twins::with_notes(3).await;
    let database = twins.agent.name.clone();
    let role = twins
        .agent
        .create_role(
            "ro",
            &format!("GRANT CREATE ON DATABASE \"{database}\" TO {{role}}; GRANT ALL ON notes TO {{role}}"),
        )
        .await;
    twins.set_agent_url(&twins.agent.url_as(&role));
    for (target, other) in [
        (format!("ROLE \"{role}\""), "for the role;"),
        (format!("DATABASE \"{database}\""), "for the database;"),
        (
            format!("ROLE \"{role}\" IN DATABASE \"{database}\""),
            "for the role in this database;",
        ),
    ] {
        twins
            .on_agent(&format!("ALTER {target} SET default_transaction_read_only = on"))
            .await;
        let mut daemon = twins.launch();
        let statement = format!("ALTER {target} RESET default_transaction_read_only;");
        daemon.wait_for_output(&statement, SOON).await;
        daemon.until_ready(503, &[&statement, other]).await;
        // Pasted, in the session that the text names.
        twins
            .on_agent(&format!("SET default_transaction_read_only = off; {statement}"))
            .await;
        daemon.until_flowing().await;
        daemon.kill9();
        twins.on_agent("DROP SCHEMA twinlog CASCADE; TRUNCATE notes").await;
        twins.drop_slot().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_for_a_while_is_told_with_steps_that_work() {
    // GIVEN changes that were made while there was no publication
    let twins = Twins::with_notes(3).await;
    let daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    let slot = &twins.site.name;
    twins.on_site(&format!("DROP PUBLICATION {slot}")).await;
    twins
        .on_site("INSERT INTO notes VALUES (10, 'unseen', 1); DELETE FROM notes WHERE id = 1")
        .await;

    // THEN it is said what became of the log, and what to do
    let step = format!("SELECT pg_drop_replication_slot('{slot}')");
    twins
        .until_status_says(
            &[
                "did not exist when the next change in the log was made",
                &step,
                "resync --all",
            ],
            2 * SOON,
        )
        .await;

    // and the steps lead to equal databases, though the publication was made anew in the meantime
    eventually(&step, SOON, || twins.site.batch_execute(&step)).await;
    daemon.until_ready(503, &["twinlog resync --all"]).await;
    twins.succeeds(&["resync", "--all", "--wait"]).await;
    twins.until_equal(&["notes"]).await;
    daemon.until_state("streaming").await;
    twins.until_status_is_good(&[]).await;
}
