//! An HTTP answer to a send → an [`Answer`].
//!
//! Only an error object of the Graph API proves that Meta read the request and refused it. Any other error comes from a
//! proxy or gateway on the way: 3xx and most 4xx mean that it did not let the request through, 5xx may hide Meta's answer, and so
//! may the statuses that gateways give when they have passed a request on and got no answer (408, 409, 460, 499). What names a message
//! was not refused.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::error::GraphError;
use super::members::scalar;
use super::send::{self, Request};
use crate::provider::answer::{Accepted, AcceptedStatus, Answer, Looked};
use crate::provider::ids::{ContactIdentity, UserId, WaId, Wamid};
use crate::provider::refusal::{ErrorClass, Refusal, ThrottleScope};

/// Reads an answer.
///
/// | answer | is |
/// |---|---|
/// | 2xx with a wamid | accepted, also with an error object beside it |
/// | any other status with a wamid | lost |
/// | an error object of the Graph API, with any status | refused |
/// | 429 without an error object | refused: throttle of the number |
/// | 3xx and other 4xx without an error object | refused: transient |
/// | 2xx without a wamid; 408, 409, 460, 499 and 5xx without an error object | lost |
pub(super) fn read(status: u16, headers: &HeaderMap, body: &[u8], request: &[u8]) -> Answer {
    if let Some(accepted) = accepted(body) {
        return match status {
            200..=299 => Answer::Accepted(Accepted {
                dialled: dialled(request),
                ..accepted
            }),
            _ => Answer::Lost("the answer names a message, and has the status of an error"),
        };
    }
    if let Some(error) = GraphError::from_body(body) {
        return Answer::Refused(error.refusal(status, retry_after(headers)));
    }
    let refused_on_the_way = |class, retry_after| {
        Answer::Refused(Refusal {
            class,
            code: None,
            message: format!("HTTP {status} from something that is not the Graph API"),
            retry_after,
        })
    };
    match status {
        200..=299 => Answer::Lost("the answer names no message"),
        429 => refused_on_the_way(ErrorClass::Throttle(ThrottleScope::Number), retry_after(headers)),
        408 | 409 | 460 | 499 => Answer::Lost("a gateway that may have passed the request on got no answer"),
        300..=499 => refused_on_the_way(ErrorClass::Transient, None),
        _ => Answer::Lost("a server error that is not the Graph API's"),
    }
}

/// Reads the answer to a question for a number.
pub(super) fn looked(status: u16, headers: &HeaderMap, body: &[u8]) -> Looked {
    if let Some(error) = GraphError::from_body(body) {
        return Looked::Refused(error.refusal(status, retry_after(headers)));
    }
    let object: Option<Value> = serde_json::from_slice(body).ok();
    match object.and_then(|object| object.get("id").and_then(scalar)) {
        Some(_) if (200..300).contains(&status) => Looked::Well,
        _ => Looked::Stranger { status },
    }
}

/// Reads the body of an accepted send; `None` if it names no message (then it is not known what happened). `dialled` stays
/// `None`: the number that was dialled is not in the body.
#[must_use]
pub fn accepted(body: &[u8]) -> Option<Accepted> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let string = |pointer: &str| body.pointer(pointer).and_then(scalar);
    Some(Accepted {
        wamid: Wamid::parse(&string("/messages/0/id")?)?,
        recipient: ContactIdentity {
            wa_id: string("/contacts/0/wa_id").and_then(|id| WaId::parse(&id)),
            user_id: string("/contacts/0/user_id").and_then(|id| UserId::parse(&id)),
            ..ContactIdentity::default()
        },
        dialled: None,
        // Only templates have it. `paused`: the template is paused; Meta has the message and reports the rest as a status.
        status: match string("/messages/0/message_status").as_deref() {
            Some("held_for_quality_assessment" | "paused") => AcceptedStatus::UnderReview,
            _ => AcceptedStatus::Delivering,
        },
    })
}

fn dialled(request: &[u8]) -> Option<WaId> {
    match send::read(request) {
        Ok(Request::Message(outbound)) => outbound.contact?.wa_id,
        _ => None,
    }
}

