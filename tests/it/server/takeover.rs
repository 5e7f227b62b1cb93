//! A person takes a conversation over: programs send nothing into it, decided in the transaction that would store the message.

use twinlog::config::ApiToken;

use super::*;

const BOT: &str = "bot-token";
const OTHER_USER: &str = "+16505559999";

/// A server with a bot among its clients.
async fn served() -> (World, Server) {
    let mut world = World::new().await;
    world.config.tokens.push(ApiToken {
        name: "bot".to_owned(),
        sha256: Sha256::digest(BOT).into(),
        numbers: None,
        automation: true,
    });
    let server = world.serve().await;
    (world, server)
}

async fn bot(server: &Server, to: &str) -> Answer {
    let body = json!({"to": to, "text": "from the bot"}).to_string();
    let bearer = format!("Bearer {BOT}");
    server.post("/v1/messages", &[("authorization", &bearer)], body).await
}

fn is_taken_over(answer: &Answer) -> bool {
    answer.status == 409 && answer.body["error"]["code"] == "taken_over"
}

async fn rows(world: &World) -> i64 {
    world.count("client_name = 'bot'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_message_keeps_programs_out_of_the_conversation_until_its_time_is_over() {
    let (world, server) = served().await;
    assert!(bot(&server, USER).await.status < 300);
    // A client that says nothing of a person takes nothing over; a person does, in new conversations, too.
    server.takes(&json!({"to": USER, "text": "x"})).await;
    assert!(bot(&server, USER).await.status < 300);
    for to in [USER, OTHER_USER] {
        server.takes(&json!({"to": to, "text": "x", "user_id": "anna"})).await;
        let touched = "SELECT max(updated_at)::text FROM conversations";
        let before = world.db.site.value(touched).await;
        let refused = bot(&server, to).await;
        assert!(is_taken_over(&refused), "{refused:?}");
        assert_eq!(world.db.site.value(touched).await, before);
    }
    let bearer = format!("Bearer {BOT}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let graph = server
        .post(&format!("/v26.0/{NUMBER}/messages"), &headers, text("x").to_string())
        .await;
    assert_eq!((graph.status, graph.code()), (409, 100));
    assert_eq!(rows(&world).await, 2);
    let by = "SELECT string_agg(DISTINCT automation_paused_by, ',') FROM conversations";
    assert_eq!(world.db.site.value(by).await, "anna");
    let shown = server.get("/v1/conversations").await;
    assert_eq!(shown.body["data"][0]["automation_paused_by"], "anna");
    // Others go on, and so does the bot when the time is over.
    server.takes(&json!({"to": USER, "text": "x"})).await;
    world
        .db
        .on_site("UPDATE conversations SET automation_paused_until = now()")
        .await;
    assert!(bot(&server, USER).await.status < 300);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_from_the_phone_takes_the_conversation_over() {
    let (world, server) = served().await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    // An old one comes late: its time is over.
    for (to, wamid, at) in [(OTHER_USER, "wamid.old", now - 13 * 60 * 60), (USER, "wamid.new", now)] {
        let echo = json!({"from": "15550783881", "to": to.trim_start_matches('+'), "id": wamid, "timestamp": at.to_string(),
            "type": "text", "text": {"body": "from the phone"}});
        let value = json!({"messaging_product": "whatsapp", "metadata": {"display_phone_number": "15550783881",
            "phone_number_id": NUMBER}, "message_echoes": [echo]});
        let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398",
            "changes": [{"field": "smb_message_echoes", "value": value}]}]})
        .to_string();
        assert_eq!(world.meta.post_webhook(body.as_bytes()).await, Some(200));
    }
    world.until_count(2, "wamid IN ('wamid.old', 'wamid.new')").await;
    let by =
        "SELECT string_agg(coalesce(automation_paused_by, '-'), ' ' ORDER BY automation_paused_by) FROM conversations";
    assert_eq!(world.db.site.value(by).await, "phone -");
    assert!(bot(&server, OTHER_USER).await.status < 300);
    assert!(is_taken_over(&bot(&server, USER).await));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_whose_message_is_being_committed_comes_before_a_program_that_sends_meanwhile() {
    let (world, server) = served().await;
    for (person, known) in [(USER, true), (OTHER_USER, false)] {
        if known {
            server.takes(&json!({"to": person, "text": "x"})).await;
        }
        let before = rows(&world).await;
        // GIVEN a transaction of a person that is not committed: it has the conversation, or makes it
        let holder = world.db.site.connect().await;
        let digits = person.trim_start_matches('+');
        holder
            .batch_execute(&format!(
                "BEGIN;
                 INSERT INTO leads (wa_id) SELECT '{digits}' WHERE NOT EXISTS (SELECT FROM leads WHERE wa_id = '{digits}');
                 INSERT INTO conversations (account_id, lead_id, automation_paused_until, automation_paused_by)
                     SELECT a.id, l.id, now() + interval '1 hour', 'anna' FROM whatsapp_accounts a, leads l WHERE l.wa_id = '{digits}'
                     ON CONFLICT (account_id, lead_id) DO UPDATE SET automation_paused_until = excluded.automation_paused_until"
            ))
            .await
            .unwrap();
        // WHEN a program sends, and waits for it
        let (url, http) = (format!("{}/v1/messages", server.url), server.http.clone());
        let body = json!({"to": person, "text": "from the bot"}).to_string();
        let sending = tokio::spawn(async move {
            super::answer(http.post(url).bearer_auth(BOT).body(body).send().await.unwrap()).await
        });
        let blocked = "SELECT (count(*) > 0)::text FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND datname = current_database()";
        eventually_equal("it waits", SOON, "true".to_owned(), || world.db.site.value(blocked)).await;
        holder.batch_execute("COMMIT").await.unwrap();
        // THEN it is refused, and nothing is stored
        let answer = sending.await.unwrap();
        assert!(is_taken_over(&answer), "{known}: {answer:?}");
        assert_eq!(rows(&world).await, before);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_person_and_a_program_that_send_at_once_the_program_is_first_or_refused() {
    let (world, server) = served().await;
    let server = Arc::new(server);
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..20 {
        let to = format!("+1650555{number:04}");
        let (one, other, person) = (Arc::clone(&server), Arc::clone(&server), to.clone());
        sending.spawn(async move {
            let body = json!({"to": person, "text": "x", "user_id": "anna"});
            (one.plain(&body).await.id(), true)
        });
        sending.spawn(async move {
            let answer = bot(&other, &to).await;
            assert!(answer.status < 300 || is_taken_over(&answer), "{answer:?}");
            (String::new(), false)
        });
    }
    let people = sending
        .join_all()
        .await
        .into_iter()
        .filter(|(_, person)| *person)
        .count();
    assert_eq!(people, 20);
    // A statement has one time for all that it stores: no program's message is of a person's statement.
    let late = "SELECT count(*)::text FROM whatsapp_messages b JOIN whatsapp_messages p USING (conversation_id)
        WHERE b.client_name = 'bot' AND p.client_name = 'crm' AND b.created_at = p.created_at";
    assert_eq!(world.db.site.value(late).await, "0");
    for number in 0..20 {
        let refused = bot(&server, &format!("+1650555{number:04}")).await;
        assert!(is_taken_over(&refused), "{refused:?}");
    }
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_message_that_was_cancelled_is_not_revived_after_a_takeover() {
    let mut world = World::new().await;
    world.config.tokens[0].automation = true;
    world.config.http.send_wait = Duration::from_millis(400);
    let server = world.serve().await;
    world.fault(Fault::TooManyRequests { retry_after_seconds: 1 });
    let cancelled = server.graph_with(&text("patience"), Some("k1")).await;
    assert_eq!(cancelled.status, 503, "{cancelled:?}");
    world.meta.clear_faults(NUMBER).unwrap();
    let take = "UPDATE conversations SET automation_paused_until = now() + interval '1 hour'";
    world.db.on_site(take).await;
    let again = server.graph_with(&text("patience"), Some("k1")).await;
    assert_eq!((again.status, again.code()), (409, 100), "{again:?}");
    assert_eq!(world.status(&cancelled.id()).await, "cancelled");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_front_ends_route_takes_over_for_its_user_and_the_length_is_a_key() {
    let (mut world, server) = served().await;
    let send = |server: &Server| {
        let body = json!({"action": "send_message", "to": USER, "message": "x", "user_id": 17}).to_string();
        let url = format!("{}/functions/v1/whatsapp-send", server.url);
        let request = server.http.post(url).bearer_auth(TOKEN).body(body);
        async move { answer(request.send().await.unwrap()).await.status }
    };
    assert_eq!(send(&server).await, 200);
    assert!(is_taken_over(&bot(&server, USER).await));
    let by = "SELECT automation_paused_by FROM conversations";
    assert_eq!(world.db.site.value(by).await, "17");
    server.stop().await;

    world.config.whatsapp.takeover = Duration::ZERO;
    let server = world.serve().await;
    let over = "UPDATE conversations SET automation_paused_until = now()";
    world.db.on_site(over).await;
    assert_eq!(send(&server).await, 200);
    assert!(bot(&server, USER).await.status < 300);
    server.stop().await;
}
