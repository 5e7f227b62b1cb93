//! People who write to us, over any of our numbers, under any of their ids, and whose ids change. Meta repeats some of it.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twinlog::dev::graph_simulator::{IdentityChange, Inbound, Simulator};

use super::{NUMBERS, SETTLED, Size};
use crate::harness::pace;

/// The first people live in Brazil, where the number that is dialled may have one digit more than WhatsApp's.
const BRAZILIANS: usize = 2;

/// What a person did.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The wamids of what the person wrote to us, in no order: webhooks overtake each other.
    pub(super) messages: Vec<String>,
    /// Those of what was said before we joined the API, of which some is ours, and of what was written on our phone.
    pub(super) others: Vec<String>,
}

/// A person's number after so many changes of it.
fn number(person: usize, changes: u32) -> String {
    let country = if person < BRAZILIANS { "55118" } else { "1650" };
    format!("{country}{person:03}{changes:04}")
}

/// How clients dial a person: the number that they were given once.
pub(super) fn dialled(person: usize) -> String {
    if person < BRAZILIANS {
        number(person, 0).replacen("55118", "551198", 1)
    } else {
        number(person, 0)
    }
}

pub(super) struct People {
    stop: CancellationToken,
    tasks: JoinSet<(usize, Written)>,
}

impl People {
    pub(super) fn start(meta: &Arc<Simulator>, size: Size, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for index in 0..size.people {
            let person = Person {
                index,
                meta: Arc::clone(meta),
                random: StdRng::seed_from_u64(seed.wrapping_add(index as u64)),
                pause: size.pause,
                number_changes: 0,
                user_id_changes: 0,
                has_user_id: false,
                serial: 0,
                written: Written::default(),
            };
            tasks.spawn(person.run(stop.clone()));
        }
        Self { stop, tasks }
    }

    /// By person.
    pub(super) async fn end(self) -> Vec<Written> {
        self.stop.cancel();
        let mut all = tokio::time::timeout(SETTLED, self.tasks.join_all()).await.unwrap();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, written)| written).collect()
    }
}

struct Person {
    index: usize,
    meta: Arc<Simulator>,
    random: StdRng,
    pause: (u64, u64),
    number_changes: u32,
    user_id_changes: u32,
    /// Whether a message has named the number and the user id together.
    has_user_id: bool,
    serial: u32,
    written: Written,
}

impl Person {
    async fn run(mut self, stop: CancellationToken) -> (usize, Written) {
        while !stop.is_cancelled() {
            match self.random.random_range(0..20) {
                0 => self.changes_number().await,
                1 => self.changes_user_id().await,
                2 => self.history().await,
                3 => self.echo().await,
                4 => self.repeated().await,
                _ => self.writes().await,
            }
            pace(Duration::from_millis(
                self.random.random_range(self.pause.0..self.pause.1),
            ))
            .await;
        }
        // Says who it is in the end, whatever was lost before.
        self.has_user_id = true;
        self.writes_as(Some(self.number()), Some(self.user_id())).await;
        (self.index, self.written)
    }

    fn number(&self) -> String {
        number(self.index, self.number_changes)
    }

    fn user_id(&self) -> String {
        format!("US.{}{:04}", self.index + 100, self.user_id_changes)
    }

