//! Many webhooks at once: they share a commit and are processed together, and each is right by itself.

use super::*;

/// A webhook with one text.
fn text_webhook(wamid: &str, from: &str, body: &str) -> Vec<u8> {
    envelope(&[("messages", messages(&[text(wamid, from, body)]))])
}

/// Messages that are before an earlier one of the same person; their texts are numbers in the order of the posts.
const SWAPPED: &str = "SELECT count(*) FROM (SELECT body::int AS number, lag(body::int) OVER
    (PARTITION BY lead_id ORDER BY created_at) AS before FROM whatsapp_messages) AS texts WHERE number < before";

/// Attempts that had to be repeated, after a deadlock for example.
const REPEATED: &str = "webhook_events WHERE attempts > 1";

impl Site {
    /// Another process on the same Site DB.
    pub(super) fn another_process(&self) -> DropGuard {
        let pool = Pool::connect(&config::Site {
            url: self.db.site.database_url(),
            max_connections: 12,
        });
        let stop = CancellationToken::new();
        let worker = Worker::new(Inbox::new(pool, settings()), self.health.component("inbox 2"));
        tokio::spawn(worker.run(stop.clone()));
        stop.drop_guard()
    }

    /// Posts all of them at once.
    async fn post_at_once(&self, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<Result<WebhookId, ReceiveError>> {
        let mut posts = JoinSet::new();
        for body in bodies {
            let inbox = self.inbox.clone();
            let signature = signature::sign(&secret(), &body);
            posts.spawn(async move { inbox.receive(Some(&signature), body.into()).await });
        }
        posts.join_all().await
    }
}

#[tokio::test]
async fn webhooks_that_come_at_once_share_commits_and_so_do_their_messages() {
    // GIVEN 200 webhooks of 40 people at the same moment, and a lone one
    let mut site = Site::at_rest().await;
    let bodies =
        (0..200).map(|number| text_webhook(&format!("wamid.{number}"), &format!("165055500{:02}", number % 40), "x"));
    let posted = site.post_at_once(bodies).await;
    assert!(posted.iter().all(Result::is_ok), "{posted:?}");
    site.post_text("wamid.lone").await;

    // THEN they are stored by a few transactions, and processed by a few
    let transactions = |table: &str| format!("(SELECT DISTINCT xmin::text FROM {table}) AS transactions");
    assert_eq!(site.count("webhook_events").await, 201);
    assert!(site.count(&transactions("webhook_events")).await < 20);
    site.work();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 201);
    assert_eq!(site.count("leads").await, 41);
    assert_eq!(site.count("notifications WHERE kind = 'inbound_message'").await, 201);
    assert_eq!(site.value("SELECT sum(unread_count) FROM conversations").await, "201");
    let processing = site.count(&transactions("whatsapp_messages")).await;
    assert!(processing < 20, "{processing} transactions");
    assert_eq!(site.count(REPEATED).await, 0);
}

#[tokio::test]
async fn one_bad_event_among_many_webhooks_fails_alone() {
    let mut site = Site::at_rest().await;
    site.db
        .on_site("ALTER TABLE whatsapp_messages ADD CONSTRAINT no_poison CHECK (body <> 'poison')")
        .await;
    for number in 0..40 {
        let body = match number {
            13 | 29 => "poison",
            _ => "x",
        };
        // Two events each, so that the neighbour in the same webhook is seen as well.
        let parts = [
            text(&format!("wamid.{number}"), &format!("165055500{number:02}"), body),
            text(&format!("wamid.{number}.b"), "16505551234", "x"),
        ];
        site.post(&envelope(&[("messages", messages(&parts))])).await;
        // What can't be read fails without the help of the database.
        if number == 20 {
            site.post(b"[]").await;
            site.post(&envelope(&[(
                "messages",
                messages(&[json!({"id": "wamid.malformed"})]),
            )]))
            .await;
        }
    }
    site.work();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 78);
    assert_eq!(site.value("SELECT sum(unread_count) FROM conversations").await, "78");
    assert_eq!(
        site.value("SELECT count(*) FILTER (WHERE state = 'failed') || ' ' || count(*) FILTER (WHERE state = 'processed') FROM webhook_events").await,
        "4 38"
    );
    let named = "webhook_events WHERE failures->0->>'reason' = 'SQLSTATE 23514, constraint no_poison'
        AND failures->0->>'index' = '0' AND jsonb_array_length(failures) = 1";
    assert_eq!(site.count(named).await, 2);
}

