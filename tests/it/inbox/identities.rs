//! People whose ids change, in every order; and leads that turn out to be one person.

use std::fmt::Write as _;

use super::*;

/// Leads and conversations that count.
pub(super) const LEADS: &str = "leads WHERE merged_into IS NULL";
const CONVERSATIONS: &str = "conversations WHERE merged_into IS NULL";

/// A person's number and user id.
#[derive(Clone, Copy)]
pub(super) struct Ids<'a>(pub(super) Option<&'a str>, pub(super) Option<&'a str>);

pub(super) fn said(wamid: &str, Ids(number, user): Ids<'_>) -> Value {
    let mut message = json!({"id": wamid, "timestamp": "1750000000", "type": "text", "text": {"body": wamid}});
    if let Some(number) = number {
        message["from"] = json!(number);
    }
    if let Some(user) = user {
        message["from_user_id"] = json!(user);
    }
    message
}

/// The notice that ids changed, at a second.
fn changed(wamid: &str, kind: &str, from: Ids<'_>, to: Ids<'_>, second: i64) -> Value {
    let mut notice = said(wamid, Ids(from.0, None));
    notice["timestamp"] = json!((1_750_000_000 + second).to_string());
    notice["type"] = json!("system");
    notice["system"] = json!({"type": kind, "body": "changed"});
    for (member, id) in [("wa_id", to.0), ("user_id", to.1), ("previous_user_id", from.1)] {
        if let Some(id) = id {
            notice["system"][member] = json!(id);
        }
    }
    notice
}

fn user_id_update(from: &str, to: &str, second: i64) -> Vec<u8> {
    let update = json!({"user_id_update": [{"user_id": {"previous": from, "current": to},
        "timestamp": (1_750_000_000 + second).to_string()}]});
    envelope(&[("user_id_update", value(update))])
}

pub(super) fn webhook_of(parts: &[Value]) -> Vec<u8> {
    envelope(&[("messages", messages(parts))])
}

/// Every order of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[tokio::test]
async fn a_person_with_new_ids_is_one_lead_whatever_comes_first() {
    // GIVEN persons, each of whom has other ids one day: with a number and a user id, a hidden number, a hidden new number
    let site = Site::working().await;
    let mut people = 0;
    for (kind, number_changes, hidden) in [
        ("user_changed_number", true, false),
        ("user_changed_number", true, true),
        ("user_changed_user_id", false, true),
    ] {
        for (order, together) in ORDERS.into_iter().zip([false, true].into_iter().cycle()) {
            people += 1;
            let number = format!("1650555{people:04}");
            let new_number = if number_changes {
                format!("1650556{people:04}")
            } else {
                number.clone()
            };
            let (user, new_user) = (format!("US.{people}a"), format!("US.{people}b"));
            let (number, new_number) = if kind == "user_changed_user_id" {
                (None, None)
            } else {
                (Some(number.as_str()), Some(new_number.as_str()).filter(|_| !hidden))
            };
            let (before, after) = (Ids(number, Some(&user)), Ids(new_number, Some(&new_user)));
            let parts = [
                said(&format!("{people}.before"), before),
                changed(&format!("{people}.notice"), kind, before, after, 1),
                said(&format!("{people}.after"), after),
            ];
            // WHEN a message with the old ids, the notice and a message with the new ids come in any order, once or twice
            let parts = order.map(|at| parts[at].clone());
            if together {
                site.post(&webhook_of(&parts)).await;
            }
            for part in &parts {
                site.post(&webhook_of(std::slice::from_ref(part))).await;
                if !together {
                    site.settle_people().await;
                }
            }
            site.settle_people().await;
            // THEN it is one person
            let of_one = format!(
                "SELECT count(DISTINCT lead_id) || ' ' || count(DISTINCT conversation_id) || ' ' || count(*)
                FROM whatsapp_messages WHERE wamid LIKE '{people}.%'"
            );
            assert_eq!(
                site.value(&of_one).await,
                "1 1 3",
                "{kind} {order:?} {hidden} {together}"
            );
            let shown = format!(
                "SELECT concat_ws(' ', l.wa_id, l.user_id) FROM leads l JOIN whatsapp_messages m ON m.lead_id = l.id
                WHERE m.wamid = '{people}.after'"
            );
            let expected = [new_number, Some(new_user.as_str())]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" ");
            assert_eq!(
                site.value(&shown).await,
                expected,
                "{kind} {order:?} {hidden} {together}"
            );
        }
    }
    assert_eq!(site.count(LEADS).await, people);
    assert_eq!(site.count(CONVERSATIONS).await, people);
}

