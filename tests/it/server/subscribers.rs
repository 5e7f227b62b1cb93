//! `[[subscribers]]`: webhooks are handed on as Meta delivers them, once at least, in order, whatever happens.

use twinlog::config::Config;
use twinlog::failpoint::name::DELIVERY_BEFORE_RECORD;
use twinlog::site_db::webhook_events::{self, WebhookState};
use twinlog::site_db::{Pool, deliveries};

use super::receiver::Receiver;
use super::world::sections;
use super::*;
use crate::harness::{ConfigFile, Process};

/// A server with these subscribers.
async fn served(subscribers: Vec<twinlog::config::Subscriber>) -> (World, Server) {
    let mut world = World::new().await;
    world.config.subscribers = subscribers;
    let server = noting(&world).await;
    (world, server)
}

/// A server on this world that has noted its subscribers.
async fn noting(world: &World) -> Server {
    let server = world.serve().await;
    let noted = "SELECT count(*)::text FROM twinlog.subscribers";
    let expected = world.config.subscribers.len().to_string();
    eventually_equal("they are noted", SOON, expected, || world.db.site.value(noted)).await;
    server
}

async fn says(world: &World, person: &str, text: &str) {
    world.meta.inbound(Inbound::text(NUMBER, person, text)).await;
}

/// Nothing waits any more.
async fn is_done(world: &World) {
    let waiting = "SELECT count(*)::text FROM twinlog.deliveries";
    eventually_equal("nothing waits", SOON, "0".to_owned(), || world.db.site.value(waiting)).await;
}

