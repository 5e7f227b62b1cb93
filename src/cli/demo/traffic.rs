//! The traffic of the demo: a CRM that sends through the API, and users who write.

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::stage::{EXPIRED, NUMBERS, Stage, http_client};
use crate::dev::graph_simulator::{Inbound, Simulator};

/// Requests under way at once, as from a busy CRM.
const CONCURRENCY: usize = 16;

/// How many users there are.
const PEOPLE: u32 = 40;

/// The name of a contact whose row the Agent DB refuses for a while.
pub(super) const REFUSED_NAME: &str = "Refused by the Agent DB";

/// Drives the traffic of one demo.
pub(super) struct Traffic<'a> {
    client: reqwest::Client,
    base: String,
    token: &'a str,
    simulator: &'a Simulator,
}

fn person(index: u32) -> String {
    format!("1650555{:04}", 1000 + index % PEOPLE)
}

impl<'a> Traffic<'a> {
    pub(super) fn new(stage: &'a Stage) -> anyhow::Result<Self> {
        Ok(Self {
            client: http_client()?,
            base: format!("http://{}", stage.http),
            token: &stage.token,
            simulator: &stage.simulator,
        })
    }

    /// Sends from a number whose token has expired: the messages wait, and the number is held.
    pub(super) async fn expired_account(&self) -> anyhow::Result<()> {
        for index in 0..3 {
            let answer = self
                .post(
                    "/v1/messages",
                    &json!({
                        "phone_number_id": EXPIRED,
                        "to": format!("+{}", person(index)),
                        "text": "this one waits for a new token",
                        "client_id": format!("expired-{index}"),
                    }),
                )
                .await?;
            ensure!(answer["status"].is_string(), "the API answered {answer}");
        }
        Ok(())
    }

    /// A message of a contact whose row the Agent DB refuses.
    pub(super) async fn refused_contact(&self) {
        let mut message = Inbound::text(
            NUMBERS[0],
            "16505559999",
            "hello from a contact that the Agent DB refuses",
        );
        message.name = Some(REFUSED_NAME.to_owned());
        self.simulator.inbound(message).await;
    }

    /// Sends `messages` and receives a third as many, at the same time.
    pub(super) async fn drive(&self, messages: u32) -> anyhow::Result<()> {
        stream::iter(0..messages)
            .map(|index| async move {
                let quoted = if index.is_multiple_of(3) {
                    Some(self.receive(index).await)
                } else {
                    None
                };
                self.send(index, quoted).await
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// A user writes; returns the message's wamid.
    async fn receive(&self, index: u32) -> String {
        let number = NUMBERS[index as usize % NUMBERS.len()];
        let kinds = [
            "text",
            "image",
            "location",
            "audio",
            "interactive",
            "button",
            "document",
        ];
        let message = if index.is_multiple_of(6) {
            Inbound::text(number, &person(index), &format!("question {index}: does it arrive? 👋"))
        } else {
            Inbound::sample(number, &person(index), kinds[index as usize % kinds.len()])
        };
        self.simulator.inbound(message).await
    }

    /// The CRM sends: through both APIs, texts, templates and pictures, as answers if there is something to answer.
    async fn send(&self, index: u32, quoted: Option<String>) -> anyhow::Result<()> {
        let number = NUMBERS[index as usize % NUMBERS.len()];
        let to = format!("+{}", person(index));
        let mut body = match index % 4 {
            0 | 1 => json!({ "type": "text", "text": { "body": format!("answer {index}") } }),
            2 => json!({
                "type": "template",
                "template": {
                    "name": "order_update",
                    "language": { "code": "en_US" },
                    "components": [{ "type": "body", "parameters": [{ "type": "text", "text": format!("#{index}") }] }],
                },
            }),
            _ => {
                json!({ "type": "image", "image": { "link": "https://example.com/a.jpg", "caption": format!("picture {index}") } })
            }
        };
        body["to"] = json!(to);
        let answer = if index.is_multiple_of(2) {
            body["messaging_product"] = json!("whatsapp");
            body["recipient_type"] = json!("individual");
            if let Some(wamid) = quoted {
                body["context"] = json!({ "message_id": wamid });
            }
            self.post(&format!("/v26.0/{number}/messages"), &body).await?["messages"][0]["id"].clone()
        } else {
            body["phone_number_id"] = json!(number);
            body["client_id"] = json!(format!("demo-{index}"));
            if let Some(wamid) = quoted {
                body["reply_to"] = json!(wamid);
            }
            self.post("/v1/messages", &body).await?["id"].clone()
        };
        ensure!(answer.is_string(), "message {index} got no id");
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self
            .client
            .post(format!("{}{path}", self.base))
            .bearer_auth(self.token)
            .json(body)
            .send()
            .await
            .with_context(|| format!("POST {path}"))?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "POST {path} was answered with {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}