#[tokio::test]
async fn what_meta_repeats_within_a_batch_and_across_batches_is_stored_once() {
    let mut site = Site::at_rest().await;
    let message = site.outbound("accepted", Some("wamid.out")).await;
    let bodies = || {
        let reports = [
            status("wamid.out", "delivered", 2),
            status("wamid.out", "sent", 1),
            status("wamid.unknown", "sent", 1),
        ];
        [
            text_webhook("wamid.1", "16505551234", "x"),
            envelope(&[("messages", statuses_of(&reports))]),
            text_webhook("wamid.2", "16505551234", "x"),
            envelope(&[
                ("messages", statuses_of(&reports[1..])),
                ("messages", messages(&[text("wamid.1", "16505551234", "x")])),
            ]),
        ]
    };
    for _ in 0..3 {
        for body in bodies() {
            site.post(&body).await;
        }
    }
    site.work();
    site.settle().await;
    for body in bodies() {
        site.post(&body).await;
    }
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages WHERE direction = 'inbound'").await, 2);
    assert_eq!(site.count("notifications").await, 2);
    assert_eq!(site.value("SELECT unread_count FROM conversations").await, "2");
    assert_eq!(site.count("message_status_events").await, 3);
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 1);
    assert_eq!(site.shown(message).await, "delivered");
    assert_eq!(site.count("webhook_events WHERE state <> 'processed'").await, 0);
}

#[tokio::test]
async fn one_persons_messages_are_in_the_order_of_their_webhooks_with_several_workers_and_processes() {
    // GIVEN a backlog: posted one after the other, by three people in turns, sometimes two texts in one webhook
    let mut site = Site::at_rest().await;
    let mut number = 0;
    let mut post = async |site: &Site, texts: usize| {
        let from = format!("1650555000{}", number % 3);
        let texts: Vec<Value> = (0..texts)
            .map(|_| {
                number += 1;
                text(&format!("wamid.{number}"), &from, &number.to_string())
            })
            .collect();
        site.post(&envelope(&[("messages", messages(&texts))])).await;
    };
    for turn in 0..150 {
        post(&site, 1 + turn % 2).await;
    }
    // WHEN two processes work on it, and more come meanwhile
    site.work();
    let _other = site.another_process();
    for turn in 0..100 {
        post(&site, 1 + turn % 3).await;
    }
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, number);
    assert_eq!(site.value(SWAPPED).await, "0");
    assert_eq!(
        site.count("(SELECT DISTINCT created_at FROM whatsapp_messages) AS times")
            .await,
        number
    );
}

