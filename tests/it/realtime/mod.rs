//! Events on a real Site DB: nothing is missed, nothing comes twice, and causes come before effects.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;
use twinlog::config;
use twinlog::health::Health;
use twinlog::realtime::{EventLog, Heard};
use twinlog::site_db::events::{self, Event, EventKind, Position, Read};
use twinlog::site_db::{MessageStatus, Pool};
use uuid::Uuid;

use crate::harness::{Databases, SOON, databases};

/// A migrated Site DB, a process on it, and the position before the first event.
async fn site() -> (Databases, Pool, Position) {
    let db = databases().await;
    twinlog::migrations::apply_site(&db.site.database_url()).await.unwrap();
    let pool = process(&db);
    let beginning = events::newest(&pool).await.unwrap();
    (db, pool, beginning)
}

/// The connections of another server process.
fn process(db: &Databases) -> Pool {
    Pool::connect(&config::Site {
        url: db.site.database_url(),
        max_connections: 5,
    })
}

/// Places what is committed, and reads what comes after a position.
async fn read(pool: &Pool, after: Position) -> Vec<Event> {
    events::place(pool).await.unwrap();
    match events::read_after(pool, after).await.unwrap() {
        Read::Events(events) => events,
        Read::Gone => panic!("gone"),
    }
}

fn kinds(events: &[Event]) -> Vec<(EventKind, usize)> {
    events.iter().map(|event| (event.kind, event.ids.len())).collect()
}

const NUMBER: &str = "INSERT INTO whatsapp_accounts (id, phone_number_id) VALUES (gen_random_uuid(), '1')";
const LEAD: &str = "INSERT INTO leads (phone) VALUES ('1')";

#[tokio::test]
async fn every_change_leaves_an_event_in_its_transaction_whoever_makes_it() {
    let (db, pool, beginning) = site().await;
    db.on_site(NUMBER).await;
    db.on_site("INSERT INTO leads (phone) SELECT n::text FROM generate_series(1, 1200) AS n")
        .await;
    db.on_site("INSERT INTO conversations (account_id, lead_id) SELECT a.id, l.id FROM whatsapp_accounts a, leads l WHERE phone IN ('1', '2')")
        .await;
    db.on_site(
        "INSERT INTO whatsapp_messages (account_id, conversation_id, lead_id, direction, status, type)
         SELECT account_id, id, lead_id, 'outbound', 'pending', 'text' FROM conversations",
    )
    .await;
    db.on_site("BEGIN; UPDATE whatsapp_messages SET status = 'failed'; ROLLBACK")
        .await;
    db.on_site("UPDATE whatsapp_messages SET status = 'sending'; UPDATE whatsapp_messages SET attempt = 1")
        .await;
    db.on_site("INSERT INTO notifications (kind) VALUES ('x'); UPDATE leads SET name = 'n' WHERE phone = '7'")
        .await;
    let found = read(&pool, beginning).await;
    let expected = [
        (EventKind::LeadUpdated, 500),
        (EventKind::LeadUpdated, 500),
        (EventKind::LeadUpdated, 200),
        (EventKind::ConversationUpdated, 2),
        (EventKind::MessageCreated, 2),
        (EventKind::MessageStatus, 2),
        (EventKind::NotificationCreated, 1),
        (EventKind::LeadUpdated, 1),
    ];
    assert_eq!(kinds(&found), expected);
    let number: Uuid = db.site.value("SELECT id FROM whatsapp_accounts").await.parse().unwrap();
    assert_eq!((found[4].account_id, found[0].account_id), (Some(number), None));
    assert_eq!(found[4].statuses, [MessageStatus::Pending.as_str(); 2]);
    assert_eq!(
        (&found[5].ids, &found[5].statuses[0]),
        (&found[4].ids, &MessageStatus::Sending.as_str().to_owned())
    );
    assert!(found.iter().all(|event| event.origin.is_none()));
    assert!(found.is_sorted_by(|a, b| (a.position.round, a.position.index) < (b.position.round, b.position.index)));
    assert_eq!(events::newest(&pool).await.unwrap(), found[7].position);
    assert_eq!(read(&pool, found[6].position).await, found[7..]);
}

