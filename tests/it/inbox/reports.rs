//! Statuses: early, late, repeated, in any order, and at the same time as the outcome of the send.

use time::OffsetDateTime;
use twinlog::provider::AcceptedStatus;
use twinlog::provider::event::{Content, StatusReport};
use twinlog::site_db::status_events::{Acceptance, ReceivedReport};
use twinlog::site_db::{MessageStatus, Transaction};

use super::*;

#[tokio::test]
async fn statuses_move_a_message_on_in_any_order() {
    let site = Site::working().await;
    for (order, expected) in [
        (&["sent", "delivered", "read"][..], "read"),
        (&["read", "delivered", "sent"], "read"),
        (&["sent", "failed"], "failed"),
        (&["failed", "delivered"], "delivered"),
        (&["delivered", "failed"], "delivered"),
        (&["read", "played", "sent", "sent"], "played"),
    ] {
        let wamid = format!("wamid.{}", order.join("."));
        let message = site.outbound("accepted", Some(&wamid)).await;
        for (second, name) in (0..).zip(order) {
            site.deliver(&statuses_of(&[status(&wamid, name, second)])).await;
        }
        assert_eq!(site.shown(message).await, expected, "{order:?}");
    }
    let gaps = "SELECT count(*) FROM whatsapp_messages WHERE status IN ('delivered', 'read', 'played')
                 AND (delivered_at IS NULL OR sent_at IS NULL OR (status = 'read' AND read_at IS NULL))";
    assert_eq!(site.value(gaps).await, "0");
    let error = "SELECT error_code || error_class FROM whatsapp_messages WHERE status = 'failed'";
    assert_eq!(site.value(error).await, "131047window");
    assert_eq!(site.count("notifications WHERE kind = 'message_failed'").await, 2);
}

