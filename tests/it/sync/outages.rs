//! Outages in a row, and how soon all goes on once a cause is gone.

use crate::harness::{SOON, Twins};

#[tokio::test(flavor = "multi_thread")]
async fn after_several_outages_the_pause_before_the_next_attempt_starts_afresh() {
    // GIVEN a pause that doubles up to minutes
    let mut twins = Twins::with_notes(1).await;
    twins.configure("sync.reconnect_initial_ms = 250\nsync.reconnect_max_ms = 300000");
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;

    // WHEN the stream is cut ten times, with a change between them; the tenth pause in a row would be two minutes
    for outage in 0..10 {
        twins.terminate_walsender().await;
        twins
            .on_site(&format!("INSERT INTO notes VALUES (1000 + {outage}, 'new', 1)"))
            .await;
        // THEN each time it goes on soon
        twins.until_equal_within(SOON, &["notes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_parked_rows_heal_soon_after_their_cause_is_gone_and_delay_no_others() {
    // GIVEN rows whose next attempt is ten minutes away
    let mut twins = Twins::with_notes(1).await;
    twins.configure("sync.retry_initial_ms = 600000\nsync.retry_max_ms = 600000");
    let _daemon = twins.start().await;
    twins.until_equal(&["notes"]).await;
    twins
        .on_agent("ALTER TABLE notes ADD CONSTRAINT no CHECK (n <> 7) NOT VALID, ADD CONSTRAINT never CHECK (n <> 8) NOT VALID")
        .await;
    twins
        .on_site("INSERT INTO notes SELECT i, 'x', 7 FROM generate_series(1001, 4000) i; INSERT INTO notes VALUES (5000, 'y', 8)")
        .await;
    twins.until_parked_within(2 * SOON, 3001).await;

    // WHEN the cause of all but one is gone
    twins.on_agent("ALTER TABLE notes DROP CONSTRAINT no").await;

    // THEN they heal within seconds, though one stays refused
    twins.until_parked_within(2 * SOON, 1).await;
    twins.on_site("UPDATE notes SET n = 9 WHERE id = 5000").await;
    twins.until_parked_within(4 * SOON, 0).await;
    twins.until_equal(&["notes"]).await;
}
