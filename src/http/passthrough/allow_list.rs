//! The calls that are passed on: method, shape of the path, parameters of the query, members of the body. Nothing else passes.
//!
//! README.md shows this table; a test compares the two. Groups: <https://developers.facebook.com/documentation/business-messaging/whatsapp/groups/reference>,
//! and Meta's OpenAPI file (<https://github.com/facebook/openapi>); that people can be added to a group is in the latter alone.

use axum::http::Method;

use crate::http::state::is_id;

/// A call that is passed on.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) method: Verb,
    /// The path after the version. `{number}` and `{waba}` are ids that a client's numbers own, `{id}` any other id (a
    /// medium, a template, a flow), `{group}` a group's id, `{code}` letters and digits.
    pub(super) path: &'static str,
    /// Parameters of the query, beside the client's token, in groups.
    query: Query,
    pub(super) body: Body,
    /// What clients use it for.
    #[cfg_attr(not(test), expect(dead_code, reason = "README.md shows it"))]
    pub(super) purpose: &'static str,
}

/// Lists of parameters.
type Query = &'static [&'static [&'static str]];

/// The method of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Delete,
}

/// What a call's body may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// No body is passed on.
    None,
    /// These members.
    Members(&'static [&'static str]),
    /// Any members but those that control the call.
    Template,
    /// A form with a file: streamed, see `http::media`.
    Upload,
}

/// The parameters of a list, with those that Meta's own links to further pages have.
const CURSOR: &[&str] = &["fields", "limit", "after", "before", "pretty", "__paging_token"];
/// The same for lists that may be in pages by number or by time.
const PAGE: Query = &[CURSOR, &["offset", "since", "until"]];
const FIELDS: Query = &[&["fields", "pretty"]];
const NOTHING: Query = &[];
/// How the ids of groups begin: `capi_group:` in base64.
const GROUP: &str = "Y2FwaV9ncm91cDo";
const BLOCKED: Body = Body::Members(&["messaging_product", "block_users"]);
const GROUP_CALL: Body = Body::Members(&["messaging_product"]);
const JOIN_REQUESTS: Body = Body::Members(&["messaging_product", "join_requests"]);
const FLOW: Body = Body::Members(&[
    "name",
    "categories",
    "clone_flow_id",
    "endpoint_uri",
    "application_id",
    "flow_json",
    "publish",
]);

const fn get(path: &'static str, query: Query, purpose: &'static str) -> Allowed {
    call(Verb::Get, path, query, Body::None, purpose)
}

const fn post(path: &'static str, body: Body, purpose: &'static str) -> Allowed {
    call(Verb::Post, path, NOTHING, body, purpose)
}

const fn delete(path: &'static str, query: Query, body: Body, purpose: &'static str) -> Allowed {
    call(Verb::Delete, path, query, body, purpose)
}

const fn call(method: Verb, path: &'static str, query: Query, body: Body, purpose: &'static str) -> Allowed {
    Allowed {
        method,
        path,
        query,
        body,
        purpose,
    }
}

