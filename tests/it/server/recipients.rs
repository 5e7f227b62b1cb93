//! Whom a message is for: numbers as people copy them, lines that are written in two ways, people whose ids change.

use twinlog::dev::graph_simulator::{History, IdentityChange};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_taken_as_people_copy_it_and_sent_as_everybody_reads_it() {
    let (world, server) = World::served().await;
    let mut sent = 0;
    for mark in [
        "\u{200b}", "\u{200c}", "\u{200d}", "\u{200e}", "\u{200f}", "\u{202a}", "\u{202b}", "\u{202c}", "\u{202d}",
        "\u{202e}", "\u{2060}", "\u{2066}", "\u{2067}", "\u{2068}", "\u{2069}", "\u{feff}", "\u{a0}", "\u{2009}",
        "\u{202f}",
    ] {
        for to in [
            format!("{mark}+1 650-555-1234"),
            format!("+{mark}1 650{mark}-555-1234{mark}"),
        ] {
            let graph = server.graph(&text_to(&to, "hi")).await;
            assert_eq!(graph.status, 200, "{to:?} {graph:?}");
            let plain = server.takes(&json!({"to": to, "text": "hi"})).await;
            for id in [graph.id(), plain] {
                sent += 1;
                world.is_sent(&id).await;
                let recipient = world.value(&id, "regexp_replace(recipient, '[ -]', '', 'g')").await;
                assert_eq!(recipient, USER, "{to:?}");
            }
        }
    }
    let wide = "＋１６５０５５５１２３４";
    for id in [
        server.graph(&text_to(wide, "hi")).await.id(),
        server.takes(&json!({"to": wide, "text": "hi"})).await,
    ] {
        sent += 1;
        world.is_sent(&id).await;
        assert_eq!(world.value(&id, "recipient").await, USER);
    }
    let ledger = world.meta.ledger();
    assert_eq!(ledger.messages.len(), sent);
    for message in &ledger.messages {
        let to: String = message
            .to
            .chars()
            .filter(|character| !"- ".contains(*character))
            .collect();
        assert_eq!(to, USER);
    }
    assert_eq!(world.db.site.value("SELECT count(*) FROM leads").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_the_other_form_of_the_number_joins_the_conversation() {
    let (world, server) = World::served().await;
    for (number, (own, dialled)) in (1..).zip([
        ("551187654321", "+55 11 9 8765-4321"),
        ("5511987650000", "+55 11 8765-0000"),
        ("5215512345678", "+52 55 1234 5678"),
        ("5491112345678", "+54 11 1234-5678"),
    ]) {
        let wamid = world.meta.inbound(Inbound::text(NUMBER, own, "hello?")).await;
        world.until_count(1, &format!("wamid = '{wamid}'")).await;
        let first = server.graph(&text_to(dialled, "hello")).await;
        // Its answer is lost, and only a status tells the number.
        world.fault_once(Fault::AcceptThenReset);
        let second = server.graph(&text_to(dialled, "are you there?")).await;
        // The status may come before the end of the call is noticed.
        assert_eq!(first.status, 200, "{dialled}");
        assert!([200, 409].contains(&second.status), "{dialled}: {second:?}");
        for id in [first.id(), second.id()] {
            world.is_sent(&id).await;
        }
        let leads = world.db.site.value("SELECT count(*) FROM leads").await;
        assert_eq!(leads, number.to_string(), "{dialled}");
        let shown = format!(
            "SELECT count(DISTINCT conversation_id) || ' ' || min(l.wa_id) FROM whatsapp_messages m
            JOIN leads l ON l.id = m.lead_id WHERE m.wamid = '{wamid}' OR m.id IN ('{}', '{}')",
            first.id(),
            second.id()
        );
        assert_eq!(world.db.site.value(&shown).await, format!("1 {own}"), "{dialled}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_wrote_after_we_dialled_the_other_form_joins_the_conversation() {
    let (world, server) = World::served().await;
    let id = server
        .takes(&json!({"to": "+55 11 9 8765-4321", "text": "hello"}))
        .await;
    world.is_sent(&id).await;
    let wamid = world
        .meta
        .inbound(Inbound::text(NUMBER, "551187654321", "hello!"))
        .await;
    world.until_count(1, &format!("wamid = '{wamid}'")).await;
    let lead = "SELECT string_agg(wa_id || ' ' || phone, ', ') FROM leads";
    world
        .db
        .until_site(
            "the number that WhatsApp knows counts",
            lead,
            "551187654321 5511987654321",
        )
        .await;
    // A client that knows the lead reaches the person by it.
    let lead_id = world.db.site.value("SELECT id FROM leads").await;
    let id = server.takes(&json!({"lead_id": lead_id, "text": "again"})).await;
    world.is_sent(&id).await;
    assert_eq!(
        world
            .meta
            .ledger()
            .messages
            .last()
            .map(|last| last.to.clone())
            .as_deref(),
        Some("+551187654321")
    );
    assert_eq!(world.db.site.value("SELECT count(*) FROM conversations").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_a_new_number_and_a_history_is_one_conversation() {
    let (world, server) = World::served().await;
    let history = History {
        user: "16505550001".to_owned(),
        texts: 4,
    };
    world.meta.history(NUMBER, &history).await.unwrap();
    world.until_count(1, "type = 'image' AND body = 'A photo'").await;
    let change = IdentityChange {
        from: Some("16505550001".to_owned()),
        to: Some("16505550002".to_owned()),
        previous_user_id: Some("US.1".to_owned()),
        user_id: Some("US.2".to_owned()),
    };
    world.meta.change_identity(NUMBER, &change).await;
    world
        .meta
        .inbound(Inbound::hidden(NUMBER, "US.2", "new phone, who is this?"))
        .await;
    world.until_count(7, "direction IS NOT NULL").await;
    let one = "SELECT count(DISTINCT m.conversation_id) || ' ' || max(l.wa_id) || ' ' || max(l.user_id)
        FROM whatsapp_messages m JOIN leads l ON l.id = m.lead_id";
    world.db.until_site("one conversation", one, "1 16505550002 US.2").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_becomes_known_while_a_message_to_them_is_stored_has_one_lead() {
    // GIVEN a person of whom another process just learns that the number was theirs before; it has locked the number
    let (world, server) = World::served().await;
    let learns = world.db.site.connect().await;
    learns
        .batch_execute(
            "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('lead:16505551234', 0));
             INSERT INTO leads (id, wa_id) VALUES (md5('person')::uuid, '16505550000');
             INSERT INTO lead_ids (lead_id, kind, known_id) VALUES (md5('person')::uuid, 'wa_id', '16505551234')",
        )
        .await
        .unwrap();
    // WHEN a client writes to that number, and the other commits while the message waits
    let sent = async {
        let id = server.takes(&json!({"to": USER, "text": "hi"})).await;
        world.is_sent(&id).await;
    };
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let committed = async {
        eventually_equal("the message waits", SOON, "1".to_owned(), || {
            world.db.site.value(waiting)
        })
        .await;
        learns.batch_execute("COMMIT").await.unwrap();
    };
    tokio::join!(sent, committed);
    // THEN it is that person's
    let of = "SELECT string_agg(lead_id::text, ',') FROM whatsapp_messages";
    let person = world.db.site.value("SELECT md5('person')::uuid::text").await;
    assert_eq!(world.db.site.value(of).await, person);
    assert_eq!(world.db.site.value("SELECT count(*) FROM leads").await, "1");
    server.stop().await;
}