/// What `twinlog subscribers` prints, and its exit code.
async fn command(world: &World, arguments: &[&str]) -> (Option<i32>, Value) {
    let config = ConfigFile::new(&world.db, "");
    let mut process = Process::start(&config, &[&["subscribers", "--json"], arguments].concat(), "");
    let ended = process.wait(SOON).await;
    let output = process.output();
    let line = output.lines().find(|line| line.starts_with(['{', '[']));
    let printed = serde_json::from_str(line.unwrap_or_else(|| panic!("no JSON: {output}"))).unwrap();
    (ended.code(), printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_get_metas_bytes_with_the_clients_own_values_and_what_they_chose() {
    let (crm, bot) = (Receiver::start().await, Receiver::start().await);
    let mut chosen = bot.subscriber("bot");
    chosen.kinds = Some(vec!["messages".to_owned()]);
    let (world, server) = served(vec![crm.subscriber("crm"), chosen]).await;
    let mut with_own = text("with a value of its own");
    with_own["biz_opaque_callback_data"] = json!("order \"17\"");
    let own = server.graph(&with_own).await.wamid();
    let none = server.graph(&text("without")).await.wamid();
    says(&world, "16505551234", "caf\u{e9} \u{1f600}").await;

    bot.takes(&["caf\u{e9} \u{1f600}"]).await;
    crm.takes(&["caf\u{e9} \u{1f600}"]).await;
    let reported = |wamid: &str| {
        let statuses = crm.statuses().into_iter().filter(|status| status["id"] == *wamid);
        statuses.collect::<Vec<_>>()
    };
    eventually("both were reported on", SOON, || async {
        let is_delivered = |wamid: &str| reported(wamid).iter().any(|status| status["status"] == "delivered");
        if is_delivered(&own) && is_delivered(&none) {
            Ok(())
        } else {
            Err(crm.statuses())
        }
    })
    .await;
    assert!(
        reported(&own)
            .iter()
            .all(|status| status["biz_opaque_callback_data"] == "order \"17\"")
    );
    assert!(
        reported(&none)
            .iter()
            .all(|status| status.get("biz_opaque_callback_data").is_none())
    );
    assert_eq!((crm.handshakes(), bot.handshakes()), (1, 1));
    assert!(bot.statuses().is_empty() && bot.taken().len() == 1);

    // What was not changed is what Meta signed, byte for byte.
    is_done(&world).await;
    let stored =
        "SELECT encode(body, 'hex') FROM webhook_events WHERE strpos(convert_from(body, 'UTF8'), 'messages\":[') > 0";
    let stored = hex::decode(world.db.site.value(stored).await).unwrap();
    assert!(crm.taken().contains(&stored.clone().into()) && bot.taken()[0] == stored);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_subscriber_refuses_delays_neither_others_nor_other_people_and_comes_in_order_later() {
    let (crm, bot) = (Receiver::start().await, Receiver::start().await);
    let (world, server) = served(vec![crm.subscriber("crm"), bot.subscriber("bot")]).await;
    crm.refuse("bad", 500);
    let all = [("1650555001", "bad"), ("1650555001", "next"), ("1650555002", "other")];
    for (number, (person, text)) in all.iter().enumerate() {
        says(&world, person, text).await;
        let so_far: Vec<&str> = all[..=number].iter().map(|(_, text)| *text).collect();
        bot.takes(&so_far).await;
    }
    crm.takes(&["other"]).await;
    assert!(crm.refused() > 0);
    crm.accept();
    crm.takes(&["other", "bad", "next"]).await;
    is_done(&world).await;

    // All of it again, because somebody asks.
    let (code, queued) = command(&world, &["replay", "bot", "--since", "2020-01-01"]).await;
    assert_eq!((code, &queued["webhooks"]), (Some(0), &json!(3)));
    is_done(&world).await;
    let texts = bot.texts();
    let of_first: Vec<&str> = (texts[3..].iter().map(String::as_str))
        .filter(|text| *text != "other")
        .collect();
    assert_eq!((texts.len(), of_first), (6, vec!["bad", "next"]), "{texts:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_shown_kept_and_delivered_when_somebody_asks() {
    let crm = Receiver::start().await;
    let mut world = World::new().await;
    world.config.subscribers = vec![crm.subscriber("crm")];
    world.config.retention.undelivered_days = 0;
    let server = noting(&world).await;
    crm.refuse("", 302);
    says(&world, "1650555001", "one").await;
    let (code, shown) = eventually("it is given up", SOON, || async {
        let (code, shown) = command(&world, &["list"]).await;
        if shown[0]["given_up"] == 1 {
            Ok((code, shown))
        } else {
            Err(shown)
        }
    })
    .await;
    assert_eq!((code, &shown[0]["waiting"]), (Some(1), &json!(0)));
    let problem = world.db.site.value("SELECT problem FROM twinlog.deliveries").await;
    assert!(problem.contains("a redirect, which is not followed"), "{problem}");
    crm.accept();
    assert_eq!(command(&world, &["retry", "crm"]).await.0, Some(0));
    crm.takes(&["one"]).await;
    is_done(&world).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_answer_the_handshake_gets_nothing_and_is_named_and_its_webhooks_wait() {
    let crm = Receiver::start().await;
    let mut wrong = crm.subscriber("crm");
    wrong.verify_token = Some("wrong".into());
    let (world, server) = served(vec![wrong]).await;
    says(&world, "1650555001", "one").await;
    eventually("health names it", SOON, || async {
        let report = server.health.report();
        let reason = report
            .get("subscriber crm")
            .and_then(|part| part.reason.clone())
            .unwrap_or_default();
        if reason.contains("handshake") {
            Ok(())
        } else {
            Err(reason)
        }
    })
    .await;
    assert_eq!(crm.taken().len() + crm.refused(), 0);
    // A webhook that waits is not deleted, however old it is; one that was given up is.
    let pool = Pool::connect(&world.config.site);
    let old = "SET session_replication_role = replica;
        UPDATE webhook_events SET received_at = received_at - interval '1 year', id = '00000000-0000-7000-8000-000000000001';
        UPDATE twinlog.deliveries SET received_at = received_at - interval '1 year', webhook_id = '00000000-0000-7000-8000-000000000001';
        RESET session_replication_role";
    let processed = "SELECT count(*)::text FROM webhook_events WHERE state = 'processed'";
    eventually_equal("it is processed", SOON, "1".to_owned(), || {
        world.db.site.value(processed)
    })
    .await;
    server.stop().await;
    world.db.on_site(old).await;
    let forget = async || {
        webhook_events::forget(&pool, WebhookState::Processed, 1, 10)
            .await
            .unwrap()
    };
    assert_eq!(forget().await, 0);

    // With the right token everything comes.
    let mut config: Config = world.config.clone();
    config.subscribers = vec![crm.subscriber("crm")];
    let right = Server::start(config).await;
    crm.takes(&["one"]).await;
    is_done(&world).await;
    assert_eq!(forget().await, 1);
    right.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_death_between_the_delivery_and_its_record_it_is_delivered_again_and_nothing_is_lost() {
    let crm = Receiver::start().await;
    let world = World::new().await;
    let sections = format!(
        "{}\n{}",
        crm.section("crm"),
        sections(&world.meta.url(), "simulator-token")
    );
    let mut dying = Binary::configured(&world, &sections, &format!("{DELIVERY_BEFORE_RECORD}=return(abort)")).await;
    eventually("it is known", SOON, || async {
        match crm.handshakes() {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    says(&world, "1650555001", "one").await;
    dying.dies().await;
    assert_eq!(crm.texts(), ["one"]);
    // The dead one's lease would end by itself.
    world
        .db
        .on_site("UPDATE twinlog.subscribers SET lease_until = now()")
        .await;
    let next = Binary::on(&world, &sections).await;
    crm.takes(&["one", "one"]).await;
    says(&world, "1650555001", "two").await;
    crm.takes(&["one", "one", "two"]).await;
    is_done(&world).await;
    assert_eq!(crm.handshakes(), 1);
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_one_delivers_and_the_other_goes_on_after_it() {
    let crm = Receiver::start().await;
    let (world, first) = served(vec![crm.subscriber("crm")]).await;
    let second = noting(&world).await;
    // Meta's webhooks come to the second one, and the first one delivers.
    says(&world, "1650555001", "one").await;
    crm.takes(&["one"]).await;
    is_done(&world).await;
    first.stop().await;
    says(&world, "1650555001", "two").await;
    crm.takes(&["one", "two"]).await;
    is_done(&world).await;
    assert_eq!((crm.handshakes(), crm.refused()), (1, 0));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_subscriber_keeps_no_webhook_and_what_was_given_up_is_retried_or_forgotten_in_batches() {
    let world = World::new().await;
    let pool = Pool::connect(&world.config.site);
    // GIVEN one that was removed long ago, and one for which more was given up than one statement takes
    world
        .db
        .on_site(
            "INSERT INTO twinlog.subscribers (name, removed_at) VALUES ('gone', now() - interval '8 days');
             INSERT INTO webhook_events (id, body, body_sha256, state, received_at, processed_at)
               VALUES ('00000000-0000-7000-8000-000000000001', '{}', '', 'processed', now() - interval '1 year', now());
             INSERT INTO twinlog.deliveries (subscriber, received_at, webhook_id) SELECT 'gone', received_at, id FROM webhook_events;
             INSERT INTO twinlog.subscribers (name) VALUES ('crm');
             INSERT INTO twinlog.deliveries (subscriber, received_at, webhook_id, given_up_at)
               SELECT 'crm', now(), gen_random_uuid(), now() FROM generate_series(1, 4100)",
        )
        .await;

    // THEN its webhook goes like others, and what waited for it as well
    let forgotten = webhook_events::forget(&pool, WebhookState::Processed, 1, 10).await;
    assert_eq!(forgotten.unwrap(), 1);
    let keep = Duration::from_secs(7 * 24 * 3600);
    assert_eq!(deliveries::forget_removed(&pool, keep * 2, 10).await.unwrap(), 0);
    assert_eq!(deliveries::forget_removed(&pool, keep, 10).await.unwrap(), 1);

    // AND all that was given up is queued again, and can be given up again
    assert_eq!(command(&world, &["retry", "crm"]).await.1["webhooks"], 4100);
    let given_up = deliveries::give_up_old(&pool, "crm", Duration::ZERO, keep, 5000).await;
    assert_eq!(given_up.unwrap(), 4100);
    assert_eq!(command(&world, &["discard", "crm"]).await.1["webhooks"], 4100);

    // AND what a death left behind after the subscriber was removed can be deleted
    world
        .db
        .on_site(
            "INSERT INTO twinlog.deliveries (subscriber, received_at, webhook_id) VALUES ('left', now(), gen_random_uuid())",
        )
        .await;
    assert_eq!(command(&world, &["forget", "left"]).await.1["webhooks"], 1);
    assert_eq!(command(&world, &["forget", "gone"]).await.1["webhooks"], 0);
}