#[tokio::test]
async fn a_program_whose_role_knows_nothing_of_events_can_go_on_changing_its_tables() {
    let (db, pool, beginning) = site().await;
    let role = db.site.create_role("crm", "").await;
    db.on_site(&format!("GRANT SELECT, INSERT, UPDATE ON leads TO {role}"))
        .await;
    db.on_site(&format!(
        "SET ROLE {role}; INSERT INTO leads (phone) VALUES ('2'); RESET ROLE"
    ))
    .await;
    assert_eq!(kinds(&read(&pool, beginning).await), [(EventKind::LeadUpdated, 1)]);
    // Also with a two-phase commit, which allows no NOTIFY.
    if db
        .site
        .value("SELECT current_setting('max_prepared_transactions')")
        .await
        != "0"
    {
        db.on_site("BEGIN; INSERT INTO leads (phone) VALUES ('3'); PREPARE TRANSACTION 'events'")
            .await;
        db.on_site("COMMIT PREPARED 'events'").await;
    }
}

#[tokio::test]
async fn a_transaction_that_stays_open_holds_no_other_event_back_and_its_own_come_later() {
    let (db, pool, beginning) = site().await;
    let open = db.site.connect().await;
    open.batch_execute(&format!("BEGIN; {LEAD}")).await.unwrap();
    db.on_site("INSERT INTO leads (phone) VALUES ('2')").await;
    let first = read(&pool, beginning).await;
    assert_eq!(kinds(&first), [(EventKind::LeadUpdated, 1)]);
    open.batch_execute("COMMIT").await.unwrap();
    let second = read(&pool, first[0].position).await;
    assert_eq!(kinds(&second), [(EventKind::LeadUpdated, 1)]);
    assert_ne!(first[0].ids, second[0].ids);
    assert_eq!(read(&pool, second[0].position).await, []);
}

#[tokio::test]
async fn who_was_away_for_longer_than_events_are_kept_is_told_and_nobody_else() {
    let (db, pool, beginning) = site().await;
    for phone in 1..=4 {
        db.on_site(&format!("INSERT INTO leads (phone) VALUES ('{phone}')"))
            .await;
        read(&pool, beginning).await;
    }
    let hour = Duration::from_secs(3600);
    db.on_site(
        "UPDATE twinlog.event_rounds SET placed_at = placed_at - interval '2 hours' WHERE round BETWEEN 1 AND 3",
    )
    .await;
    let found = read(&pool, beginning).await;
    assert_eq!(events::delete_old(&pool, hour).await.unwrap(), 3);
    assert_eq!(db.site.value("SELECT count(*) FROM twinlog.events").await, "2");
    // Of the round that was the newest two hours ago, nothing is deleted: who has read it has missed nothing.
    for position in [beginning, found[0].position, found[1].position] {
        assert!(matches!(events::read_after(&pool, position).await.unwrap(), Read::Gone));
    }
    assert_eq!(read(&pool, found[2].position).await, found[3..]);
    // The newest round always stays: it says what was placed.
    assert_eq!(events::delete_old(&pool, Duration::ZERO).await.unwrap(), 1);
    assert_eq!(events::newest(&pool).await.unwrap(), found[3].position);
    assert_eq!(read(&pool, found[3].position).await, []);
}

