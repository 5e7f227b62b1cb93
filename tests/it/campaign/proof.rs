//! What must be so when the faults have ceased: what Meta knows, what clients were told and what people wrote is what the
//! Site DB holds, once, and under one lead and one conversation for each person.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use twinlog::dev::graph_simulator::{Accepted, Ledger, Simulator};
use uuid::Uuid;

use super::clients::Wanted;
use super::people::Written;
use super::servers::Servers;
use crate::harness::{Databases, eventually_equal};

/// Nothing is under way any more.
pub(super) async fn settled(db: &Databases, meta: &Simulator, within: Duration) {
    // At one look: a message that is sent brings reports, and one of a person merges leads.
    let open = async || {
        let open = "SELECT concat_ws(', ',
            (SELECT count(*) FROM whatsapp_messages WHERE status IN ('pending', 'sending')) || ' messages are under way',
            (SELECT count(*) FROM webhook_events WHERE state = 'received') || ' webhooks are not processed',
            (SELECT count(*) FROM webhook_events WHERE state = 'failed') || ' webhooks have failed',
            (SELECT count(*) FROM twinlog.lead_statements) || ' statements on people are not settled')";
        let before = db.site.value(open).await;
        format!("{before}, Meta has no 200 for {} events", meta.pending())
    };
    let none = "0 messages are under way, 0 webhooks are not processed, 0 webhooks have failed, \
                0 statements on people are not settled, Meta has no 200 for 0 events";
    // Twice, as the pieces of one look are not of the same moment.
    for _ in 0..2 {
        eventually_equal("nothing is under way", within, none.to_owned(), open).await;
    }
}

async fn count(db: &Databases, rows: &str) -> usize {
    let count = db.site.value(&format!("SELECT count(*) FROM {rows}")).await;
    count.parse().unwrap()
}

/// A row of `whatsapp_messages`.
#[derive(Debug)]
struct Row {
    id: Uuid,
    wamid: Option<String>,
    status: String,
    outbound: bool,
    client_id: Option<String>,
    kind: String,
    lead: Uuid,
    conversation: Uuid,
}

async fn rows(db: &Databases) -> Vec<Row> {
    let query =
        "SELECT id, wamid, status, direction = 'outbound' AS outbound, client_id, type, lead_id, conversation_id
                 FROM whatsapp_messages";
    let rows = db.site.query(query, &[]).await.unwrap();
    rows.iter()
        .map(|row| Row {
            id: row.get("id"),
            wamid: row.get("wamid"),
            status: row.get("status"),
            outbound: row.get("outbound"),
            client_id: row.get("client_id"),
            kind: row.get("type"),
            lead: row.get("lead_id"),
            conversation: row.get("conversation_id"),
        })
        .collect()
}

pub(super) async fn everything_is_there_once(
    db: &Databases,
    ledger: &Ledger,
    wanted: &[Vec<Wanted>],
    people: &[Written],
) {
    let rows = rows(db).await;
    if let Some((wrong, wamid)) = wrongly_recorded(&rows, ledger).into_iter().next() {
        panic!("{wrong}; the Site DB has {}", known_of(db, &wamid).await);
    }
    what_clients_were_told_is_so(&rows, wanted);
    what_people_wrote_is_there(&rows, people);
    if let Some((person, leads)) = person_with_several_leads(&rows, wanted, people) {
        let leads: Vec<String> = leads.iter().map(|id| format!("'{id}'")).collect();
        let known = format!(
            "SELECT jsonb_agg(to_jsonb(l) || jsonb_build_object('ids', (SELECT jsonb_agg(to_jsonb(i)) FROM lead_ids i WHERE i.lead_id = l.id)))
             FROM leads l WHERE id IN ({})",
            leads.join(", ")
        );
        panic!("person {person} has several leads: {}", db.site.value(&known).await);
    }
    effects_happened_once(db, people).await;
}

