//! The body of a call that is passed on: only the members that its entry in the table has.

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;

use super::allow_list::Body;
use crate::http::form::{self, FormCheck, FormError};
use crate::provider::cloud::{json_members, parameters};

/// Why a body does not pass.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the member {0:?} is not passed on for this call")]
    Member(String),
    #[error("the body is not what its Content-Type says, or that is neither JSON nor a form")]
    Unreadable,
    #[error(transparent)]
    Form(#[from] FormError),
}

/// A body that passes, with its media type; `None`: nothing is passed on.
pub(super) type Passed = Option<(String, Bytes)>;

/// Checks a body.
pub(super) fn check(allowed: Body, headers: &HeaderMap, body: Bytes) -> Result<Passed, BodyError> {
    let members = match allowed {
        // The methods of these calls have no body at Meta's; clients that send one mean nothing by it.
        Body::None | Body::Upload => return Ok(None),
        Body::Members(members) => Some(members),
        Body::Template => None,
    };
    if body.is_empty() {
        return Ok(None);
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let sent_as = match kind.as_str() {
        "application/json" => {
            let text = std::str::from_utf8(&body).map_err(|_| BodyError::Unreadable)?;
            let names = json_members(text).ok_or(BodyError::Unreadable)?;
            all_pass(names.iter().map(String::as_str), members)?;
            kind
        }
        "application/x-www-form-urlencoded" => {
            for (name, _) in url::form_urlencoded::parse(&body) {
                all_pass([name.as_ref()], members)?;
            }
            kind
        }
        "multipart/form-data" => {
            let boundary = form::boundary(content_type).ok_or(FormError::Malformed)?;
            let mut check = FormCheck::new(boundary, members.unwrap_or_default());
            check.push(&body)?;
            check.end()?;
            format!("{kind}; boundary=\"{boundary}\"")
        }
        _ => return Err(BodyError::Unreadable),
    };
    Ok(Some((sent_as, body)))
}

fn all_pass<'n>(
    names: impl IntoIterator<Item = &'n str>,
    members: Option<&'static [&'static str]>,
) -> Result<(), BodyError> {
    for name in names {
        let passes = match members {
            Some(members) => members.contains(&name),
            // Meta adds members to templates now and then, all of them plain words.
            None => {
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
                !name.is_empty() && name.bytes().all(plain) && !parameters::is_control(name)
            }
        };
        if !passes {
            return Err(BodyError::Member(name.chars().take(40).collect()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: Body = Body::Members(&["messaging_product", "pin"]);

    fn checked(allowed: Body, content_type: &str, body: &str) -> Result<Passed, BodyError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        check(allowed, &headers, Bytes::from(body.to_owned()))
    }

    #[test]
    fn the_members_of_the_table_pass() {
        let json = r#"{"messaging_product":"whatsapp","pin":"123456"}"#;
        let passed = checked(PIN, "application/json; charset=utf-8", json).unwrap();
        assert_eq!(passed, Some(("application/json".to_owned(), Bytes::from(json))));
        for (allowed, content_type, body) in [
            (
                PIN,
                "application/x-www-form-urlencoded",
                "messaging_product=whatsapp&pin=1",
            ),
            (
                PIN,
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Disposition: form-data; name=\"pin\"\r\n\r\n1\r\n--b--\r\n",
            ),
            (
                Body::Template,
                "application/json",
                r#"{"name":"x","components":[{"batch":1}],"new_2027":{}}"#,
            ),
            (Body::Members(&[]), "application/json", "{}"),
            (Body::Members(&[]), "text/plain", ""),
        ] {
            assert!(checked(allowed, content_type, body).is_ok(), "{body}");
        }
        assert_eq!(checked(Body::None, "application/json", "{\"batch\":[]}"), Ok(None));
    }

    #[test]
    fn nothing_else_passes() {
        for (allowed, content_type, body) in [
            (PIN, "application/json", r#"{"pin":"1","batch":[]}"#),
            (PIN, "application/json", r#"{"pin":"1","\u0062atch":[]}"#),
            (PIN, "application/json", r#"{"pin":"1","access_token":"x"}"#),
            (PIN, "application/json", r#"{"pin":"1","ACCESS_TOKEN":"x"}"#),
            (PIN, "application/json", r#"[{"method":"POST"}]"#),
            (PIN, "application/json", "pin=1&batch=[]"),
            (PIN, "application/x-www-form-urlencoded", "pin=1&ACCESS_TOKEN=x"),
            (PIN, "application/x-www-form-urlencoded", "pin=1&%62atch=[]"),
            (PIN, "application/x-www-form-urlencoded", r#"{"pin":"1"}"#),
            (PIN, "text/plain", "batch=[]"),
            (PIN, "", "batch=[]"),
            (
                PIN,
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Disposition: form-data; name=\"batch\"\r\n\r\n1\r\n--b--\r\n",
            ),
            (Body::Template, "application/json", r#"{"name":"x","method":"delete"}"#),
            (Body::Template, "application/json", r#"{"name":"x"," method":"delete"}"#),
            (Body::Template, "application/json", r#"{"name":"x","Method":"delete"}"#),
            (Body::Template, "application/json", r#"{"name":"x","batch[]":"x"}"#),
            (
                Body::Template,
                "application/x-www-form-urlencoded",
                "name=x&access_token=y",
            ),
            (
                Body::Members(&[]),
                "application/json",
                r#"{"override_callback_uri":"https://x"}"#,
            ),
        ] {
            assert!(checked(allowed, content_type, body).is_err(), "{content_type} {body}");
        }
    }
}
