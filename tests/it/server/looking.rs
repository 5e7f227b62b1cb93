//! Who may look at conversations, and what they see: API tokens, JSON Web Tokens, web pages; pages of rows.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use twinlog::config::{CorsOrigins, Jwt, JwtKeySource, JwtNumbers, JwtUsers};

use super::*;

/// The other number.
const OTHER: &str = "200";
/// A moment long after every test.
const LATE: u64 = 4_000_000_000;

/// Two numbers; the first has conversations with three people, the second with one of them.
const STAGE: &str = "
    INSERT INTO whatsapp_accounts (phone_number_id) VALUES ('106540352242922') ON CONFLICT DO NOTHING;
    INSERT INTO whatsapp_accounts (id, phone_number_id) VALUES ('00000000-0000-0000-0000-0000000000a2', '200');
    INSERT INTO leads (id, wa_id, name) SELECT ('00000000-0000-0000-0000-00000000001' || n)::uuid, '49151' || n, 'Person ' || n
        FROM generate_series(1, 3) AS n;
    INSERT INTO conversations (id, account_id, lead_id, last_message_at, unread_count)
        SELECT ('00000000-0000-0000-0000-00000000002' || n)::uuid, a.id, ('00000000-0000-0000-0000-00000000001' || n)::uuid,
               '2026-01-01 10:00:00.123456+00'::timestamptz + n / 2 * interval '1 hour', 0
        FROM whatsapp_accounts a, generate_series(1, 3) AS n WHERE a.phone_number_id <> '200';
    INSERT INTO conversations (id, account_id, lead_id)
        VALUES ('00000000-0000-0000-0000-000000000029', '00000000-0000-0000-0000-0000000000a2', '00000000-0000-0000-0000-000000000013');
    INSERT INTO whatsapp_messages (id, account_id, conversation_id, lead_id, direction, status, type, body, payload, created_at)
        SELECT ('00000000-0000-0000-0000-00000000003' || n)::uuid, account_id, id, lead_id, 'inbound', 'received',
               CASE n WHEN 5 THEN 'image' ELSE 'text' END, 'text ' || n, '{\"image\": {\"id\": \"77\", \"caption\": null}}',
               '2026-01-01 10:00:00.123456+00'::timestamptz + n / 3 * interval '1 microsecond'
        FROM conversations, generate_series(1, 5) AS n WHERE id::text LIKE '%21';
    UPDATE conversations SET unread_count = 5 WHERE id::text LIKE '%21';
    INSERT INTO notifications (kind, conversation_id, message_id) SELECT 'inbound_message', conversation_id, id FROM whatsapp_messages";

fn id(last: &str) -> String {
    format!("00000000-0000-0000-0000-0000000000{last}")
}

fn claims(role: &str, numbers: &[&str]) -> Value {
    json!({"exp": LATE, "aud": "authenticated", "role": role, "sub": "u", "app_metadata": {"numbers": numbers}})
}

fn hs256(secret: &str, claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

/// An issuer's key: it signs, and its public half stands in a key set.
struct Issuer {
    id: &'static str,
    pair: rcgen::KeyPair,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self { id, pair }
    }

    fn token(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        encode(&header, claims, &EncodingKey::from_ec_der(&self.pair.serialize_der())).unwrap()
    }

    fn public(&self) -> Value {
        use base64::Engine;
        let coordinate = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key_raw();
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
               "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65])})
    }
}

/// A server that takes both kinds of JSON Web Tokens.
async fn staged(keys: &std::path::Path) -> (World, Server) {
    let mut world = World::new().await;
    world.config.jwt = Some(Jwt {
        secret: Some("hs-secret".into()),
        keys: Some(JwtKeySource::File(keys.to_owned())),
        audience: "authenticated".to_owned(),
        roles: vec!["authenticated".to_owned()],
        users: JwtUsers::Look,
        numbers: JwtNumbers::Claim(vec!["app_metadata".to_owned(), "numbers".to_owned()]),
    });
    world.config.http.cors_origins = CorsOrigins::Named(vec!["https://crm.example.com".to_owned()]);
    let server = world.serve().await;
    world.db.on_site(STAGE).await;
    (world, server)
}

async fn asked(server: &Server, path: &str, token: &str) -> Answer {
    let request = server.http.get(format!("{}{path}", server.url)).bearer_auth(token);
    answer(request.send().await.unwrap()).await
}

/// The ids of a page's rows, their last two digits.
fn ids(page: &Answer) -> Vec<String> {
    let rows = page.body["data"].as_array().unwrap_or_else(|| panic!("{page:?}"));
    rows.iter()
        .map(|row| row["id"].as_str().unwrap()[34..].to_owned())
        .collect()
}