/// All calls that are passed on.
pub(super) const TABLE: &[Allowed] = &[
    get("{number}", FIELDS, "a number"),
    get("{number}/whatsapp_business_profile", PAGE, "its profile"),
    get("{number}/block_users", PAGE, "blocked people"),
    get("{number}/settings", FIELDS, "its settings"),
    get("{number}/whatsapp_commerce_settings", PAGE, "its shop's settings"),
    get("{number}/whatsapp_business_encryption", PAGE, "the key of its flows"),
    get("{number}/message_qrdls", PAGE, "QR codes"),
    get("{number}/message_qrdls/{code}", FIELDS, "a QR code"),
    get("{number}/groups", &[CURSOR], "its groups"),
    get(
        "{number}/message_history",
        &[CURSOR, &["message_id"]],
        "what became of messages",
    ),
    get("{waba}", FIELDS, "a WhatsApp Business account"),
    get("{waba}/phone_numbers", &[CURSOR, &["sort", "filtering"]], "its numbers"),
    get("{waba}/subscribed_apps", PAGE, "who gets its webhooks"),
    get(
        "{waba}/message_templates",
        &[
            CURSOR,
            &[
                "name",
                "name_or_content",
                "content",
                "language",
                "category",
                "status",
                "quality_score",
                "summary",
            ],
        ],
        "its templates",
    ),
    get("{waba}/flows", PAGE, "its flows"),
    get(
        "{id}",
        &[&["fields", "pretty", "phone_number_id", "date_format"]],
        "a medium, a template or a flow",
    ),
    get("{id}/assets", PAGE, "a flow's files"),
    get("{group}", FIELDS, "a group"),
    get("{group}/invite_link", FIELDS, "how people join a group"),
    get("{group}/join_requests", &[CURSOR], "who wants to join a group"),
    call(
        Verb::Post,
        "{number}/media",
        &[&["messaging_product"]],
        Body::Upload,
        "upload of a medium",
    ),
    post(
        "{number}/register",
        Body::Members(&["messaging_product", "pin", "data_localization_region"]),
        "registration",
    ),
    post(
        "{number}/request_code",
        Body::Members(&["messaging_product", "code_method", "language", "locale"]),
        "a code that proves the number",
    ),
    post(
        "{number}/verify_code",
        Body::Members(&["messaging_product", "code"]),
        "the code",
    ),
    post("{number}", Body::Members(&["messaging_product", "pin"]), "the PIN"),
    post(
        "{number}/whatsapp_business_profile",
        Body::Members(&[
            "messaging_product",
            "about",
            "address",
            "description",
            "email",
            "profile_picture_handle",
            "vertical",
            "websites",
        ]),
        "its profile",
    ),
    post("{number}/block_users", BLOCKED, "blocking"),
    call(
        Verb::Post,
        "{number}/whatsapp_commerce_settings",
        &[&["is_cart_enabled", "is_catalog_visible"]],
        Body::Members(&["is_cart_enabled", "is_catalog_visible"]),
        "its shop's settings",
    ),
    post(
        "{number}/whatsapp_business_encryption",
        Body::Members(&["business_public_key"]),
        "the key of its flows",
    ),
    post(
        "{number}/conversational_automation",
        Body::Members(&["messaging_product", "enable_welcome_message", "commands", "prompts"]),
        "commands and ice breakers",
    ),
    call(
        Verb::Post,
        "{number}/message_qrdls",
        &[&["prefilled_message", "generate_qr_image", "code"]],
        Body::Members(&["messaging_product", "prefilled_message", "generate_qr_image", "code"]),
        "QR codes",
    ),
    call(
        Verb::Post,
        "{number}/message_qrdls/{code}",
        &[&["prefilled_message"]],
        Body::Members(&["messaging_product", "prefilled_message"]),
        "a QR code",
    ),
    post(
        "{number}/groups",
        Body::Members(&["messaging_product", "subject", "description", "join_approval_mode"]),
        "a new group",
    ),
    post(
        "{waba}/subscribed_apps",
        Body::Members(&[]),
        "webhooks to this server's app",
    ),
    post("{waba}/message_templates", Body::Template, "a new template"),
    post("{waba}/flows", FLOW, "a new flow"),
    post("{id}", Body::Template, "a change of a template or a flow"),
    post("{id}/unpause", Body::Members(&[]), "a template that was paused"),
    post(
        "{id}/assets",
        Body::Members(&["messaging_product", "name", "asset_type", "file"]),
        "a flow's file",
    ),
    post("{id}/publish", Body::Members(&[]), "publishing a flow"),
    post("{id}/deprecate", Body::Members(&[]), "ending a flow"),
    post(
        "{group}",
        Body::Members(&[
            "messaging_product",
            "subject",
            "description",
            "profile_picture_file",
            "file",
        ]),
        "a group's name and picture",
    ),
    post("{group}/invite_link", GROUP_CALL, "a new link instead of the old one"),
    post("{group}/join_requests", JOIN_REQUESTS, "letting people join"),
    delete("{number}/block_users", NOTHING, BLOCKED, "unblocking"),
    delete("{number}/message_qrdls/{code}", NOTHING, Body::None, "a QR code"),
    delete(
        "{waba}/message_templates",
        &[&["name", "hsm_id", "hsm_ids", "language"]],
        Body::None,
        "templates",
    ),
    delete("{id}", &[&["phone_number_id"]], Body::None, "a medium or a flow"),
    delete("{group}", NOTHING, Body::None, "a group"),
    delete("{group}/invite_link", NOTHING, GROUP_CALL, "no link any more"),
    delete(
        "{group}/join_requests",
        NOTHING,
        JOIN_REQUESTS,
        "not letting people join",
    ),
    delete(
        "{group}/participants",
        NOTHING,
        Body::Members(&["messaging_product", "participants"]),
        "removing people from a group",
    ),
];

/// What the first part of a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Number,
    Waba,
    /// A medium, a template, a flow, a group: whose it is, the path does not say.
    Object,
}

impl Allowed {
    pub(super) fn node(&self) -> Node {
        if self.path.starts_with("{number}") {
            Node::Number
        } else if self.path.starts_with("{waba}") {
            Node::Waba
        } else {
            Node::Object
        }
    }

    /// Whether a parameter of the query may be passed on.
    pub(super) fn takes(&self, parameter: &str) -> bool {
        self.query.iter().any(|group| group.contains(&parameter))
    }

    /// Whether the part after the version has this shape. The parts are compared byte for byte: an escape, a double slash,
    /// two dots or another case are no shape of ours, so Meta reads the path exactly as it is checked here.
    fn has_shape(&self, parts: &[&str]) -> bool {
        let shape = self.path.split('/');
        shape.clone().count() == parts.len()
            && shape.zip(parts).all(|(shape, part)| match shape {
                "{number}" | "{waba}" | "{id}" => is_id(part),
                "{group}" => is_group(part),
                "{code}" => (1..=64).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                literal => literal == *part,
            })
    }
}

