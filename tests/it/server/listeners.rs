//! `GET /v1/events`: everybody hears what they may hear, once and in order, over any interruption.

use std::sync::Arc;

use tokio::sync::watch;
use twinlog::config;
use twinlog::realtime::Place;
use twinlog::site_db::Pool;
use twinlog::site_db::events::{self, Event, EventKind, Position, Read};

use super::ear::{Ear, Heard};
use super::*;
use crate::harness::pace;

fn keys(heard: &[Heard]) -> Vec<String> {
    heard.iter().map(Heard::key).collect()
}

fn is_delivered(id: &str) -> impl Fn(&Heard) -> bool {
    let key = format!("message.status {id} delivered");
    move |heard| heard.key() == key
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_hear_what_they_want_and_come_back_to_any_server_without_a_gap() {
    let (world, server) = World::served().await;
    let number = format!("?number={NUMBER}");
    let mut all = Ear::listening(&server.url, "").await;
    let mut statuses = Ear::listening(&server.url, "?kind=message.status").await;
    let mut of_number = Ear::listening(&server.url, &number).await;
    let mut of_other = Ear::listening(&server.url, "?number=1").await;
    let first = server.takes(&json!({"to": USER, "text": "one"})).await;
    let heard = all.until(is_delivered(&first)).await;

    // In the order of its life, with the row and its conversation.
    let of_message: Vec<_> = heard
        .iter()
        .filter(|heard| heard.data["message"]["id"] == *first)
        .collect();
    let told: Vec<&str> = of_message
        .iter()
        .map(|heard| heard.data["status"].as_str().unwrap())
        .collect();
    assert_eq!((told[0], told[told.len() - 1]), ("pending", "delivered"));
    let created = &of_message[0];
    assert_eq!(
        (created.event.as_str(), &created.data["message"]["body"]),
        ("message.created", &json!("one"))
    );
    assert_eq!(
        created.data["conversation"]["id"],
        created.data["message"]["conversation_id"]
    );
    assert_eq!(created.data["conversation"]["lead"]["phone"], "16505551234");
    let kinds = |heard: &[Heard], kind: &str| heard.iter().filter(|heard| heard.event == kind).count();
    assert!(kinds(&heard, "lead.updated") > 0 && kinds(&heard, "conversation.updated") > 0);

    let of_status: Vec<_> = heard
        .iter()
        .filter(|heard| heard.event == "message.status")
        .cloned()
        .collect();
    assert_eq!(statuses.until(is_delivered(&first)).await, of_status);
    assert_eq!(keys(&of_number.until(is_delivered(&first)).await), keys(&heard));
    let conversation = created.data["conversation"]["id"].as_str().unwrap().to_owned();

    // Who comes back gets what came after its place: from memory, from another server from the Site DB, and in the middle of an
    // event with several rows.
    world
        .db
        .on_site("INSERT INTO leads (phone) VALUES ('1'), ('2'), ('3')")
        .await;
    let is_third = |heard: &Heard| heard.data["lead"]["phone"] == "3";
    let more = all.until(is_third).await;
    let whole = keys(&[heard.clone(), more].concat());
    let ids: Vec<String> = {
        let mut again = Ear::after(&heard[0].id);
        again.connect(&server.url, "").await;
        let again = again.until(is_third).await;
        assert_eq!(keys(&again), whole[1..]);
        again.into_iter().map(|heard| heard.id).collect()
    };
    let second = Server::start(world.config.clone()).await;
    second.ready().await;
    for (place, id) in ids.iter().enumerate().take(ids.len() - 1) {
        let mut again = Ear::after(id);
        again.connect(&second.url, "").await;
        assert_eq!(keys(&again.until(is_third).await), whole[place + 2..], "after {id}");
    }

    // A listener to one conversation hears nothing of others.
    let mut of_one = Ear::listening(&second.url, &format!("?conversation={conversation}")).await;
    server.takes(&json!({"to": "+16505559999", "text": "elsewhere"})).await;
    let next = server.takes(&json!({"to": USER, "text": "two"})).await;
    let heard = of_one.until(is_delivered(&next)).await;
    assert!(
        heard
            .iter()
            .all(|heard| !heard.data.to_string().contains("16505559999")),
        "{heard:?}"
    );

    // A stop ends the streams, and what happens then is heard elsewhere.
    all.until(is_delivered(&next)).await;
    server.stop().await;
    tokio::time::timeout(SOON, async { while all.next().await.is_some() {} })
        .await
        .unwrap();
    world
        .db
        .on_site("UPDATE leads SET name = 'Ada' WHERE phone = '2'")
        .await;
    all.connect(&second.url, "").await;
    all.until(|heard| heard.data["lead"]["name"] == "Ada").await;
    assert_eq!(of_other.next().await, None);

    // Events that are not kept any more, and places that nobody knows: load anew, and go on.
    world
        .db
        .on_site("DELETE FROM twinlog.event_rounds WHERE round < (SELECT max(round) FROM twinlog.event_rounds)")
        .await;
    let third = Server::start(world.config.clone()).await;
    third.ready().await;
    for gone in [ids[0].as_str(), "x", "1-1-1-1"] {
        let mut again = Ear::after(gone);
        again.connect(&third.url, "").await;
        let reload = again.next().await.unwrap();
        assert_eq!(reload.event, "reload", "{gone}");
        world
            .db
            .on_site("UPDATE leads SET name = 'Grace' WHERE phone = '2'")
            .await;
        let heard = again.until(|heard| heard.data["lead"]["name"] == "Grace").await;
        assert_eq!(heard.len(), 1, "{gone}: {heard:?}");
    }
    // A page says where the events stood when it was read.
    let position = third.get("/v1/conversations").await.body["position"]
        .as_str()
        .unwrap()
        .to_owned();
    world
        .db
        .on_site("UPDATE leads SET name = 'Edsger' WHERE phone = '2'")
        .await;
    let mut since = Ear::listening(&third.url, &format!("?last_event_id={position}")).await;
    since.until(|heard| heard.data["lead"]["name"] == "Edsger").await;
    second.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_have_places_of_their_own_and_a_token_like_everybody() {
    let mut world = World::new().await;
    world.config.http.max_connections = 64;
    world.config.http.max_connections_per_address = 64;
    world.config.events.max_listeners = 100;
    world.config.events.heartbeat = Duration::from_millis(200);
    let server = world.serve().await;
    let mut ears = Vec::new();
    for _ in 0..100 {
        ears.push(Ear::listening(&server.url, "").await);
    }
    let refused = server.get("/v1/events").await;
    assert_eq!(
        (refused.status, &refused.headers["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    // More listeners than connections, and requests are answered.
    let id = server.takes(&json!({"to": USER, "text": "x"})).await;
    for ear in &mut ears {
        ear.until(is_delivered(&id)).await;
    }
    // A place is free when its listener has gone, and quiet ones learn where the events are.
    let quiet = ears.swap_remove(0);
    drop(ears);
    let first = quiet.last.clone();
    world.db.on_site("INSERT INTO notifications (kind) VALUES ('x')").await;
    let mut narrow = Ear::after(&first);
    eventually("a place is free", SOON, || async {
        let mut ear = Ear::after("");
        match ear.connect(&server.url, "?kind=message.created").await {
            Some(200) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(narrow.connect(&server.url, "?kind=message.created").await, Some(200));
    let moved = async {
        while narrow.last == first {
            let _ = tokio::time::timeout(Duration::from_millis(100), narrow.next()).await;
        }
    };
    tokio::time::timeout(SOON, moved).await.unwrap();

    let by_query = format!("{}/v1/events?access_token=", server.url);
    let ask = async |token: &str| server.http.get(format!("{by_query}{token}")).send().await.unwrap();
    assert_eq!(ask(TOKEN).await.status().as_u16(), 200);
    assert_eq!(ask("x").await.status().as_u16(), 401);
    let wrong = server.get("/v1/events?kind=x").await;
    assert_eq!((wrong.status, &wrong.body["error"]["field"]), (400, &json!("kind")));
    server.stop().await;
}

/// All events after a position.
async fn written(pool: &Pool, mut after: Position) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let Read::Events(found) = events::read_after(pool, after).await.unwrap() else {
            panic!("gone");
        };
        let Some(last) = found.last() else { return all };
        after = last.position;
        all.extend(found);
    }
}

/// A row of an event as listeners know it.
fn rows(event: &Event) -> Vec<String> {
    let status = |row: usize| event.statuses.get(row).map_or("-", |status| status.as_str());
    let rows = event.ids.iter().enumerate();
    rows.map(|(row, id)| format!("{} {id} {}", event.kind, status(row)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_death_of_a_server_every_listener_has_heard_everything_once_and_in_order() {
    let world = World::new().await;
    let pool = Pool::connect(&config::Site {
        url: world.db.site.database_url(),
        max_connections: 2,
    });
    let mut binary = Binary::start(&world).await;
    let (url, _) = watch::channel(binary.config.http("").trim_end_matches('/').to_owned());
    let url = Arc::new(url);
    let pages = binary.config.http("/v1/conversations");
    let place = eventually("the page has a position", SOON, || async {
        let answer = binary.http.get(&pages).bearer_auth(TOKEN).send().await.unwrap();
        let page = answer.json::<Value>().await.unwrap_or_default();
        page["position"].as_str().map(ToOwned::to_owned).ok_or(page.clone())
    })
    .await;
    let beginning = place.parse::<Place>().unwrap().position;
    let mut listeners = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (url, place) = (Arc::clone(&url), place.clone());
        listeners.spawn(async move {
            let (mut ear, mut heard) = (Ear::after(&place), Vec::new());
            loop {
                let now = url.borrow().clone();
                if ear.connect(&now, "").await != Some(200) {
                    pace(Duration::from_millis(20)).await;
                    continue;
                }
                while let Some(next) = ear.next().await {
                    let end = next.data["lead"]["name"] == "the end";
                    heard.push(next.key());
                    if end {
                        return heard;
                    }
                }
            }
        });
    }
    for message in 0..30 {
        let body = json!({"to": format!("+1650555{message:04}"), "text": "x", "client_id": message.to_string()});
        if message == 12 {
            binary.process.kill9();
            binary = Binary::start(&world).await;
            url.send_replace(binary.config.http("").trim_end_matches('/').to_owned());
        }
        let taken = async { while !matches!(binary.plain(&body).await, Ok(answer) if answer.status < 300) {} };
        tokio::time::timeout(SOON, taken).await.unwrap();
    }
    world
        .db
        .on_site("INSERT INTO leads (phone, name) VALUES ('0', 'the end')")
        .await;
    let heard = tokio::time::timeout(SOON, listeners.join_all())
        .await
        .expect("everybody hears the end");
    let expected: Vec<String> = written(&pool, beginning).await.iter().flat_map(rows).collect();
    for heard in heard {
        assert_eq!(heard[..], expected[..heard.len()]);
    }
    assert!(
        expected
            .iter()
            .filter(|row| row.starts_with(&EventKind::MessageCreated.to_string()))
            .count()
            == 30
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_passed_over_and_the_others_are_heard_of() {
    let (world, server) = World::served().await;
    let mut ear = Ear::listening(&server.url, "?kind=notification.created,lead.updated").await;
    world.db.on_site("INSERT INTO leads (phone) VALUES ('1')").await;
    let begun = ear.next().await.unwrap().id;
    // GIVEN a row whose JSON can't be made
    world
        .db
        .on_site(
            "ALTER TABLE notifications RENAME TO notes;
             CREATE VIEW notifications AS SELECT id, account_id, conversation_id, message_id, detail, created_at, read_at,
                 CASE kind WHEN 'bad' THEN (1 / (length(kind) - 3))::text ELSE kind END AS kind FROM notes;
             INSERT INTO notes (kind) VALUES ('one'), ('bad'), ('two')",
        )
        .await;
    world.db.on_site("INSERT INTO leads (phone) VALUES ('2')").await;

    // THEN all others are heard of, in their order, now and later by those who were away
    let second = Server::start(world.config.clone()).await;
    let mut again = Ear::after(&begun);
    eventually("the second server listens", SOON, || async {
        match Ear::after("").connect(&second.url, "").await {
            Some(200) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    again
        .connect(&second.url, "?kind=notification.created,lead.updated")
        .await;
    for ear in [&mut ear, &mut again] {
        let heard = ear.until(|heard| heard.data["lead"]["phone"] == "2").await;
        let kinds: Vec<&str> = (heard.iter())
            .filter_map(|heard| heard.data["notification"]["kind"].as_str())
            .collect();
        assert_eq!((kinds, heard.len()), (vec!["one", "two"], 3));
    }
    server.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_listeners_are_told_to_load_anew_and_go_on() {
    let (world, server) = World::served().await;
    let mut ear = Ear::listening(&server.url, "?kind=lead.updated").await;
    world.db.on_site("INSERT INTO leads (phone) VALUES ('1')").await;
    let before = ear.next().await.unwrap();
    // WHEN the rounds are those of another timeline
    world
        .db
        .on_site("UPDATE twinlog.event_rounds SET timeline = '0000000A'")
        .await;
    // THEN those who listen and those who come back load anew
    assert_eq!(ear.next().await.unwrap().event, "reload");
    let mut again = Ear::after(&before.id);
    again.connect(&server.url, "?kind=lead.updated").await;
    assert_eq!(again.next().await.unwrap().event, "reload");
    world.db.on_site("INSERT INTO leads (phone) VALUES ('2')").await;
    for ear in [&mut ear, &mut again] {
        assert_eq!(ear.next().await.unwrap().data["lead"]["phone"], "2");
    }
    server.stop().await;
}
