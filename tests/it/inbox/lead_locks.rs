//! Leads are locked in the order of their ids, so that nobody waits in a circle.

use super::identities::{Ids, LEADS, said, webhook_of};
use super::*;

/// What is written to a lead takes a while.
const SLOW_LEADS: &str =
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
    CREATE TRIGGER slow AFTER UPDATE ON leads FOR EACH ROW EXECUTE FUNCTION slow()";

#[tokio::test]
async fn batches_that_learn_of_different_people_and_have_messages_of_both_do_not_wait_in_a_circle() {
    // GIVEN two people, and several workers
    let site = Site::working().await;
    let _other = site.another_process();
    let (one, two) = (Some("16505550001"), Some("16505550002"));
    site.post(&webhook_of(&[said("1", Ids(one, None)), said("2", Ids(two, None))]))
        .await;
    site.settle().await;
    site.db.on_site(SLOW_LEADS).await;

    // WHEN one batch learns of the second person and has a message of the first, and another one the other way round
    let teaching = |number, user| said(&format!("{user}.teaching"), Ids(number, Some(user)));
    site.post(&webhook_of(&[teaching(two, "US.2"), said("3", Ids(one, None))]))
        .await;
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    site.db
        .until_site("something is written to a lead", sleeping, "1")
        .await;
    site.post(&webhook_of(&[teaching(one, "US.1"), said("4", Ids(two, None))]))
        .await;
    site.settle().await;

    // THEN neither had to be tried again
    assert_eq!(site.count("webhook_events WHERE attempts > 1").await, 0);
    assert_eq!(site.count("leads WHERE user_id IS NOT NULL").await, 2);
    assert_eq!(site.count("whatsapp_messages").await, 6);
}

#[tokio::test]
async fn who_merges_leads_locks_them_in_the_order_of_their_ids() {
    // GIVEN a person with two leads. A message went to the one with the higher id, into which another one was merged before
    let site = Site::at_rest().await;
    let [merged, by_user, by_number] = [1, 2, 3].map(Uuid::from_u128);
    site.db
        .on_site(&format!(
            "INSERT INTO leads (id, wa_id) VALUES ('{by_number}', '16505550001');
             INSERT INTO leads (id, user_id) VALUES ('{by_user}', 'US.1');
             INSERT INTO leads (id, merged_into) VALUES ('{merged}', '{by_number}');
             INSERT INTO twinlog.lead_statements (lead_id, dialled, current_wa_id, current_user_id)
             VALUES ('{by_number}', '16505550001', '16505550001', 'US.1')"
        ))
        .await;
    // WHEN somebody else has locked the lowest, and the person's leads are merged
    let other = site.db.site.connect().await;
    let lock = async |lead: Uuid| {
        let lock = format!("SELECT FROM leads WHERE id = '{lead}' FOR UPDATE NOWAIT");
        other.batch_execute(&lock).await.map_err(|error| error.to_string())
    };
    other.batch_execute("BEGIN").await.unwrap();
    lock(merged).await.unwrap();
    let pool = site.pool.clone();
    let merging = tokio::spawn(async move { settle_due(&pool).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    site.db.until_site("the merge waits", waiting, "1").await;
    // THEN the others are still free
    lock(by_user).await.unwrap();
    lock(by_number).await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    merging.await.unwrap().unwrap();
    assert_eq!(site.count(LEADS).await, 1);
    let into = format!("leads WHERE merged_into = (SELECT id FROM {LEADS})");
    assert_eq!(site.count(&into).await, 2);
}

#[tokio::test]
async fn a_batch_whose_lead_is_merged_while_it_waits_begins_again_and_locks_all_in_order() {
    // GIVEN three people, and a batch that learns of the third and has a message of the first
    let mut site = Site::at_rest().await;
    let [first, kept, third] = [1, 2, 3].map(Uuid::from_u128);
    site.db
        .on_site(&format!(
            "INSERT INTO leads (id, wa_id, user_id) VALUES
             ('{first}', '16505550001', NULL), ('{kept}', NULL, 'US.1'), ('{third}', '16505550003', NULL)"
        ))
        .await;
    let (merging, other) = (site.db.site.connect().await, site.db.site.connect().await);
    let lock = |lead: Uuid| format!("SELECT FROM leads WHERE id = '{lead}' FOR UPDATE NOWAIT");
    // WHEN it waits for the first one's lead
    merging.batch_execute(&format!("BEGIN; {}", lock(first))).await.unwrap();
    // As somebody who changes its name, so that rows may refer to it.
    let rename = format!("BEGIN; UPDATE leads SET name = 'x' WHERE id = '{kept}'");
    other.batch_execute(&rename).await.unwrap();
    site.post(&webhook_of(&[
        said("1", Ids(Some("16505550001"), None)),
        said("3", Ids(Some("16505550003"), Some("US.3"))),
    ]))
    .await;
    site.work();
    let waits = |process: &str| {
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND
             {process} = ANY (pg_blocking_pids(pid))"
        )
    };
    let pid = async |client: &tokio_postgres::Client| {
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        row.get::<_, i32>(0).to_string()
    };
    let (merging_pid, other_pid) = (pid(&merging).await, pid(&other).await);
    site.db.until_site("the batch waits", &waits(&merging_pid), "1").await;
    // and that is merged into another one meanwhile, which is locked as well
    merging
        .batch_execute(&format!(
            "UPDATE leads SET merged_into = '{kept}', wa_id = NULL WHERE id = '{first}';
             INSERT INTO lead_ids (lead_id, kind, known_id) VALUES ('{kept}', 'wa_id', '16505550001'); COMMIT"
        ))
        .await
        .unwrap();
    site.db.until_site("the batch waits", &waits(&other_pid), "1").await;
    // THEN it waits there without the third one's
    other.batch_execute(&lock(third)).await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    site.settle().await;
    assert_eq!(site.count("webhook_events WHERE attempts > 1").await, 0);
    assert_eq!(
        site.value("SELECT user_id FROM leads WHERE wa_id = '16505550003'")
            .await,
        "US.3"
    );
    let of_kept = format!("whatsapp_messages WHERE lead_id = '{kept}'");
    assert_eq!(site.count(&of_kept).await, 1);
}
