//! What is kept of webhooks: how long, and that it can be processed again.

use twinlog::config::Retention;

use super::*;
use crate::harness::{ConfigFile, Process};

/// Makes the Site DB refuse some messages.
const NO_POISON: &str = "ALTER TABLE whatsapp_messages ADD CONSTRAINT no_poison CHECK (body <> 'poison')";

/// The time as ids of webhooks begin with it.
fn id_at(days_ago: i64) -> Uuid {
    let at = time::OffsetDateTime::now_utc() - time::Duration::days(days_ago);
    Uuid::from_u128(
        u128::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap() << 80
            | u128::from(Uuid::now_v7().as_u64_pair().1),
    )
}

#[tokio::test]
async fn old_webhooks_are_deleted_by_time_and_state_and_never_one_that_is_not_processed() {
    let mut site = Site::at_rest().await;
    for days_ago in [1, 80, 100, 400] {
        for (state, how_many) in [("received", 1), ("processed", 600), ("failed", 1)] {
            let ids: Vec<String> = (0..how_many)
                .map(|_| format!("('{}'::uuid)", id_at(days_ago)))
                .collect();
            site.db
                .on_site(&format!(
                    "INSERT INTO webhook_events (id, body, body_sha256, state, received_at)
                     SELECT id, '{{}}', 'x', '{state}', now() - interval '{days_ago} days' FROM (VALUES {}) AS v(id)",
                    ids.join(", ")
                ))
                .await;
        }
    }
    let left = async |site: &Site| {
        let count = "SELECT string_agg(state || ' ' || n, ', ' ORDER BY state)
            FROM (SELECT state, count(*) AS n FROM webhook_events GROUP BY state) AS s";
        site.value(count).await
    };
    let keep = |processed_webhooks_months, failed_webhooks_months| InboxSettings {
        retention: Some(Retention {
            processed_webhooks_months,
            failed_webhooks_months,
            undelivered_days: 7,
        }),
        ..settings()
    };
    site.inbox = Inbox::new(site.pool.clone(), keep(0, 0));
    assert_eq!(site.inbox.forget_old().await.unwrap(), 0);
    site.inbox = Inbox::new(site.pool.clone(), keep(3, 0));
    assert_eq!(site.inbox.forget_old().await.unwrap(), 1200);
    assert_eq!(left(&site).await, "failed 4, processed 1200, received 4");
    site.inbox = Inbox::new(site.pool.clone(), keep(3, 12));
    assert_eq!(site.inbox.forget_old().await.unwrap(), 1);
    assert_eq!(left(&site).await, "failed 3, processed 1200, received 4");
}

/// What `twinlog inbox replay` prints, and its exit code.
async fn replay(site: &Site, arguments: &[&str]) -> (Option<i32>, Value) {
    let config = ConfigFile::new(&site.db, "");
    let mut process = Process::start(&config, &[&["inbox", "replay", "--json"], arguments].concat(), "");
    let ended = process.wait(SOON).await;
    let output = process.output();
    let line = output.lines().find(|line| line.starts_with('{'));
    let done = serde_json::from_str(line.unwrap_or_else(|| panic!("no JSON: {output}"))).unwrap();
    (ended.code(), done)
}

#[tokio::test]
async fn kept_webhooks_are_processed_again_after_a_fix_alone_or_by_the_running_server_and_nothing_is_doubled() {
    let mut site = Site::working().await;
    site.db.on_site(NO_POISON).await;
    for (number, body) in ["poison", "fine", "poison"].into_iter().enumerate() {
        let message = text(&format!("wamid.{number}"), "16505551234", body);
        site.post(&envelope(&[("messages", messages(&[message]))])).await;
        site.settle().await;
    }
    site.stop = None;
    assert_eq!(site.count("whatsapp_messages").await, 1);

    // Still refused: none is lost, and the exit code says so.
    let (code, done) = replay(&site, &[]).await;
    assert_eq!(
        (code, &done["found"], &done["failed"]),
        (Some(1), &json!(2), &json!(2)),
        "{done}"
    );
    site.db
        .on_site("ALTER TABLE whatsapp_messages DROP CONSTRAINT no_poison")
        .await;
    let (code, done) = replay(&site, &["--dry-run"]).await;
    assert_eq!((code, &done["found"]), (Some(0), &json!(2)), "{done}");
    let (_, done) = replay(&site, &["--dry-run", "--since", "2999-01-01"]).await;
    assert_eq!(done["found"], 0, "{done}");
    assert_eq!(site.count("whatsapp_messages").await, 1);

    // Alone.
    let one = site
        .value("SELECT min(id::text) FROM webhook_events WHERE state = 'failed'")
        .await;
    let (code, done) = replay(&site, &[&one]).await;
    assert_eq!(
        (code, &done["processed"], &done["by_server"]),
        (Some(0), &json!(1), &json!(false)),
        "{done}"
    );
    assert_eq!(site.count("whatsapp_messages").await, 2);

    // Through the running server, which has reported just now; all of them.
    site.work();
    site.db
        .on_site("INSERT INTO twinlog.servers (id, hostname, pid, version, components) VALUES (gen_random_uuid(), 'h', 1, 'v', '{}')")
        .await;
    let (code, done) = replay(&site, &["--state", "all"]).await;
    assert_eq!(
        (code, &done["processed"], &done["by_server"]),
        (Some(0), &json!(3), &json!(true)),
        "{done}"
    );
    assert_eq!(site.count("whatsapp_messages").await, 3);
    assert_eq!(site.count("notifications").await, 3);
    assert_eq!(site.count("leads").await, 1);
}
