//! Random campaigns: several servers on one Site DB, clients, people and listeners of events, while servers die, Postgres
//! restarts, the network fails and Meta misbehaves. When the faults cease, everything is there once and in order.
//!
//! A short one runs in the suite, each time with another seed, which is printed. `TWINLOG_SEED=7` repeats one (the
//! interleaving is the machine's), and `TWINLOG_CAMPAIGN_SEEDS=100` runs so many long ones, one after the other:
//!
//! ```text
//! TWINLOG_CAMPAIGN_SEEDS=100 cargo test --test it -- campaign --nocapture
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `servers` | the processes, each behind a network that can fail |
//! | `accidents` | what happens to servers, networks and the database |
//! | `moods` | what Meta does to sends and to numbers |
//! | `clients` | clients that repeat a request until they know |
//! | `people` | people who write, and whose ids change |
//! | `story` | what happened to each row, written down by triggers in the transaction of each change |
//! | `listener` | a reader of the events from the first one on |
//! | `proof` | what must be so at the end; `order` for the order of messages and events |

mod accidents;
mod clients;
mod listener;
mod moods;
mod order;
mod people;
mod proof;
mod servers;
mod story;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use twinlog::dev::graph_simulator::{Account, Delays, Settings as MetaSettings, Simulator, WebhookSettings};
use twinlog::migrations;

use self::accidents::Accidents;
use self::clients::Clients;
use self::listener::Listener;
use self::people::People;
use self::servers::Servers;
use crate::harness::{SOON, databases_with_private_site};
use crate::server::NUMBER;

/// Our numbers, of one WhatsApp Business account.
const NUMBERS: [&str; 2] = [NUMBER, "106540352242923"];

/// After the faults, on a machine that does other work.
const SETTLED: Duration = Duration::from_secs(60);

/// How much happens in one campaign.
#[derive(Clone, Copy)]
struct Size {
    servers: usize,
    clients: usize,
    people: usize,
    accidents: usize,
    /// Shortest and longest time between two things that a person does, in milliseconds.
    pause: (u64, u64),
}

const SHORT: Size = Size {
    servers: 2,
    clients: 2,
    people: 4,
    accidents: 4,
    pause: (100, 400),
};

const LONG: Size = Size {
    servers: 3,
    clients: 6,
    people: 12,
    accidents: 25,
    pause: (30, 250),
};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_among_accidents_lose_double_and_confuse_nothing() {
    let first = number("TWINLOG_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let Some(seeds) = number("TWINLOG_CAMPAIGN_SEEDS") else {
        return Box::pin(campaign(first, SHORT)).await;
    };
    for seed in first..first + seeds {
        Box::pin(campaign(seed, LONG)).await;
    }
}

async fn campaign(seed: u64, size: Size) {
    eprintln!("TWINLOG_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    // GIVEN several servers, Meta, and somebody who writes down what happens to each row
    let mut db = databases_with_private_site().await;
    migrations::apply_site(&db.site.database_url()).await.unwrap();
    db.on_site(story::TRIGGERS).await;
    let meta = Arc::new(Simulator::start(meta_settings()).await.unwrap());
    let listener = Listener::start(&db).await;
    let mut servers = Servers::start(&db, &meta, size.servers).await;

    // WHEN everything goes wrong, one thing after the other and several at a time, during traffic
    let clients = Clients::start(&servers, size, random.random());
    let moods = moods::start(&meta, &servers, random.random());
    let people = People::start(&meta, size, random.random());
    let mut accidents = Accidents::new(random.random());
    for _ in 0..size.accidents {
        clients.more(random.random_range(2..8)).await;
        accidents.happen(&mut db, &meta, &mut servers).await;
    }
    eprintln!("seed {seed}: {:?}", accidents.log);
    moods.end().await;
    accidents.end(&meta, &servers);
    let wanted = clients.end().await;
    let people = people.end().await;
    servers.replace(&db).await;

    // THEN everything is there, once, and in order
    proof::settled(&db, &meta, SETTLED).await;
    proof::everything_is_there_once(&db, &meta.ledger(), &wanted, &people).await;
    order::messages_are_in_the_order_of_their_arrival(&db, &people).await;
    let events = listener.end().await;
    order::events_tell_the_story(&events, &story::read(&db).await, &wanted);
    servers.end().await;
    proof::nobody_waited_in_a_circle(&db, &servers);
}

fn meta_settings() -> MetaSettings {
    let account = |(index, phone_number_id): (usize, &&str)| Account {
        phone_number_id: (*phone_number_id).to_owned(),
        waba_id: "102290129340398".to_owned(),
        display_phone_number: format!("1555078388{index}"),
        access_token: "simulator-token".to_owned(),
    };
    MetaSettings {
        accounts: NUMBERS.iter().enumerate().map(account).collect(),
        delays: Delays {
            sent: Duration::from_millis(5),
            delivered: Some(Duration::from_millis(15)),
            read: Some(Duration::from_millis(25)),
        },
        webhooks: WebhookSettings {
            timeout: Duration::from_secs(2),
            ..WebhookSettings::default()
        },
        ..MetaSettings::default()
    }
}
