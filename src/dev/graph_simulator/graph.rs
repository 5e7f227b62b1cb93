//! The Graph API's routes: sends, and the few reads that a client makes at its start.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::connection::Reset;
use super::fault::{Answer, Plan, Refusal, http_status, title};
use super::ledger::Accepted;
use super::media;
use super::validate::{Send, validate};
use super::world::{Subject, World, now, wamid};
use crate::provider::cloud::GraphError;

/// Every path that is not the simulator's own.
pub(super) async fn route(
    State(world): State<Arc<World>>,
    ConnectInfo(connection): ConnectInfo<Reset>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    // Meta takes a request without a version too.
    if segments.first().is_some_and(|&first| is_version(first)) {
        segments.remove(0);
    }
    let query = uri.query().unwrap_or_default();
    match (&method, segments.as_slice()) {
        (&Method::POST, &[number, "messages"]) => send(&world, &connection, number, &headers, query, &body).await,
        (&Method::POST, &[number, "media"]) => media::upload(&world, number, &headers, query, &body),
        (&Method::GET, &["whatsapp_business", "attachments"]) => {
            let id = parameter(query, "mid").unwrap_or_default();
            media::download(&world, &id, &headers, query)
        }
        (&Method::GET, &[id]) if media::is_one(&world, id) => media::resolve(&world, id, &headers, query),
        (&Method::DELETE, &[id]) => media::delete(&world, id, &headers, query),
        (&Method::GET, &[node]) => read(&world, node, &headers, query, node_value),
        (&Method::GET, &[node, "message_history"]) => read(&world, node, &headers, query, message_history),
        (&Method::GET, &[node, "message_templates"]) => {
            let bearer = token(&headers, query).unwrap_or_default();
            read(&world, node, &headers, query, |_, node, query| {
                templates(node, query, &bearer)
            })
        }
        (&Method::GET, &[node, "subscribed_apps"]) => read(
            &world,
            node,
            &headers,
            query,
            |_, _, _| json!({"data": [{"whatsapp_business_api_data": {"id": "1", "name": "Simulated app", "link": "https://www.facebook.com/games/?app_id=1"}}]}),
        ),
        (&Method::POST, &[node, "subscribed_apps"]) => {
            read(&world, node, &headers, query, |_, _, _| json!({"success": true}))
        }
        _ => unknown_object(segments.first().copied().unwrap_or_default()),
    }
}

fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .and_then(|version| version.split_once('.'))
        .is_some_and(|(major, minor)| {
            let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            number(major) && number(minor)
        })
}

async fn send(
    world: &Arc<World>,
    connection: &Reset,
    number: &str,
    headers: &HeaderMap,
    query: &str,
    body: &[u8],
) -> Response {
    if let Some(refused) = unauthorised(world, number, headers, query) {
        return refused;
    }
    let request = validate(body);
    let recipient = match &request {
        Ok(Send::Message { to, .. }) => Some(to.as_str()),
        _ => None,
    };
    let plan = world.plan(number, recipient);
    let response = judge(world, connection, number, (body, request), &plan).await;
    // Late is the answer, not what it tells: an accepted message is on its way meanwhile.
    crate::shutdown::sleep(plan.delay, &world.stop).await;
    response
}

async fn judge(
    world: &Arc<World>,
    connection: &Reset,
    number: &str,
    (body, request): (&[u8], Result<Send, GraphError>),
    plan: &Plan,
) -> Response {
    if let Some(refusal) = plan.refusal {
        return refuse(connection, refusal);
    }
    let (to, kind, opaque) = match request {
        Ok(Send::Message { to, kind, opaque }) => (to, kind, opaque),
        Ok(Send::MarkAsRead) => return answer(world, connection, plan.answer, json!({"success": true})).await,
        Err(error) => return graph_error(&error),
    };
    if let Err(code) = world.throttle(number, &to) {
        return graph_error(&GraphError::new(code, title(code)));
    }

    let id = wamid(&to);
    world.accept(Accepted {
        wamid: id.clone(),
        phone_number_id: number.to_owned(),
        to: to.clone(),
        kind: kind.clone(),
        opaque: opaque.clone(),
        body_sha256: hex::encode(Sha256::digest(body)),
        accepted_at: now(),
        statuses: Vec::new(),
    });
    let subject = Subject {
        phone_number_id: number.to_owned(),
        wamid: id.clone(),
        to: to.clone(),
        opaque: opaque.filter(|_| !plan.reports.without_echo),
    };
    if plan.reports.before_answer {
        world.report_before_answer(&subject).await;
    }
    world.schedule(subject, &plan.reports);

    let mut message = json!({"id": id});
    if plan.reports.held_for.is_some() {
        message["message_status"] = json!("held_for_quality_assessment");
    } else if kind == "template" {
        message["message_status"] = json!("accepted");
    }
    let contact = if to.contains('.') {
        json!({"input": to, "user_id": to})
    } else {
        let digits: String = to.chars().filter(char::is_ascii_digit).collect();
        json!({"input": to, "wa_id": digits})
    };
    let accepted = json!({"messaging_product": "whatsapp", "contacts": [contact], "messages": [message]});
    answer(world, connection, plan.answer, accepted).await
}

