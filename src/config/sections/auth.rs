//! `[[auth.tokens]]`: the clients of the API.

use std::collections::HashSet;

use toml::Table;

use super::whatsapp::Account;
use crate::config::reader::ValueReader;

/// A client of the API.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// Its name in logs and in `whatsapp_messages.client_name`; each once.
    pub name: String,
    /// SHA-256 of its token; each once. The token itself is known to the client alone.
    pub sha256: [u8; 32],
    /// The `phone_number_id`s that it may use, each configured; `None`: all that are configured.
    pub numbers: Option<Vec<String>>,
    /// Whether it is a program that sends nothing into a conversation that a person has taken over.
    pub automation: bool,
}

impl ApiToken {
    /// Whether the client may use a number.
    #[must_use]
    pub fn may_use(&self, phone_number_id: &str) -> bool {
        self.numbers
            .as_ref()
            .is_none_or(|numbers| numbers.iter().any(|number| number == phone_number_id))
    }
}

pub(super) fn tokens(reader: &mut ValueReader<'_>, needed: bool) -> Option<Vec<ApiToken>> {
    let key = "auth.tokens";
    let tables = reader.tables(key)?;
    if tables.is_empty() && needed {
        return reader.wrong(
            key,
            "is missing: no client could call the API",
            "add a block [[auth.tokens]] with name and sha256 (printf %s TOKEN | sha256sum)",
        );
    }
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    let tokens: Vec<_> = tables
        .into_iter()
        .map(|(place, table)| {
            let token = token(reader, &place, table?)?;
            if !names.insert(token.name.clone()) {
                return reader.wrong(
                    &format!("{place}.name"),
                    format!("{:?} is in an earlier block too", token.name),
                    "give each client its own name",
                );
            }
            if !hashes.insert(token.sha256) {
                return reader.wrong(
                    &format!("{place}.sha256"),
                    "is in an earlier block too",
                    "give each client its own token",
                );
            }
            Some(token)
        })
        .collect();
    tokens.into_iter().collect()
}

fn token(reader: &mut ValueReader<'_>, place: &str, table: &Table) -> Option<ApiToken> {
    let name = reader.text_of(&format!("{place}.name"), table.get("name"));
    let hash_key = format!("{place}.sha256");
    let sha256 = reader.text_of(&hash_key, table.get("sha256")).and_then(|text| {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text.trim(), &mut bytes) {
            Ok(()) => Some(bytes),
            Err(_) => reader.wrong(
                &hash_key,
                "is not a SHA-256 of 64 hexadecimal digits",
                "make it with: printf %s TOKEN | sha256sum",
            ),
        }
    });
    let numbers = match table.get("numbers") {
        None => Some(None),
        Some(value) => numbers(reader, &format!("{place}.numbers"), value).map(Some),
    };
    let automation = match table.get("automation") {
        None => Some(false),
        Some(toml::Value::Boolean(automation)) => Some(*automation),
        Some(_) => reader.wrong(
            &format!("{place}.automation"),
            "must be true or false",
            "write true for a bot, without quotes",
        ),
    };
    Some(ApiToken {
        name: name?,
        sha256: sha256?,
        numbers: numbers?,
        automation: automation?,
    })
}

fn numbers(reader: &mut ValueReader<'_>, key: &str, value: &toml::Value) -> Option<Vec<String>> {
    let texts = value.as_array().and_then(|values| {
        let texts: Option<Vec<_>> = values.iter().map(|value| Some(value.as_str()?.to_owned())).collect();
        texts.filter(|texts| !texts.is_empty())
    });
    if texts.is_none() {
        return reader.wrong(
            key,
            "must be a list with at least one text",
            "list the phone_number_id of each number that the client may use: [\"106540352242922\"]",
        );
    }
    texts
}

/// Notes each number of a token that is not configured.
pub(super) fn check_numbers(reader: &mut ValueReader<'_>, tokens: &[ApiToken], accounts: &[Account]) {
    for (index, token) in tokens.iter().enumerate() {
        for number in token.numbers.iter().flatten() {
            if accounts.iter().all(|account| account.phone_number_id != *number) {
                reader.problem(
                    &format!("auth.tokens[{index}].numbers"),
                    format!("{number:?} is not the phone_number_id of a block [[whatsapp.accounts]]"),
                    "name only numbers that are configured",
                );
            }
        }
    }
}