/// What Meta took is one row with Meta's id and last word; nothing else looks as if it were sent. What is not so, each with
/// the message's wamid.
fn wrongly_recorded(rows: &[Row], ledger: &Ledger) -> Vec<(String, String)> {
    assert_eq!(ledger.duplicates(), Vec::<&str>::new(), "sent twice");
    let ours: HashMap<Uuid, &Row> = (rows.iter())
        .filter(|row| row.client_id.is_some())
        .map(|row| (row.id, row))
        .collect();
    let (mut sent, mut wrong) = (HashSet::new(), Vec::new());
    for message in &ledger.messages {
        let opaque = message.opaque.as_deref();
        let id: Uuid = opaque.and_then(|id| id.strip_prefix("tl:")).unwrap().parse().unwrap();
        sent.insert(id);
        let Some(row) = ours.get(&id) else {
            panic!("{message:?} has no row");
        };
        // Where the answer was lost and no status names our id, nothing can tell.
        let untold = message.statuses.is_empty() || !message.echoes;
        let is_right = if untold && row.wamid.is_none() {
            row.status == "unknown"
        } else {
            row.wamid.as_deref() == Some(message.wamid.as_str()) && last_word(message).contains(&row.status.as_str())
        };
        if !is_right {
            wrong.push((format!("{row:?} of {message:?}"), message.wamid.clone()));
        }
    }
    for row in ours.values().filter(|row| !sent.contains(&row.id)) {
        assert_eq!(row.wamid, None, "{row:?}");
        assert!(
            ["unknown", "failed", "cancelled"].contains(&row.status.as_str()),
            "{row:?}"
        );
    }
    wrong
}

/// What was received about a message.
async fn known_of(db: &Databases, wamid: &str) -> String {
    let reports = format!(
        "SELECT coalesce(jsonb_agg(to_jsonb(e) - 'payload'), '[]') FROM message_status_events e WHERE wamid = '{wamid}'"
    );
    let webhooks = format!(
        "SELECT coalesce(jsonb_agg(to_jsonb(w) - 'body' || jsonb_build_object('body', convert_from(body, 'UTF8'))), '[]')
         FROM webhook_events w WHERE position('{wamid}' IN replace(convert_from(body, 'UTF8'), '\\/', '/')) > 0"
    );
    let row = format!("SELECT to_jsonb(m) - 'request' FROM whatsapp_messages m WHERE wamid = '{wamid}'");
    format!(
        "reports {}, webhooks {}, row {}",
        db.site.value(&reports).await,
        db.site.value(&webhooks).await,
        db.site.value(&row).await
    )
}

/// The status that a message must have by what Meta reported of it.
fn last_word(message: &Accepted) -> &'static [&'static str] {
    let said = |word: &str| message.statuses.iter().any(|status| status.status == word);
    match () {
        () if message.statuses.is_empty() => &["accepted", "held"],
        () if said("failed") => &["failed"],
        () if said("read") => &["read"],
        () if said("delivered") => &["delivered"],
        () => &["sent"],
    }
}

fn what_clients_were_told_is_so(rows: &[Row], wanted: &[Vec<Wanted>]) {
    let by_key: HashMap<&str, &Row> = (rows.iter())
        .filter_map(|row| Some((row.client_id.as_deref()?, row)))
        .collect();
    let mut keys = 0;
    for message in wanted.iter().flatten() {
        keys += 1;
        let row = by_key.get(message.key.as_str());
        let row = row.unwrap_or_else(|| panic!("{message:?} has no row"));
        assert!(message.id.is_none_or(|told| told == row.id), "{message:?}: {row:?}");
        assert!(
            message.wamid.is_none() || message.wamid == row.wamid,
            "{message:?}: {row:?}"
        );
    }
    let outbound = rows.iter().filter(|row| row.client_id.is_some()).count();
    assert_eq!((by_key.len(), outbound), (keys, keys), "a row that no client wanted");
}

