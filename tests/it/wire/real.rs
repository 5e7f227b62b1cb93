//! Helpers that open and decode the stream of a real server.

use twinlog::lsn::Lsn;
use twinlog::pgoutput::{self, Message};
use twinlog::wire::{Feedback, Frame, FrameStream, ReplicationConnection, SlotName};

use crate::harness::{Database, Databases, SOON};

pub(super) async fn connect(database: &Database) -> ReplicationConnection {
    ReplicationConnection::connect(&database.database_url(), "twinlog-test")
        .await
        .unwrap()
}

pub(super) fn slot(database: &Database) -> SlotName {
    database.name.parse().unwrap()
}

/// A site whose publication `p` has all tables, and the stream from here on.
pub(super) async fn streaming(db: &Databases) -> (FrameStream, Feedback) {
    db.on_site("CREATE PUBLICATION p FOR ALL TABLES").await;
    let mut connection = connect(&db.site).await;
    connection.create_slot(&slot(&db.site), SOON).await.unwrap();
    start(&db.site).await
}

pub(super) async fn start(site: &Database) -> (FrameStream, Feedback) {
    let connection = connect(site).await;
    connection
        .start_replication(&slot(site), Lsn::INVALID, &["p".to_owned()])
        .await
        .unwrap()
}

/// Decodes messages up to and including the first one for which the condition holds.
pub(super) async fn messages_until(stream: &mut FrameStream, done: impl Fn(&Message) -> bool) -> Vec<Message> {
    let mut messages = Vec::new();
    let reading = async {
        loop {
            for frame in stream.next().await.unwrap().unwrap() {
                if let Frame::XLogData { payload, .. } = frame {
                    messages.push(pgoutput::decode(payload).unwrap());
                }
            }
            if messages.iter().any(&done) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("the last message arrives");
    messages
}

pub(super) fn is_fence(message: &Message) -> bool {
    matches!(message, Message::Logical(message) if &*message.prefix == "fence")
}

pub(super) const FENCE: &str = "SELECT pg_logical_emit_message(false, 'fence', '')";

pub(super) async fn confirmed(site: &Database) -> Lsn {
    let query = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
        site.name
    );
    site.value(&query).await.parse().unwrap()
}

pub(super) async fn is_active(site: &Database) -> bool {
    let query = format!(
        "SELECT active FROM pg_replication_slots WHERE slot_name = '{}'",
        site.name
    );
    site.value(&query).await == "true"
}