#[tokio::test]
async fn batches_with_the_same_people_do_not_wait_in_a_circle() {
    // GIVEN many webhooks of few people, known and new, with both ids or one, in many orders, and reports among them
    let mut site = Site::at_rest().await;
    let account_id = site.account().await;
    for person in 0..8 {
        let mut tx = site.pool.begin().await.unwrap();
        link(&mut tx, account_id, &contact(&format!("1650555000{person}")))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        site.outbound("accepted", Some(&format!("wamid.out.{person}"))).await;
    }
    let mut bodies = Vec::new();
    for number in 0_usize..400 {
        let person = |salt: usize| (number * 7 + salt * 5 + number / 16) % 12;
        let said = |salt: usize| {
            let person = person(salt);
            let mut said = text(&format!("wamid.{number}.{salt}"), &format!("16505550{person:03}"), "x");
            if person % 3 == 0 {
                said["from_user_id"] = json!(format!("US.{person}"));
            }
            said
        };
        let report = status(
            &format!("wamid.out.{}", person(3) % 8),
            "delivered",
            i64::try_from(number).unwrap(),
        );
        bodies.push(envelope(&[
            ("messages", messages(&[said(0), said(1), said(2)])),
            ("messages", statuses_of(&[report])),
        ]));
    }
    let posted = site.post_at_once(bodies).await;
    assert!(posted.iter().all(Result::is_ok));
    // WHEN eight workers process them
    site.work();
    let _other = site.another_process();
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages WHERE direction = 'inbound'").await, 1200);
    assert_eq!(site.value("SELECT sum(unread_count) FROM conversations").await, "1200");
    assert_eq!(site.count(REPEATED).await, 0);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(site.value(deadlocks).await, "0");
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_batch_loses_and_doubles_nothing() {
    let mut site = Site::on(private_databases(Settings::default().durable(), Settings::default()).await).await;
    let bodies =
        (0..600).map(|number| text_webhook(&format!("wamid.{number}"), &format!("16505550{:03}", number % 50), "x"));
    let posted = site.post_at_once(bodies).await;
    assert!(posted.iter().all(Result::is_ok));
    site.work();
    let processed = "SELECT count(*) > 0 FROM webhook_events WHERE state = 'processed'";
    site.db
        .until_site("the first batch is processed", processed, "true")
        .await;
    site.db.site.cluster.restart(Shutdown::Immediate).await.unwrap();
    site.db.site.reconnect().await;
    site.settle().await;
    assert_eq!(site.count("whatsapp_messages").await, 600);
    assert_eq!(site.count("notifications").await, 600);
    assert_eq!(site.value("SELECT sum(unread_count) FROM conversations").await, "600");
    assert_eq!(site.count("leads").await, 50);
}

#[tokio::test]
async fn without_a_free_connection_every_caller_is_told_and_afterwards_all_is_well() {
    let site = Site::at_rest().await;
    let bodies = || (0..30).map(|number| text_webhook(&format!("wamid.{number}"), "16505551234", "x"));
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(site.pool.begin().await.unwrap());
    }
    let refused = site.post_at_once(bodies()).await;
    assert!(
        refused.iter().all(|one| matches!(one, Err(ReceiveError::NotStored(_)))),
        "{refused:?}"
    );
    assert_eq!(site.count("webhook_events").await, 0);
    drop(held);
    let taken = site.post_at_once(bodies()).await;
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    assert_eq!(site.count("webhook_events").await, 30);
}

#[tokio::test]
async fn names_and_ids_that_a_batch_teaches_reach_the_leads() {
    // GIVEN leads that lack names and user ids, and new people with both
    let mut site = Site::at_rest().await;
    let account_id = site.account().await;
    for person in 0..10 {
        let mut tx = site.pool.begin().await.unwrap();
        link(&mut tx, account_id, &contact(&format!("1650555000{person}")))
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    for person in 0..20 {
        let from = format!("165055500{person:02}");
        let from = if person < 10 {
            format!("1650555000{person}")
        } else {
            from
        };
        let mut said = text(&format!("wamid.{person}"), &from, "x");
        said["from_user_id"] = json!(format!("US.{person}"));
        said["referral"] = json!({"source_id": person.to_string()});
        let contacts = json!([{"profile": {"name": format!("Person {person}")}, "wa_id": from, "user_id": format!("US.{person}")}]);
        let value = value(json!({"contacts": contacts, "messages": [said]}));
        site.post(&envelope(&[("messages", value)])).await;
    }
    site.work();
    site.settle().await;
    assert_eq!(site.count("leads").await, 20);
    let right = "leads l JOIN whatsapp_messages m ON m.lead_id = l.id
        WHERE l.name = 'Person ' || substr(m.wamid, 7) AND l.user_id = 'US.' || substr(m.wamid, 7)
          AND l.referral->>'source_id' = substr(m.wamid, 7) AND l.wa_id IS NOT NULL";
    assert_eq!(site.count(right).await, 20);
    let transactions = "(SELECT DISTINCT xmin::text FROM whatsapp_messages) AS transactions";
    assert!(site.count(transactions).await < 10);
}
