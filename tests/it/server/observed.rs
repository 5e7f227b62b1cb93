//! The metrics of the real binary, compared with what happened: dashboards and alerts use these figures.

use super::*;

/// `twinlog serve` with its metrics page.
struct Observed {
    world: World,
    server: Binary,
}

impl Observed {
    async fn start() -> Self {
        let world = World::new().await;
        let server = Binary::start(&world).await;
        Self { world, server }
    }

    async fn metrics(&self) -> String {
        let page = self.server.config.admin("/metrics");
        let page = self.server.http.get(page).send().await.unwrap();
        page.text().await.unwrap()
    }

    /// Waits until the metrics page contains each of these lines exactly.
    async fn shows(&self, lines: &[&str]) {
        eventually(&format!("the metrics show {lines:?}"), SOON, || async {
            let page = self.metrics().await;
            let missing = lines.iter().any(|line| !page.lines().any(|other| other == *line));
            if missing { Err(page) } else { Ok(()) }
        })
        .await;
    }

    /// Has a message sent over the plain API; its id.
    async fn send(&self, to: &str) -> String {
        let body = json!({"to": to, "text": "x", "wait": 3000});
        let taken = self.server.plain(&body).await.unwrap();
        assert!([200, 202].contains(&taken.status), "{taken:?}");
        taken.id()
    }

    async fn on_site(&self, sql: &str) {
        self.world.db.on_site(sql).await;
    }
}

/// The Site DB refuses rows of this kind from now on.
fn refuse(condition: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = 'check_violation'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON whatsapp_messages FOR EACH ROW WHEN ({condition})
             EXECUTE FUNCTION refuse()"
    )
}

const ACCEPT_AGAIN: &str = "DROP TRIGGER refuse ON whatsapp_messages";

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_counted_in_both_directions_by_what_they_reached() {
    let observed = Observed::start().await;
    // Series with the value 0 must exist: an alert on a missing series never fires.
    observed
        .shows(&[
            "twinlog_persistence_gap{kind=\"sent_unrecorded\"} 0",
            "twinlog_persistence_gap{kind=\"outcome_unknown\"} 0",
            "twinlog_persistence_gap{kind=\"unsent\"} 0",
            "twinlog_persistence_gap{kind=\"webhook_unprocessed\"} 0",
            &format!("twinlog_account_degraded{{account=\"{NUMBER}\"}} 0"),
        ])
        .await;
    for to in ["+16505551001", "+16505551002"] {
        observed.send(to).await;
    }
    let question = Inbound::text(NUMBER, "16505551234", "hello?");
    observed.world.meta.inbound(question).await;
    observed
        .shows(&[
            "twinlog_messages_total{direction=\"outbound\",status=\"pending\"} 2",
            "twinlog_messages_total{direction=\"outbound\",status=\"accepted\"} 2",
            "twinlog_messages_total{direction=\"outbound\",status=\"delivered\"} 2",
            "twinlog_messages_total{direction=\"inbound\",status=\"received\"} 1",
            "twinlog_webhook_events_total{kind=\"real\"} 1",
            "twinlog_send_seconds_count 2",
        ])
        .await;
    let page = observed.metrics().await;
    let last_real = format!("twinlog_account_last_real_message_timestamp_seconds{{account=\"{NUMBER}\"}} 1");
    assert!(page.contains(&last_real), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_an_answer_is_a_gap_until_its_status_arrives() {
    let observed = Observed::start().await;
    observed.world.meta.pause_webhooks(true);
    observed.world.fault_once(Fault::AcceptThenReset);
    let id = observed.send(USER).await;
    assert_eq!(observed.world.status(&id).await, "unknown");
    observed
        .shows(&[
            "twinlog_persistence_gap{kind=\"outcome_unknown\"} 1",
            "twinlog_messages_total{direction=\"outbound\",status=\"unknown\"} 1",
            "twinlog_send_errors_total{code=\"none\",class=\"unknown\"} 1",
        ])
        .await;
    observed.world.meta.pause_webhooks(false);
    observed
        .shows(&["twinlog_persistence_gap{kind=\"outcome_unknown\"} 0"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sent_message_whose_outcome_is_refused_is_a_gap_and_a_critical_line() {
    let mut observed = Observed::start().await;
    observed.world.fault(Fault::Silent);
    observed.on_site(&refuse("NEW.status = 'accepted'")).await;
    let id = observed.send(USER).await;
    observed
        .shows(&["twinlog_persistence_gap{kind=\"sent_unrecorded\"} 1"])
        .await;
    observed.server.process.wait_for_output("CRITICAL", SOON).await;
    observed.on_site(ACCEPT_AGAIN).await;
    observed.world.reaches(&id, &["accepted"]).await;
    observed
        .shows(&["twinlog_persistence_gap{kind=\"sent_unrecorded\"} 0"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_can_not_be_processed_is_a_gap() {
    let observed = Observed::start().await;
    observed.on_site(&refuse("NEW.direction = 'inbound'")).await;
    let question = Inbound::text(NUMBER, "16505551234", "hello?");
    observed.world.meta.inbound(question).await;
    observed
        .shows(&["twinlog_persistence_gap{kind=\"webhook_unprocessed\"} 1"])
        .await;
    // The event is kept: it is processed again once the cause is gone.
    observed.on_site(ACCEPT_AGAIN).await;
    observed
        .on_site("UPDATE webhook_events SET state = 'received', next_attempt_at = now() WHERE state = 'failed'")
        .await;
    observed
        .shows(&[
            "twinlog_persistence_gap{kind=\"webhook_unprocessed\"} 0",
            "twinlog_messages_total{direction=\"inbound\",status=\"received\"} 1",
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_shows_as_a_degraded_number_and_its_messages_as_unsent() {
    let observed = Observed::start().await;
    observed.world.meta.expire_token(NUMBER).unwrap();
    let id = observed.send(USER).await;
    assert_eq!(observed.world.status(&id).await, "pending");
    // Pretend that the message is an hour old.
    observed
        .on_site("UPDATE whatsapp_messages SET created_at = now() - interval '1 hour'")
        .await;
    let degraded = |value: u8| format!("twinlog_account_degraded{{account=\"{NUMBER}\"}} {value}");
    observed
        .shows(&[&degraded(1), "twinlog_persistence_gap{kind=\"unsent\"} 1"])
        .await;
    let page = observed.metrics().await;
    assert!(
        page.contains("twinlog_send_errors_total{code=\"190\",class=\"account\"} "),
        "{page}"
    );
    observed.world.meta.set_token(NUMBER, "simulator-token").unwrap();
    observed.world.is_sent(&id).await;
    observed
        .shows(&[&degraded(0), "twinlog_persistence_gap{kind=\"unsent\"} 0"])
        .await;
}
