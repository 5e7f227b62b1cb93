//! The order of messages and of events.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use twinlog::site_db::events::{Event, EventKind};
use uuid::Uuid;

use super::clients::Wanted;
use super::people::Written;
use super::story::Told;
use crate::harness::Databases;

/// What a person wrote has its `created_at` in the order in which Meta's webhooks with it were committed first. Those that are
/// stored by one statement came at once: of two messages in them, either may be the first.
pub(super) async fn messages_are_in_the_order_of_their_arrival(db: &Databases, people: &[Written]) {
    let arrived = arrivals(db).await;
    let query = "SELECT wamid, (extract(epoch FROM created_at) * 1000000)::bigint AS created_at FROM whatsapp_messages
                 WHERE direction = 'inbound' ORDER BY created_at, wamid";
    let rows = db.site.query(query, &[]).await.unwrap();
    let persons: HashMap<&str, usize> = (people.iter().enumerate())
        .flat_map(|(index, person)| person.messages.iter().map(move |wamid| (wamid.as_str(), index)))
        .collect();
    let mut last: HashMap<usize, (String, i64, &Arrival)> = HashMap::new();
    for row in &rows {
        let (wamid, created_at): (&str, i64) = (row.get("wamid"), row.get("created_at"));
        let Some(&person) = persons.get(wamid) else { continue };
        let arrival = &arrived[wamid];
        if let Some((before, before_at, before_arrival)) = last.get(&person) {
            assert!(
                before_arrival.may_be_before(arrival),
                "person {person}: {before} ({before_at}, {before_arrival:?}) is before {wamid} ({created_at}, {arrival:?})"
            );
        }
        last.insert(person, (wamid.to_owned(), created_at, arrival));
    }
}

/// When the webhook with a message was committed, in microseconds, which it is, and where the message is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: i64,
    webhook: Uuid,
    place: usize,
}

impl Arrival {
    fn may_be_before(&self, other: &Self) -> bool {
        /// Longer than the webhooks of one statement differ by, and shorter than Meta needs to post another one.
        const AT_ONCE: i64 = 100;
        if self.webhook == other.webhook {
            self.place < other.place
        } else {
            self.at < other.at + AT_ONCE
        }
    }
}

/// The first arrival of each message, by wamid.
async fn arrivals(db: &Databases) -> HashMap<String, Arrival> {
    let query = "SELECT id, body, (extract(epoch FROM received_at) * 1000000)::bigint AS at FROM webhook_events";
    let mut first: HashMap<String, Arrival> = HashMap::new();
    for row in &db.site.query(query, &[]).await.unwrap() {
        let body: Value = serde_json::from_slice(row.get("body")).unwrap();
        let changes = body["entry"].as_array().into_iter().flatten();
        let changes = changes.flat_map(|entry| entry["changes"].as_array().into_iter().flatten());
        let messages = changes.flat_map(|change| change["value"]["messages"].as_array().into_iter().flatten());
        for (place, message) in messages.enumerate() {
            let arrival = Arrival {
                at: row.get("at"),
                webhook: row.get("id"),
                place,
            };
            let known = first
                .entry(message["id"].as_str().unwrap().to_owned())
                .or_insert_with(|| arrival.clone());
            if arrival < *known {
                *known = arrival;
            }
        }
    }
    first
}

/// Who has read all events has heard of each creation and of each change of a status once, in the order of each message;
/// of a lead before its conversation, of a conversation before its messages, and of what a client had seen before what it
/// did then.
pub(super) fn events_tell_the_story(events: &[Event], story: &[Told], wanted: &[Vec<Wanted>]) {
    assert!(events.is_sorted_by(|a, b| (a.position.round, a.position.index) < (b.position.round, b.position.index)));
    let heard = Heard::new(events);
    let mut told: HashMap<Uuid, Vec<String>> = HashMap::new();
    for line in story {
        match line {
            Told::Conversation { id, lead } => {
                let (before, after) = (heard.leads.get(lead), heard.conversations.get(id));
                assert!(
                    before.is_some() && before < after,
                    "lead {lead} {before:?}, conversation {id} {after:?}"
                );
            }
            Told::Created {
                id,
                conversation,
                status,
            } => {
                let (before, after) = (heard.conversations.get(conversation), heard.created.get(id));
                assert!(
                    before.is_some() && before < after,
                    "conversation {conversation} {before:?}, message {id} {after:?}"
                );
                told.entry(*id).or_default().push(format!("created {status}"));
            }
            Told::Status { id, status } => told.entry(*id).or_default().push(status.clone()),
        }
    }
    let known: HashSet<&Uuid> = told.keys().chain(heard.messages.keys()).collect();
    for id in known {
        let heard: Option<Vec<&String>> =
            (heard.messages.get(id)).map(|heard| heard.iter().map(|(word, _)| word).collect());
        assert_eq!(heard, told.get(id).map(|told| told.iter().collect()), "message {id}");
    }
    for client in wanted {
        a_client_saw_causes_before_effects(client, &heard);
    }
}

/// A client sent each message after it had the answer to the one before: what the answer said was committed by then.
fn a_client_saw_causes_before_effects(client: &[Wanted], heard: &Heard) {
    for pair in client.windows(2) {
        let [(before, Some(earlier)), (_, Some(later))] = [(&pair[0], pair[0].id), (&pair[1], pair[1].id)] else {
            continue;
        };
        let created = heard.created[&later];
        assert!(heard.created[&earlier] < created, "{pair:?}");
        if before.wamid.is_some() {
            let taken = (heard.messages[&earlier].iter())
                .find(|(word, _)| !["created pending", "sending", "pending", "unknown"].contains(&word.as_str()));
            assert!(taken.is_some_and(|(_, at)| *at < created), "{pair:?} {taken:?}");
        }
    }
}

/// By the place of the event among all.
#[derive(Default)]
struct Heard {
    leads: HashMap<Uuid, usize>,
    conversations: HashMap<Uuid, usize>,
    created: HashMap<Uuid, usize>,
    messages: HashMap<Uuid, Vec<(String, usize)>>,
}

impl Heard {
    fn new(events: &[Event]) -> Self {
        let mut heard = Self::default();
        for (at, event) in events.iter().enumerate() {
            let statuses = event.ids.iter().zip(&event.statuses);
            match event.kind {
                EventKind::LeadUpdated => first(&mut heard.leads, event, at),
                EventKind::ConversationUpdated => first(&mut heard.conversations, event, at),
                EventKind::MessageCreated => {
                    first(&mut heard.created, event, at);
                    for (id, status) in statuses {
                        let words = heard.messages.entry(*id).or_default();
                        words.push((format!("created {status}"), at));
                    }
                }
                EventKind::MessageStatus => {
                    for (id, status) in statuses {
                        heard.messages.entry(*id).or_default().push((status.to_string(), at));
                    }
                }
                EventKind::NotificationCreated | EventKind::Other => {}
            }
        }
        heard
    }
}

fn first(places: &mut HashMap<Uuid, usize>, event: &Event, at: usize) {
    for id in &event.ids {
        places.entry(*id).or_insert(at);
    }
}
