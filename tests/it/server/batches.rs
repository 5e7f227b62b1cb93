//! Many messages at a time: stored, claimed and settled by a few statements, and each of them right all the same.

use std::collections::HashSet;

use twinlog::failpoint::name;

use super::*;
use crate::harness::{Direction, Proxy};

/// Another process has the number for an hour: nothing is sent.
const LEASED: &str =
    "INSERT INTO twinlog.number_leases VALUES ('106540352242922', gen_random_uuid(), now() + interval '1 hour')";
const FREE: &str = "DELETE FROM twinlog.number_leases";

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_send_leaves_after_two_round_trips_to_the_site_db() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    let server = world.serve().await;
    // Everything is warm: connections, prepared statements, the person's conversation.
    for _ in 0..8 {
        assert_eq!(server.graph(&text("warm")).await.status, 200);
    }
    world.meta.pause_webhooks(true);
    let one_way = Duration::from_millis(150);
    proxy.latency(Direction::ToServer, one_way);
    proxy.latency(Direction::ToClient, one_way);
    let mut best = Duration::MAX;
    for index in 0..3 {
        let began = time::OffsetDateTime::now_utc();
        let answer = server.graph(&text(&format!("alone {index}"))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let left = world.meta.ledger().messages.last().unwrap().accepted_at;
        best = best.min((left - began).try_into().unwrap());
    }
    // Stored and claimed: two. A third one would be 900 ms.
    assert!(best < one_way * 2 * 3, "{best:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_submitted_at_once_is_stored_once_each_with_one_lead_and_one_conversation_a_person() {
    let world = World::new().await;
    let server = Arc::new(world.serve().await);
    // A lead of the CRM's own import, a named lead, a group, and people that nobody knows.
    world
        .db
        .on_site("INSERT INTO leads (phone) VALUES ('+16505557000'), ('+16505557001')")
        .await;
    let lead = world
        .db
        .site
        .value("SELECT id FROM leads WHERE phone = '+16505557001'")
        .await;
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..240_usize {
        let server = Arc::clone(&server);
        // Each client id is used by four requests.
        let client_id = format!("c{}", index / 4);
        let person = (index / 4) % 12;
        let body = match person {
            0 => json!({"to": "+16505557000", "text": client_id, "client_id": client_id}),
            1 => json!({"lead_id": lead, "text": client_id, "client_id": client_id}),
            2 => {
                json!({"to": "Y2FwaV9ncm91cDox", "recipient_type": "group", "text": client_id, "client_id": client_id})
            }
            3 => json!({"to": "US.13491208655302741918", "text": client_id, "client_id": client_id}),
            _ => json!({"to": format!("+165055570{person:02}"), "text": client_id, "client_id": client_id}),
        };
        requests.spawn(async move { server.takes(&body).await });
    }
    // One that names a lead that does not exist, and one whose client id means another message, fail alone.
    let unknown = json!({"to": USER, "lead_id": "00000000-0000-0000-0000-00000000dead", "text": "x"});
    let refused = server.plain(&unknown).await;
    assert_eq!(
        (refused.status, &refused.body["error"]["field"]),
        (422, &json!("lead_id")),
        "{refused:?}"
    );
    let ids: HashSet<String> = requests.join_all().await.into_iter().collect();
    let reused = server
        .plain(&json!({"to": USER, "text": "another", "client_id": "c5"}))
        .await;
    assert_eq!(reused.status, 409, "{reused:?}");
    assert_eq!(ids.len(), 60);
    assert_eq!(world.count("true").await, 60);
    for (what, query) in [
        ("leads", "SELECT count(*) FROM leads"),
        (
            "conversations",
            "SELECT count(*) FROM conversations WHERE last_outbound_at IS NOT NULL",
        ),
        (
            "leads with messages",
            "SELECT count(DISTINCT lead_id) FROM whatsapp_messages",
        ),
    ] {
        assert_eq!(world.db.site.value(query).await, "12", "{what}");
    }
    let learned = "SELECT wa_id FROM leads WHERE phone = '+16505557000'";
    assert_eq!(world.db.site.value(learned).await, "16505557000");
    world.until_accepted(60).await;
    world.until_count(0, "status IN ('pending', 'sending')").await;
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_persons_messages_leave_in_their_order_however_many_are_sent_at_once() {
    let mut world = World::new().await;
    world.config.whatsapp.accounts[0].messages_per_second = 1000;
    let server = Arc::new(world.serve().await);
    let mut requests = tokio::task::JoinSet::new();
    for person in 0..10 {
        let server = Arc::clone(&server);
        requests.spawn(async move {
            for number in 0..15 {
                server
                    .takes(&json!({"to": format!("+1650555800{person}"), "text": format!("{number}")}))
                    .await;
            }
        });
    }
    requests.join_all().await;
    world.until_accepted(150).await;
    world.until_count(0, "status IN ('pending', 'sending')").await;
    let ledger = world.meta.ledger();
    for person in 0..10 {
        let to = format!("+1650555800{person}");
        let mut sent = Vec::new();
        for message in ledger.messages.iter().filter(|message| message.to == to) {
            let query = format!("SELECT body FROM whatsapp_messages WHERE wamid = '{}'", message.wamid);
            sent.push(world.db.site.value(&query).await.parse::<usize>().unwrap());
        }
        assert_eq!(sent, (0..15).collect::<Vec<_>>(), "{to}");
    }
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_messages_at_once_to_one_person_all_get_their_answer() {
    let (world, server) = World::served().await;
    let server = Arc::new(server);
    world.fault(Fault::SlowAnswer { delay_ms: 700 });
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..10 {
        let server = Arc::clone(&server);
        requests.spawn(async move { server.graph(&text(&format!("picture {index}"))).await });
    }
    for answer in requests.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(world.accepted(), 10);
    world.nothing_lost_or_doubled().await;
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_senders_and_the_inbox_at_the_same_people_refuse_lose_and_double_nothing() {
    let mut world = World::new().await;
    world.config.whatsapp.accounts[0].messages_per_second = 1000;
    let one = Arc::new(world.serve().await);
    let two = Arc::new(Server::start(world.config.clone()).await);
    two.ready().await;
    world.fault(Fault::StatusBeforeAnswer);
    // Few people, so that everything meets: both servers send to them, and they write, all at once.
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..400 {
        let server = Arc::clone(if index % 2 == 0 { &one } else { &two });
        requests.spawn(async move {
            let body =
                json!({"to": format!("+1650555600{}", index / 2 % 7), "text": "x", "client_id": format!("k{}", index / 2)});
            // On a busy machine no connection may be free in time; a client tries again.
            eventually("the message is taken", SOON, || async {
                let answer = server.plain(&body).await;
                match answer.status {
                    200 | 202 => Ok(()),
                    503 => Err(answer),
                    _ => panic!("{answer:?}"),
                }
            })
            .await;
        });
    }
    for index in 0..100 {
        let person = format!("1650555600{}", index % 7);
        world.meta.inbound(Inbound::text(NUMBER, &person, "me too")).await;
    }
    requests.join_all().await;
    world.until_accepted(200).await;
    world.until_count(0, "status IN ('pending', 'sending')").await;
    world.until_count(100, "direction = 'inbound'").await;
    // Nobody waited for another in a circle.
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.db.site.value(deadlocks).await, "0");
    world.nothing_lost_or_doubled().await;
    for server in [one, two] {
        Arc::into_inner(server).unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_leaves_no_message_unknown() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.db.site.cluster.port()).await;
    world.config.site.url = world.db.site.url_through(proxy.port()).parse().unwrap();
    world.db.on_site(LEASED).await;
    let server = world.serve().await;
    for index in 0..20 {
        server
            .takes(&json!({"to": format!("+165055590{index:02}"), "text": "x"}))
            .await;
    }
    // The claim takes long, and its connection breaks meanwhile: Postgres commits it all the same.
    world
        .db
        .on_site(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
             CREATE TRIGGER slow AFTER UPDATE ON whatsapp_messages FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        )
        .await;
    world.db.on_site(FREE).await;
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    world.db.until_site("the claim is running", sleeping, "1").await;
    proxy.cut();
    world.db.on_site("DROP TRIGGER slow ON whatsapp_messages").await;
    world.until_accepted(20).await;
    world
        .until_count(20, "status IN ('accepted', 'sent', 'delivered') AND attempt = 1")
        .await;
    world.nothing_lost_or_doubled().await;
    server.stop().await;
}

/// Thirty messages wait; a server claims them and dies at the failpoint; another one takes over. Returns the world and how
/// many messages Meta had accepted before the death.
async fn thirty_messages_meet_a_death_at(failpoint: &str) -> (World, usize) {
    let world = World::new().await;
    world.db.on_site(LEASED).await;
    // The failpoint is not reached for the first messages, so that some are further than others.
    let mut doomed = Binary::start_with(&world, &format!("{failpoint}=5*off->return(abort)"), "info").await;
    for index in 0..30 {
        let body = json!({"to": format!("+165055591{index:02}"), "text": "x"});
        assert_eq!(doomed.plain(&body).await.unwrap().status, 202);
    }
    world.meta.pause_webhooks(true);
    world.db.on_site(FREE).await;
    doomed.dies().await;
    let accepted = world.accepted();
    world.meta.pause_webhooks(false);
    (world, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_the_middle_of_a_batch_doubles_nothing_and_leaves_nothing_unclear_but_what_is() {
    for failpoint in [
        name::SEND_AFTER_SENDING,
        name::SEND_BEFORE_OUTCOME,
        name::SEND_AFTER_OUTCOME,
    ] {
        let (world, before) = thirty_messages_meet_a_death_at(failpoint).await;
        let server = world.serve().await;
        let expire = "UPDATE whatsapp_messages SET lease_until = now() WHERE status = 'sending'";
        world.db.on_site(expire).await;
        world.until_count(0, "status IN ('pending', 'sending')").await;
        // What Meta has becomes known by its statuses; the rest was claimed and not sent, and nobody can know that.
        eventually("every message that Meta has is known", SOON, || async {
            let known = world.count("wamid IS NOT NULL").await;
            let accepted = i64::try_from(world.accepted()).unwrap();
            if known == accepted {
                Ok(())
            } else {
                Err((known, accepted))
            }
        })
        .await;
        assert!(world.accepted() >= before, "{failpoint}");
        assert_eq!(world.count("true").await, 30);
        assert_eq!(
            world.count("wamid IS NULL AND status <> 'unknown'").await,
            0,
            "{failpoint}"
        );
        world.nothing_lost_or_doubled().await;
        server.stop().await;
    }
}