/// `Retry-After` in seconds or as a date; Meta's business usage header, in minutes, where that is missing.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(value) = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()) {
        if let Ok(seconds) = value.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        if let Ok(at) = httpdate::parse_http_date(value.trim()) {
            return Some(at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO));
        }
    }
    let usage = headers.get("x-business-use-case-usage")?.to_str().ok()?;
    let usage: Value = serde_json::from_str(usage).ok()?;
    let minutes = usage
        .as_object()?
        .values()
        .filter_map(|uses| uses.as_array())
        .flatten()
        .filter_map(|usage| usage.get("estimated_time_to_regain_access")?.as_u64())
        .max()?;
    (minutes > 0).then(|| Duration::from_secs(minutes.saturating_mul(60)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::refusal::Code;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header"));
        headers
    }

    #[test]
    fn waits_are_read_in_every_form() {
        let read = |name, value: &str| retry_after(&headers(name, value)).map(|wait| wait.as_secs());
        assert_eq!(read("retry-after", "7"), Some(7));
        assert_eq!(read("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!((55..=60).contains(&read("retry-after", &date).expect("a wait")));
        assert_eq!(read("retry-after", "soon"), None);
        let usage = r#"{"1":[{"type":"whatsapp","estimated_time_to_regain_access":3}]}"#;
        assert_eq!(read("x-business-use-case-usage", usage), Some(180));
        let idle = r#"{"1":[{"estimated_time_to_regain_access":0}]}"#;
        assert_eq!(read("x-business-use-case-usage", idle), None);
    }

    #[test]
    fn an_answer_is_read() {
        let read = accepted(
            br#"{"messaging_product":"whatsapp","contacts":[{"input":"+1","wa_id":"16505551234"}],
                 "messages":[{"id":"wamid.A","message_status":"held_for_quality_assessment"}]}"#,
        )
        .expect("an answer");
        assert_eq!(read.wamid.as_str(), "wamid.A");
        assert_eq!(read.status, AcceptedStatus::UnderReview);
        assert_eq!(read.recipient.wa_id, WaId::parse("16505551234"));
        for other in [
            &b""[..],
            b"{}",
            b"{\"success\":true}",
            b"{\"messages\":[]}",
            b"{\"messages\":[{\"id\":\"\"}]}",
        ] {
            assert_eq!(accepted(other), None);
        }
    }

    #[test]
    fn only_an_answer_of_the_graph_api_says_what_became_of_a_message() {
        let asked = headers("retry-after", "9");
        let word = |status, body: &str| match read(status, &asked, body.as_bytes(), b"{}") {
            Answer::Accepted(_) => "accepted".to_owned(),
            Answer::Refused(refusal) => format!(
                "{} {:?} {:?}",
                refusal.class.as_str(),
                refusal.code.map(Code::number),
                refusal.retry_after.map(|wait| wait.as_secs())
            ),
            Answer::Lost(_) => "lost".to_owned(),
            Answer::NotSent(_) => "not sent".to_owned(),
        };
        let error = r#"{"error":{"code":131000,"message":"x"}}"#;
        let wamid = r#"{"messages":[{"id":"wamid.A"}]}"#;
        for (status, body, expected) in [
            (200, wamid, "accepted"),
            (200, "", "lost"),
            (200, "<html>", "lost"),
            // An error object is an answer, even with a status that would be a lost one.
            (502, error, "transient Some(131000) Some(9)"),
            (500, "", "lost"),
            (502, wamid, "lost"),
            (503, "", "lost"),
            (504, "", "lost"),
            (429, "", "throttle_number None Some(9)"),
            // A refusal on the way is tried again soon.
            (302, "", "transient None None"),
            (403, "", "transient None None"),
            // What names a message may have been sent; so may what a gateway waited for.
            (404, wamid, "lost"),
            (
                200,
                r#"{"messages":[{"id":"wamid.A"}],"error":{"code":131000,"message":"x"}}"#,
                "accepted",
            ),
            (
                400,
                r#"{"messages":[{"id":"wamid.A"}],"error":{"code":100,"message":"x"}}"#,
                "lost",
            ),
            (408, "", "lost"),
            (409, "", "lost"),
            (460, "", "lost"),
            (499, "<html>", "lost"),
            (409, error, "transient Some(131000) Some(9)"),
        ] {
            assert_eq!(word(status, body), expected, "{status} {body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let _ = accepted(&bytes);
        }
    }
}
