//! Each section of the configuration: what its values may be, and why.

use std::collections::HashSet;
use std::net::SocketAddr;

use figment::value::Dict;
use secrecy::{ExposeSecret, SecretString};

use super::reader::Reader;
use super::{
    Account, Admin, Agent, ApiToken, Config, DatabaseUrl, Host, Http, Log, LogFormat, Needs, Site, SslMode, Sync,
    Whatsapp,
};

/// The longest name of anything in Postgres (NAMEDATALEN - 1).
const MAX_NAME_BYTES: usize = 63;

/// Meta's throughput limit for a number that is not also in the WhatsApp Business app.
const DEFAULT_MESSAGES_PER_SECOND: u32 = 80;

/// Reads every section, so that every problem is noted; `None` if there is one.
pub(super) fn read(reader: &mut Reader<'_>, needs: Needs) -> Option<Config> {
    let site = site(reader, needs.site);
    let agent = agent(reader, needs.agent);
    if let (Some(site), Some(agent), true) = (&site, &agent, needs.site && needs.agent)
        && same_database(&site.url, &agent.url)
    {
        reader.problem(
            "agent.url",
            "is the same database as site.url",
            "name the other one: the daemon would read back what it writes",
        );
    }
    let (sync, http, admin) = (sync(reader), http(reader), admin(reader));
    if let (Some(http), Some(admin)) = (&http, &admin)
        && http.listen == admin.listen
        && http.listen.port() != 0
    {
        reader.problem(
            "admin.listen",
            "is the same address as http.listen",
            "give it a port of its own",
        );
    }
    let whatsapp = whatsapp(reader, needs.whatsapp);
    let tokens = tokens(reader, needs.whatsapp);
    let log = log(reader);
    Some(Config {
        site: site?,
        agent: agent?,
        sync: sync?,
        http: http?,
        admin: admin?,
        whatsapp: whatsapp?,
        tokens: tokens?,
        log: log?,
    })
}

fn site(reader: &mut Reader<'_>, needed: bool) -> Option<Site> {
    let url = database_url(reader, "site.url", needed);
    // Postgres's own default for max_connections is 100, for everybody together.
    let max_connections = reader.integer("site.max_connections", 1..=1000);
    Some(Site {
        url: url?,
        max_connections: max_connections?,
    })
}

fn agent(reader: &mut Reader<'_>, needed: bool) -> Option<Agent> {
    Some(Agent {
        url: database_url(reader, "agent.url", needed)?,
    })
}

fn database_url(reader: &mut Reader<'_>, key: &str, needed: bool) -> Option<DatabaseUrl> {
    let value = reader.value(key);
    if value.is_none() {
        if needed {
            return reader.wrong(
                key,
                "is missing",
                format!(
                    "set it to postgres://USER:PASSWORD@HOST:5432/DATABASE, here or as {}",
                    super::load::variable_of(key)
                ),
            );
        }
        return Some(unset());
    }
    let text = reader.secret_of(key, value)?;
    match text.expose_secret().trim().parse() {
        Ok(url) => Some(url),
        Err(error) => reader.wrong(
            key,
            error,
            "write it as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=…",
        ),
    }
}

/// Stands in for a URL that a command said it does not need: nobody can listen there.
fn unset() -> DatabaseUrl {
    DatabaseUrl {
        host: Host::Unix("/nonexistent".into()),
        port: 5432,
        user: "unset".to_owned(),
        password: None,
        database: "unset".to_owned(),
        sslmode: SslMode::Disable,
        sslrootcert: None,
    }
}

fn same_database(left: &DatabaseUrl, right: &DatabaseUrl) -> bool {
    (&left.host, left.port, &left.database) == (&right.host, right.port, &right.database)
}

fn sync(reader: &mut Reader<'_>) -> Option<Sync> {
    let publication = reader.text("sync.publication").and_then(|name| {
        if name.len() <= MAX_NAME_BYTES && !name.contains('\0') {
            return Some(name);
        }
        reader.wrong(
            "sync.publication",
            "is no name of a publication",
            "take at most 63 bytes",
        )
    });
    let slot = slot(reader);
    let tables = tables(reader);
    // A million rows of a kilobyte are the gigabyte that is the limit of the bytes.
    let batch_rows = reader.integer("sync.batch_rows", 1..=1_000_000);
    let batch_bytes = reader.integer("sync.batch_bytes", 65_536..=1_073_741_824);
    let copy_chunk_rows = reader.integer("sync.copy_chunk_rows", 1..=1_000_000);
    // Each holds a connection on both sides.
    let copy_workers = reader.integer("sync.copy_workers", 1..=32);
    let retry = reader.waits("sync.retry_initial_ms", "sync.retry_max_ms");
    let max_failed_rows = reader.integer("sync.max_failed_rows", 1..=100_000_000);
    let reconnect = reader.waits("sync.reconnect_initial_ms", "sync.reconnect_max_ms");
    let ((retry_initial, retry_max), (reconnect_initial, reconnect_max)) = (retry?, reconnect?);
    Some(Sync {
        publication: publication?,
        slot: slot?,
        tables: tables?,
        batch_rows: batch_rows?,
        batch_bytes: batch_bytes?,
        copy_chunk_rows: copy_chunk_rows?,
        copy_workers: copy_workers?,
        retry_initial,
        retry_max,
        max_failed_rows: max_failed_rows?,
        reconnect_initial,
        reconnect_max,
    })
}

