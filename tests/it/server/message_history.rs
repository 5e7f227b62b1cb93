//! Messages whose outcome is unknown and of which no status comes: Meta's message history settles them, where there is no doubt.

use super::*;

/// A server that asks soon, and no webhook that tells of a message.
async fn without_webhooks() -> (World, Server) {
    let mut world = World::new().await;
    world.config.whatsapp.ask_history_after = Duration::from_millis(200);
    let server = world.serve().await;
    world.meta.pause_webhooks(true);
    (world, server)
}

/// Sends a message whose answer is lost; its id.
async fn lost(world: &World, server: &Server, message: &Value, fault: Fault) -> String {
    world.fault_once(fault);
    let answer = server.graph(message).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    answer.id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_meta_has_is_settled_by_its_history() {
    // GIVEN a message whose answer was lost WHEN no webhook tells of it
    let (world, server) = without_webhooks().await;
    let id = lost(&world, &server, &text("perhaps"), Fault::AcceptThenReset).await;
    // THEN its status and its wamid are Meta's
    world.reaches(&id, &["sent", "delivered"]).await;
    assert_eq!(world.value(&id, "wamid").await, world.meta.ledger().messages[0].wamid);
    // and the webhooks that come after all find it.
    world.meta.pause_webhooks(false);
    world.reaches(&id, &["delivered"]).await;
    world.nothing_lost_or_doubled().await;
    assert_eq!(world.accepted(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_history_that_may_be_either_of_two_messages_settles_none() {
    // GIVEN two lost messages to one person, of which Meta has the second
    let (world, server) = without_webhooks().await;
    let first = lost(&world, &server, &text("one"), Fault::ResetUnaccepted).await;
    let second = lost(&world, &server, &text("two"), Fault::AcceptThenReset).await;
    // WHEN the history was asked for, and has settled one to another person
    let mut other = text("three");
    other["to"] = json!("16505559999");
    let third = lost(&world, &server, &other, Fault::AcceptThenReset).await;
    world.reaches(&third, &["sent", "delivered"]).await;
    // THEN both are unknown, until the webhook tells
    for id in [&first, &second] {
        assert_eq!(world.status(id).await, "unknown");
    }
    world.meta.pause_webhooks(false);
    world.reaches(&second, &["sent", "delivered"]).await;
    assert_eq!(world.status(&first).await, "unknown");
    server.stop().await;
}
