//! What a listener wants to hear, and from where. A parameter that is not known is refused: a misspelt filter would let everything
//! through.

use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use crate::http::access::Viewer;
use crate::http::answer;
use crate::http::state::is_id;
use crate::realtime::{Begin, Filter};
use crate::site_db::events::EventKind;

/// Most conversations that a listener can name.
const CONVERSATIONS: usize = 100;

/// A listener's request.
#[derive(Debug)]
pub(super) struct Listen {
    pub(super) filter: Filter,
    pub(super) begin: Begin,
}

/// A parameter can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongParameter {
    name: String,
    what: &'static str,
}

impl IntoResponse for WrongParameter {
    fn into_response(self) -> Response {
        answer::plain_error(
            StatusCode::BAD_REQUEST,
            "invalid_parameter",
            self.what,
            Some(&self.name),
        )
    }
}

impl Listen {
    pub(super) fn read(uri: &Uri, headers: &HeaderMap, viewer: &Viewer) -> Result<Self, WrongParameter> {
        let mut filter = Filter {
            numbers: viewer.numbers.clone(),
            ..Filter::default()
        };
        let mut last = headers
            .get("last-event-id")
            .map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        let mut numbers = Vec::new();
        for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let refuse = |what| WrongParameter {
                name: name.clone().into_owned(),
                what,
            };
            // Nothing chosen would be everything.
            let values = value.split(',').map(str::trim);
            match name.as_ref() {
                "number" => {
                    for value in values {
                        if !is_id(value) {
                            return Err(refuse("must be a phone_number_id, or several with commas"));
                        }
                        numbers.push(value.to_owned());
                    }
                }
                "conversation" => {
                    let wanted = filter.conversations.get_or_insert_default();
                    for value in values {
                        wanted.push(Uuid::try_parse(value).map_err(|_| refuse("must be the id of a conversation"))?);
                    }
                    wanted.sort_unstable();
                    wanted.dedup();
                    if wanted.len() > CONVERSATIONS {
                        return Err(refuse("names more than 100 conversations"));
                    }
                }
                "kind" => {
                    for value in values {
                        let kind = value.parse().ok().filter(|kind| *kind != EventKind::Other);
                        let kind = kind.ok_or_else(|| {
                            refuse(
                                "must be message.created, message.status, conversation.updated, lead.updated or \
                                 notification.created",
                            )
                        })?;
                        filter.kinds.get_or_insert_default().push(kind);
                    }
                }
                // For pages that were loaded with a `position`: a browser can send the header only when it comes back.
                "last_event_id" => last = last.or_else(|| Some(value.clone().into_owned())),
                "access_token" => {}
                _ => return Err(refuse("there is no such parameter here")),
            }
        }
        if !numbers.is_empty() {
            if let Some(own) = &viewer.numbers {
                numbers.retain(|number| own.contains(number));
            }
            filter.numbers = Some(numbers);
        }
        let begin = match last.as_deref().map(str::trim) {
            None | Some("") => Begin::Now,
            Some(last) => last.parse().map_or(Begin::Unknown, Begin::After),
        };
        Ok(Self { filter, begin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::Who;

    #[test]
    fn filters_are_read_and_a_viewer_hears_of_its_own_numbers_alone() {
        let viewer = |numbers: Option<&[&str]>| Viewer {
            who: Who::Client("crm".to_owned()),
            numbers: numbers.map(|numbers| numbers.iter().map(|&number| number.to_owned()).collect()),
            valid_for: None,
        };
        let read = |query: &str, numbers| {
            let uri = format!("/v1/events?{query}").parse().unwrap();
            Listen::read(&uri, &HeaderMap::new(), &viewer(numbers))
        };
        let all = read("access_token=x", None).unwrap();
        assert!(all.filter.numbers.is_none() && all.filter.kinds.is_none() && all.begin == Begin::Now);
        assert_eq!(
            read("number=1,2&number=3", Some(&["2", "3"]))
                .unwrap()
                .filter
                .numbers
                .unwrap(),
            ["2", "3"]
        );
        assert_eq!(read("", Some(&["2"])).unwrap().filter.numbers.unwrap(), ["2"]);
        let some = read("kind=message.created,lead.updated&last_event_id=x", None).unwrap();
        assert_eq!(
            some.filter.kinds.unwrap(),
            [EventKind::MessageCreated, EventKind::LeadUpdated]
        );
        assert_eq!(some.begin, Begin::Unknown);
        let of_one = read("conversation=00000000-0000-0000-0000-000000000001", None).unwrap();
        assert_eq!(of_one.filter.conversations.unwrap(), [Uuid::from_u128(1)]);
        for wrong in [
            "kind=other",
            "kind=x",
            "kind=",
            "conversation=1",
            "conversation=",
            "numbers=1",
            "number=",
            "number=,",
            "number=1,%00",
        ] {
            assert!(read(wrong, None).is_err(), "{wrong}");
        }
    }
}