#[tokio::test]
async fn a_change_that_is_told_before_anything_else_is_remembered() {
    let site = Site::working().await;
    site.post(&user_id_update("US.1", "US.2", 1)).await;
    site.settle_people().await;
    site.deliver(&messages(&[said("new", Ids(None, Some("US.2")))])).await;
    site.deliver(&messages(&[said("late", Ids(None, Some("US.1")))])).await;
    assert_eq!(site.count(LEADS).await, 1);
    assert_eq!(
        site.value("SELECT user_id FROM leads WHERE merged_into IS NULL").await,
        "US.2"
    );
    assert_eq!(site.count("conversations").await, 1);
}

#[tokio::test]
async fn a_number_that_somebody_else_has_now_is_another_person() {
    let site = Site::working().await;
    let (before, after) = (
        Ids(Some("16505550001"), Some("US.1")),
        Ids(Some("16505550002"), Some("US.2")),
    );
    site.deliver(&messages(&[said("1", before)])).await;
    site.deliver(&messages(&[changed("2", "user_changed_number", before, after, 1)]))
        .await;
    site.db
        .on_site("UPDATE lead_ids SET created_at = now() - interval '3 months'")
        .await;
    site.deliver(&messages(&[said("3", Ids(Some("16505550001"), Some("US.9")))]))
        .await;
    site.settle_people().await;
    let leads = "SELECT string_agg(wa_id || '/' || user_id, ' ' ORDER BY wa_id) FROM leads WHERE merged_into IS NULL";
    assert_eq!(site.value(leads).await, "16505550001/US.9 16505550002/US.2");
}

/// A row of each kind that refers to leads, as text, for comparison.
const FILED: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT m.wamid || ' ' || m.lead_id || ' ' || m.conversation_id AS line FROM whatsapp_messages m
    UNION ALL SELECT concat_ws(' ', l.id, l.wa_id, l.user_id, l.phone, l.merged_into, l.name) FROM leads l
    UNION ALL SELECT concat_ws(' ', c.id, c.lead_id, c.account_id, c.merged_into) FROM conversations c
    UNION ALL SELECT concat_ws(' ', n.id, n.conversation_id) FROM notifications n) AS lines";

