//! Which lead a contact belongs to: numbers, user ids, groups, and what later webhooks add.

use super::*;

#[tokio::test]
async fn a_user_who_hides_the_number_keeps_the_lead() {
    let site = Site::working().await;
    // First only the number is known; a status adds the user id; then the user writes without the number.
    let message = site.outbound("accepted", Some("wamid.out")).await;
    let mut report = status("wamid.out", "delivered", 1);
    report["recipient_user_id"] = json!("US.13");
    site.deliver(&statuses_of(&[report])).await;
    assert_eq!(site.shown(message).await, "delivered");
    site.deliver(&value(json!({"contacts": [{"profile": {"username": "@x"}, "user_id": "US.13"}],
        "messages": [{"from_user_id": "US.13", "id": "wamid.in", "timestamp": "1", "type": "text", "text": {"body": "hi"}}]})))
    .await;
    assert_eq!(site.count("leads").await, 1);
    assert_eq!(
        site.value("SELECT wa_id || user_id || username FROM leads").await,
        "16505551234US.13@x"
    );
    assert_eq!(site.count("conversations").await, 1);
}

#[tokio::test]
async fn a_user_with_a_new_id_keeps_the_lead() {
    let site = Site::working().await;
    let hidden = |user_id: &str, wamid: &str| json!({"from_user_id": user_id, "id": wamid, "timestamp": "1", "type": "text", "text": {"body": "hi"}});
    site.deliver(&messages(&[hidden("US.1", "wamid.1")])).await;
    let change =
        value(json!({"user_id_update": [{"user_id": {"previous": "US.1", "current": "US.2"}, "timestamp": "2"}]}));
    site.post(&envelope(&[("user_id_update", change)])).await;
    site.settle().await;
    site.deliver(&messages(&[hidden("US.2", "wamid.2")])).await;
    assert_eq!(site.value("SELECT string_agg(user_id, ' ') FROM leads").await, "US.2");
}

#[tokio::test]
async fn many_links_to_a_new_person_make_one_lead() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let mut links = JoinSet::new();
    for number in 0..40 {
        let pool = site.pool.clone();
        links.spawn(async move {
            let contact = ContactIdentity {
                wa_id: (number % 3 != 0).then(|| WaId::parse("16505551234").unwrap()),
                user_id: (number % 3 != 1).then(|| UserId::parse("US.13").unwrap()),
                ..ContactIdentity::default()
            };
            let mut tx = pool.begin().await.unwrap();
            let link = link(&mut tx, account_id, &contact).await.unwrap();
            tx.commit().await.unwrap();
            link.lead_id
        });
    }
    links.join_all().await;
    // Links with only one of the ids may have run first; those with both show that they are one person.
    settle_due(&site.pool).await.unwrap();
    assert_eq!(site.count("leads WHERE merged_into IS NULL").await, 1);
    assert_eq!(site.count("conversations WHERE merged_into IS NULL").await, 1);
    let mut tx = site.pool.begin().await.unwrap();
    let refused = link(&mut tx, account_id, &ContactIdentity::default()).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn the_number_that_whatsapp_knows_replaces_the_one_that_was_dialled() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let (dialled, actual) = (contact("+55 11 99999-8888"), contact("551199998888"));
    let mut tx = site.pool.begin().await.unwrap();
    let first = link(&mut tx, account_id, &dialled).await.unwrap();
    learn_recipient(&mut tx, first.lead_id, dialled.wa_id.as_ref(), &actual)
        .await
        .unwrap();
    // The answer comes from the real number; the next message is sent to the dialled number again.
    assert_eq!(link(&mut tx, account_id, &actual).await.unwrap(), first);
    assert_eq!(link(&mut tx, account_id, &dialled).await.unwrap(), first);
    tx.commit().await.unwrap();
    assert_eq!(
        site.value("SELECT wa_id || ' ' || phone FROM leads").await,
        "551199998888 5511999998888"
    );

    // The real number wrote before the dialled one was used.
    let (dialled, actual) = (contact("+52 1 55 1234 5678"), contact("525512345678"));
    let mut tx = site.pool.begin().await.unwrap();
    let real = link(&mut tx, account_id, &actual).await.unwrap();
    assert_eq!(link_recipient(&mut tx, account_id, &dialled).await.unwrap(), real);
    tx.commit().await.unwrap();
    assert_eq!(
        site.value("SELECT string_agg(wa_id, ' ' ORDER BY wa_id) FROM leads")
            .await,
        "525512345678 551199998888"
    );
}

#[tokio::test]
async fn what_is_said_in_a_group_is_in_the_groups_conversation() {
    let site = Site::working().await;
    let mut said = text("wamid.group", "16505551234", "to all");
    said["group_id"] = json!("Y2FwaV9ncm91cA");
    let contacts = json!([{"profile": {"name": "Ada"}, "wa_id": "16505551234"}]);
    site.deliver(&value(json!({"contacts": contacts, "messages": [said]})))
        .await;
    site.deliver(&messages(&[text("wamid.alone", "16505551234", "to you")]))
        .await;
    let account_id = site.account().await;
    let mut tx = site.pool.begin().await.unwrap();
    let group = link_group(&mut tx, account_id, "Y2FwaV9ncm91cA").await.unwrap();
    let alone = link(&mut tx, account_id, &contact("16505551234")).await.unwrap();
    tx.commit().await.unwrap();
    for (wamid, belongs) in [("wamid.group", group), ("wamid.alone", alone)] {
        let found = format!("SELECT lead_id || ' ' || conversation_id FROM whatsapp_messages WHERE wamid = '{wamid}'");
        let expected = format!("{} {}", belongs.lead_id, belongs.conversation_id);
        assert_eq!(site.text(&found).await, Some(expected), "{wamid}");
    }
    // The lead of the group's member has the name too.
    assert_eq!(
        site.value("SELECT name FROM leads WHERE wa_id = '16505551234'").await,
        "Ada"
    );
    assert_eq!((site.count("leads").await, site.count("conversations").await), (2, 2));
}

#[tokio::test]
async fn a_group_has_a_lead_of_its_own() {
    let site = Site::at_rest().await;
    let account_id = site.account().await;
    let mut tx = site.pool.begin().await.unwrap();
    let first = link_group(&mut tx, account_id, "Y2FwaV9ncm91cA").await.unwrap();
    assert_eq!(link_group(&mut tx, account_id, "Y2FwaV9ncm91cA").await.unwrap(), first);
    assert_ne!(
        link_group(&mut tx, account_id, "other").await.unwrap().lead_id,
        first.lead_id
    );
    tx.commit().await.unwrap();
}
