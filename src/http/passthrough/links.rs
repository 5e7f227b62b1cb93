//! Links in answers that are passed on: they lead to this server, never to Meta, because a client follows them with its own
//! token. `paging.next` and `paging.previous`, also of lists within lists, become the same calls here; a medium's `url` becomes
//! a signed link to `http::media`.

use axum::body::Bytes;
use axum::http::Method;
use url::Url;

use super::allow_list;
use crate::http::media_link::{MediaLinks, Place};
use crate::provider::ApiVersion;
use crate::provider::cloud::{Account, json_strings};

/// Meta's own host, in links whatever `whatsapp.graph_url` is.
const META: &str = "graph.facebook.com";
/// Parameters of a link that hold Meta's token or stand for it.
const TOKENS: [&str; 2] = ["access_token", "appsecret_proof"];

/// An answer with its links changed.
pub(super) fn ours(body: Bytes, account: &Account, links: &MediaLinks, place: &Place) -> Bytes {
    let Ok(text) = std::str::from_utf8(&body) else {
        return body;
    };
    let medium = medium_id(text);
    let changed = json_strings::rewrite(text, |name, value| match name? {
        "next" | "previous" => page(value, account.graph_url(), place),
        "url" => {
            let link = Url::parse(value).ok()?;
            let id = medium.as_deref();
            (id.is_some() || account.has_media_at(&link))
                .then(|| links.sign(account.phone_number_id(), id.unwrap_or_default(), &link, place))
        }
        _ => None,
    });
    changed.map_or(body, Bytes::from)
}

/// The medium's id, if the answer describes one.
fn medium_id(text: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    answer.get("mime_type").or_else(|| answer.get("sha256"))?;
    Some(answer.get("id")?.as_str()?.to_owned())
}

/// A link to another page, as a call of ours; `None`: it does not lead to the Graph API.
fn page(link: &str, graph_url: &str, place: &Place) -> Option<String> {
    let parsed = Url::parse(link).ok()?;
    let below = match Url::parse(graph_url) {
        Ok(graph) if graph.origin() == parsed.origin() => {
            parsed.path().strip_prefix(graph.path().trim_end_matches('/'))?
        }
        _ if parsed.host_str() == Some(META) => parsed.path(),
        _ => return None,
    };
    let version = below.trim_start_matches('/').split('/').next()?;
    ApiVersion::parse(version)?;
    // Meta adds parameters of its own (`locale`, `__cppo`), which our route would refuse.
    let parts: Vec<&str> = below.trim_start_matches('/').split('/').skip(1).collect();
    let entries = allow_list::find(&Method::GET, &parts);
    let query: Vec<_> = parsed
        .query_pairs()
        .filter(|(name, _)| !TOKENS.iter().any(|token| name.trim().eq_ignore_ascii_case(token)))
        .filter(|(name, _)| entries.is_empty() || entries.iter().any(|entry| entry.takes(name)))
        .collect();
    let mut ours = format!("{place}{below}");
    if !query.is_empty() {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(query)
            .finish();
        ours.push('?');
        ours.push_str(&query);
    }
    Some(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_the_graph_api_becomes_a_call_of_ours() {
        let place = Place::new("https://wa.example.com");
        for (link, graph, expected) in [
            (
                "https://graph.facebook.com/v26.0/1/message_templates?access_token=EAA&pretty=0&limit=2&after=QVFI%3D",
                "https://graph.facebook.com",
                Some("https://wa.example.com/v26.0/1/message_templates?pretty=0&limit=2&after=QVFI%3D"),
            ),
            (
                "https://graph.facebook.com/v26.0/1/flows?Access_Token=EAA&__cppo=1&locale=en_US",
                "http://127.0.0.1:4000",
                Some("https://wa.example.com/v26.0/1/flows"),
            ),
            (
                "http://127.0.0.1:4000/graph/v26.0/1/flows?after=x",
                "http://127.0.0.1:4000/graph",
                Some("https://wa.example.com/v26.0/1/flows?after=x"),
            ),
            ("https://example.com/v26.0/1", "https://graph.facebook.com", None),
            ("https://graph.facebook.com/me", "https://graph.facebook.com", None),
            ("page 2", "https://graph.facebook.com", None),
        ] {
            assert_eq!(page(link, graph, &place).as_deref(), expected, "{link}");
        }
    }
}