#[tokio::test]
async fn a_restored_copy_tells_every_listener_to_load_anew_and_goes_on() {
    let (db, pool, beginning) = site().await;
    db.on_site(LEAD).await;
    let before = read(&pool, beginning).await;
    // As in another cluster, to which a dump was restored.
    db.on_site("UPDATE twinlog.event_rounds SET cluster = cluster + 1")
        .await;
    db.on_site("INSERT INTO leads (phone) VALUES ('2')").await;
    events::place(&pool).await.unwrap();
    for position in [beginning, before[0].position] {
        assert!(matches!(events::read_after(&pool, position).await.unwrap(), Read::Gone));
    }
    let newest = events::newest(&pool).await.unwrap();
    assert!(newest.round > before[0].position.round);
    db.on_site("INSERT INTO leads (phone) VALUES ('3')").await;
    assert_eq!(kinds(&read(&pool, newest).await), [(EventKind::LeadUpdated, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_that_lost_rounds_every_listener_is_told_that_it_has_missed_events() {
    let (db, pool, beginning) = site().await;
    db.on_site(LEAD).await;
    let lost = read(&pool, beginning).await;
    let stop = CancellationToken::new();
    let hour = Duration::from_secs(3600);
    let (log, tasks) = EventLog::start(process(&db), hour, Health::default().component("events"), stop.clone());
    let mut heard = log.subscribe();
    let begun = async {
        loop {
            db.on_site("UPDATE leads SET name = 'begun'").await;
            if tokio::time::timeout(Duration::from_millis(700), heard.recv())
                .await
                .is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, begun).await.unwrap();
    // The new primary has not the last rounds: their numbers are given again, to other events.
    db.on_site("UPDATE twinlog.event_rounds SET placed_at = placed_at + interval '1 second' WHERE round > 0")
        .await;
    assert!(matches!(
        events::read_after(&pool, lost[0].position).await.unwrap(),
        Read::Gone
    ));
    let missed = async { while !matches!(heard.recv().await.unwrap(), Heard::Missed) {} };
    tokio::time::timeout(SOON, missed).await.unwrap();
    db.on_site("UPDATE leads SET name = 'new'").await;
    let next = async { while !matches!(heard.recv().await.unwrap(), Heard::Event(_)) {} };
    tokio::time::timeout(SOON, next).await.unwrap();
    stop.cancel();
    tasks.join_all().await;
}

/// Writers change the same few messages in transactions of random length; some roll back. What each message went through
/// stands in `story`, whose numbers are drawn while its row is locked.
const STAGE: &str = "
    INSERT INTO leads (phone) VALUES ('1');
    INSERT INTO conversations (account_id, lead_id) SELECT a.id, l.id FROM whatsapp_accounts a, leads l;
    INSERT INTO whatsapp_messages (account_id, conversation_id, lead_id, direction, status, type, recipient)
        SELECT account_id, id, lead_id, 'outbound', 'sent', 'text', n::text FROM conversations, generate_series(0, 5) AS n;
    CREATE TABLE story (number bigserial, message_id uuid, status text)";

const STEP: &str = "
    WITH changed AS (UPDATE whatsapp_messages SET status = CASE status WHEN 'sent' THEN 'delivered' ELSE 'sent' END
        WHERE recipient = $1 RETURNING id, status)
    INSERT INTO story (message_id, status) SELECT id, status FROM changed";

#[tokio::test(flavor = "multi_thread")]
async fn every_process_hears_each_change_once_and_causes_before_effects() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let (db, pool, _) = site().await;
    db.on_site(NUMBER).await;
    db.on_site(STAGE).await;
    let stop = CancellationToken::new();
    let mut heard = Vec::new();
    let mut logs = Vec::new();
    for pool in [pool.clone(), process(&db)] {
        let health = Health::default().component("events");
        // From here on: what came before is placed first, so that both begin at the same place.
        events::place(&pool).await.unwrap();
        let (log, tasks) = EventLog::start(pool, Duration::from_secs(3600), health, stop.clone());
        heard.push(log.subscribe());
        logs.push((log, tasks));
    }
    // Both have begun to read when they hear of this.
    for receiver in &mut heard {
        let begun = async {
            loop {
                db.on_site("UPDATE leads SET name = 'begun'").await;
                if tokio::time::timeout(Duration::from_millis(700), receiver.recv())
                    .await
                    .is_ok()
                {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, begun).await.unwrap();
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..6_u64 {
        let client = db.site.connect().await;
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(writer));
        writers.spawn(async move {
            for _ in 0..15 {
                client.batch_execute("BEGIN").await.unwrap();
                // In one order, so that writers don't wait in a circle.
                let mut messages: Vec<u8> = (0..6).filter(|_| random.random_bool(0.4)).collect();
                messages.sort_unstable();
                for message in messages {
                    client.execute(STEP, &[&message.to_string()]).await.unwrap();
                    let pause = f64::from(random.random_range(0..4_u32)) / 1000.0;
                    client.execute("SELECT pg_sleep($1)", &[&pause]).await.unwrap();
                }
                let end = if random.random_bool(0.2) { "ROLLBACK" } else { "COMMIT" };
                client.batch_execute(end).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let rows = db
        .site
        .connect()
        .await
        .query("SELECT message_id, status FROM story ORDER BY number", &[])
        .await
        .unwrap();
    let mut story: HashMap<Uuid, Vec<String>> = HashMap::new();
    for row in rows {
        story.entry(row.get(0)).or_default().push(row.get(1));
    }
    for receiver in &mut heard {
        let mut told: HashMap<Uuid, Vec<String>> = HashMap::new();
        let mut last = (0, 0);
        let listening = async {
            while told != story {
                let Heard::Event(event) = receiver.recv().await.unwrap() else {
                    panic!("seed {seed}: events were missed");
                };
                let place = (event.position.round, event.position.index);
                assert!(place > last, "seed {seed}");
                last = place;
                if event.kind == EventKind::MessageStatus {
                    for (id, status) in event.ids.iter().zip(&event.statuses) {
                        told.entry(*id).or_default().push(status.to_string());
                    }
                }
            }
        };
        let all = tokio::time::timeout(SOON, listening).await;
        assert!(all.is_ok(), "seed {seed}: told {told:?}, the story is {story:?}");
    }
    stop.cancel();
    for (_, tasks) in logs {
        tasks.join_all().await;
    }
}