#[tokio::test]
async fn users_see_the_numbers_of_their_token_and_nothing_without_a_valid_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (first, second) = (Issuer::new("first"), Issuer::new("second"));
    // A secret among public keys, and a kind that nobody knows, are left out.
    let secret = json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "oct"});
    let set = json!({"keys": [{"kty": "new"}, secret, first.public()]});
    std::fs::write(file.path(), set.to_string()).unwrap();
    let (_world, server) = staged(file.path()).await;
    let user = |numbers: &[&str]| claims("authenticated", numbers);
    let all = ["23", "22", "21", "29"];
    let seen = async |token: &str| ids(&asked(&server, "/v1/conversations", token).await);
    // A row without a message stands where it was made: now.
    let mut with_other_first = vec!["29"];
    with_other_first.extend(&all[..3]);
    assert_eq!(seen(TOKEN).await, with_other_first);
    assert_eq!(seen(&hs256("hs-secret", &user(&[NUMBER]))).await, ["23", "22", "21"]);
    assert_eq!(seen(&first.token(&user(&[OTHER]))).await, ["29"]);

    let mut expired = user(&[NUMBER]);
    expired["exp"] = json!(1);
    let mut anonymous = user(&[NUMBER]);
    anonymous["is_anonymous"] = json!(true);
    for (what, token, message) in [
        ("none", String::new(), "send an API token"),
        ("a stranger's", "x".to_owned(), "none of this server's"),
        (
            "an anonymous visitor's",
            hs256("hs-secret", &claims("anon", &[])),
            "role",
        ),
        ("of an anonymous sign-in", hs256("hs-secret", &anonymous), "anonymous"),
        ("expired", hs256("hs-secret", &expired), "expired"),
        ("without numbers", first.token(&user(&[])), "jwt_numbers_claim"),
        ("forged", hs256("guess", &user(&[NUMBER])), "signature"),
        (
            "signed with the set's secret",
            hs256("secret", &user(&[NUMBER])),
            "signature",
        ),
        ("of a key that is not known", second.token(&user(&[NUMBER])), "keys"),
    ] {
        let refused = asked(&server, "/v1/conversations", &token).await;
        let said = refused.body["error"]["message"].as_str().unwrap();
        assert!(refused.status == 401 && said.contains(message), "{what}: {refused:?}");
    }
    // The users of a browser may look, and not send.
    let bearer = format!("Bearer {}", hs256("hs-secret", &user(&[NUMBER])));
    let body = json!({"to": USER, "text": "x"}).to_string();
    let refused = server.post("/v1/messages", &[("authorization", &bearer)], body).await;
    assert_eq!(refused.status, 401);

    // Rows of other numbers are answered as if they did not exist.
    let token = first.token(&user(&[OTHER]));
    for path in [
        format!("/v1/conversations/{}/messages", id("21")),
        format!("/v1/leads/{}", id("11")),
        "/v1/leads/x".to_owned(),
    ] {
        assert_eq!(asked(&server, &path, &token).await.status, 404, "{path}");
    }
    let lead = asked(&server, &format!("/v1/leads/{}", id("13")), &token).await;
    assert_eq!((lead.status, &lead.body["lead"]["name"]), (200, &json!("Person 3")));
    assert_eq!(lead.body["conversations"].as_array().unwrap().len(), 1);
    assert_eq!(lead.body["conversations"][0]["phone_number_id"], OTHER);

    // A page of ours may ask, whatever headers its library sends, and no other.
    let preflight = async |origin: &str| {
        let request = server
            .http
            .request(reqwest::Method::OPTIONS, format!("{}/v1/conversations", server.url));
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "GET");
        let request = request.header("access-control-request-headers", "authorization,apikey,x-client-info");
        answer(request.send().await.unwrap()).await
    };
    let ours = preflight("https://crm.example.com").await;
    assert_eq!(ours.status, 200);
    assert_eq!(ours.headers["access-control-allow-origin"], "https://crm.example.com");
    assert_eq!(
        ours.headers["access-control-allow-headers"],
        "authorization,apikey,x-client-info"
    );
    assert!(
        !preflight("https://evil.example.com")
            .await
            .headers
            .contains_key("access-control-allow-origin")
    );
    server.stop().await;
}

