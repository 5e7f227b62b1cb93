//! A listener to `GET /v1/events`: reads server-sent events as a browser does, and comes back with its place.

use std::collections::VecDeque;

use serde_json::Value;

use super::TOKEN;
use crate::harness::{SOON, http_client};

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heard {
    pub(super) id: String,
    pub(super) event: String,
    pub(super) data: Value,
}

impl Heard {
    /// Kind, row and status: what an event is known by.
    pub(super) fn key(&self) -> String {
        let row = ["message", "lead", "notification", "conversation"];
        let row = row.iter().find_map(|of| self.data[of]["id"].as_str());
        let status = self.data["status"].as_str().unwrap_or("-");
        format!("{} {} {status}", self.event, row.unwrap_or("-"))
    }
}

/// A listener.
pub(super) struct Ear {
    http: reqwest::Client,
    /// The place that it would come back with.
    pub(super) last: String,
    response: Option<reqwest::Response>,
    text: String,
    ready: VecDeque<Heard>,
}

impl Ear {
    /// `query` begins with `?` or is empty.
    pub(super) async fn listening(url: &str, query: &str) -> Self {
        let mut ear = Self::after("");
        assert_eq!(ear.connect(url, query).await, Some(200));
        ear
    }

    /// One that comes back with this place.
    pub(super) fn after(last: &str) -> Self {
        Self {
            http: http_client(),
            last: last.to_owned(),
            response: None,
            text: String::new(),
            ready: VecDeque::new(),
        }
    }

    /// The status of the answer; `None`: nobody answered.
    pub(super) async fn connect(&mut self, url: &str, query: &str) -> Option<u16> {
        let mut request = self.http.get(format!("{url}/v1/events{query}")).bearer_auth(TOKEN);
        if !self.last.is_empty() {
            request = request.header("last-event-id", &self.last);
        }
        self.text.clear();
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        self.response = Some(response);
        Some(status)
    }

    /// The next event; `None`: the stream has ended.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                self.last.clone_from(&heard.id);
                return Some(heard);
            }
            let piece = self.response.as_mut()?.chunk().await.ok()??;
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
                    line.map(ToOwned::to_owned)
                };
                match (field("data"), field("id")) {
                    (Some(data), id) => self.ready.push_back(Heard {
                        id: id.unwrap(),
                        event: field("event").unwrap(),
                        data: serde_json::from_str(&data).unwrap(),
                    }),
                    (None, Some(id)) if self.ready.is_empty() => self.last = id,
                    (None, _) => {}
                }
                self.text = rest.to_owned();
            }
        }
    }

    /// What it hears up to the first event that is wanted.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Heard) -> bool) -> Vec<Heard> {
        let mut all = Vec::new();
        let listening = async {
            loop {
                let heard = self
                    .next()
                    .await
                    .unwrap_or_else(|| panic!("the stream has ended after {all:?}"));
                let found = wanted(&heard);
                all.push(heard);
                if found {
                    return;
                }
            }
        };
        let listened = tokio::time::timeout(SOON, listening).await;
        assert!(listened.is_ok(), "it was not heard among {all:?}");
        all
    }
}