#[tokio::test]
async fn two_leads_that_are_one_person_are_merged_into_the_older_and_that_can_be_undone() {
    // GIVEN a person known by the number, and one who hides it, with two numbers of ours; and rows of another program
    let site = Site::working().await;
    site.deliver(&value(
        json!({"contacts": [{"wa_id": "16505550001", "profile": {"name": "Ada"}}],
        "messages": [said("1", Ids(Some("16505550001"), None))]}),
    ))
    .await;
    site.deliver(&messages(&[said("2", Ids(None, Some("US.1")))])).await;
    let mut elsewhere = messages(&[said("3", Ids(None, Some("US.1")))]);
    elsewhere["metadata"]["phone_number_id"] = json!("999");
    site.deliver(&elsewhere).await;
    site.db
        .on_site(
            "CREATE TABLE deals (lead_id uuid REFERENCES leads, conversation_id uuid REFERENCES conversations);
            INSERT INTO deals SELECT lead_id, conversation_id FROM whatsapp_messages",
        )
        .await;
    let take =
        "UPDATE conversations SET automation_paused_until = now() + interval '1 hour', automation_paused_by = 'anna'
        WHERE lead_id = (SELECT id FROM leads WHERE wa_id IS NULL)";
    site.db.on_site(take).await;
    let before = site.value(FILED).await;
    assert_eq!(site.count(LEADS).await, 2);

    // WHEN both ids come together
    site.deliver(&messages(&[said("4", Ids(Some("16505550001"), Some("US.1")))]))
        .await;
    site.settle_people().await;

    // THEN all is with the older lead, and the other one points to it
    let lead = "SELECT wa_id || ' ' || user_id || ' ' || name FROM leads WHERE merged_into IS NULL";
    assert_eq!(site.value(lead).await, "16505550001 US.1 Ada");
    let filed = "SELECT count(*) || ' ' || count(DISTINCT m.lead_id) || ' ' || count(DISTINCT m.conversation_id) || ' '
        || bool_and(c.lead_id = m.lead_id AND c.merged_into IS NULL AND l.merged_into IS NULL)
        FROM whatsapp_messages m JOIN conversations c ON c.id = m.conversation_id JOIN leads l ON l.id = m.lead_id";
    assert_eq!(site.value(filed).await, "4 1 2 true");
    assert_eq!(site.value("SELECT max(unread_count) FROM conversations").await, "3");
    let taken_over =
        "conversations WHERE merged_into IS NULL AND automation_paused_until > now() AND automation_paused_by = 'anna'";
    assert_eq!(site.count(taken_over).await, 2);
    let notified = "notifications n JOIN conversations c ON c.id = n.conversation_id WHERE c.merged_into IS NULL";
    assert_eq!(site.count(notified).await, 4);
    // A client that knows the merged lead reaches the person.
    let merged = "SELECT id FROM leads WHERE merged_into IS NOT NULL";
    let merged: Uuid = site.value(merged).await.parse().unwrap();
    let account_id = site.account().await;
    let mut tx = site.pool.begin().await.unwrap();
    let link = twinlog::site_db::conversations::with_lead(&mut tx, account_id, merged)
        .await
        .unwrap()
        .unwrap();
    tx.commit().await.unwrap();
    assert_ne!(link.lead_id, merged);

    // AND the record undoes it
    site.db
        .on_site(
            "DELETE FROM notifications USING whatsapp_messages m WHERE m.id = message_id AND m.wamid = '4';
        DELETE FROM whatsapp_messages WHERE wamid = '4'",
        )
        .await;
    site.db
        .on_site("SELECT twinlog.undo_lead_merge(id) FROM lead_merges")
        .await;
    assert_eq!(site.value(FILED).await, before);
}

#[tokio::test]
async fn a_number_that_another_account_gave_up_moves_and_two_people_stay_two() {
    // GIVEN two people
    let site = Site::working().await;
    for (wamid, ids) in [
        ("1", Ids(Some("16505550001"), Some("US.A"))),
        ("2", Ids(Some("16505550002"), Some("US.B"))),
    ] {
        site.deliver(&messages(&[said(wamid, ids)])).await;
    }
    // WHEN the first one gets the number that the second one had, and both write
    let notice = changed(
        "3",
        "user_changed_number",
        Ids(Some("16505550001"), Some("US.A")),
        Ids(Some("16505550002"), Some("US.A2")),
        100,
    );
    site.deliver(&messages(&[notice])).await;
    site.settle_people().await;
    for (wamid, ids) in [
        ("4", Ids(Some("16505550002"), Some("US.A2"))),
        ("5", Ids(Some("16505550003"), Some("US.B"))),
    ] {
        site.deliver(&messages(&[said(wamid, ids)])).await;
    }
    site.settle_people().await;
    // THEN each has a lead with the ids of now, and the own messages.
    let leads = "SELECT string_agg(wa_id || ' ' || user_id || ' ' || (SELECT string_agg(wamid, '' ORDER BY wamid) \
                 FROM whatsapp_messages m WHERE m.lead_id = l.id), ', ' ORDER BY created_at) FROM leads l";
    assert_eq!(site.value(leads).await, "16505550002 US.A2 134, 16505550003 US.B 25");
    assert_eq!(site.count("lead_merges").await, 0);
}

#[tokio::test]
async fn leads_whose_merge_was_undone_are_not_merged_again() {
    let site = Site::working().await;
    for (wamid, ids) in [("1", Ids(Some("16505550001"), None)), ("2", Ids(None, Some("US.1")))] {
        site.deliver(&messages(&[said(wamid, ids)])).await;
    }
    let both = Ids(Some("16505550001"), Some("US.1"));
    site.deliver(&messages(&[said("3", both)])).await;
    site.settle_people().await;
    assert_eq!(site.count("lead_merges").await, 1);
    site.db
        .on_site("SELECT twinlog.undo_lead_merge(id) FROM lead_merges")
        .await;
    site.deliver(&messages(&[said("4", both)])).await;
    site.settle_people().await;
    assert_eq!(site.count("lead_merges WHERE undone_at IS NULL").await, 0);
    // The user id is the more reliable one.
    let lead = "SELECT user_id FROM leads WHERE id = (SELECT lead_id FROM whatsapp_messages WHERE wamid = '4')";
    assert_eq!(site.value(lead).await, "US.1");
}

