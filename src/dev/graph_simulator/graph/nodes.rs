//! Reads: a number, a business account, its templates, a number's message history.

use axum::Json;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::access::{token, unauthorised};
use super::answers::graph_error;
use super::query::parameter;
use crate::dev::graph_simulator::world::{Number, World};
use crate::provider::cloud::GraphError;

/// The id of the app that has the webhooks.
pub(super) const APP: &str = "1";

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
        templates(&format!("{node}/message_templates"), query, &bearer)
    })
}

/// `GET /{node}/subscribed_apps`.
pub(super) fn subscribed_apps(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    let app = json!({"id": APP, "name": "Simulated app", "link": "https://www.facebook.com/games/?app_id=1"});
    read(
        world,
        node,
        headers,
        query,
        |_, _, _| json!({"data": [{ "whatsapp_business_api_data": app }]}),
    )
}

/// `GET /debug_token`: what Meta says about the token in the query. It may be any of the world's.
pub(super) fn debug_token(world: &World, query: &str) -> Response {
    let asked = parameter(query, "input_token");
    let numbers = world.numbers();
    let known = numbers
        .values()
        .find(|number| asked.as_ref() == Some(&number.account.access_token));
    Json(json!({"data": {
        "app_id": APP, "type": "SYSTEM_USER", "application": "Simulated app", "expires_at": 0,
        "is_valid": known.is_some_and(|number| !number.expired),
        "scopes": ["whatsapp_business_management", "whatsapp_business_messaging"],
    }}))
    .into_response()
}

/// `GET /{app}/subscriptions`, which the app itself may ask: its id and its secret are the token.
pub(super) fn app_subscriptions(world: &World, headers: &HeaderMap, query: &str) -> Response {
    let secret = world.settings.app_secret.expose_secret();
    if token(headers, query) != Some(format!("{APP}|{secret}")) {
        return graph_error(&GraphError::new(190, "Invalid OAuth access token signature."));
    }
    let fields: Vec<_> = ["account_update", "messages", "phone_number_quality_update"]
        .iter()
        .map(|name| json!({"name": name, "version": "v26.0"}))
        .collect();
    Json(
        json!({"data": [{"object": "whatsapp_business_account", "active": true, "fields": fields,
        "callback_url": world.callback().map(String::from)}]}),
    )
    .into_response()
}

/// `POST /{node}/subscribed_apps`.
pub(super) fn subscribe(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    read(world, node, headers, query, |_, _, _| json!({"success": true}))
}

/// Whether [`edge`] knows this.
pub(super) fn has_edge(edge: &str) -> bool {
    edge_value(edge).is_some() || edge == "phone_numbers"
}

/// `GET /{node}/{edge}`: what a number or an account has, always the same.
pub(super) fn edge(world: &World, node: &str, edge: &str, headers: &HeaderMap, query: &str) -> Response {
    let bearer = token(headers, query).unwrap_or_default();
    read(world, node, headers, query, |world, node, _| match edge_value(edge) {
        Some(value) => value,
        None => paged(&format!("{node}/{edge}"), phone_numbers(world, node), query, &bearer),
    })
}

fn edge_value(edge: &str) -> Option<Value> {
    Some(match edge {
        "whatsapp_business_profile" => {
            json!({"data": [{"messaging_product": "whatsapp", "about": "Simulated", "vertical": "RETAIL",
            "email": "business@example.com", "websites": ["https://example.com/"]}]})
        }
        "whatsapp_commerce_settings" => {
            json!({"data": [{"id": "2", "is_cart_enabled": true, "is_catalog_visible": true}]})
        }
        "settings" => json!({"storage_configuration": {"status": "DEFAULT"}}),
        "block_users" | "flows" => json!({"data": []}),
        "message_qrdls" => json!({"data": [code()]}),
        _ => return None,
    })
}

fn code() -> Value {
    json!({"code": "4O4YGZEG3RIVE1", "prefilled_message": "Hello", "deep_link_url": "https://wa.me/message/4O4YGZEG3RIVE1"})
}