/// Postgres's rule for slots (`ReplicationSlotValidateName`), stricter than for other names.
fn slot(reader: &mut Reader<'_>) -> Option<String> {
    let name = reader.text("sync.slot")?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.len() <= MAX_NAME_BYTES && name.chars().all(allowed) {
        return Some(name);
    }
    reader.wrong(
        "sync.slot",
        format!("{name:?} is no name of a replication slot"),
        "take 1 to 63 of a-z, 0-9 and _",
    )
}

fn tables(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let key = "sync.tables";
    let mut patterns = Vec::new();
    let mut whole = true;
    for (index, value) in reader.list(key)?.into_iter().enumerate() {
        let place = format!("{key}[{index}]");
        let Some(pattern) = reader.text_of(&place, Some(value)) else {
            whole = false;
            continue;
        };
        let glob = pattern.strip_prefix('!').unwrap_or(&pattern);
        if let Err(error) = globset::Glob::new(glob) {
            whole = false;
            let kind = error.kind();
            reader.problem(
                &place,
                format!("{pattern:?} is no glob pattern: {kind}"),
                "write it as in \"public.*\"",
            );
        } else if !glob.contains(['.', '*', '?', '[', '{']) {
            whole = false;
            reader.problem(
                &place,
                format!("{pattern:?} names no schema, so it matches no table"),
                format!("write \"public.{glob}\""),
            );
        }
        patterns.push(pattern);
    }
    if patterns.iter().all(|pattern| pattern.starts_with('!')) && whole {
        return reader.wrong(key, "chooses no table", "name at least one, as in [\"public.*\"]");
    }
    whole.then_some(patterns)
}

fn http(reader: &mut Reader<'_>) -> Option<Http> {
    let listen = listen(reader, "http.listen");
    // Meta's largest webhook batch is 3 MB; all bodies in flight are held in memory.
    let max_body_bytes = reader.integer("http.max_body_bytes", 65_536..=67_108_864);
    let send_wait = reader.milliseconds("http.send_wait_ms", 100..=60_000);
    Some(Http {
        listen: listen?,
        max_body_bytes: max_body_bytes?,
        send_wait: send_wait?,
    })
}

fn admin(reader: &mut Reader<'_>) -> Option<Admin> {
    Some(Admin {
        listen: listen(reader, "admin.listen")?,
    })
}

fn listen(reader: &mut Reader<'_>, key: &str) -> Option<SocketAddr> {
    reader.parsed(key, "an address and a port", "127.0.0.1:8080")
}

fn whatsapp(reader: &mut Reader<'_>, needed: bool) -> Option<Whatsapp> {
    let graph_url = graph_url(reader);
    let api_version = api_version(reader);
    let app_secrets = app_secrets(reader, needed);
    let verify_token = match reader.value("whatsapp.verify_token") {
        None => Some(None),
        value => reader.secret_of("whatsapp.verify_token", value).map(Some),
    };
    // Less than a second gives up on calls that are about to be answered; Meta itself gives up within two minutes.
    let send_timeout = reader.milliseconds("whatsapp.send_timeout_ms", 1000..=120_000);
    let max_attempts = reader.integer("whatsapp.max_attempts", 1..=100);
    let retry = reader.waits("whatsapp.retry_initial_ms", "whatsapp.retry_max_ms");
    let hold_probe = reader.milliseconds("whatsapp.hold_probe_ms", 1000..=86_400_000);
    let accounts = accounts(reader, needed);
    let (retry_initial, retry_max) = retry?;
    Some(Whatsapp {
        graph_url: graph_url?,
        api_version: api_version?,
        app_secrets: app_secrets?,
        verify_token: verify_token?,
        send_timeout: send_timeout?,
        max_attempts: max_attempts?,
        retry_initial,
        retry_max,
        hold_probe: hold_probe?,
        accounts: accounts?,
    })
}

