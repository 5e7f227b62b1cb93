//! `[auth] jwt_…`: the users of another system, known by its JSON Web Tokens.

use std::path::PathBuf;

use secrecy::SecretString;

use crate::config::reader::ValueReader;

/// Which JSON Web Tokens are accepted, and what they may see.
#[derive(Debug, Clone)]
pub struct Jwt {
    /// The secret of tokens that are signed with HS256.
    pub secret: Option<SecretString>,
    /// Where the public keys of all others are.
    pub keys: Option<JwtKeySource>,
    /// What `aud` must be, or contain.
    pub audience: String,
    /// What `role` may be; at least one.
    pub roles: Vec<String>,
    /// Which numbers users may see.
    pub numbers: JwtNumbers,
    /// What users may do.
    pub users: JwtUsers,
}

/// Which numbers the users of JSON Web Tokens may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtNumbers {
    /// Those that the token lists, at the end of these nested claims.
    Claim(Vec<String>),
    /// All that are configured, whoever the user is.
    Configured,
}

/// What the users of JSON Web Tokens may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtUsers {
    /// Look, and mark as read.
    Look,
    /// Send texts as well.
    Send,
}

/// Where a JSON Web Key Set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeySource {
    /// In a file.
    File(PathBuf),
    /// At an address.
    Url(url::Url),
}

pub(super) fn jwt(reader: &mut ValueReader<'_>) -> Option<Option<Jwt>> {
    let secret = match reader.value("auth.jwt_secret") {
        None => Some(None),
        value => reader.secret_of("auth.jwt_secret", value).map(Some),
    };
    let keys = match reader.value("auth.jwt_keys") {
        None => Some(None),
        Some(_) => key_source(reader).map(Some),
    };
    let audience = reader.text("auth.jwt_audience");
    let roles = roles(reader);
    let users = users(reader);
    let is_used = reader.value("auth.jwt_secret").is_some() || reader.value("auth.jwt_keys").is_some();
    let claimed = reader.value("auth.jwt_numbers_claim").is_some();
    let numbers = (is_used || claimed).then(|| numbers(reader));
    if !is_used {
        return Some(None);
    }
    Some(Some(Jwt {
        users: users?,
        secret: secret?,
        keys: keys?,
        audience: audience?,
        roles: roles?,
        numbers: numbers??,
    }))
}

fn users(reader: &mut ValueReader<'_>) -> Option<JwtUsers> {
    let key = "auth.jwt_users";
    match reader.text(key)?.as_str() {
        "look" => Some(JwtUsers::Look),
        "send" => Some(JwtUsers::Send),
        other => reader.wrong(key, format!("{other:?} is not known"), "set it to \"look\" or \"send\""),
    }
}

fn key_source(reader: &mut ValueReader<'_>) -> Option<JwtKeySource> {
    let key = "auth.jwt_keys";
    let text = reader.text(key)?;
    if !text.contains("://") {
        return Some(JwtKeySource::File(PathBuf::from(text)));
    }
    match url::Url::parse(&text) {
        // Whoever can change the keys on their way can make tokens.
        Ok(url) if url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url)) => {
            Some(JwtKeySource::Url(url))
        }
        _ => reader.wrong(
            key,
            "is not an address with https://",
            "write it as in \"https://PROJECT.supabase.co/auth/v1/.well-known/jwks.json\", or name a file",
        ),
    }
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn roles(reader: &mut ValueReader<'_>) -> Option<Vec<String>> {
    let key = "auth.jwt_roles";
    let roles: Option<Vec<String>> = (reader.list(key)?.iter())
        .map(|value| Some(value.as_str()?.to_owned()))
        .collect();
    match roles.filter(|roles| !roles.is_empty()) {
        Some(roles) if roles.iter().any(|role| role == "anon") => reader.wrong(
            key,
            "contains \"anon\": its token stands in the source of every web page",
            "list the roles of users who have logged in: [\"authenticated\"]",
        ),
        Some(roles) => Some(roles),
        None => reader.wrong(
            key,
            "must be a list with at least one text",
            "list the roles whose tokens are accepted: [\"authenticated\"]",
        ),
    }
}

/// Never all without a word: who may register with the issuer is not ours to know.
fn numbers(reader: &mut ValueReader<'_>) -> Option<JwtNumbers> {
    let key = "auth.jwt_numbers";
    let claimed = reader.value("auth.jwt_numbers_claim").is_some();
    if reader.value(key).is_none() {
        if claimed {
            return numbers_claim(reader).map(JwtNumbers::Claim);
        }
        return reader.wrong(
            "auth.jwt_numbers_claim",
            "is missing: nothing says which numbers a user may see",
            "name the claim that lists them, as in \"app_metadata.whatsapp_numbers\"; or set auth.jwt_numbers = \"all\" if \
             everybody who can register with the issuer may read every conversation",
        );
    }
    match reader.text(key)?.as_str() {
        "all" if claimed => reader.wrong(
            key,
            "and auth.jwt_numbers_claim are both set",
            "remove the one that you don't mean",
        ),
        "all" => Some(JwtNumbers::Configured),
        other => reader.wrong(
            key,
            format!("{other:?} is not known"),
            "set it to \"all\", or name a claim in auth.jwt_numbers_claim",
        ),
    }
}

fn numbers_claim(reader: &mut ValueReader<'_>) -> Option<Vec<String>> {
    let key = "auth.jwt_numbers_claim";
    let path: Vec<String> = reader.text(key)?.split('.').map(ToOwned::to_owned).collect();
    if path[0] == "user_metadata" {
        return reader.wrong(
            key,
            "is in user_metadata, which users can change themselves",
            "have your back end write the numbers into app_metadata: \"app_metadata.whatsapp_numbers\"",
        );
    }
    if path.iter().any(String::is_empty) {
        return reader.wrong(
            key,
            "has an empty name",
            "write it as in \"app_metadata.whatsapp_numbers\"",
        );
    }
    Some(path)
}
