//! Reads: a number, a business account, its templates, a number's message history.

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::access::{token, unauthorised};
use super::query::parameter;
use crate::dev::graph_simulator::world::World;

/// Answers a read of something about a node (a number or a business account) that the token gives access to.
fn read(
    world: &World,
    node: &str,
    headers: &HeaderMap,
    query: &str,
    value: impl FnOnce(&World, &str, &str) -> Value,
) -> Response {
    unauthorised(world, node, headers, query).unwrap_or_else(|| Json(value(world, node, query)).into_response())
}

/// `GET /{node}`: the number's or the account's own fields.
pub(super) fn node(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    read(world, node, headers, query, node_value)
}

/// `GET /{node}/message_history`.
pub(super) fn history(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    read(world, node, headers, query, message_history)
}

/// `GET /{node}/message_templates`.
pub(super) fn message_templates(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    let bearer = token(headers, query).unwrap_or_default();
    read(world, node, headers, query, |_, node, query| {
        templates(node, query, &bearer)
    })
}

/// `GET /{node}/subscribed_apps`.
pub(super) fn subscribed_apps(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    let app = json!({"id": "1", "name": "Simulated app", "link": "https://www.facebook.com/games/?app_id=1"});
    read(
        world,
        node,
        headers,
        query,
        |_, _, _| json!({"data": [{ "whatsapp_business_api_data": app }]}),
    )
}

/// `POST /{node}/subscribed_apps`.
pub(super) fn subscribe(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    read(world, node, headers, query, |_, _, _| json!({"success": true}))
}

fn node_value(world: &World, node: &str, _: &str) -> Value {
    let numbers = world.numbers();
    let Some(number) = numbers.get(node) else {
        return json!({"id": node, "name": "Simulated business account"});
    };
    json!({
        "id": node,
        "display_phone_number": number.account.display_phone_number,
        "verified_name": "Simulated business",
        "quality_rating": "GREEN",
        "code_verification_status": "VERIFIED",
        "platform_type": "CLOUD_API",
        "throughput": {"level": "STANDARD"},
        "webhook_configuration": {"application": world.callback().map(String::from)},
        "health_status": {"can_send_message": "AVAILABLE", "entities": [
            {"entity_type": "PHONE_NUMBER", "id": node, "can_send_message": "AVAILABLE"}]},
    })
}

/// What was reported of each message, newest first, as Meta's Message History API gives it.
fn message_history(world: &World, node: &str, query: &str) -> Value {
    let wanted = parameter(query, "message_id");
    let limit: usize = parameter(query, "limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(25)
        .min(100);
    let ledger = world.ledger();
    let messages: Vec<_> = ledger
        .messages
        .iter()
        .rev()
        .filter(|message| message.phone_number_id == node)
        .filter(|message| wanted.as_ref().is_none_or(|wanted| *wanted == message.wamid))
        .take(limit)
        .map(|message| {
            let events: Vec<_> = message
                .statuses
                .iter()
                .map(|status| {
                    json!({"delivery_status": status.status.to_uppercase(), "timestamp": status.at.unix_timestamp(),
                           "webhook_update_state": "DELIVERED"})
                })
                .collect();
            json!({"id": message.wamid, "message_id": message.wamid, "events": {"data": events}})
        })
        .collect();
    json!({ "data": messages })
}

/// A page of the account's templates. If there is a next or a previous page, its link contains the token, as Meta's does.
fn templates(node: &str, query: &str, token: &str) -> Value {
    const NAMES: [&str; 3] = ["hello_world", "order", "reminder"];
    let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
    let limit = number("limit").unwrap_or(25).max(1);
    let before = number("before").map(|before| before.saturating_sub(limit));
    let start = before.or(number("after")).unwrap_or(0);
    let end = start.saturating_add(limit);
    let page = (1..).zip(NAMES).skip(start).take(limit).map(|(id, name)| {
        json!({"id": id.to_string(), "name": name, "language": "en_US", "status": "APPROVED", "category": "UTILITY",
               "components": [{"type": "BODY", "text": "Hello"}]})
    });
    let mut answer = json!({ "data": page.collect::<Vec<_>>() });
    answer["paging"] = json!({"cursors": {"before": start.to_string(), "after": end.to_string()}});
    let link = |name: &str, start: usize| {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("access_token", token)
            .append_pair("pretty", "0")
            .append_pair("limit", &limit.to_string())
            .append_pair(name, &start.to_string())
            .finish();
        json!(format!(
            "https://graph.facebook.com/v26.0/{node}/message_templates?{query}"
        ))
    };
    if end < NAMES.len() {
        answer["paging"]["next"] = link("after", end);
    }
    if start > 0 {
        answer["paging"]["previous"] = link("before", start);
    }
    answer
}
