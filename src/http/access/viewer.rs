//! What somebody may see, and until when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::jwt::{Claims, LEEWAY};
use crate::config::{ApiToken, Jwt, JwtNumbers};

/// The name under which the requests of all users are counted, as those of one client.
pub(in crate::http) const USERS: &str = "(users)";

/// Somebody who may look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) struct Viewer {
    /// A client, by the name of its API token, or a user.
    pub(in crate::http) who: Who,
    /// The `phone_number_id`s whose conversations they may see; `None`: all.
    pub(in crate::http) numbers: Option<Vec<String>>,
    /// How much longer the token is valid; `None`: for ever.
    pub(in crate::http) valid_for: Option<Duration>,
}

/// Who looks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::http) enum Who {
    /// The name of an API token.
    Client(String),
    /// `sub` of a JSON Web Token.
    User(String),
}

impl Viewer {
    /// `configured`: the numbers of this server. A Site DB may have those of other servers, too.
    pub(super) fn client(token: &ApiToken, configured: &[String]) -> Self {
        let several = || (configured.len() > 1).then(|| configured.to_vec());
        Self {
            who: Who::Client(token.name.clone()),
            numbers: token.numbers.clone().or_else(several),
            valid_for: None,
        }
    }

    pub(super) fn user(claims: &Claims, rules: &Jwt, configured: &[String]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            who: Who::User(claims.sub.clone().unwrap_or_default()),
            numbers: Some(match &rules.numbers {
                JwtNumbers::Claim(path) => numbers(claims, path),
                JwtNumbers::Configured => configured.to_vec(),
            }),
            valid_for: Some(
                Duration::from_secs(claims.exp)
                    .saturating_add(LEEWAY)
                    .saturating_sub(now),
            ),
        }
    }

    /// The name under which the viewer's requests are counted: each client's own, one for all users.
    pub(in crate::http) fn budget(&self) -> &str {
        match &self.who {
            Who::Client(name) => name,
            Who::User(_) => USERS,
        }
    }
}

/// The numbers that the claim at this path lists; none if it does not.
fn numbers(claims: &Claims, path: &[String]) -> Vec<String> {
    let mut names = path.iter();
    let first = names.next().and_then(|name| claims.others.get(name));
    let claim = names.fold(first, |claim, name| claim?.get(name));
    let texts = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match claim {
        Some(Value::Array(values)) => values.iter().filter_map(texts).collect(),
        Some(one) => texts(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_numbers_of_a_user_are_those_that_the_claim_lists() {
        let rules = |path: Option<&str>| Jwt {
            secret: None,
            keys: None,
            audience: "a".to_owned(),
            roles: Vec::new(),
            numbers: match path {
                Some(path) => JwtNumbers::Claim(path.split('.').map(ToOwned::to_owned).collect()),
                None => JwtNumbers::Configured,
            },
            users: crate::config::JwtUsers::Look,
        };
        let claims: Claims = serde_json::from_value(json!({
            "exp": u64::MAX, "sub": "u", "app_metadata": {"numbers": ["1", 2, null], "one": "3", "deep": {"er": []}}
        }))
        .unwrap();
        let configured = ["7".to_owned(), "8".to_owned()];
        let seen = |path| Viewer::user(&claims, &rules(path), &configured).numbers;
        let listed = |numbers: &[&str]| Some(numbers.iter().map(|&number| number.to_owned()).collect::<Vec<_>>());
        assert_eq!(seen(None), listed(&["7", "8"]));
        let unbound = ApiToken {
            name: "crm".to_owned(),
            sha256: [0; 32],
            numbers: None,
            automation: false,
        };
        assert_eq!(Viewer::client(&unbound, &configured).numbers, listed(&["7", "8"]));
        assert_eq!(seen(Some("app_metadata.numbers")), listed(&["1", "2"]));
        assert_eq!(seen(Some("app_metadata.one")), listed(&["3"]));
        for nothing in [
            "app_metadata",
            "app_metadata.deep",
            "app_metadata.deep.er",
            "numbers",
            "exp.x",
        ] {
            assert_eq!(seen(Some(nothing)), listed(&[]), "{nothing}");
        }
    }
}
