//! Meta's error object, and the one table of what a code means for the message, the number and the account.
//!
//! The code decides (with the subcode in one case), never the HTTP status or the title: Meta's own documentation says so
//! and the statuses vary. Errors come in the answer to a call, in `failed` statuses and in `value.errors`, always alike.
//!
//! Sources: <https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes>, and for the limits of the Graph
//! API itself <https://developers.facebook.com/docs/graph-api/overview/rate-limiting>

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::members::scalar;
use crate::provider::refusal::{Code, ErrorClass, Refusal, ThrottleScope};

/// The table. A code that it lacks is [`ErrorClass::Permanent`]: a message is never sent twice on a guess. (With an HTTP
/// status or Meta's `is_transient` at hand, ask [`GraphError::class`], which knows more.)
#[must_use]
pub fn classify(code: i64, subcode: Option<i64>) -> ErrorClass {
    documented(code, subcode).unwrap_or(ErrorClass::Permanent)
}

/// The rows that Meta documents.
fn documented(code: i64, subcode: Option<i64>) -> Option<ErrorClass> {
    use ErrorClass::{Account, Ambiguous, Later, Permanent, Permission, Template, Throttle, Transient, Window};
    Some(match code {
        // The token: cannot authenticate, expired, not allowed.
        0 | 190 | 131_005 => Account,
        // No capability, not eligible, permission removed: Meta says so too for what one message asks.
        3 | 10 | 200..=299 => Permission,
        // Subcode 33: the number of the path does not exist or is not ours.
        100 if subcode == Some(33) => Account,
        // The number or the account: deleted, restricted, locked, display name, payment, registration, terms.
        33 | 368 | 131_031 | 131_037 | 131_042 | 131_044 | 131_045 | 133_010 | 134_011 => Account,
        // Spam restriction of the number, limit after template misclassification: sending on makes it worse.
        131_048 | 131_064 => Account,
        // Beside WhatsApp's own, the Graph API's: of the app (4, 341), of the token (17), of this kind of call (613).
        4 | 17 | 341 | 613 => Throttle(ThrottleScope::App),
        80_007 | 80_008 => Throttle(ThrottleScope::Waba),
        // 131057: in maintenance or being upgraded, for up to a minute.
        130_429 | 131_057 => Throttle(ThrottleScope::Number),
        131_056 => Throttle(ThrottleScope::Pair),
        // Invalid request or server trouble.
        1 => Ambiguous,
        // Downtime, unknown, unavailable; 134101: the template is being synced.
        2 | 131_000 | 131_016 | 133_004 | 134_101 => Transient,
        131_047 => Window,
        131_049 => Later,
        131_063 | 132_001 | 132_015 | 132_016 | 132_068 | 132_069 | 134_102 => Template,
        100 | 130_403 | 130_472 | 130_497 | 130_501 | 131_008 | 131_009 | 131_021 | 131_026 | 131_030 | 131_050
        | 131_051 | 131_052 | 131_053 | 131_055 | 131_060 | 131_062 | 132_000 | 132_005 | 132_007 | 132_008
        | 132_012 | 132_018 | 133_000 | 133_005 | 133_006 | 133_008 | 133_009 | 133_015 | 133_016 | 134_100
        | 135_000 | 137_000 => Permanent,
        _ => return None,
    })
}

/// Meta's error object, received from Meta or made by us.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphError {
    /// Member `code`: see [`classify`].
    pub code: i64,
    /// Member `error_subcode`: one case of the code.
    pub subcode: Option<i64>,
    /// Member `message`, else `title`: for people, in English.
    pub message: String,
    /// More exact text for people: `error_data.details`, or `error_data` if that is a string.
    pub details: Option<String>,
    /// Member `is_transient`: whether Meta says that trying again can help.
    pub is_transient: Option<bool>,
    /// The whole object, unchanged, for the client.
    raw: Value,
}

impl GraphError {
    /// An error of our own in Meta's shape.
    #[must_use]
    pub fn new(code: i64, message: &str) -> Self {
        let message = format!("(#{code}) {message}");
        Self {
            code,
            subcode: None,
            raw: json!({"message": message, "type": "OAuthException", "code": code}),
            message,
            details: None,
            is_transient: None,
        }
    }