    fn ours(&mut self) -> &'static str {
        NUMBERS[self.random.random_range(0..NUMBERS.len())]
    }

    fn wamid(&mut self, kind: &str) -> String {
        self.serial += 1;
        format!("wamid.{kind}-{}-{}", self.index, self.serial)
    }

    async fn writes(&mut self) {
        let (number, user_id) = (Some(self.number()), Some(self.user_id()));
        match self.random.random_range(0..4) {
            0 => {
                self.has_user_id = true;
                self.writes_as(number, user_id).await;
            }
            1 if self.has_user_id => self.writes_as(None, user_id).await,
            _ => self.writes_as(number, None).await,
        }
    }

    async fn writes_as(&mut self, from: Option<String>, user_id: Option<String>) {
        let ours = self.ours();
        let mut message = match self.random.random_range(0..4) {
            0 => Inbound::sample(ours, "", "image"),
            1 => Inbound::sample(ours, "", "button"),
            _ => Inbound::text(ours, "", "hello?"),
        };
        message.from = from;
        message.user_id = user_id;
        message.message["id"] = json!(self.wamid("in"));
        let wamid = self.meta.inbound(message).await;
        self.written.messages.push(wamid);
    }

    async fn changes_number(&mut self) {
        let before = self.number();
        self.number_changes += 1;
        let change = IdentityChange {
            from: Some(before),
            to: Some(self.number()),
            ..IdentityChange::default()
        };
        self.notices(&change).await;
    }

    async fn changes_user_id(&mut self) {
        if !self.has_user_id {
            return;
        }
        let before = self.user_id();
        self.user_id_changes += 1;
        let change = IdentityChange {
            from: self.random.random_bool(0.5).then(|| self.number()),
            previous_user_id: Some(before),
            user_id: Some(self.user_id()),
            ..IdentityChange::default()
        };
        self.notices(&change).await;
    }

    /// Meta tells each of our numbers, perhaps twice.
    async fn notices(&mut self, change: &IdentityChange) {
        for ours in NUMBERS {
            self.meta.change_identity(ours, change).await;
        }
        if self.random.random_bool(0.3) {
            let ours = self.ours();
            self.meta.change_identity(ours, change).await;
        }
    }

    /// What was said before: the picture may come before its placeholder.
    async fn history(&mut self) {
        let (ours, person) = (self.ours(), self.number());
        let (text, answer, picture) = (self.wamid("said"), self.wamid("answered"), self.wamid("shown"));
        let message = |from: &str, id: &str, kind: Value| {
            let mut message = json!({"from": from, "id": id, "timestamp": "1749416383"});
            message
                .as_object_mut()
                .unwrap()
                .extend(kind.as_object().unwrap().clone());
            message
        };
        let messages = [
            message(&person, &text, json!({"type": "text", "text": {"body": "before"}})),
            message(
                "15550783881",
                &answer,
                json!({"to": person, "type": "text", "text": {"body": "before"}}),
            ),
            message(&person, &picture, json!({"type": "media_placeholder"})),
        ];
        let values = [
            json!({"history": [{"metadata": {"phase": 0}, "threads": [{"id": person, "context": {"wa_id": person},
                "messages": messages}]}]}),
            json!({"messages": [message(&person, &picture, json!({"type": "image", "image": {"id": "1"}}))]}),
        ];
        for value in values {
            self.meta.update(ours, "history", value).await;
        }
        self.written.others.extend([text, answer, picture]);
    }

    /// Written to the person on our phone.
    async fn echo(&mut self) {
        let (ours, id) = (self.ours(), self.wamid("echo"));
        let echo = json!({"from": "15550783881", "to": self.number(), "id": id, "timestamp": "1749416383",
            "type": "text", "text": {"body": "from the phone"}});
        let value = json!({"message_echoes": [echo]});
        self.meta.update(ours, "smb_message_echoes", value).await;
        self.written.others.push(id);
    }

    /// One message that Meta posts again and again, though it had its 200.
    async fn repeated(&mut self) {
        let (ours, person, id) = (self.ours(), self.number(), self.wamid("repeated"));
        let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [{
            "field": "messages",
            "value": {
                "messaging_product": "whatsapp",
                "metadata": {"display_phone_number": "15550783881", "phone_number_id": ours},
                "contacts": [{"profile": {"name": "Twice"}, "wa_id": person}],
                "messages": [{"id": id, "from": person, "timestamp": "1760000000", "type": "text",
                              "text": {"body": "did you get this?"}}],
            },
        }]}]});
        let body = body.to_string();
        let mut taken = 0;
        while taken < 3 {
            if self.meta.post_webhook(body.as_bytes()).await == Some(200) {
                taken += 1;
            } else {
                pace(Duration::from_millis(50)).await;
            }
        }
        self.written.messages.push(id);
    }
}
