//! The query of a call that is passed on: only the parameters that its entry in the table has, written anew, without the
//! client's token.

use axum::http::Uri;

use super::allow_list::Allowed;
use crate::provider::cloud::parameters;

/// How clients send our own token in the query; taken out. A proof of that token means nothing to Meta.
const CLIENTS_OWN: [&str; 2] = ["access_token", "appsecret_proof"];
/// Longest value of a parameter.
const MAX_VALUE: usize = 4096;

/// Why a query does not pass.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("the parameter {0:?} is not passed on for this call")]
    Parameter(String),
    #[error("the parameter {0:?} is there twice")]
    Twice(String),
    #[error("the value of {0:?} is not passed on")]
    Value(String),
}

/// The parameters that pass, in their order.
pub(super) fn check(allowed: &Allowed, uri: &Uri) -> Result<Vec<(String, String)>, QueryError> {
    let mut passed: Vec<(String, String)> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if CLIENTS_OWN.contains(&name.as_ref()) {
            continue;
        }
        if !allowed.takes(&name) {
            return Err(QueryError::Parameter(shown(&name)));
        }
        if passed.iter().any(|(known, _)| *known == name) {
            return Err(QueryError::Twice(shown(&name)));
        }
        if value.len() > MAX_VALUE || value.contains(char::is_control) || (name == "fields" && !are_fields(&value)) {
            return Err(QueryError::Value(shown(&name)));
        }
        passed.push((name.into_owned(), value.into_owned()));
    }
    Ok(passed)
}

/// Writes a query; empty without parameters.
pub(super) fn write(parameters: &[(String, String)]) -> String {
    if parameters.is_empty() {
        return String::new();
    }
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    format!("?{query}")
}

/// A list of fields, with nested ones and their modifiers (`a{b}`, `a.limit(2)`). None may be a token or change the method.
fn are_fields(value: &str) -> bool {
    let plain = value
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || "_,.{}()[]:-'\" ".contains(character));
    let mut words = value.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    plain && words.all(|word| !parameters::is_control(word))
}

/// A name as it may stand in an answer.
fn shown(name: &str) -> String {
    name.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::*;
    use crate::http::passthrough::allow_list;

    fn checked(path: &str) -> Result<String, QueryError> {
        let uri: Uri = path.parse().unwrap();
        let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        check(allow_list::find(&Method::GET, &parts)[0], &uri).map(|passed| write(&passed))
    }

    #[test]
    fn known_parameters_pass_and_the_token_does_not() {
        for (path, query) in [
            ("/1?access_token=x&fields=a,b%7Bc%7D", "?fields=a%2Cb%7Bc%7D"),
            ("/1?appsecret_proof=x&access_token=y", ""),
            ("/1?", ""),
            ("/1/message_templates?limit=2&after=QVFI", "?limit=2&after=QVFI"),
            (
                "/1?fields=message_templates.limit(1)%7Bname%7D",
                "?fields=message_templates.limit%281%29%7Bname%7D",
            ),
        ] {
            assert_eq!(checked(path).as_deref(), Ok(query), "{path}");
        }
    }

    #[test]
    fn other_parameters_do_not_pass() {
        for query in [
            "method=post",
            "Method=post",
            "%6dethod=post",
            "%20method=post",
            "method[]=post",
            "+method=post",
            "batch=[]",
            "ACCESS_TOKEN=x",
            "Access_Token=x",
            "%61ccess_token%20=x",
            "access_token[]=x",
            "include_headers=true",
            "fields=a&fields=b",
            "fields=access_token",
            "fields=a.method(post)",
            "fields=messages.METHOD%20(post)",
            "fields=a%26access_token=x",
            "fields=a%00",
            "callback=x",
            "ids=1,2",
            "=x",
        ] {
            assert!(checked(&format!("/1?{query}")).is_err(), "{query}");
        }
    }
}