fn graph_url(reader: &mut Reader<'_>) -> Option<url::Url> {
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
            "must be a base URL, without user, query and fragment",
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

fn api_version(reader: &mut Reader<'_>) -> Option<String> {
    let key = "whatsapp.api_version";
    let text = reader.text(key)?;
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let version = text.strip_prefix('v').and_then(|rest| rest.split_once('.'));
    if version.is_some_and(|(major, minor)| number(major) && number(minor)) {
        return Some(text);
    }
    reader.wrong(
        key,
        format!("{text:?} is no version of the Graph API"),
        "write it as in \"v26.0\"",
    )
}

fn app_secrets(reader: &mut Reader<'_>, needed: bool) -> Option<Vec<SecretString>> {
    let key = "whatsapp.app_secrets";
    let values = reader.list(key)?;
    if values.is_empty() && needed {
        return reader.wrong(
            key,
            "is empty: no webhook could be believed",
            "set it to [{ file = \"…\" }] with the App Secret from Meta's dashboard (App settings, Basic)",
        );
    }
    let secrets: Vec<_> = values
        .into_iter()
        .enumerate()
        .map(|(index, value)| reader.secret_of(&format!("{key}[{index}]"), Some(value)))
        .collect();
    secrets.into_iter().collect()
}

fn accounts(reader: &mut Reader<'_>, needed: bool) -> Option<Vec<Account>> {
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
        .map(|(place, dict)| {
            let account = account(reader, &place, &dict?)?;
            if seen.insert(account.phone_number_id.clone()) {
                return Some(account);
            }
            reader.wrong(
                &format!("{place}.phone_number_id"),
                format!("{:?} stands in an earlier block too", account.phone_number_id),
                "keep one block for each number",
            )
        })
        .collect();
    accounts.into_iter().collect()
}

fn account(reader: &mut Reader<'_>, place: &str, dict: &Dict) -> Option<Account> {
    let phone_number_id = meta_id(reader, place, dict, "phone_number_id");
    let waba_id = match dict.get("waba_id") {
        None => Some(None),
        Some(_) => meta_id(reader, place, dict, "waba_id").map(Some),
    };
    let token_key = format!("{place}.access_token");
    let access_token = match dict.get("access_token") {
        None => reader.wrong(
            &token_key,
            "is missing",
            "set it to { file = \"…\" } with a system user's token (Meta Business settings)",
        ),
        value => reader.secret_of(&token_key, value.cloned()).and_then(|token| {
            if token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
                return Some(token);
            }
            reader.wrong(
                &token_key,
                "holds a blank or a character that an HTTP header cannot carry",
                "copy the token again, without quotes and line breaks",
            )
        }),
    };
    let messages_per_second = match dict.get("messages_per_second") {
        None => Some(DEFAULT_MESSAGES_PER_SECOND),
        // Meta raises a number to 1,000 at most.
        value => reader.integer_of(&format!("{place}.messages_per_second"), value.cloned(), 1..=1000),
    };
    Some(Account {
        phone_number_id: phone_number_id?,
        waba_id: waba_id?,
        access_token: access_token?,
        messages_per_second: messages_per_second?,
    })
}

fn meta_id(reader: &mut Reader<'_>, place: &str, dict: &Dict, name: &str) -> Option<String> {
    let key = format!("{place}.{name}");
    let text = reader.text_of(&key, dict.get(name).cloned())?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text);
    }
    reader.wrong(
        &key,
        "is no id of Meta's: it has other characters than digits",
        "copy the id (not the phone number) from Meta's dashboard (WhatsApp, API setup)",
    )
}

fn tokens(reader: &mut Reader<'_>, needed: bool) -> Option<Vec<ApiToken>> {
    let key = "auth.tokens";
    let tables = reader.tables(key)?;
    if tables.is_empty() && needed {
        return reader.wrong(
            key,
            "is missing: nobody could call the API",
            "add a block [[auth.tokens]] with name and sha256 (printf %s TOKEN | sha256sum)",
        );
    }
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    let tokens: Vec<_> = tables
        .into_iter()
        .map(|(place, dict)| {
            let dict = dict?;
            let (name_key, hash_key) = (format!("{place}.name"), format!("{place}.sha256"));
            let name = reader.text_of(&name_key, dict.get("name").cloned());
            let sha256 = reader.text_of(&hash_key, dict.get("sha256").cloned()).and_then(|text| {
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
            let (name, sha256) = (name?, sha256?);
            if !names.insert(name.clone()) {
                return reader.wrong(
                    &name_key,
                    format!("{name:?} stands in an earlier block too"),
                    "give each its name",
                );
            }
            if !hashes.insert(sha256) {
                return reader.wrong(
                    &hash_key,
                    "stands in an earlier block too",
                    "give each client its own token",
                );
            }
            Some(ApiToken { name, sha256 })
        })
        .collect();
    tokens.into_iter().collect()
}

fn log(reader: &mut Reader<'_>) -> Option<Log> {
    let format = reader.text("log.format").and_then(|text| match text.as_str() {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => reader.wrong(
            "log.format",
            format!("{text:?} is no format"),
            "set it to \"text\" or \"json\"",
        ),
    });
    let filter =
        reader
            .text("log.filter")
            .and_then(|text| match tracing_subscriber::EnvFilter::builder().parse(&text) {
                Ok(_) => Some(text),
                Err(error) => reader.wrong(
                    "log.filter",
                    format!("{text:?} is no filter: {error}"),
                    "write it as in \"info\" or \"info,twinlog::replication=debug\"",
                ),
            });
    Some(Log {
        format: format?,
        filter: filter?,
    })
}
