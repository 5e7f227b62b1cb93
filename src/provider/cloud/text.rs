//! The text of a message that a person sees, in either direction: the body, the caption, the button's title.
//!
//! For lists and search; the whole message is stored as well. A message without words has no text: no placeholder is put
//! here, because the type is stored too.

use serde_json::Value;

/// The readable text of a message of this type; `None` where there is none.
///
/// `message` is the message's object, in which the type names the member with the content.
#[must_use]
pub fn of_message(kind: &str, message: &Value) -> Option<String> {
    let content = message.get(kind).unwrap_or(&Value::Null);
    let line = match kind {
        "text" => first(content, &["/body"]),
        "image" | "video" | "audio" | "sticker" => first(content, &["/caption"]),
        "document" => first(content, &["/caption", "/filename"]),
        "location" => first(content, &["/name", "/address"]),
        "contacts" => {
            let names: Vec<_> = content
                .as_array()?
                .iter()
                .filter_map(|contact| first(contact, &["/name/formatted_name", "/name/first_name"]))
                .collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        "reaction" => first(content, &["/emoji"]),
        "interactive" => first(
            content,
            &[
                "/button_reply/title",
                "/list_reply/title",
                "/nfm_reply/body",
                "/body/text",
                "/header/text",
            ],
        ),
        "button" => first(content, &["/text", "/payload"]),
        "order" => first(content, &["/text"]),
        "template" => first(content, &["/name"]),
        "system" => first(content, &["/body"]),
        "edit" => {
            let edited = content.get("message")?;
            of_message(edited.get("type")?.as_str()?, edited)
        }
        _ => first(content, &["/body", "/text", "/caption"]),
    };
    line.filter(|line| !line.is_empty())
}

fn first(value: &Value, pointers: &[&str]) -> Option<String> {
    pointers
        .iter()
        .find_map(|pointer| value.pointer(pointer)?.as_str().map(ToOwned::to_owned))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_shows_its_words() {
        for (message, line) in [
            (json!({"type":"text","text":{"body":"hi"}}), Some("hi")),
            (json!({"type":"image","image":{"id":"1","caption":"c"}}), Some("c")),
            (json!({"type":"image","image":{"id":"1"}}), None),
            (
                json!({"type":"document","document":{"filename":"f.pdf"}}),
                Some("f.pdf"),
            ),
            (
                json!({"type":"reaction","reaction":{"message_id":"w","emoji":"👍"}}),
                Some("👍"),
            ),
            (
                json!({"type":"reaction","reaction":{"message_id":"w","emoji":""}}),
                None,
            ),
            (
                json!({"type":"interactive","interactive":{"button_reply":{"id":"y","title":"Yes"}}}),
                Some("Yes"),
            ),
            (
                json!({"type":"interactive","interactive":{"body":{"text":"B"}}}),
                Some("B"),
            ),
            (json!({"type":"interactive"}), None),
            (json!({"type":"button","button":{"payload":"p","text":"t"}}), Some("t")),
            (
                json!({"type":"contacts","contacts":[{"name":{"formatted_name":"A B"}},{"name":{"first_name":"C"}}]}),
                Some("A B, C"),
            ),
            (json!({"type":"system","system":{"body":"moved"}}), Some("moved")),
            (
                json!({"type":"edit","edit":{"original_message_id":"w","message":{"type":"text","text":{"body":"new"}}}}),
                Some("new"),
            ),
            (json!({"type":"template","template":{"name":"order"}}), Some("order")),
            (json!({"type":"hologram","hologram":{"text":"boo"}}), Some("boo")),
            (json!({"type":"hologram"}), None),
        ] {
            let kind = message["type"].as_str().expect("a type");
            assert_eq!(of_message(kind, &message).as_deref(), line, "{message}");
        }
    }

    #[test]
    fn nested_edits_end() {
        assert_eq!(of_message("edit", &json!({"edit":{"message":{"type":"edit"}}})), None);
    }
}
