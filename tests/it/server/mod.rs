//! The server on real Postgres and against the Graph simulator: promise 1 and the routes.
//!
//! | file | what is in it |
//! |---|---|
//! | `world` | the set-up: a Site DB, Meta's simulator, a configuration, and questions about a message's row |
//! | `in_process` | a server in this process and its clients |
//! | `firms` | two firms with a client each |
//! | `meta_stub` | a Meta that keeps what it was asked |
//! | `binary` | the real binary, which may die |
//! | `ear` | a listener to events |
//! | `receiver` | a subscriber of webhooks |
//! | `web_socket` | a client of Socket.IO |
//! | the others | tests |

mod batches;
mod binary;
mod clients;
mod deaths;
mod decisions;
mod ear;
mod faults;
mod firms;
mod front_end;
mod graph_route;
mod holds;
mod in_process;
mod light;
mod listeners;
mod looking;
mod media;
mod message_history;
mod meta_stub;
mod observed;
mod outages;
mod plain_route;
mod plans;
mod pooler;
mod receiver;
mod recipients;
mod repeats;
mod several;
mod silence;
mod socket_io;
mod spellings;
mod strangers;
mod subscribers;
mod takeover;
mod traced;
mod web_socket;
mod webhooks;
mod world;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use twinlog::dev::graph_simulator::{Fault, Inbound, Simulator};
use twinlog::migrations;

use self::binary::Binary;
use self::in_process::{Answer, Server, answer};
use self::world::{World, configuration};
pub(crate) use self::world::{prompt, sections};
use crate::harness::{self, SOON, eventually, eventually_equal};

/// The simulator's number.
pub(crate) const NUMBER: &str = "106540352242922";
/// A token of our API; its SHA-256 is in the configuration.
pub(crate) const TOKEN: &str = "crm-token";
/// A user.
const USER: &str = "+16505551234";

/// A text as Graph clients send it.
fn text(body: &str) -> Value {
    text_to(USER, body)
}

/// The same to another user.
fn text_to(to: &str, body: &str) -> Value {
    json!({"messaging_product": "whatsapp", "to": to, "type": "text", "text": {"body": body}})
}