    /// An error that Meta gave before, by its code and message.
    #[must_use]
    pub fn repeated(code: i64, message: &str) -> Self {
        Self {
            raw: json!({"message": message, "type": "OAuthException", "code": code}),
            message: message.to_owned(),
            ..Self::new(code, message)
        }
    }

    /// The same with `error_data.details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        let details = details.into();
        self.raw["error_data"] = json!({"messaging_product": "whatsapp", "details": details});
        self.details = Some(details);
        self
    }

    /// The same with a subcode.
    #[must_use]
    pub fn with_subcode(mut self, subcode: i64) -> Self {
        self.raw["error_subcode"] = json!(subcode);
        self.subcode = Some(subcode);
        self
    }

    /// Reads an answer's body, `{"error":{…}}`; `None` if it is no error of the Graph API (a proxy's page, say).
    #[must_use]
    pub fn from_body(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        Self::from_value(body.get("error")?)
    }

    /// Reads an error object: an answer's, or an element of a webhook's `errors`.
    #[must_use]
    pub fn from_value(error: &Value) -> Option<Self> {
        let object: &Map<String, Value> = error.as_object()?;
        let integer = |key: &str| object.get(key).and_then(scalar)?.parse::<i64>().ok();
        let string = |key: &str| object.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        let data = object.get("error_data");
        Some(Self {
            code: integer("code")?,
            subcode: integer("error_subcode"),
            message: string("message").or_else(|| string("title")).unwrap_or_default(),
            details: data.and_then(|data| {
                let details = data.get("details").unwrap_or(data);
                details.as_str().map(ToOwned::to_owned)
            }),
            is_transient: object.get("is_transient").and_then(Value::as_bool),
            raw: error.clone(),
        })
    }

    /// What it means for the sender: the table, and for codes that the table lacks, Meta's own word (`is_transient`) or a
    /// status of 5xx make it [`ErrorClass::Transient`] – with an error object Meta has answered, so the message was
    /// refused and trying again can't double it.
    #[must_use]
    pub fn class(&self, http_status: u16) -> ErrorClass {
        documented(self.code, self.subcode).unwrap_or_else(|| {
            if self.is_transient == Some(true) || (500..600).contains(&http_status) {
                ErrorClass::Transient
            } else {
                ErrorClass::Permanent
            }
        })
    }

    /// The same as a [`Refusal`], which all providers share.
    #[must_use]
    pub fn refusal(&self, http_status: u16, retry_after: Option<Duration>) -> Refusal {
        // Meta's codes all fit.
        let number = i32::try_from(self.code).unwrap_or(i32::MAX);
        Refusal {
            class: self.class(http_status),
            code: Some(match documented(self.code, self.subcode) {
                Some(_) => Code::Documented(number),
                None => Code::Undocumented(number),
            }),
            message: self.summary(),
            retry_after,
        }
    }

    /// Meta's trace id, which Meta's support asks for.
    #[must_use]
    pub fn fbtrace_id(&self) -> Option<&str> {
        self.raw.get("fbtrace_id")?.as_str()
    }

    /// Message and details in a line, for a person. Meta's texts name parameters, not their values.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.details {
            Some(details) if *details != self.message => format!("{}: {details}", self.message),
            _ => self.message.clone(),
        }
    }

    /// The answer's body, `{"error":{…}}`, with the fields that we don't know.
    #[must_use]
    pub fn to_body(&self) -> Value {
        json!({ "error": self.raw })
    }
}

/// A parameter of a request is missing.
pub(super) fn missing(parameter: &str) -> GraphError {
    GraphError::new(131_008, "Required parameter is missing")
        .with_details(format!("Parameter '{parameter}' is missing"))
}

