//! Sends: checked as Meta checks them, or failed as the active faults demand.

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::access::unauthorised;
use super::answers::{bad_gateway, graph_error, reset, server_error};
use super::validate::{Send, validate};
use crate::dev::graph_simulator::codes::title;
use crate::dev::graph_simulator::fault::{Answer, Plan, Refusal};
use crate::dev::graph_simulator::ids::wamid;
use crate::dev::graph_simulator::ledger::Accepted;
use crate::dev::graph_simulator::reset::Reset;
use crate::dev::graph_simulator::webhooks::statuses::{self, Subject};
use crate::dev::graph_simulator::world::World;
use crate::provider::cloud::GraphError;

/// `POST /{number}/messages`.
pub(super) async fn send(
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
    // Only the answer is late: an accepted message's statuses are not delayed.
    crate::shutdown::sleep(plan.delay, &world.stop).await;
    response
}

/// Refuses the send, or accepts it and plans its statuses.
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

    let accepted = accept(world, number, body, Message { to, kind, opaque }, plan).await;
    answer(world, connection, plan.answer, accepted).await
}

/// A valid message, as the request describes it.
struct Message {
    to: String,
    kind: String,
    opaque: Option<String>,
}

/// Writes the message into the ledger, plans its statuses, and gives the body of the answer.
async fn accept(world: &Arc<World>, number: &str, body: &[u8], message: Message, plan: &Plan) -> Value {
    let Message { to, kind, opaque } = message;
    let id = wamid(&to);
    world.ledger().accept(Accepted {
        wamid: id.clone(),
        phone_number_id: number.to_owned(),
        to: to.clone(),
        kind: kind.clone(),
        opaque: opaque.clone(),
        echoes: opaque.is_some() && !plan.reports.without_echo,
        body_sha256: hex::encode(Sha256::digest(body)),
        accepted_at: OffsetDateTime::now_utc(),
        statuses: Vec::new(),
    });
    let digits: String = to.chars().filter(char::is_ascii_digit).collect();
    let own = if to.contains('.') {
        to.clone()
    } else {
        world.own_number(&digits)
    };
    let subject = Subject {
        phone_number_id: number.to_owned(),
        wamid: id.clone(),
        to: own.clone(),
        opaque: opaque.filter(|_| !plan.reports.without_echo),
    };
    if plan.reports.before_answer {
        statuses::report_before_answer(world, &subject).await;
    }
    statuses::schedule(world, subject, &plan.reports);

    let mut message = json!({"id": id});
    if plan.reports.held_for.is_some() {
        message["message_status"] = json!("held_for_quality_assessment");
    } else if kind == "template" {
        message["message_status"] = json!("accepted");
    }
    let contact = if to.contains('.') {
        json!({"input": to, "user_id": to})
    } else {
        json!({"input": to, "wa_id": own})
    };
    json!({"messaging_product": "whatsapp", "contacts": [contact], "messages": [message]})
}

/// The answer to an accepted send, unless a fault takes it away.
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

/// The answer to a send that a fault refuses.
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
