//! `/socket.io/`: the same events for front ends that speak Socket.IO.

use super::web_socket::WebSocket;
use super::*;

fn is_delivered(id: &str) -> impl Fn(&str, &Value) -> bool {
    move |event, data| event == "message_status" && data["message_id"] == id && data["status"] == "delivered"
}

/// The names of the events of messages, with the status where there is one.
fn of_messages(heard: &[(String, Value)]) -> Vec<String> {
    let shown = |(event, data): &(String, Value)| match event.as_str() {
        "new_message" => Some(format!("{event} {}", data["message"]["id"])),
        "message_status" => Some(format!("{event} {} {}", data["message_id"], data["status"])),
        _ => None,
    };
    heard.iter().filter_map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_clients_hear_the_same_events_and_come_back_with_their_position() {
    let mut world = World::new().await;
    world.config.socket_io.ping_interval = Duration::from_millis(200);
    let server = world.serve().await;
    let auth = json!({"token": TOKEN});
    let (mut all, said) = WebSocket::connected(&server.url, &auth).await;
    assert!(said.starts_with("40{\"sid\""), "{said}");
    let (begun, _) = all.next().await.unwrap();
    assert_eq!(begun, "position");

    let sent = json!({"to": USER, "text": "one", "client_id": "c1"});
    let id = server.takes(&sent).await;
    let heard = all.until(is_delivered(&id)).await;
    let new = heard.iter().find(|(event, _)| event == "new_message").unwrap();
    assert_eq!(
        (&new.1["message"]["body"], &new.1["conversation"]["lead"]["phone"]),
        (&json!("one"), &json!("16505551234"))
    );
    let (_, status) = heard.last().unwrap();
    assert!(
        status["client_id"] == "c1" && status["wamid"].is_string() && status["at"].is_string(),
        "{status}"
    );
    assert!(
        heard
            .iter()
            .any(|(event, data)| event == "conversation_updated" && data["conversation"]["id"].is_string())
    );

    // With the position of the first event that it heard, a client gets all that followed.
    let (first, rest) = heard.split_first().unwrap();
    let (mut again, _) =
        WebSocket::connected(&server.url, &json!({"token": TOKEN, "position": first.1["position"]})).await;
    assert_eq!(of_messages(&again.until(is_delivered(&id)).await), of_messages(rest));

    // Messages of the conversations that it has joined alone.
    let conversation = new.1["conversation"]["id"].clone();
    again.emit("join", &json!([conversation])).await;
    again
        .until(|event, data| event == "joined" && data["conversations"] == json!([conversation]))
        .await;
    let elsewhere = server.takes(&json!({"to": "+16505559999", "text": "elsewhere"})).await;
    all.until(is_delivered(&elsewhere)).await;
    let next = server.takes(&json!({"to": USER, "text": "two"})).await;
    let told = again.until(is_delivered(&next)).await;
    assert!(of_messages(&told).iter().all(|told| told.contains(&next)), "{told:?}");
    assert!(
        told.iter()
            .any(|(event, data)| event == "conversation_updated" && data["conversation"]["id"] != conversation)
    );

    // Who has left the last one hears of none, and not of all again; who leaves altogether is disconnected.
    again.emit("leave", &json!([conversation])).await;
    again
        .until(|event, data| event == "joined" && data["conversations"] == json!([]))
        .await;
    let last = server.takes(&json!({"to": USER, "text": "three"})).await;
    all.until(is_delivered(&last)).await;
    world.db.on_site("UPDATE leads SET name = 'Eve'").await;
    let told = again
        .until(|event, data| event == "lead_updated" && data["lead"]["name"] == "Eve")
        .await;
    assert_eq!(of_messages(&told), [""; 0]);
    again.send("41").await;
    tokio::time::timeout(SOON, async { while again.next().await.is_some() {} })
        .await
        .unwrap();
    let (mut joined, _) = WebSocket::connected(&server.url, &json!({"token": TOKEN, "join": conversation})).await;
    let elsewhere = server.takes(&json!({"to": "+16505559999", "text": "elsewhere"})).await;
    all.until(is_delivered(&elsewhere)).await;
    let next = server.takes(&json!({"to": USER, "text": "four"})).await;
    let told = joined.until(is_delivered(&next)).await;
    assert!(of_messages(&told).iter().all(|told| told.contains(&next)), "{told:?}");
    all.until(is_delivered(&next)).await;

    // Who has no token is told why.
    for wrong in [json!({}), json!({"token": "x"}), json!(null)] {
        let (_, said) = WebSocket::connected(&server.url, &wrong).await;
        assert!(said.starts_with("44") && said.contains("token"), "{said}");
    }
    let old = WebSocket::open(&server.url, "EIO=3&transport=websocket").await.err();
    assert_eq!(old.as_deref(), Some("400"));
    let polling = server.get("/socket.io/?EIO=4&transport=polling").await;
    assert_eq!(polling.status, 400);

    // Over a stop the client comes back to another server.
    let next = server.takes(&json!({"to": USER, "text": "five"})).await;
    let last = all.until(is_delivered(&next)).await.pop().unwrap().1["position"].clone();
    server.stop().await;
    tokio::time::timeout(SOON, async { while all.next().await.is_some() {} })
        .await
        .unwrap();
    let second = world.serve().await;
    world.db.on_site("UPDATE leads SET name = 'Ada'").await;
    let (mut again, _) = WebSocket::connected(&second.url, &json!({"token": TOKEN, "position": last})).await;
    let heard = again
        .until(|event, data| event == "lead_updated" && data["lead"]["name"] == "Ada")
        .await;
    assert_eq!(of_messages(&heard), [""; 0]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_connection_without_a_token_makes_room_for_the_next() {
    let mut world = World::new().await;
    world.config.http.max_connections = 32;
    let server = world.serve().await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut socket = WebSocket::open(&server.url, "EIO=4&transport=websocket").await.unwrap();
        assert!(socket.receive().await.unwrap().starts_with("0{"));
        waiting.push(socket);
    }
    let (mut client, said) = WebSocket::connected(&server.url, &json!({"token": TOKEN})).await;
    assert!(said.starts_with("40"), "{said}");
    assert_eq!(client.next().await.unwrap().0, "position");
    let oldest = &mut waiting[0];
    tokio::time::timeout(SOON, async { while oldest.receive().await.is_some() {} })
        .await
        .unwrap();
    // The second one has its place still.
    waiting[1].send(&format!("40{}", json!({"token": TOKEN}))).await;
    assert!(waiting[1].receive().await.unwrap().starts_with("40"));
    server.stop().await;
}
