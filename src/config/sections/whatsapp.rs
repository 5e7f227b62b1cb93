//! `[whatsapp]` and `[[whatsapp.accounts]]`: Meta's Cloud API and the business numbers.

use std::collections::HashSet;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use toml::Table;

use crate::config::reader::ValueReader;

/// Meta's throughput limit for a number that is not also in the WhatsApp Business app.
const DEFAULT_MESSAGES_PER_SECOND: u32 = 80;

/// Meta's Cloud API and the business numbers.
#[derive(Debug, Clone)]
pub struct Whatsapp {
    /// Base URL of the Graph API, without a trailing slash.
    pub graph_url: url::Url,
    /// Hosts that media are downloaded from: names, or `*.` and a domain. They get the number's access token.
    pub media_hosts: Vec<String>,
    /// Version segment for the plain API, `vN.M`.
    pub api_version: String,
    /// App secrets that may sign webhooks; at least one if the server runs.
    pub app_secrets: Vec<SecretString>,
    /// Token of the webhook's handshake.
    pub verify_token: Option<SecretString>,
    /// How long a Graph call may take; after that its outcome is unknown.
    pub send_timeout: Duration,
    /// Most attempts of a send that fails with an error that passes by itself.
    pub max_attempts: u32,
    /// First wait between two attempts.
    pub retry_initial: Duration,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// How often one message of a held number is tried.
    pub hold_probe: Duration,
    /// A message whose outcome has been unknown for this long is looked for in Meta's history.
    pub ask_history_after: Duration,
    /// How long a person's message keeps clients with `automation` out of its conversation; zero: not at all.
    pub takeover: Duration,
    /// The business numbers; at least one if the server runs, each once.
    pub accounts: Vec<Account>,
}

/// One business number.
#[derive(Debug, Clone)]
pub struct Account {
    /// Meta's id of the number, in digits.
    pub phone_number_id: String,
    /// Meta's id of the WhatsApp Business account that it belongs to, in digits.
    pub waba_id: Option<String>,
    /// The token of Graph API calls for it: fit for an HTTP header.
    pub access_token: SecretString,
    /// Meta's throughput limit for it.
    pub messages_per_second: u32,
}

pub(super) fn whatsapp(reader: &mut ValueReader<'_>, needed: bool) -> Option<Whatsapp> {
    let graph_url = graph_url(reader);
    let media_hosts = media_hosts(reader);
    let api_version = api_version(reader);
    let app_secrets = app_secrets(reader, needed);
    let verify_token = match reader.value("whatsapp.verify_token") {
        None => Some(None),
        token => reader.secret_of("whatsapp.verify_token", token).map(Some),
    };
    // Less than a second would give up calls that are about to be answered; Meta itself gives up within two minutes.
    let send_timeout = reader.milliseconds("whatsapp.send_timeout_ms", 1000..=120_000);
    let max_attempts = reader.integer("whatsapp.max_attempts", 1..=100);
    let retry = reader.waits("whatsapp.retry_initial_ms", "whatsapp.retry_max_ms");
    let hold_probe = reader.milliseconds("whatsapp.hold_probe_ms", 1000..=86_400_000);
    // Less than a second would ask before reports can come; Meta need not keep its history for longer than a day.
    let ask_history_after = reader.milliseconds("whatsapp.ask_history_after_ms", 1000..=86_400_000);
    // For longer than a year nobody means it.
    let takeover_minutes: Option<u64> = reader.integer("whatsapp.takeover_minutes", 0..=525_600);
    let accounts = accounts(reader, needed);
    let (retry_initial, retry_max) = retry?;
    Some(Whatsapp {
        graph_url: graph_url?,
        media_hosts: media_hosts?,
        api_version: api_version?,
        app_secrets: app_secrets?,
        verify_token: verify_token?,
        send_timeout: send_timeout?,
        max_attempts: max_attempts?,
        retry_initial,
        retry_max,
        hold_probe: hold_probe?,
        ask_history_after: ask_history_after?,
        takeover: Duration::from_secs(60 * takeover_minutes?),
        accounts: accounts?,
    })
}

fn graph_url(reader: &mut ValueReader<'_>) -> Option<url::Url> {
    let key = "whatsapp.graph_url";
    let example = "https://graph.facebook.com";
    let text = reader.text(key)?;
    match url::Url::parse(text.trim_end_matches('/')) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => reader.wrong(
            key,
            "must begin with https:// (or http://)",
            format!("write it as in {example}"),
        ),
        Ok(url) if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() => reader.wrong(
            key,
            "must be a base URL without user, query and fragment",
            format!("write it as in {example}"),
        ),
        Ok(url) => Some(url),
        Err(error) => reader.wrong(
            key,
            format!("is not a URL: {error}"),
            format!("write it as in {example}"),
        ),
    }
}