/// One person of the campaign: numbers and user ids that change together, one after the other.
fn life(person: usize, changes: usize) -> Vec<(String, String)> {
    (0..=changes)
        .map(|age| (format!("1650{person:03}{age:04}"), format!("US.{person}x{age}")))
        .collect()
}

#[tokio::test]
async fn in_every_order_the_end_is_the_same() {
    // GIVEN a few persons whose ids change up to three times; messages with both ids, the number or the user id alone, and the
    // notices, some of them twice, in a random order and in random groups
    let seed: u64 = rand::random();
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut expected = String::new();
    let mut random = seed;
    let mut draw = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    for person in 0..6 {
        let life = life(person, 1 + person % 3);
        for (age, (number, user)) in life.iter().enumerate() {
            let forms = [
                Ids(Some(number), Some(user)),
                Ids(Some(number), None),
                Ids(None, Some(user)),
            ];
            for (form, ids) in forms.into_iter().enumerate() {
                parts.push(webhook_of(&[said(&format!("{person}.{age}.{form}"), ids)]));
            }
            if let Some((next_number, next_user)) = life.get(age + 1) {
                let notice = format!("{person}.{age}.notice");
                let second = i64::try_from(age).unwrap();
                let to = Ids(Some(next_number), Some(next_user));
                let told = changed(
                    &notice,
                    "user_changed_number",
                    Ids(Some(number), Some(user)),
                    to,
                    second,
                );
                parts.push(webhook_of(&[told]));
                parts.push(user_id_update(user, next_user, second));
            }
        }
        let (number, user) = life.last().unwrap();
        writeln!(expected, "{number} {user} {}", life.len() * 4 - 1).unwrap();
    }
    let again: Vec<_> = (0..parts.len() / 3).map(|_| parts[draw(parts.len())].clone()).collect();
    parts.extend(again);
    for at in (1..parts.len()).rev() {
        parts.swap(at, draw(at + 1));
    }

    // WHEN they are posted at once to two processes
    let site = Site::working().await;
    let _other = site.another_process();
    for group in parts.chunks(7) {
        let mut posts = JoinSet::new();
        for body in group {
            let (inbox, body) = (site.inbox.clone(), body.clone());
            posts.spawn(async move {
                let signature = signature::sign(&secret(), &body);
                inbox.receive(Some(&signature), body.into()).await.unwrap();
            });
        }
        posts.join_all().await;
    }
    site.settle_people().await;

    // THEN each person is one lead with the last ids, one conversation, and all messages
    let people = "SELECT string_agg(line || E'\\n', '' ORDER BY line) FROM (
        SELECT l.wa_id || ' ' || l.user_id || ' ' || count(m.id) AS line FROM leads l JOIN whatsapp_messages m ON m.lead_id = l.id
         WHERE l.merged_into IS NULL GROUP BY l.id) AS lines";
    assert_eq!(site.value(people).await, expected, "seed {seed}");
    assert_eq!(
        (site.count(LEADS).await, site.count(CONVERSATIONS).await),
        (6, 6),
        "seed {seed}"
    );
    let astray = "whatsapp_messages m JOIN conversations c ON c.id = m.conversation_id
        WHERE c.lead_id <> m.lead_id OR c.merged_into IS NOT NULL";
    assert_eq!(site.count(astray).await, 0, "seed {seed}");
}