/// A parameter of a request can't be used.
pub(super) fn invalid(parameter: &str) -> GraphError {
    GraphError::new(131_009, "Parameter value is not valid")
        .with_details(format!("Parameter '{parameter}' is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_code_has_its_class() {
        use ErrorClass::{Account, Ambiguous, Later, Permanent, Permission, Template, Throttle, Transient, Window};
        use ThrottleScope::{App, Number, Pair, Waba};
        let rows: &[(ErrorClass, &[i64])] = &[
            (
                Account,
                &[
                    0, 33, 190, 368, 131_005, 131_031, 131_037, 131_042, 131_044, 131_045, 131_048, 131_064, 133_010,
                    134_011,
                ],
            ),
            (Permission, &[3, 10, 200, 230, 299]),
            (Throttle(App), &[4, 17, 341, 613]),
            (Throttle(Waba), &[80_007, 80_008]),
            (Throttle(Number), &[130_429, 131_057]),
            (Throttle(Pair), &[131_056]),
            (Ambiguous, &[1]),
            (Transient, &[2, 131_000, 131_016, 133_004, 134_101]),
            (Window, &[131_047]),
            (Later, &[131_049]),
            (
                Template,
                &[131_063, 132_001, 132_015, 132_016, 132_068, 132_069, 134_102],
            ),
            (
                Permanent,
                &[
                    100, 130_403, 130_472, 130_497, 130_501, 131_008, 131_009, 131_021, 131_026, 131_030, 131_050,
                    131_051, 131_053, 131_055, 131_062, 132_000, 132_005, 132_007, 132_008, 132_012, 132_018, 134_100,
                    135_000, 137_000,
                ],
            ),
        ];
        for &(class, codes) in rows {
            for &code in codes {
                assert_eq!(classify(code, None), class, "{code}");
                let refusal = GraphError::new(code, "").refusal(400, None);
                assert_eq!(refusal.code.and_then(Code::label).map(i64::from), Some(code));
                // The status never overrules the table.
                assert_eq!(GraphError::new(code, "").class(500), class, "{code}");
            }
        }
        assert_eq!(classify(100, Some(33)), Account);
        assert_eq!(classify(190, Some(463)), Account);
    }

    #[test]
    fn an_unknown_code_is_permanent_unless_meta_says_otherwise() {
        let unknown = GraphError::new(999_999, "new");
        assert_eq!(classify(999_999, None), ErrorClass::Permanent);
        assert_eq!(unknown.class(400), ErrorClass::Permanent);
        assert_eq!(unknown.class(503), ErrorClass::Transient);
        assert_eq!(unknown.refusal(400, None).code, Some(Code::Undocumented(999_999)));
        let transient = GraphError::from_value(&json!({"code": 999_999, "is_transient": true})).expect("an error");
        assert_eq!(transient.class(400), ErrorClass::Transient);
    }

    #[test]
    fn an_answer_is_read_leniently_and_rendered_as_it_came() {
        let body = br##"{"error":{"message":"(#130429) Rate limit hit","type":"OAuthException","code":"130429",
            "error_data":{"messaging_product":"whatsapp","details":"throughput"},"error_subcode":2494055,
            "fbtrace_id":"Az8","is_transient":false,"error_user_title":"T","new_field":[1]}}"##;
        let error = GraphError::from_body(body).expect("an error");
        assert_eq!((error.code, error.subcode), (130_429, Some(2_494_055)));
        assert_eq!(error.summary(), "(#130429) Rate limit hit: throughput");
        assert_eq!(error.to_body(), serde_json::from_slice::<Value>(body).expect("JSON"));
        let bare = GraphError::from_body(br#"{"error":{"code":100,"error_data":"bare"}}"#).expect("an error");
        assert_eq!(bare.details.as_deref(), Some("bare"));
        let webhook = GraphError::from_value(&json!({"code":131_047,"title":"Re-engagement message","href":"x"}));
        assert_eq!(webhook.expect("an error").message, "Re-engagement message");
        for other in [&b"<html>"[..], b"{}", b"{\"error\":\"x\"}", b"{\"error\":{}}", b""] {
            assert_eq!(GraphError::from_body(other), None);
        }
    }

    #[test]
    fn an_error_of_ours_reads_like_one_of_metas() {
        let error = GraphError::new(131_009, "Parameter value is not valid")
            .with_details("to is missing")
            .with_subcode(7);
        let read = GraphError::from_value(&error.to_body()["error"]).expect("an error");
        assert_eq!(read, error);
    }
}
