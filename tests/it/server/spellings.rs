//! What real clients write otherwise than Meta's pages show, and Meta takes: paths without a version, a form's member in the
//! query, a slash at the end. Found by `tests/clients/run`.

use reqwest::RequestBuilder;

use super::firms::WABA;
use super::*;

async fn taken(request: RequestBuilder) -> Value {
    let answer = answer(request.bearer_auth(TOKEN).send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// A request with a form: these parts, and a file.
fn with_form(request: RequestBuilder, parts: &[(&str, &str)]) -> RequestBuilder {
    let part =
        |head: &str, content: &str| format!("--limit\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n");
    let mut form: String = parts
        .iter()
        .map(|(name, value)| part(&format!("name=\"{name}\""), value))
        .collect();
    form.push_str(&part(
        "name=\"file\"; filename=\"x.png\"\r\nContent-Type: image/png",
        "bytes",
    ));
    form.push_str("--limit--\r\n");
    request
        .header("content-type", "multipart/form-data; boundary=limit")
        .body(form)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_version_is_taken() {
    let (world, server) = World::served().await;
    let url = |path: &str| format!("{}/{path}", server.url);
    let http = &server.http;

    let sent = taken(
        http.post(url(&format!("{NUMBER}/messages")))
            .body(text("x").to_string()),
    )
    .await;
    assert!(sent["messages"][0]["id"].is_string(), "{sent}");
    let wamid = world.meta.inbound(Inbound::text(NUMBER, "16505551234", "Hello")).await;
    world.until_count(1, "direction = 'inbound'").await;
    let read = json!({"messaging_product": "whatsapp", "status": "read", "message_id": wamid});
    taken(http.post(url(&format!("{NUMBER}/messages"))).body(read.to_string())).await;
    let version = "SELECT api_version FROM whatsapp_messages WHERE direction = 'outbound'";
    assert_eq!(world.db.site.value(version).await, "v26.0");

    let product = ("messaging_product", "whatsapp");
    let uploaded = taken(with_form(http.post(url(&format!("{NUMBER}/media"))), &[product])).await;
    let medium = taken(http.get(url(uploaded["id"].as_str().unwrap()))).await;
    let bytes = http.get(medium["url"].as_str().unwrap()).bearer_auth(TOKEN);
    assert_eq!(bytes.send().await.unwrap().bytes().await.unwrap(), b"bytes".as_slice());
    let page = taken(http.get(url(&format!("{WABA}/message_templates?limit=1")))).await;
    taken(http.get(page["paging"]["next"].as_str().unwrap())).await;
    let block = json!({"messaging_product": "whatsapp", "block_users": [{"user": "16505551234"}]});
    let blocked = http.post(url(&format!("{NUMBER}/block_users"))).json(&block);
    assert!(taken(blocked).await["block_users"]["added_users"].is_array());

    // A form whose product is in the query, and one with a medium's lifetime.
    let upload = |query: &str| http.post(url(&format!("v26.0/{NUMBER}/media{query}")));
    taken(with_form(upload("?messaging_product=whatsapp"), &[])).await;
    taken(with_form(upload(""), &[product, ("ttl_minutes", "120")])).await;
    // The slash where a code's id would be.
    taken(http.get(url(&format!("v22.0/{NUMBER}/message_qrdls/")))).await;

    // WHAT stays refused, without a version as with one; in Meta's shape.
    for path in [
        format!("{NUMBER}/media?method=delete"),
        format!("{NUMBER}/media?messaging_product=other"),
        format!("{NUMBER}/marketing_messages"),
        format!("{NUMBER}/register/"),
        "1/messages".to_owned(),
        "me/messages".to_owned(),
    ] {
        let refused = http.post(url(&path)).bearer_auth(TOKEN).json(&text("x"));
        let refused = answer(refused.send().await.unwrap()).await;
        assert!((400..500).contains(&refused.status), "{path}: {refused:?}");
        if !path.starts_with("me") {
            assert_eq!(refused.code(), 100, "{path}");
        }
    }
    assert_eq!(world.accepted(), 1);
    server.stop().await;
}