#[tokio::test]
async fn a_status_teaches_the_real_number_of_a_message_whose_answer_was_lost() {
    let site = Site::working().await;
    let account_id = site.account().await;
    // A person wrote, and a number that WhatsApp writes otherwise was dialled, without a rule that tells both are one line.
    site.deliver(&messages(&[said("in", Ids(Some("999111222"), None))]))
        .await;
    let mut tx = site.pool.begin().await.unwrap();
    let dialled = link_recipient(&mut tx, account_id, &contact("9990111222"))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let made = format!(
        "INSERT INTO whatsapp_messages (account_id, conversation_id, lead_id, direction, status, type, recipient)
        VALUES ('{account_id}', '{}', '{}', 'outbound', 'unknown', 'text', '+999 0111222') RETURNING id",
        dialled.conversation_id, dialled.lead_id
    );
    let message: Uuid = site.db.site.client.query_one(&made, &[]).await.unwrap().get(0);
    let mut report = status("wamid.out", "sent", 1);
    report["recipient_id"] = json!("999111222");
    report["biz_opaque_callback_data"] = json!(OpaqueId(message).to_string());
    site.deliver(&statuses_of(&[report])).await;
    site.settle_people().await;
    assert_eq!(site.count(LEADS).await, 1);
    assert_eq!(
        site.value("SELECT count(DISTINCT conversation_id) FROM whatsapp_messages")
            .await,
        "1"
    );
    // Both numbers find the lead.
    let mut tx = site.pool.begin().await.unwrap();
    let (one, other) = (contact("999111222"), contact("9990111222"));
    assert_eq!(
        link(&mut tx, account_id, &one).await.unwrap(),
        link_recipient(&mut tx, account_id, &other).await.unwrap()
    );
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_message_that_was_filed_under_another_lead_does_not_merge_it() {
    let site = Site::working().await;
    let message = site.outbound("accepted", Some("wamid.out")).await;
    site.db
        .on_site("UPDATE whatsapp_messages SET recipient = '+16505559999'")
        .await;
    let mut report = status("wamid.out", "sent", 1);
    report["recipient_id"] = json!("16505559999");
    site.deliver(&messages(&[said("in", Ids(Some("16505559999"), None))]))
        .await;
    site.deliver(&statuses_of(&[report])).await;
    site.settle_people().await;
    assert_eq!(site.shown(message).await, "sent");
    assert_eq!(site.count(LEADS).await, 2);
}

/// The two forms of a line: Brazil, Mexico, Argentina.
const FORMS: [(&str, &str); 6] = [
    ("551181234567", "5511981234567"),
    ("5511981234568", "551181234568"),
    ("525512345678", "5215512345678"),
    ("5215512345679", "525512345679"),
    ("541112345678", "5491112345678"),
    ("5491112345679", "541112345679"),
];

#[tokio::test]
async fn a_person_known_by_another_id_and_by_the_other_form_of_the_number_is_one_lead() {
    // GIVEN persons with two leads each: one by the user id, one by a form of the number
    let site = Site::working().await;
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (index, (form, other)) in FORMS.into_iter().enumerate() {
        let user = format!("BR.{index}");
        first.push(said(&format!("{index}.hidden"), Ids(None, Some(&user))));
        first.push(said(&format!("{index}.number"), Ids(Some(form), None)));
        then.push(said(&format!("{index}.both"), Ids(Some(other), Some(&user))));
    }
    site.post(&webhook_of(&first)).await;
    site.settle().await;
    assert_eq!(site.count(LEADS).await, 12);

    // WHEN the user id and the other form are seen together, those of all persons in one webhook
    site.post(&webhook_of(&then)).await;
    site.settle_people().await;

    // THEN each is one lead
    assert_eq!(site.count(LEADS).await, 6);
    assert_eq!(site.count(CONVERSATIONS).await, 6);

    // And so is a person whose number changes to one of which the other form has a lead
    let changes = FORMS.into_iter().enumerate().map(|(index, (form, other))| {
        let former = format!("1650557{index:04}");
        let (form, other) = (form.replace("1234", "4321"), other.replace("1234", "4321"));
        let (former, form, other) = (
            Ids(Some(&former), None),
            Ids(Some(&form), None),
            Ids(Some(&other), None),
        );
        let notice = format!("{index}.notice");
        [
            said(&format!("{index}.former"), former),
            said(&format!("{index}.form"), form),
            changed(&notice, "user_changed_number", former, other, 1),
        ]
    });
    let changes: Vec<Value> = changes.flatten().collect();
    site.post(&webhook_of(&changes)).await;
    site.settle_people().await;
    assert_eq!(site.count(LEADS).await, 12);
    assert_eq!(site.count(CONVERSATIONS).await, 12);
}