/// Whether a part of a path is the id of a group.
pub(super) fn is_group(part: &str) -> bool {
    let rest = part.strip_prefix(GROUP).unwrap_or_default();
    (1..=128).contains(&rest.len())
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte))
}

/// The entries for a call; several where only the id tells them apart.
pub(super) fn find(method: &Method, parts: &[&str]) -> Vec<&'static Allowed> {
    let verb = match *method {
        Method::GET => Verb::Get,
        Method::POST => Verb::Post,
        Method::DELETE => Verb::Delete,
        _ => return Vec::new(),
    };
    TABLE
        .iter()
        .filter(|allowed| allowed.method == verb && allowed.has_shape(parts))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_table_pass() {
        for (method, path, expected) in [
            (Method::GET, "1065", true),
            (Method::GET, "1022/message_templates", true),
            (Method::POST, "1065/media", true),
            (Method::POST, "1065/register", true),
            (Method::DELETE, "998877", true),
            (Method::POST, "1065/messages", false),
            (Method::POST, "1065/marketing_messages", false),
            (Method::POST, "1065/messages/", false),
            (Method::POST, "1065//media", false),
            (Method::POST, "1065/media/", false),
            (Method::POST, "1065/Media", false),
            (Method::POST, "1065%2Fmedia", false),
            (Method::POST, "1065/../media", false),
            (Method::POST, "./1065/media", false),
            (Method::POST, "", false),
            (Method::GET, "", false),
            (Method::GET, "me", false),
            (Method::GET, "debug_token", false),
            (Method::GET, "oauth/access_token", false),
            (Method::GET, "1065/messages", false),
            (Method::GET, "1065/%6dedia", false),
            (Method::DELETE, "1065/media", false),
            (Method::DELETE, "1022/subscribed_apps", false),
            (Method::DELETE, "me", false),
            (Method::GET, "1065/groups", true),
            (
                Method::GET,
                "Y2FwaV9ncm91cDoxOTUwNTU1MDA3OToxMjAzNjMzOTQzMjAdOTY0MTUZD",
                true,
            ),
            (Method::GET, "Y2FwaV9ncm91cDoxOTUw/join_requests", true),
            (Method::GET, "Y2FwaV9ncm91cDo", false),
            (Method::GET, "Y2FwaV9ncm91cDoxOTUw/participants", false),
            (Method::DELETE, "Y2FwaV9ncm91cDoxOTUw/participants", true),
            (Method::POST, "Y2FwaV9ncm91cDoxOTUw/participants", false),
            (Method::POST, "Y2FwaV9ncm91cDoxOTUw/messages", false),
            (Method::POST, "Y2FwaV9ncm91cDoxOTUw", true),
            (Method::POST, "1065/groups", true),
            // Resumable uploads are an app's, and nothing tells whose app it is.
            (Method::POST, "1065/uploads", false),
            (Method::POST, "upload:MTphdHRhY2htZW50", false),
            (Method::PUT, "1065", false),
            (Method::PATCH, "1065", false),
        ] {
            let parts: Vec<&str> = path.split('/').collect();
            assert_eq!(!find(&method, &parts).is_empty(), expected, "{method} {path}");
        }
    }

    #[test]
    fn no_entry_sends_or_controls() {
        use crate::provider::cloud::parameters::is_control;

        for allowed in TABLE {
            assert!(
                !allowed.path.contains("messages") && !allowed.path.contains("call"),
                "{allowed:?}"
            );
            let members = match allowed.body {
                Body::Members(members) => members,
                _ => &[],
            };
            for name in allowed.query.iter().copied().flatten().chain(members) {
                assert!(!is_control(name), "{allowed:?}");
            }
            assert!(allowed.method != Verb::Get || allowed.body == Body::None, "{allowed:?}");
        }
    }

    #[test]
    fn the_readme_shows_the_table() {
        let readme = include_str!("../../../README.md");
        let mut table = String::from("| method | path | query | body | for |\n|---|---|---|---|---|\n");
        for allowed in TABLE {
            let list = |names: &[&str]| {
                let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                quoted.join(" ")
            };
            let body = match allowed.body {
                Body::None => String::new(),
                Body::Members([]) => "empty".to_owned(),
                Body::Members(members) => list(members),
                Body::Template => "members of a template or flow".to_owned(),
                Body::Upload => "form: `messaging_product` `type` `file` `ttl_minutes`".to_owned(),
            };
            let line = format!(
                "| {} | `{}` | {} | {body} | {} |\n",
                format!("{:?}", allowed.method).to_uppercase(),
                allowed.path,
                list(&allowed.query.concat()),
                allowed.purpose
            );
            table.push_str(&line.replace("|  |", "| |").replace("|  |", "| |"));
        }
        assert!(readme.contains(&table), "README.md must have this table:\n{table}");
    }
}
