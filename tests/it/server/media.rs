//! Media and pages: links lead to this server, which fetches the bytes itself.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::firms::{META_ONE, OTHER, OTHER_CLIENT, WABA, firms, firms_with};
use super::meta_stub::bytes;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn media_come_through_links_of_this_server() {
    let firms = firms(vec![
        (
            "7001",
            META_ONE,
            json!({"messaging_product": "whatsapp", "id": "7001", "mime_type": "image/png", "file_size": 700_000,
                   "url": format!("{{stub}}/bytes/one/700000")}),
        ),
        (
            "7002",
            META_ONE,
            json!({"id": "7002", "mime_type": "x/y", "url": format!("{{stub}}/bytes/one/elsewhere")}),
        ),
        (
            "7003",
            META_ONE,
            json!({"id": "7003", "mime_type": "x/y", "url": "https://evil.example.com/x"}),
        ),
    ])
    .await;
    let medium = firms.get("/v26.0/7001", TOKEN).await;
    let link = medium.body["url"].as_str().unwrap().to_owned();
    assert!(
        link.starts_with(&format!(
            "{}/whatsapp_business/attachments/?mid=7001&",
            firms.server.url
        )),
        "{link}"
    );
    assert_eq!(medium.body["file_size"], 700_000);

    // The bytes, whole and in part.
    let get = |token: &str| firms.server.http.get(&link).bearer_auth(token);
    let whole = get(TOKEN).send().await.unwrap();
    assert_eq!(whole.status().as_u16(), 200);
    assert_eq!(whole.headers()["content-type"], "image/png");
    assert_eq!(whole.headers()["content-length"], "700000");
    assert!(whole.bytes().await.unwrap() == bytes(700_000));
    let part = get(TOKEN).header("range", "bytes=0-99").send().await.unwrap();
    assert_eq!(part.status().as_u16(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 0-99/700000");
    assert!(part.bytes().await.unwrap() == bytes(100));
    for call in firms.meta.take() {
        assert_eq!(call.headers["authorization"], format!("Bearer {META_ONE}"));
        assert!(!call.text().contains(TOKEN), "{call:?}");
    }

    // Without the token, with another firm's, and changed, it opens nothing.
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(firms.server.http.get(&link)).await, 401);
    assert_eq!(status(get(OTHER_CLIENT)).await, 404);
    let changed = link.replace(&format!("number={NUMBER}"), &format!("number={OTHER}"));
    assert_eq!(
        status(firms.server.http.get(changed).bearer_auth(OTHER_CLIENT)).await,
        404
    );
    assert!(firms.meta.take().is_empty());
    // Neither a redirect nor a link leads anywhere else.
    for id in ["7002", "7003"] {
        let medium = firms.get(&format!("/v26.0/{id}"), TOKEN).await;
        let link = medium.body["url"].as_str().unwrap().to_owned();
        assert!(link.starts_with(&firms.server.url), "{link}");
        assert_eq!(
            status(firms.server.http.get(&link).bearer_auth(TOKEN)).await,
            502,
            "{id}"
        );
    }
    firms.server.stop().await;
}

/// A form with a file of this length.
fn form(length: usize) -> Vec<u8> {
    let mut form =
        b"--limit\r\nContent-Disposition: form-data; name=\"messaging_product\"\r\n\r\nwhatsapp\r\n--limit\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"x.png\"\r\nContent-Type: image/png\r\n\r\n"
            .to_vec();
    form.extend(bytes(length));
    form.extend(b"\r\n--limit--\r\n");
    form
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_larger_than_other_bodies_and_belong_to_their_number() {
    let firms = firms_with(
        vec![
            ("106540352242922/media", META_ONE, json!({"id": "8001"})),
            (
                "8001",
                META_ONE,
                json!({"id": "8001", "mime_type": "image/png", "url": "{stub}/bytes/x/1"}),
            ),
        ],
        |config| config.http.max_media_bytes = 8_000_000,
    )
    .await;
    let upload = |form: Vec<u8>, token: &str| {
        firms
            .server
            .http
            .post(format!("{}/v26.0/{NUMBER}/media", firms.server.url))
            .bearer_auth(token)
            .header("content-type", "multipart/form-data; boundary=limit")
            .body(form)
    };
    let sent = form(6_000_000);
    let length = sent.len();
    let taken = answer(upload(sent, TOKEN).send().await.unwrap()).await;
    assert_eq!((taken.status, &taken.body["id"]), (200, &json!("8001")), "{taken:?}");
    let seen = firms.meta.take();
    assert!(seen[0].whole && seen[0].length == length, "{:?}", seen[0].length);
    assert_eq!(seen[0].headers["content-length"], length.to_string());
    assert!(!seen[0].text().contains(TOKEN));
    let owner = firms
        .db
        .site
        .value("SELECT phone_number_id FROM twinlog.uploaded_media WHERE media_id = '8001'")
        .await;
    assert_eq!(owner, NUMBER);

    let too_large = answer(upload(form(8_000_000), TOKEN).send().await.unwrap()).await;
    assert_eq!((too_large.status, too_large.code()), (413, 100));
    let theirs = answer(upload(form(100_000), OTHER_CLIENT).send().await.unwrap()).await;
    assert_eq!((theirs.status, theirs.code()), (400, 100));
    assert!(firms.meta.take().is_empty());
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_upload_at_meta() {
    let firms = firms(vec![]).await;
    let mut stream = TcpStream::connect(firms.server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let part = form(300_000);
    let head = format!(
        "POST /v26.0/{NUMBER}/media HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 90000000\r\n\
         content-type: multipart/form-data; boundary=limit\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&part[..200_000]).await.unwrap();
    drop(stream);
    let seen = eventually("Meta sees the upload end", SOON, || async {
        let mut seen = firms.meta.take();
        seen.pop().ok_or("nothing yet")
    })
    .await;
    assert!(!seen.whole, "{:?}", seen.length);
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pages_are_calls_to_this_server() {
    let page = |next: &str| {
        json!({"data": [{"name": "x", "url": "https://shop.example.com"}], "inner": {"data": [], "paging": {
            "cursors": {"after": "B"}, "previous": format!("{{stub}}/v26.0/{WABA}/flows?access_token={META_ONE}&before=A")}},
            "paging": {"next": next, "cursors": {"before": "A", "after": "B"}}})
    };
    let next = format!(
        "https://graph.facebook.com/v26.0/{WABA}/message_templates?access_token=EAAone%7Csecret&pretty=0&limit=2&after=QVFI"
    );
    let firms = firms(vec![("102290129340398/message_templates", META_ONE, page(&next))]).await;
    let first = firms
        .get(&format!("/v26.0/{WABA}/message_templates?limit=2"), TOKEN)
        .await;
    let next = first.body["paging"]["next"].as_str().unwrap();
    let expected = format!(
        "{}/v26.0/{WABA}/message_templates?pretty=0&limit=2&after=QVFI",
        firms.server.url
    );
    assert_eq!(next, expected);
    let previous = &first.body["inner"]["paging"]["previous"];
    assert_eq!(*previous, format!("{}/v26.0/{WABA}/flows?before=A", firms.server.url));
    assert_eq!(first.body["data"][0]["url"], "https://shop.example.com");
    let second = answer(firms.server.http.get(next).bearer_auth(TOKEN).send().await.unwrap()).await;
    assert_eq!(second.status, 200, "{second:?}");
    assert_eq!(
        firms.meta.take()[1].uri,
        format!("/v26.0/{WABA}/message_templates?pretty=0&limit=2&after=QVFI")
    );
    firms.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn against_the_simulator_a_medium_goes_up_and_comes_down_and_pages_go_on_to_the_end() {
    let (world, server) = World::served().await;
    let upload = server
        .http
        .post(format!("{}/v26.0/{NUMBER}/media", server.url))
        .bearer_auth(TOKEN)
        .header("content-type", "multipart/form-data; boundary=limit")
        .body(form(3_000_000));
    let uploaded = answer(upload.send().await.unwrap()).await;
    let id = uploaded.body["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{uploaded:?}"))
        .to_owned();
    let medium = server.get(&format!("/v26.0/{id}")).await;
    let link = medium.body["url"].as_str().unwrap_or_else(|| panic!("{medium:?}"));
    let down = server.http.get(link).bearer_auth(TOKEN).header("range", "bytes=5-");
    let down = down.send().await.unwrap();
    assert_eq!(down.status().as_u16(), 206);
    assert!(down.bytes().await.unwrap() == bytes(3_000_000)[5..]);
    let deleted = server
        .http
        .delete(format!("{}/v26.0/{id}", server.url))
        .bearer_auth(TOKEN);
    assert_eq!(
        answer(deleted.send().await.unwrap()).await.body,
        json!({"success": true})
    );
    assert_eq!(server.get(&format!("/v26.0/{id}")).await.status, 400);

    let mut next = format!("{}/v26.0/{WABA}/message_templates?limit=1", server.url);
    let mut names = Vec::new();
    let mut last = Value::Null;
    while !next.is_empty() {
        let page = answer(server.http.get(&next).bearer_auth(TOKEN).send().await.unwrap()).await;
        names.push(page.body["data"][0]["name"].clone());
        next = page.body["paging"]["next"].as_str().unwrap_or_default().to_owned();
        last = page.body;
    }
    assert_eq!(json!(names), json!(["hello_world", "order", "reminder"]));
    let previous = last["paging"]["previous"].as_str().unwrap();
    assert!(
        previous.starts_with(&server.url) && !previous.contains("token"),
        "{previous}"
    );
    let back = answer(server.http.get(previous).bearer_auth(TOKEN).send().await.unwrap()).await;
    assert_eq!(back.body["data"][0]["name"], "order");
    drop(world);
    server.stop().await;
}