#[tokio::test]
async fn the_echo_of_our_id_settles_a_message_whose_answer_was_lost() {
    let site = Site::working().await;
    for before in ["unknown", "sending", "pending"] {
        let message = site.outbound(before, None).await;
        let wamid = format!("wamid.{before}");
        let mut report = status(&wamid, "sent", 1);
        report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
        site.deliver(&statuses_of(&[report])).await;
        assert_eq!(site.shown(message).await, "sent", "{before}");
        // The next report has no echo: the wamid is known by now.
        site.deliver(&statuses_of(&[status(&wamid, "read", 2)])).await;
        assert_eq!(site.shown(message).await, "read", "{before}");
    }
    assert_eq!(site.count("whatsapp_messages WHERE accepted_at IS NULL").await, 0);
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

#[tokio::test]
async fn a_message_that_failed_before_its_id_was_known_never_shows_sent() {
    let site = Site::working().await;
    for (number, (first, then, shown)) in [
        (&["failed"][..], &["sent"][..], "failed"),
        (&["sent", "failed"], &["sent"], "failed"),
        (&["failed"], &["delivered"], "delivered"),
        (&["delivered", "failed"], &["sent"], "delivered"),
        (&["failed", "read"], &["sent", "delivered"], "read"),
        (&["delivered"], &["failed"], "delivered"),
    ]
    .into_iter()
    .enumerate()
    {
        // GIVEN reports without our id about a message whose answer was lost
        let message = site.outbound("unknown", None).await;
        let wamid = format!("wamid.{number}");
        for (second, name) in (0..).zip(first) {
            site.deliver(&statuses_of(&[status(&wamid, name, second)])).await;
        }
        // WHEN reports with our id come
        for (second, name) in (10..).zip(then) {
            let mut report = status(&wamid, name, second);
            report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
            site.deliver(&statuses_of(&[report])).await;
        }
        assert_eq!(site.shown(message).await, shown, "{first:?} {then:?}");
        let reports = format!("message_status_events WHERE message_id = '{message}'");
        assert_eq!(
            site.count(&reports).await,
            first.len() + then.len(),
            "{first:?} {then:?}"
        );
    }
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
    assert_eq!(site.count("notifications WHERE kind = 'message_failed'").await, 2);
}

#[tokio::test]
async fn a_status_counts_whatever_its_time_says() {
    let site = Site::working().await;
    for (number, time) in [
        json!(null),
        json!("soon"),
        json!("99999999999999999999"),
        json!("1"),
        json!("4102444800"),
        json!("1750000000000"),
    ]
    .into_iter()
    .enumerate()
    {
        let wamid = format!("wamid.{number}");
        let message = site.outbound("accepted", Some(&wamid)).await;
        let mut report = status(&wamid, "delivered", 1);
        if time.is_null() {
            report.as_object_mut().unwrap().remove("timestamp");
        } else {
            report["timestamp"] = time.clone();
        }
        for _ in 0..2 {
            site.deliver(&statuses_of(&[report.clone()])).await;
        }
        assert_eq!(site.shown(message).await, "delivered", "{time}");
        let credible =
            format!("SELECT delivered_at BETWEEN '2025-01-01' AND now() FROM whatsapp_messages WHERE id = '{message}'");
        assert_eq!(site.value(&credible).await, "true", "{time}");
        assert_eq!(
            site.count(&format!("message_status_events WHERE wamid = '{wamid}'"))
                .await,
            1,
            "{time}"
        );
    }
}

#[tokio::test]
async fn a_second_send_of_the_same_message_is_kept_apart() {
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.first")).await;
    let mut report = status("wamid.second", "read", 1);
    report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
    site.deliver(&statuses_of(&[report])).await;
    assert_eq!(site.shown(message).await, "accepted");
    let trace = format!("message_status_events WHERE wamid = 'wamid.second' AND message_id = '{message}'");
    assert_eq!(site.count(&trace).await, 1);
}

#[tokio::test]
async fn reports_that_come_too_early_wait_for_their_message() {
    let site = Site::working().await;
    let message = site.outbound("sending", None).await;
    site.deliver(&statuses_of(&[
        status("wamid.early", "delivered", 2),
        status("wamid.early", "sent", 1),
    ]))
    .await;
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 2);
    let wamid = Wamid::parse("wamid.early").unwrap();
    let mut tx = site.pool.begin().await.unwrap();
    let shown = accept(&mut tx, message, &wamid).await;
    tx.commit().await.unwrap();
    assert_eq!(shown, Some(MessageStatus::Delivered));
    assert_eq!(site.shown(message).await, "delivered");
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

/// Records the outcome of a send that Meta accepted, as the outbox does.
async fn accept(tx: &mut Transaction<'_>, message: Uuid, wamid: &Wamid) -> Option<MessageStatus> {
    let acceptance = Acceptance {
        message_id: message,
        wamid: Some(wamid),
        status: AcceptedStatus::Delivering,
        response: None,
    };
    let mut shown = statuses::accept(tx, &[acceptance]).await.unwrap();
    shown.remove(&message)
}

/// Waits until a session waits for the lock on a wamid.
async fn until_a_session_waits(site: &Site) {
    eventually_equal("a session waits for the wamid", SOON, Some("1".to_owned()), || {
        site.db.site.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
    })
    .await;
}

fn report_of(value: Value) -> StatusReport {
    let mut parts = webhook::parse(&envelope(&[("messages", statuses_of(&[value]))])).unwrap();
    match parts.remove(0).content {
        Content::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_outcome_waits_for_a_report_that_is_being_committed() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let message = site.outbound("sending", None).await;
    let report = report_of(status("wamid.race", "delivered", 1));
    let mut reporting = site.pool.begin().await.unwrap();
    lock(&mut reporting, [&report.wamid], []).await.unwrap();
    let received = ReceivedReport {
        account_id,
        received_at: OffsetDateTime::now_utc(),
        report: &report,
    };
    let recorded = statuses::record(&mut reporting, &[received]).await.unwrap();
    assert_eq!(recorded[0].message_id, None);

    let mut outcome = site.pool.begin().await.unwrap();
    let wamid = report.wamid.clone();
    let accepting = tokio::spawn(async move {
        let shown = accept(&mut outcome, message, &wamid).await;
        outcome.commit().await.unwrap();
        shown
    });
    until_a_session_waits(&site).await;
    reporting.commit().await.unwrap();
    assert_eq!(accepting.await.unwrap(), Some(MessageStatus::Delivered));
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

#[tokio::test]
async fn a_report_waits_for_an_outcome_that_is_being_committed() {
    let site = Site::working().await;
    let message = site.outbound("sending", None).await;
    let wamid = Wamid::parse("wamid.race").unwrap();
    let mut outcome = site.pool.begin().await.unwrap();
    accept(&mut outcome, message, &wamid).await;
    site.post(&envelope(&[(
        "messages",
        statuses_of(&[status("wamid.race", "read", 1)]),
    )]))
    .await;
    until_a_session_waits(&site).await;
    outcome.commit().await.unwrap();
    site.settle().await;
    assert_eq!(site.shown(message).await, "read");
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
}

#[tokio::test]
async fn outcomes_and_their_reports_never_miss_each_other() {
    let site = Arc::new(Site::working().await);
    let mut races = JoinSet::new();
    for number in 0..60 {
        let site = Arc::clone(&site);
        races.spawn(async move {
            let message = site.outbound("sending", None).await;
            let wamid = Wamid::parse(&format!("wamid.race.{number}")).unwrap();
            let body = envelope(&[("messages", statuses_of(&[status(wamid.as_str(), "delivered", 1)]))]);
            let report = site.post(&body);
            let outcome = async {
                let mut tx = site.pool.begin().await.unwrap();
                accept(&mut tx, message, &wamid).await;
                tx.commit().await.unwrap();
            };
            tokio::join!(report, outcome);
        });
    }
    races.join_all().await;
    site.settle().await;
    assert_eq!(site.count("message_status_events WHERE message_id IS NULL").await, 0);
    assert_eq!(site.count("whatsapp_messages WHERE status <> 'delivered'").await, 0);
}

/// Waits until a transaction of the inbox waits for a lock.
async fn somebody_waits(site: &Site) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    site.db
        .until_site("a webhook waits for the message", waiting, "1")
        .await;
}

#[tokio::test]
async fn a_webhook_that_waits_for_a_message_has_neither_its_numbers_row_nor_a_leads() {
    // GIVEN a message that another transaction has
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.1")).await;
    let other = site.db.site.connect().await;
    let own = "BEGIN; SELECT FROM whatsapp_messages FOR UPDATE; SELECT FROM leads FOR KEY SHARE";
    other.batch_execute(own).await.unwrap();

    // WHEN a report on it comes, which also tells the number's name and the recipient's user id
    let mut value = statuses_of(&[status("wamid.1", "read", 1)]);
    value["statuses"][0]["recipient_user_id"] = json!("US.1");
    site.post(&envelope(&[("messages", value)])).await;
    somebody_waits(&site).await;

    // THEN the other one can still write the number's row and the lead's
    let theirs = "SET LOCAL lock_timeout = '1s'; UPDATE leads SET phone = 'x';
                  UPDATE whatsapp_accounts SET throttled_until = now(); COMMIT";
    other.batch_execute(theirs).await.unwrap();
    site.settle_people().await;
    assert_eq!(site.shown(message).await, "read");
    let told = "SELECT waba_id || display_phone_number || user_id FROM whatsapp_accounts, leads";
    assert_eq!(site.value(told).await, "WABA15550783881US.1");
}
