//! A connection pooler in transaction mode before the Agent DB is refused, before anything reaches its sessions.

use crate::harness::{NOTES, Pooler, Twins};

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_refused_and_its_sessions_stay_as_they_were() {
    let mut twins = Twins::new(NOTES).await;
    let Some(transactions) = Pooler::start(&twins.agent, "transaction").await else {
        return;
    };
    twins.set_agent_url(&transactions.url(&twins.agent));
    let daemon = twins.launch();
    daemon
        .says("a connection pooler in transaction or statement mode is between us and the Agent DB")
        .await;
    transactions.is_untouched(&twins.agent).await;
    drop(daemon);

    // A pool in session mode works.
    let sessions = Pooler::start(&twins.agent, "session").await.expect("PgBouncer");
    twins.set_agent_url(&sessions.url(&twins.agent));
    let _daemon = twins.start().await;
    twins.on_site("INSERT INTO notes VALUES (1, 'a', 1)").await;
    twins.until_equal(&["notes"]).await;
}