fn what_people_wrote_is_there(rows: &[Row], people: &[Written]) {
    let mut stored: HashMap<&str, usize> = HashMap::new();
    for row in rows.iter().filter(|row| row.client_id.is_none()) {
        *stored.entry(row.wamid.as_deref().unwrap()).or_default() += 1;
        // Its picture has come.
        assert_ne!(row.kind, "media_placeholder", "{row:?}");
        assert!(row.outbound || row.status == "received", "{row:?}");
    }
    for wamid in people
        .iter()
        .flat_map(|person| person.messages.iter().chain(&person.others))
    {
        assert_eq!(stored.remove(wamid.as_str()), Some(1), "{wamid}");
    }
    // Notices of other ids are messages too.
    let others: Vec<&&str> = stored.keys().filter(|wamid| wamid.starts_with("wamid.in")).collect();
    assert_eq!(others, Vec::<&&str>::new());
}

/// All that was said with a person is under one lead, and over each of our numbers in one conversation; nobody else's is.
/// Returns a person with several leads.
fn person_with_several_leads(
    rows: &[Row],
    wanted: &[Vec<Wanted>],
    people: &[Written],
) -> Option<(usize, HashSet<Uuid>)> {
    let mut persons: HashMap<&str, usize> = HashMap::new();
    for (index, person) in people.iter().enumerate() {
        persons.extend(
            person
                .messages
                .iter()
                .chain(&person.others)
                .map(|wamid| (wamid.as_str(), index)),
        );
    }
    let by_key: HashMap<&str, usize> = (wanted.iter().flatten())
        .map(|message| (message.key.as_str(), message.person))
        .collect();
    let mut leads: HashMap<usize, HashSet<Uuid>> = HashMap::new();
    let mut conversations: HashMap<usize, HashSet<Uuid>> = HashMap::new();
    for row in rows {
        let by_wamid = || persons.get(row.wamid.as_deref()?).copied();
        let person = (row.client_id.as_deref()).map_or_else(by_wamid, |key| by_key.get(key).copied());
        if let Some(person) = person {
            leads.entry(person).or_default().insert(row.lead);
            conversations.entry(person).or_default().insert(row.conversation);
        }
    }
    if let Some((person, several)) = leads.iter().find(|(_, leads)| leads.len() > 1) {
        return Some((*person, several.clone()));
    }
    for (person, conversations) in &conversations {
        assert!(
            conversations.len() <= super::NUMBERS.len(),
            "person {person}: {conversations:?}"
        );
    }
    let distinct: HashSet<&Uuid> = leads.values().flatten().collect();
    assert_eq!(distinct.len(), leads.len(), "several persons are one lead");
    None
}

async fn effects_happened_once(db: &Databases, people: &[Written]) {
    let written: usize = people.iter().map(|person| person.messages.len()).sum();
    for (effects, expected) in [
        ("notifications WHERE kind = 'inbound_message' AND message_id IN (SELECT id FROM whatsapp_messages WHERE type <> 'system')", written),
        (
            "message_status_events e WHERE message_id IS NULL
               AND EXISTS (SELECT FROM whatsapp_messages m WHERE m.wamid = e.wamid)",
            0,
        ),
        (
            "whatsapp_messages m LEFT JOIN conversations c ON c.id = m.conversation_id LEFT JOIN leads l ON l.id = m.lead_id
             WHERE c.lead_id IS DISTINCT FROM m.lead_id OR c.account_id IS DISTINCT FROM m.account_id
                OR c.merged_into IS NOT NULL OR l.merged_into IS NOT NULL",
            0,
        ),
        (
            "(SELECT FROM conversations WHERE merged_into IS NULL GROUP BY account_id, lead_id HAVING count(*) > 1) AS c",
            0,
        ),
    ] {
        assert_eq!(count(db, effects).await, expected, "{effects}");
    }
}

/// No transaction was ended because it waited for another one that waited for it.
pub(super) fn nobody_waited_in_a_circle(db: &Databases, servers: &Servers) {
    let log = db.site.cluster.log();
    let circles: Vec<&str> = log.lines().filter(|line| line.contains("deadlock detected")).collect();
    assert_eq!(circles, Vec::<&str>::new(), "{log}");
    let told: Vec<&str> = servers.said().lines().filter(|line| line.contains("40P01")).collect();
    assert_eq!(told, Vec::<&str>::new());
}
