//! What Meta would post: signed webhooks with one text of one person each.

use secrecy::SecretString;
use serde_json::json;
use twinlog::provider::cloud::signature;

use super::clients::post;

/// Our number, which the simulator has too.
pub(crate) const NUMBER: &str = "106540352242922";
/// The Meta app's secret.
pub(crate) const SECRET: &str = "simulator-secret";

/// The body of the webhook with this number; `people` take turns.
pub(crate) fn text(number: u64, people: u64) -> Vec<u8> {
    let from = format!("1650{:07}", number % people);
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550783881", "phone_number_id": NUMBER},
        "contacts": [{"profile": {"name": "A Person"}, "wa_id": from}],
        "messages": [{"from": from, "id": format!("wamid.HBgLMTY1MDU1NTEyMzQVAgASGBQzQTdC{number:010}"),
            "timestamp": "1749416383", "type": "text", "text": {"body": format!("{number} Does it come in another color?")}}]
    }}]}]})
    .to_string()
    .into_bytes()
}

/// The request with that webhook.
pub(crate) fn signed(body: &[u8], secret: &SecretString) -> Vec<u8> {
    let header = format!("x-hub-signature-256: {}\r\n", signature::sign(secret, body));
    post("/webhook", &header, body)
}
