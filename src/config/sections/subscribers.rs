//! `[[subscribers]]`: receivers that webhooks are handed on to, as Meta delivers them.

use std::collections::HashSet;

use secrecy::{ExposeSecret, SecretString};
use toml::Table;

use crate::config::reader::ValueReader;

/// Longest name: it is a label of metrics.
const MAX_NAME: usize = 64;

/// What a part of a webhook tells.
const KINDS: [&str; 5] = ["messages", "statuses", "echoes", "history", "notices"];

/// A receiver of webhooks.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Its name in metrics, logs and the Site DB; each once. What waits for it is kept under this name.
    pub name: String,
    /// Where it receives.
    pub url: url::Url,
    /// Signs what it gets (`X-Hub-Signature-256`).
    pub secret: SecretString,
    /// The token of the handshake; `None`: there is none.
    pub verify_token: Option<SecretString>,
    /// The webhook fields that it gets; `None`: all.
    pub fields: Option<Vec<String>>,
    /// The `phone_number_id`s whose webhooks it gets; `None`: all, and what belongs to no number.
    pub numbers: Option<Vec<String>>,
    /// Which of `messages`, `statuses`, `echoes`, `history`, `notices` it gets; `None`: all.
    pub kinds: Option<Vec<String>>,
}

pub(super) fn subscribers(reader: &mut ValueReader<'_>) -> Option<Vec<Subscriber>> {
    let mut names = HashSet::new();
    let subscribers: Vec<_> = reader
        .tables("subscribers")?
        .into_iter()
        .map(|(place, table)| {
            let subscriber = subscriber(reader, &place, table?)?;
            if names.insert(subscriber.name.clone()) {
                return Some(subscriber);
            }
            reader.wrong(
                &format!("{place}.name"),
                format!("{:?} is in an earlier block too", subscriber.name),
                "give each subscriber its own name",
            )
        })
        .collect();
    subscribers.into_iter().collect()
}

fn subscriber(reader: &mut ValueReader<'_>, place: &str, table: &Table) -> Option<Subscriber> {
    let name = name(reader, &format!("{place}.name"), table);
    let url = url(reader, &format!("{place}.url"), table);
    let secret_key = format!("{place}.secret");
    let secret = match table.get("secret") {
        None => reader.wrong(
            &secret_key,
            "is missing",
            "set it: the receiver checks signatures with it",
        ),
        value => reader.secret_of(&secret_key, value),
    };
    let verify_token = match table.get("verify_token") {
        None => Some(None),
        value => reader.secret_of(&format!("{place}.verify_token"), value).map(Some),
    };
    let mut list = |field: &str, example: &str| match table.get(field) {
        None => Some(None),
        Some(value) => texts(reader, &format!("{place}.{field}"), value, example).map(Some),
    };
    let fields = list("fields", "[\"messages\"]");
    let numbers = list("numbers", "[\"106540352242922\"]");
    let kinds = list("kinds", "[\"messages\", \"statuses\"]");
    if let Some(Some(kinds)) = &kinds
        && let Some(kind) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str()))
    {
        return reader.wrong(
            &format!("{place}.kinds"),
            format!("there is no kind {kind:?}"),
            format!("choose some of: {}", KINDS.join(", ")),
        );
    }
    Some(Subscriber {
        name: name?,
        url: url?,
        secret: secret?,
        verify_token: verify_token?,
        fields: fields?,
        numbers: numbers?,
        kinds: kinds?,
    })
}

fn name(reader: &mut ValueReader<'_>, key: &str, table: &Table) -> Option<String> {
    let name = reader.text_of(key, table.get("name"))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= MAX_NAME && name.bytes().all(plain) {
        return Some(name);
    }
    reader.wrong(
        key,
        "is not a name of at most 64 letters, digits, hyphens, dots and underscores",
        "write it as in \"chatwoot\"",
    )
}

fn url(reader: &mut ValueReader<'_>, key: &str, table: &Table) -> Option<url::Url> {
    let text = match table.get("url") {
        None => return reader.wrong(key, "is missing", "set it: where the subscriber receives"),
        // The address may hold a key, so it is not repeated.
        value => reader.secret_of(key, value)?,
    };
    match url::Url::parse(text.expose_secret()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.fragment().is_none() => Some(url),
        _ => reader.wrong(
            key,
            "is not an address with https:// (or http://)",
            "write it as in \"https://crm.example.com/webhooks/whatsapp\"",
        ),
    }
}

fn texts(reader: &mut ValueReader<'_>, key: &str, value: &toml::Value, example: &str) -> Option<Vec<String>> {
    let texts = value.as_array().and_then(|values| {
        let texts: Option<Vec<_>> = values.iter().map(|value| Some(value.as_str()?.to_owned())).collect();
        texts.filter(|texts| !texts.is_empty())
    });
    if texts.is_none() {
        return reader.wrong(
            key,
            "must be a list with at least one text",
            format!("write it as in {example}, or leave it out for all"),
        );
    }
    texts
}

/// Notes each number that is not configured: nothing would ever come for it.
pub(super) fn check_numbers(reader: &mut ValueReader<'_>, subscribers: &[Subscriber], configured: &[&str]) {
    for (index, subscriber) in subscribers.iter().enumerate() {
        for number in subscriber.numbers.iter().flatten() {
            if !configured.contains(&number.as_str()) {
                reader.problem(
                    &format!("subscribers[{index}].numbers"),
                    format!("{number:?} is not the phone_number_id of a block [[whatsapp.accounts]]"),
                    "name only numbers that are configured",
                );
            }
        }
    }
}