fn media_hosts(reader: &mut ValueReader<'_>) -> Option<Vec<String>> {
    let key = "whatsapp.media_hosts";
    let mut hosts = Vec::new();
    for value in reader.list(key)? {
        match value.as_str() {
            Some(host) => hosts.push(host.to_owned()),
            None => return reader.wrong(key, "must be a list of texts", "write each host in quotes"),
        }
    }
    for host in &hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:[]".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) || (host.starts_with("*.") && !name.contains('.')) {
            return reader.wrong(
                key,
                format!("{host:?} is not the name of a host"),
                "write names in lower case, or *. and a domain: [\"*.fbsbx.com\"]",
            );
        }
    }
    Some(hosts)
}

fn api_version(reader: &mut ValueReader<'_>) -> Option<String> {
    let key = "whatsapp.api_version";
    let text = reader.text(key)?;
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let version = text.strip_prefix('v').and_then(|rest| rest.split_once('.'));
    if version.is_some_and(|(major, minor)| number(major) && number(minor)) {
        return Some(text);
    }
    reader.wrong(
        key,
        format!("{text:?} is not a version of the Graph API"),
        "write it as in \"v26.0\"",
    )
}

fn app_secrets(reader: &mut ValueReader<'_>, needed: bool) -> Option<Vec<SecretString>> {
    let key = "whatsapp.app_secrets";
    let values = reader.list(key)?;
    if values.is_empty() && needed {
        return reader.wrong(
            key,
            "is empty: no webhook's signature could be verified",
            "set it to [{ file = \"…\" }] with the App Secret from Meta's dashboard (App settings, Basic)",
        );
    }
    let secrets: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(index, value)| reader.secret_of(&format!("{key}[{index}]"), Some(value)))
        .collect();
    secrets.into_iter().collect()
}

fn accounts(reader: &mut ValueReader<'_>, needed: bool) -> Option<Vec<Account>> {
    let key = "whatsapp.accounts";
    let tables = reader.tables(key)?;
    if tables.is_empty() && needed {
        return reader.wrong(
            key,
            "is missing: there is no number to send from",
            "add a block [[whatsapp.accounts]] with phone_number_id and access_token",
        );
    }
    let mut seen = HashSet::new();
    let accounts: Vec<_> = tables
        .into_iter()
        .map(|(place, table)| {
            let account = account(reader, &place, table?)?;
            if seen.insert(account.phone_number_id.clone()) {
                return Some(account);
            }
            reader.wrong(
                &format!("{place}.phone_number_id"),
                format!("{:?} is in an earlier block too", account.phone_number_id),
                "keep one block for each number",
            )
        })
        .collect();
    accounts.into_iter().collect()
}

fn account(reader: &mut ValueReader<'_>, place: &str, table: &Table) -> Option<Account> {
    let phone_number_id = meta_id(reader, place, table, "phone_number_id");
    let waba_id = match table.get("waba_id") {
        None => Some(None),
        Some(_) => meta_id(reader, place, table, "waba_id").map(Some),
    };
    let token_key = format!("{place}.access_token");
    let access_token = match table.get("access_token") {
        None => reader.wrong(
            &token_key,
            "is missing",
            "set it to { file = \"…\" } with a system user's token (Meta Business settings)",
        ),
        token => reader.secret_of(&token_key, token).and_then(|token| {
            if token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
                return Some(token);
            }
            reader.wrong(
                &token_key,
                "contains a blank or another character that an HTTP header cannot carry",
                "copy the token again, without quotes and line breaks",
            )
        }),
    };
    let messages_per_second = match table.get("messages_per_second") {
        None => Some(DEFAULT_MESSAGES_PER_SECOND),
        // Meta raises a number to 1,000 at most.
        limit => reader.integer_of(&format!("{place}.messages_per_second"), limit, 1..=1000),
    };
    Some(Account {
        phone_number_id: phone_number_id?,
        waba_id: waba_id?,
        access_token: access_token?,
        messages_per_second: messages_per_second?,
    })
}

fn meta_id(reader: &mut ValueReader<'_>, place: &str, table: &Table, name: &str) -> Option<String> {
    let key = format!("{place}.{name}");
    let text = reader.text_of(&key, table.get(name))?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text);
    }
    reader.wrong(
        &key,
        "is not an id of Meta: it has characters other than digits",
        "copy the id (not the phone number) from Meta's dashboard (WhatsApp, API setup)",
    )
}