async fn answer(world: &World, connection: &Reset, answer: Answer, accepted: Value) -> Response {
    match answer {
        Answer::Accepted => Json(accepted).into_response(),
        Answer::Hang => {
            // Until the client goes (then this future is dropped) or the simulator does.
            world.stop.cancelled().await;
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Answer::Reset => reset(connection),
        Answer::BadGateway => bad_gateway(),
        Answer::ServerError => server_error(),
    }
}

fn refuse(connection: &Reset, refusal: Refusal) -> Response {
    match refusal {
        Refusal::ServerError => server_error(),
        Refusal::Reset => reset(connection),
        Refusal::TooManyRequests { retry_after_seconds } => {
            let mut response = graph_error(&GraphError::new(130_429, title(130_429)));
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, retry_after_seconds.into());
            response
        }
        Refusal::Error { code, subcode } => {
            let error = GraphError::new(code, title(code)).with_details("simulated failure");
            graph_error(&match subcode {
                Some(subcode) => error.with_subcode(subcode),
                None => error,
            })
        }
    }
}

fn reset(connection: &Reset) -> Response {
    connection.pull();
    StatusCode::OK.into_response()
}

fn bad_gateway() -> Response {
    (
        StatusCode::BAD_GATEWAY,
        Html("<html><body><h1>502 Bad Gateway</h1></body></html>"),
    )
        .into_response()
}

fn server_error() -> Response {
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        Html("<html><body>Sorry, something went wrong.</body></html>"),
    )
        .into_response()
}

/// The answer to a call whose number does not exist, or whose token is not its own or has expired.
pub(super) fn unauthorised(world: &World, node: &str, headers: &HeaderMap, query: &str) -> Option<Response> {
    let bearer = token(headers, query);
    let numbers = world.numbers();
    let known = numbers
        .values()
        .find(|number| bearer.as_deref() == Some(&number.account.access_token));
    let expired = match known {
        None => {
            let message = match &bearer {
                // Meta quotes what can be no token at all.
                Some(token) if token.contains('|') => format!("Malformed access token {token}"),
                Some(_) => "Invalid OAuth access token - Cannot parse access token".to_owned(),
                None => "An access token is required to request this resource.".to_owned(),
            };
            return Some(graph_error(&GraphError::new(190, &message)));
        }
        Some(number) => number.expired,
    };
    if expired {
        let error = json!({"message": "Error validating access token: Session has expired on Sunday, 01-Nov-26 00:00:00 PST. The current time is Monday, 02-Nov-26 00:00:00 PST.",
            "type": "OAuthException", "code": 190, "error_subcode": 463, "fbtrace_id": fbtrace_id()});
        return Some((StatusCode::UNAUTHORIZED, Json(json!({ "error": error }))).into_response());
    }
    let token = bearer.unwrap_or_default();
    let reachable = numbers.values().any(|number| {
        number.account.access_token == token
            && (number.account.phone_number_id == node || number.account.waba_id == node)
    });
    (!reachable).then(|| unknown_object(node))
}

/// The token of a call: in the header, or in the query.
fn token(headers: &HeaderMap, query: &str) -> Option<String> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(ToOwned::to_owned)
        .or_else(|| parameter(query, "access_token"))
}

/// The account's templates, in pages; a link to the next one, with the token in it as Meta's has, where there is one.
fn templates(node: &str, query: &str, token: &str) -> Value {
    const NAMES: [&str; 3] = ["hello_world", "order", "reminder"];
    let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
    let (start, limit) = (number("after").unwrap_or(0), number("limit").unwrap_or(25).max(1));
    let end = start.saturating_add(limit);
    let page = (1..).zip(NAMES).skip(start).take(limit).map(|(id, name)| {
        json!({"id": id.to_string(), "name": name, "language": "en_US", "status": "APPROVED", "category": "UTILITY",
               "components": [{"type": "BODY", "text": "Hello"}]})
    });
    let mut answer = json!({ "data": page.collect::<Vec<_>>() });
    answer["paging"] = json!({"cursors": {"before": start.to_string(), "after": end.to_string()}});
    if end < NAMES.len() {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("access_token", token)
            .append_pair("limit", &limit.to_string())
            .append_pair("after", &end.to_string())
            .finish();
        answer["paging"]["next"] = json!(format!(
            "https://graph.facebook.com/v26.0/{node}/message_templates?{query}"
        ));
    }
    answer
}

fn read(
    world: &World,
    node: &str,
    headers: &HeaderMap,
    query: &str,
    value: impl FnOnce(&World, &str, &str) -> Value,
) -> Response {
    unauthorised(world, node, headers, query).unwrap_or_else(|| Json(value(world, node, query)).into_response())
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

fn parameter(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

pub(super) fn unknown_object(id: &str) -> Response {
    let message = format!(
        "Unsupported post request. Object with ID '{id}' does not exist, cannot be loaded due to missing permissions, or does not support this operation."
    );
    let error = json!({"message": message, "type": "GraphMethodException", "code": 100, "error_subcode": 33, "fbtrace_id": fbtrace_id()});
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}

pub(super) fn graph_error(error: &GraphError) -> Response {
    let status = StatusCode::from_u16(http_status(error.code)).unwrap_or(StatusCode::BAD_REQUEST);
    let mut body = error.to_body();
    body["error"]["fbtrace_id"] = json!(fbtrace_id());
    (status, Json(body)).into_response()
}

fn fbtrace_id() -> String {
    format!("A{}", &uuid::Uuid::new_v4().simple().to_string()[..20])
}

/// How long the simulator's own parts get to end.
pub(super) const GRACE: Duration = Duration::from_secs(2);