#[tokio::test]
async fn pages_show_each_row_once_and_what_was_read_is_counted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (world, server) = staged(file.path()).await;
    let get = async |path: &str| server.get(path).await;
    let mut pages = Vec::new();
    let mut path = "/v1/conversations?limit=2".to_owned();
    loop {
        let page = get(&path).await;
        pages.push(ids(&page));
        match page.body["next"].as_str() {
            Some(next) => path = format!("/v1/conversations?limit=2&before={next}"),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["29", "23"], vec!["22", "21"], vec![]]);
    assert_eq!(ids(&get("/v1/conversations?unread=true").await), ["21"]);
    assert_eq!(ids(&get(&format!("/v1/conversations?number={OTHER}")).await), ["29"]);
    assert_eq!(
        ids(&get(&format!("/v1/conversations?lead_id={}", id("13"))).await),
        ["29", "23"]
    );
    assert_eq!(
        ids(&get(&format!("/v1/conversations?number={OTHER},300&unread=false")).await),
        ["29"]
    );
    for path in [
        "?limit=0",
        "?limit=201",
        "?before=x",
        "?lead_id=1",
        "?unread=1",
        "?number=",
        "?number=%00",
        "?before=-99999999999999999.00000000000000000000000000000001",
        "?nummer=1",
    ] {
        let refused = get(&format!("/v1/conversations{path}")).await;
        let field = path[1..].split('=').next().unwrap();
        assert_eq!(
            (refused.status, &refused.body["error"]["field"]),
            (400, &json!(field)),
            "{refused:?}"
        );
    }

    let messages = format!("/v1/conversations/{}/messages", id("21"));
    let page = get(&format!("{messages}?limit=3")).await;
    assert_eq!(ids(&page), ["35", "34", "33"]);
    let shown = &page.body["data"][0];
    assert_eq!(
        (&shown["content"], &shown["body"]),
        (&json!({"id": "77"}), &json!("text 5"))
    );
    assert_eq!(shown["created_at"], "2026-01-01T10:00:00.123457+00:00");
    let next = page.body["next"].as_str().unwrap();
    assert_eq!(
        ids(&get(&format!("{messages}?limit=3&before={next}")).await),
        ["32", "31"]
    );
    let conversation = &page.body["conversation"];
    assert_eq!(
        (&conversation["lead"]["phone"], &conversation["unread_count"]),
        (&json!("491511"), &json!(5))
    );

    let read = async |body: Value| {
        let bearer = format!("Bearer {TOKEN}");
        let path = format!("/v1/conversations/{}/read", id("21"));
        server
            .post(&path, &[("authorization", &bearer)], body.to_string())
            .await
    };
    let unread = "SELECT count(*) FROM notifications WHERE read_at IS NULL";
    let partly = read(json!({"up_to": id("33")})).await;
    assert_eq!(partly.body["conversation"]["unread_count"], 2, "{partly:?}");
    assert_eq!(world.db.site.value(unread).await, "2");
    assert_eq!(read(json!({"up_to": id("77")})).await.status, 404);
    assert_eq!(read(json!({"upto": id("33")})).await.status, 400);
    assert_eq!(read(json!({})).await.body["conversation"]["unread_count"], 0);
    // A conversation that was merged into another one shows that one.
    world
        .db
        .on_site(&format!(
            "UPDATE conversations SET merged_into = '{}' WHERE id = '{}'",
            id("23"),
            id("22")
        ))
        .await;
    let merged = get(&format!("/v1/conversations/{}/messages", id("22"))).await;
    assert_eq!(merged.body["conversation"]["id"], id("23"));
    assert_eq!(ids(&get("/v1/conversations").await), ["29", "23", "21"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_wait_for_the_site_db_leave_its_connections_to_webhooks_and_sends() {
    let mut world = World::new().await;
    world.config.site.max_connections = 8;
    let server = world.serve().await;
    world.db.on_site(STAGE).await;
    // GIVEN a conversation that somebody holds, and many who want to mark it as read
    let holder = world.db.site.connect().await;
    holder
        .batch_execute(&format!(
            "BEGIN; SELECT FROM conversations WHERE id = '{}' FOR UPDATE",
            id("21")
        ))
        .await
        .unwrap();
    let read = format!("{}/v1/conversations/{}/read", server.url, id("21"));
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let request = server.http.post(&read).bearer_auth(TOKEN);
        reading.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let blocked = "SELECT (count(*) >= 2)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually_equal("some wait", SOON, "true".to_owned(), || world.db.site.value(blocked)).await;

    // WHEN a message is sent, and its reports come, THEN they find connections
    let sent = server.takes(&json!({"to": "+16505559999", "text": "x"})).await;
    world.reaches(&sent, &["delivered"]).await;
    assert!(reading.try_join_next().is_none());
    holder.batch_execute("ROLLBACK").await.unwrap();
    let answers = reading.join_all().await;
    assert!(
        answers.contains(&200) && answers.iter().all(|status| [200, 503].contains(status)),
        "{answers:?}"
    );
    server.stop().await;
}
