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

/// A person's two leads, with different numbers of ours, that were merged.
async fn merged_with_another_number() -> Site {
    let site = Site::working().await;
    site.deliver(&messages(&[said("1", Ids(Some("16505550001"), None))]))
        .await;
    site.deliver(&elsewhere("2", Ids(None, Some("US.1")))).await;
    site.deliver(&messages(&[said("3", Ids(Some("16505550001"), Some("US.1")))]))
        .await;
    site.settle_people().await;
    assert_eq!(site.count(LEADS).await, 1);
    site
}

/// A message to another number of ours.
fn elsewhere(wamid: &str, ids: Ids<'_>) -> Value {
    let mut elsewhere = messages(&[said(wamid, ids)]);
    elsewhere["metadata"]["phone_number_id"] = json!("999");
    elsewhere
}

const UNDO: &str = "SELECT twinlog.undo_lead_merge(id) FROM lead_merges";

#[tokio::test]
async fn who_undoes_a_merge_does_not_wait_in_a_circle_with_a_report() {
    // GIVEN leads that were merged, and a transaction that has locked a message of theirs, as for a report
    let site = merged_with_another_number().await;
    let (report, undo) = (site.db.site.connect().await, site.db.site.connect().await);
    let lock = "BEGIN; SELECT FROM whatsapp_messages WHERE wamid = '2' FOR UPDATE";
    report.batch_execute(lock).await.unwrap();
    // WHEN the merge is undone, and the report's transaction goes on to the conversation
    let undoing = tokio::spawn(async move { undo.batch_execute(UNDO).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    site.db.until_site("the undo waits", waiting, "1").await;
    report
        .batch_execute(
            "WITH held AS MATERIALIZED (SELECT conversation_id AS id, pg_advisory_xact_lock(hashtextextended(
                'conversations:' || conversation_id, 0)) FROM whatsapp_messages WHERE wamid = '2')
             UPDATE conversations c SET updated_at = now() FROM held WHERE c.id = held.id; COMMIT",
        )
        .await
        .unwrap();
    // THEN both are done
    undoing.await.unwrap().unwrap();
    assert_eq!(site.count(LEADS).await, 2);
}

#[tokio::test]
async fn what_came_after_a_merge_stays_with_the_kept_lead_in_a_conversation_of_its_own() {
    // GIVEN leads that were merged, and a message after that in a conversation that the other lead began
    let site = merged_with_another_number().await;
    site.deliver(&elsewhere("4", Ids(Some("16505550001"), None))).await;
    // WHEN the merge is undone
    site.db.on_site(UNDO).await;
    // THEN each lead has its messages in conversations of its own
    let filed = "SELECT string_agg(concat_ws(' ', m.wamid, l.wa_id, l.user_id, a.phone_number_id, c.unread_count), ', ' ORDER BY wamid)
        FROM whatsapp_messages m JOIN conversations c ON c.id = m.conversation_id AND c.lead_id = m.lead_id AND c.merged_into IS NULL
          JOIN leads l ON l.id = c.lead_id JOIN whatsapp_accounts a ON a.id = c.account_id";
    let expected = format!("1 16505550001 {NUMBER} 2, 2 US.1 999 1, 3 16505550001 {NUMBER} 2, 4 16505550001 999 1");
    assert_eq!(site.value(filed).await, expected);
    let notified =
        "notifications n JOIN whatsapp_messages m ON m.id = n.message_id WHERE n.conversation_id <> m.conversation_id";
    assert_eq!(site.count(notified).await, 0);
    // And once is enough.
    let again = site.db.site.connect().await.batch_execute(UNDO).await.unwrap_err();
    assert!(
        again.as_db_error().unwrap().message().contains("not undone yet"),
        "{again:?}"
    );
}
