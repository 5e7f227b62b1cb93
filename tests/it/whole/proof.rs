//! What must be so at the end: what Meta knows, what the clients were told and what users wrote is what both databases hold.

use std::collections::{HashMap, HashSet};

use twinlog::dev::graph_simulator::{Ledger, Simulator};

use super::SETTLED;
use super::traffic::Wanted;
use crate::harness::{Databases, eventually_equal};

/// All business tables.
const TABLES: &[&str] = &[
    "public.whatsapp_accounts",
    "public.leads",
    "public.lead_ids",
    "public.lead_merges",
    "public.conversations",
    "public.whatsapp_messages",
    "public.message_status_events",
    "public.notifications",
    "public.auto_replies",
    "public.webhook_events",
];

/// Nothing is under way any more, anywhere.
pub(super) async fn settled(db: &Databases, meta: &Simulator) {
    // In this order: a message that is sent brings reports.
    for (what, rows) in [
        (
            "no message is under way",
            "whatsapp_messages WHERE status IN ('pending', 'sending')",
        ),
        ("every event is processed", "webhook_events WHERE state <> 'processed'"),
    ] {
        eventually_equal(what, SETTLED, 0, || count(db, rows)).await;
        eventually_equal("Meta has its 200 for everything", SETTLED, 0, async || meta.pending()).await;
    }
    let received = "webhook_events WHERE state <> 'processed'";
    eventually_equal("every event is processed", SETTLED, 0, || count(db, received)).await;
    db.until_equal_within(SETTLED, TABLES).await;
}

/// What Meta knows, what the clients were told and what users wrote is what the Site DB holds, and what the Agent DB holds.
pub(super) async fn everything_is_there_once(
    db: &Databases,
    meta: &Simulator,
    wanted: &[Wanted],
    written: &HashSet<String>,
) {
    let rows = outbound(db).await;
    what_was_sent_is_recorded(&rows, &meta.ledger());
    what_the_clients_were_told_is_so(&rows, wanted);
    what_users_wrote_is_there(db, written).await;
    everything_is_linked(db).await;
    db.assert_balanced().await;
    assert_eq!(db.parked().await, 0);
}

/// The row of a message of ours.
struct Outbound {
    wamid: Option<String>,
    status: String,
    client_id: String,
}

/// By their ids.
async fn outbound(db: &Databases) -> HashMap<String, Outbound> {
    let query = "SELECT id::text AS id, wamid, status, client_id FROM whatsapp_messages WHERE direction = 'outbound'";
    let rows = db.site.query(query, &[]).await.unwrap();
    rows.iter()
        .map(|row| {
            let outbound = Outbound {
                wamid: row.get("wamid"),
                status: row.get("status"),
                client_id: row.get("client_id"),
            };
            (row.get("id"), outbound)
        })
        .collect()
}

/// What Meta took is recorded once, under Meta's id, and its statuses arrived; what it did not take does not look as if it
/// were sent.
fn what_was_sent_is_recorded(rows: &HashMap<String, Outbound>, ledger: &Ledger) {
    assert_eq!(ledger.duplicates(), Vec::<&str>::new(), "sent twice");
    let mut sent = HashSet::new();
    for message in &ledger.messages {
        let opaque = message.opaque.as_deref();
        let id = opaque.and_then(|opaque| opaque.strip_prefix("tl:")).unwrap();
        let row = rows.get(id).unwrap_or_else(|| panic!("{message:?} has no row"));
        assert_eq!(row.wamid.as_deref(), Some(message.wamid.as_str()), "{id}");
        let status = row.status.as_str();
        assert!(["sent", "delivered", "failed"].contains(&status), "{id} is {status}");
        sent.insert(id);
    }
    // Nor is anything unknown of which there was a sign.
    for (id, row) in rows.iter().filter(|(id, _)| !sent.contains(id.as_str())) {
        assert_eq!(row.wamid, None, "{id}");
        let status = row.status.as_str();
        assert!(["unknown", "failed", "cancelled"].contains(&status), "{id} is {status}");
    }
}

fn what_the_clients_were_told_is_so(rows: &HashMap<String, Outbound>, wanted: &[Wanted]) {
    let by_key: HashMap<&str, (&str, &Outbound)> = rows
        .iter()
        .map(|(id, row)| (row.client_id.as_str(), (id.as_str(), row)))
        .collect();
    assert_eq!(by_key.len(), rows.len());
    for message in wanted {
        let (id, row) = by_key
            .get(message.key.as_str())
            .unwrap_or_else(|| panic!("{message:?} has no row"));
        let told = message.id.as_deref();
        assert!(told.is_none_or(|told| told == *id), "{message:?} is {id}");
        let wamid = message.wamid.as_deref();
        assert!(
            wamid.is_none() || wamid == row.wamid.as_deref(),
            "{message:?}: {:?}",
            row.wamid
        );
    }
    assert_eq!(rows.len(), wanted.len());
}

/// Once, with all its effects once.
async fn what_users_wrote_is_there(db: &Databases, written: &HashSet<String>) {
    let query = "SELECT wamid FROM whatsapp_messages WHERE direction = 'inbound'";
    let inbound = db.site.query(query, &[]).await.unwrap();
    let arrived: HashSet<String> = inbound.iter().map(|row| row.get("wamid")).collect();
    assert_eq!((&arrived, inbound.len()), (written, written.len()));
    let total = written.len();
    assert_eq!(count(db, "notifications WHERE kind = 'inbound_message'").await, total);
    let unread = "SELECT coalesce(sum(unread_count), 0) FROM conversations";
    assert_eq!(db.site.value(unread).await, total.to_string());
}

async fn everything_is_linked(db: &Databases) {
    let unlinked = "whatsapp_messages m LEFT JOIN conversations c ON c.id = m.conversation_id
                    WHERE c.lead_id IS DISTINCT FROM m.lead_id OR c.account_id IS DISTINCT FROM m.account_id";
    assert_eq!(count(db, unlinked).await, 0);
    assert_eq!(count(db, "message_status_events WHERE message_id IS NULL").await, 0);
}

async fn count(db: &Databases, rows: &str) -> usize {
    let count = db.site.value(&format!("SELECT count(*) FROM {rows}")).await;
    count.parse().unwrap()
}