/// `POST /{number}/message_qrdls`.
pub(super) fn qr_code(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Response {
    read(world, node, headers, query, |_, _, _| code())
}

/// `POST` and `DELETE` of `/{number}/block_users`. Nobody is really blocked.
pub(super) fn block(world: &World, node: &str, method: &Method, headers: &HeaderMap, body: &[u8]) -> Response {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let users = asked["block_users"].as_array().cloned().unwrap_or_default();
    let users: Vec<_> = users
        .iter()
        .map(|user| json!({"input": user["user"], "wa_id": user["user"]}))
        .collect();
    let done = if *method == Method::POST {
        "added_users"
    } else {
        "removed_users"
    };
    read(
        world,
        node,
        headers,
        "",
        |_, _, _| json!({"messaging_product": "whatsapp", "block_users": {done: users}}),
    )
}

fn phone_numbers(world: &World, waba: &str) -> Vec<Value> {
    let numbers = world.numbers();
    let of_account = numbers.values().filter(|number| number.account.waba_id == waba);
    of_account.map(number_value).collect()
}

fn number_value(number: &Number) -> Value {
    json!({
        "id": number.account.phone_number_id,
        "display_phone_number": number.account.display_phone_number,
        "verified_name": "Simulated business",
        "quality_rating": "GREEN",
        "code_verification_status": "VERIFIED",
        "platform_type": "CLOUD_API",
        "throughput": {"level": "STANDARD"},
        "status": "CONNECTED",
        "name_status": "APPROVED",
        "is_on_biz_app": false,
    })
}

fn node_value(world: &World, node: &str, _: &str) -> Value {
    let numbers = world.numbers();
    let Some(number) = numbers.get(node) else {
        return json!({"id": node, "name": "Simulated business account", "timezone_id": "1", "currency": "EUR",
            "message_template_namespace": "simulated"});
    };
    let mut value = number_value(number);
    value["webhook_configuration"] = json!({"application": world.callback().map(String::from)});
    value["health_status"] = json!({"can_send_message": "AVAILABLE", "entities": [
        {"entity_type": "PHONE_NUMBER", "id": node, "can_send_message": "AVAILABLE"}]});
    value
}

/// What was reported of each message, newest first, as Meta's Message History API gives it.
fn message_history(world: &World, node: &str, query: &str) -> Value {
    let wanted = parameter(query, "message_id");
    let limit: usize = parameter(query, "limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(25)
        .min(100);
    let after: usize = parameter(query, "after")
        .and_then(|after| after.parse().ok())
        .unwrap_or(0);
    let ledger = world.ledger();
    let mut messages: Vec<_> = ledger
        .messages
        .iter()
        .rev()
        .filter(|message| message.phone_number_id == node)
        .filter(|message| wanted.as_ref().is_none_or(|wanted| *wanted == message.wamid))
        .skip(after)
        .take(limit + 1)
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
    let more = messages.len() > limit;
    messages.truncate(limit);
    let end = after + messages.len();
    let mut answer =
        json!({"data": messages, "paging": {"cursors": {"before": after.to_string(), "after": end.to_string()}}});
    if more {
        answer["paging"]["next"] = json!(format!(
            "https://graph.facebook.com/v26.0/{node}/message_history?after={end}"
        ));
    }
    answer
}

/// A page of the account's templates.
fn templates(path: &str, query: &str, token: &str) -> Value {
    const NAMES: [&str; 3] = ["hello_world", "order", "reminder"];
    let all = (1..).zip(NAMES).map(|(id, name)| {
        json!({"id": id.to_string(), "name": name, "language": "en_US", "status": "APPROVED", "category": "UTILITY",
               "parameter_format": "POSITIONAL", "components": [{"type": "BODY", "text": "Hello"}]})
    });
    let mut answer = paged(path, all.collect(), query, token);
    if parameter(query, "summary").is_some() {
        answer["summary"] = json!({"total_count": NAMES.len(), "message_template_count": NAMES.len(),
            "message_template_limit": 250, "are_translations_complete": true});
    }
    answer
}

/// A page of a list. If there is a next or a previous page, its link contains the token, as Meta's does.
fn paged(path: &str, all: Vec<Value>, query: &str, token: &str) -> Value {
    let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
    let limit = number("limit").unwrap_or(25).max(1);
    let before = number("before").map(|before| before.saturating_sub(limit));
    let start = before.or(number("after")).unwrap_or(0);
    let end = start.saturating_add(limit);
    let count = all.len();
    let page: Vec<_> = all.into_iter().skip(start).take(limit).collect();
    let mut answer = json!({ "data": page });
    answer["paging"] = json!({"cursors": {"before": start.to_string(), "after": end.to_string()}});
    let link = |name: &str, start: usize| {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("access_token", token)
            .append_pair("pretty", "0")
            .append_pair("limit", &limit.to_string())
            .append_pair(name, &start.to_string())
            .finish();
        json!(format!("https://graph.facebook.com/v26.0/{path}?{query}"))
    };
    if end < count {
        answer["paging"]["next"] = link("after", end);
    }
    if start > 0 {
        answer["paging"]["previous"] = link("before", start);
    }
    answer
}
